"""MV-LDM trained by two processes on one machine (gloo, CPU); run by test_mvldm_training.

``python mvldm_two_ranks.py DATA FOLDER`` prints one line per claim that holds and fails where one does not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from nerfstudio.utils import comms
from plugin.test_mvldm_training import config_of, iterate, trainer_of
from two_ranks import OnCpu, gathered, say

from lsplat_ns.plugin import optimizers
from lsplat_ns.plugin.mvldm_pipeline import MvldmTrainer, MvldmTrainerConfig
from lsplat_ns.plugin.ranks import average_gradients

AUTOENCODER_STEPS, SAVED, LAST = 2, 4, 7
"""Steps of the autoencoder alone; a checkpoint in the middle of an accumulation of two; the last step."""


def set_up(config: MvldmTrainerConfig, rank: int) -> MvldmTrainer:
    with mock.patch("nerfstudio.pipelines.base_pipeline.DDP", OnCpu):
        return trainer_of(config, rank, world_size=2)


def check_gradients(trainer: MvldmTrainer) -> None:
    """What the optimizer gets is the mean over ranks, each with examples and draws of its own."""
    model, stream = trainer.pipeline.model, trainer.pipeline.datamanager.stream
    step = AUTOENCODER_STEPS
    model.update_to_step(step)
    model._measure_latent_scale(stream[step].to("cpu"))
    parameter = model.network.denoiser.unet.conv_out.weight
    alone = torch.autograd.grad(model.diffusion_loss(stream[step].to("cpu"), stream.noise_seed(step)), parameter)[0]
    sum(trainer.pipeline.get_train_loss_dict(step)[1].values()).backward()
    average_gradients([parameter])
    first, second = gathered(alone)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(parameter.grad, (first + second) / 2, rtol=1e-4, atol=1e-7)
    trainer.optimizers.zero_grad_all()


def states(trainer: MvldmTrainer) -> list[dict[str, torch.Tensor]]:
    """The model of every rank: networks, moving average, scale of the latents."""
    return gathered(trainer.pipeline.model.state_dict())


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def rank_main(rank: int, data: Path, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    comms.LOCAL_PROCESS_GROUP = dist.new_group([0, 1])
    optimizers.writer.EVENT_STORAGE = []
    config = config_of(data, folder, AUTOENCODER_STEPS)
    check_gradients(set_up(config, rank))
    say(rank, "gradients are averaged")

    whole = set_up(config, rank)
    iterate(whole, *range(SAVED + 1))
    whole.save_checkpoint(SAVED)
    iterate(whole, *range(SAVED + 1, LAST + 1))
    uninterrupted, other = states(whole)
    assert same(uninterrupted, other)
    assert int(uninterrupted["averaged_updates"]) == 3 and torch.isfinite(uninterrupted["latent_scale"])
    say(rank, "networks, averages and scales agree")

    dist.barrier()  # the first rank writes the checkpoint
    config.load_dir, config.timestamp = whole.checkpoint_dir, "resumed"
    resumed = set_up(config, rank)
    resumed._load_checkpoint()
    iterate(resumed, *range(resumed._start_step, LAST + 1))
    assert all(same(state, uninterrupted) for state in states(resumed))
    say(rank, "a resumed run is the uninterrupted one")
    # Before the interpreter ends: a group that goes with it may end the process by force, its threads still running.
    comms.LOCAL_PROCESS_GROUP = None
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(rank_main, (Path(sys.argv[1]), Path(sys.argv[2])), nprocs=2)
