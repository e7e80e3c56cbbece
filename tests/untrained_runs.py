"""Runs of latentsplat-tiny with random weights, written without training: enough to test what surrounds the network."""

from __future__ import annotations

from pathlib import Path

import torch


def write_untrained_run(folder: Path) -> Path:
    """Write a run folder and return it. The weights are always the same."""
    from lsplat_ns.latentsplat import LatentSplat
    from lsplat_ns.plugin.recipes import tiny_trainer
    from lsplat_ns.plugin.runs import RunFolderConfig, write_run

    config = RunFolderConfig.of(tiny_trainer("latentsplat-tiny"), folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LatentSplat(config.pipeline.model.network)
    state = {f"_model.network.{name}": value for name, value in network.state_dict().items()}
    write_run(config, {"_model.device_indicator_param": torch.empty(0), **state}, 1, {"source": "random weights"})
    return folder
