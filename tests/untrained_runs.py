"""Runs of tiny networks with random weights, written without training: enough to test what surrounds the network."""

from __future__ import annotations

from pathlib import Path

import torch


def write_untrained_run(folder: Path, method: str = "latentsplat-tiny") -> Path:
    """Write a run folder and return it. The weights are always the same."""
    from lsplat_ns.latentsplat import LatentSplat
    from lsplat_ns.plugin.recipes import published_trainer, tiny_trainer
    from lsplat_ns.plugin.runs import RunFolderConfig, write_run

    config = RunFolderConfig.of((tiny_trainer if method == "latentsplat-tiny" else published_trainer)(method), folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LatentSplat(config.pipeline.model.network)
    state = {f"_model.network.{name}": value for name, value in network.state_dict().items()}
    write_run(config, {"_model.device_indicator_param": torch.empty(0), **state}, 1, {"source": "random weights"})
    return folder


def write_untrained_mvldm(folder: Path, *, published: bool = False) -> Path:
    """Write a run folder of a tiny MV-LDM, or one of the published size, whose every layer has a say, and return it.

    Always the same weights.
    """
    from lsplat_ns.checkpoints.mvldm_runs import write_mvldm
    from lsplat_ns.mvldm import MultiViewDiffusion, MultiViewDiffusionConfig, tiny_multi_view_diffusion

    config = MultiViewDiffusionConfig() if published else tiny_multi_view_diffusion()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MultiViewDiffusion(config)
        for parameter in model.denoiser.parameters():
            if not bool(parameter.any()):
                torch.nn.init.normal_(parameter, std=0.02)
    write_mvldm(folder, config, model.state_dict(), {"source": "random weights"})
    return folder
