"""Two training processes on one machine, as nerfstudio's launcher starts them; run by test_training.

``python two_ranks.py DATA FOLDER`` prints one line per claim that holds and fails where one does not. On two GPUs with
NCCL where there are two, else on the CPU with gloo.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from nerfstudio.utils import comms
from plugin.test_training import config_of, iterate, trainer_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.losses import AdversarialConfig, LossSchedule, LossTerm
from lsplat_ns.losses.objective import StepNoise, step_losses
from lsplat_ns.plugin import optimizers
from lsplat_ns.plugin.ranks import average_gradients
from lsplat_ns.plugin.trainer import LatentSplatTrainer
from lsplat_ns.scene import SceneBatch, Views, map_tensors

WITHOUT_GAN = LossSchedule(
    gaussian=(LossTerm("kl", 0.01),),
    render_image=(LossTerm("mse", 10.0),),
    combined=(LossTerm("mse"),),
    adversarial=AdversarialConfig("none"),
)
"""Batch normalisation and the adaptive weight see the examples of their own rank, as in the original; and l1's gradient
jumps where rounding changes the sign of a difference."""


def joined(parts: list[SceneBatch]) -> SceneBatch:
    """One batch of several ranks' examples."""

    def views(name: str) -> Views:
        chosen = [getattr(part, name) for part in parts]
        cameras = type(chosen[0].cameras)(
            *(torch.cat([getattr(v.cameras, f) for v in chosen]) for f in chosen[0].cameras.__dataclass_fields__)
        )
        return Views(torch.cat([v.image for v in chosen]), cameras, torch.cat([v.frame for v in chosen]))

    return SceneBatch(views("context"), views("target"), tuple(name for part in parts for name in part.scene))


def gathered(value: object) -> list:
    """All ranks' values, tensors on the CPU."""
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, map_tensors(value, lambda tensor: tensor.detach().cpu()))
    return parts


def check_gradients(trainer: LatentSplatTrainer) -> None:
    """The averaged gradient is that of one process with all examples.

    Of five batches, at least three must agree: in a few, rounding moves a Gaussian's depth into the next bucket, or its
    opacity across the least that is drawn, and the gradient jumps.
    """
    errors = [gradient_error(trainer, step) for step in range(5)]
    assert sorted(errors)[2] <= 1e-5, errors


def gradient_error(trainer: LatentSplatTrainer, step: int) -> float:
    """Largest difference between the averaged and the joint gradient at a step, relative to the largest gradient."""
    model, network = trainer.pipeline.model, trainer.pipeline.model.network
    batch, _ = trainer.pipeline.datamanager.next_train(step)
    noise = noise_for(network, batch)

    def with_noise(*given: object, generator: object, **options: object) -> object:
        return step_losses(*given, noise=noise, **options)

    patched = mock.patch("lsplat_ns.plugin.model.step_losses", with_noise)
    with mock.patch.object(model, "schedule", WITHOUT_GAN), patched:
        losses = trainer.pipeline.model(batch, 0)["losses"]
    sum(losses.values()).backward()
    average_gradients(network.parameters())
    averaged = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()

    parts = map_tensors(tuple(gathered((batch, noise))), lambda tensor: tensor.to(trainer.device))
    everything = StepNoise(*(torch.cat([getattr(n, f) for _, n in parts]) for f in ("depth", "features", "latent")))
    single = deepcopy(network)
    joint = step_losses(single, joined([b for b, _ in parts]), WITHOUT_GAN, 0, noise=everything)
    sum(joint.losses.values()).backward()
    alone = {n: p.grad for n, p in single.named_parameters() if p.grad is not None}
    used = {name for name, gradient in averaged.items() if bool(gradient.any())}
    assert used and used <= alone.keys()
    largest = max(float(gradient.abs().max()) for gradient in alone.values())
    return max(float((averaged[name] - wanted).abs().max()) for name, wanted in alone.items()) / largest


def check_lone_gradients(device: str) -> None:
    """What only one rank used is averaged as well; what none used keeps no gradient; any type and layout will do."""
    rank = dist.get_rank()
    both, lone, unused = (nn.Parameter(torch.zeros(2, 3, 4, 4, device=device)) for _ in range(3))
    half = nn.Parameter(torch.zeros(5, device=device, dtype=torch.float64))
    wanted = torch.arange(96.0, device=device).reshape(2, 3, 4, 4)
    both.grad, half.grad = wanted * (2 * rank), torch.full_like(half, rank)
    if rank == 1:
        lone.grad = wanted.to(memory_format=torch.channels_last)
    average_gradients([both, lone, unused, half])
    assert torch.equal(both.grad, wanted) and torch.equal(lone.grad, wanted / 2) and unused.grad is None
    assert torch.equal(half.grad, torch.full_like(half, 0.5))


def noise_for(network: LatentSplat, batch: SceneBatch) -> StepNoise:
    """What a step draws, for this rank's example."""
    device, channels = batch.target.image.device, network.config.autoencoder.latent_channels
    generator = torch.Generator(device).manual_seed(dist.get_rank())
    depth = network.encoder.draw_depth_noise(batch.context, generator)
    count, targets = network.encoder.gaussian_count(2, batch.context.size), batch.target.frame.shape[1]
    shapes = (1, count, channels, 9), (1, targets, channels, *network.render_size(batch.target.size))
    return StepNoise(depth, *(torch.randn(shape, generator=generator, device=device) for shape in shapes))


def rank_main(rank: int, data: Path, folder: Path) -> None:
    on_gpus = torch.cuda.device_count() >= 2
    if on_gpus:
        torch.cuda.set_device(rank)  # where NCCL sends objects through
        torch.backends.cudnn.allow_tf32 = False
    dist.init_process_group(
        "nccl" if on_gpus else "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    comms.LOCAL_PROCESS_GROUP = dist.new_group([0, 1])
    optimizers.writer.EVENT_STORAGE = []
    config = config_of(data, folder, "cuda" if on_gpus else "cpu")
    config.pipeline.datamanager.preparation.image_size = (32, 32)
    with nullcontext() if on_gpus else mock.patch("nerfstudio.pipelines.base_pipeline.DDP", OnCpu):
        trainer = trainer_of(config, rank, world_size=2)
    check_lone_gradients(trainer.device)

    check_gradients(trainer)
    say(rank, "gradients agree")

    for step in range(20):
        iterate(trainer, step)
    names, values = zip(*trainer.pipeline.model.network.named_parameters(), strict=True)
    for name, *of_ranks in zip(names, *gathered(values), strict=True):
        assert torch.equal(*of_ranks), name
    say(rank, "parameters agree")

    epoch = [trainer.pipeline.datamanager.stream[step].scenes for step in range(scenes_per_epoch_and_rank(data))]
    first, second = gathered([name for scenes in epoch for name in scenes])
    assert first and not set(first) & set(second), (first, second)
    say(rank, "no example is read twice")

    stop_together(trainer, rank)
    say(rank, "stopped after the same step")
    # Before the interpreter ends: a group that goes with it may end the process by force, its threads still running.
    comms.LOCAL_PROCESS_GROUP = None
    dist.barrier()
    dist.destroy_process_group()


def scenes_per_epoch_and_rank(data: Path) -> int:
    return len(json.loads((data / "train" / "index.json").read_text())) // dist.get_world_size()


def stop_together(trainer: LatentSplatTrainer, rank: int) -> None:
    """Ctrl-C that reaches one rank only stops both, after the same step."""
    trainer.stop_training = False
    stopped_after = None
    for step in range(20, 25):
        if rank == 1 and step == 22:
            trainer._on_signal(signal.SIGINT, None)
        iterate(trainer, step)
        if trainer.stop_training:
            stopped_after = step
            break
    assert gathered(stopped_after) == [22, 22]


class OnCpu(DistributedDataParallel):
    """nerfstudio's wrapping without its device ids, which only GPUs have."""

    def __init__(self, model: nn.Module, device_ids: list[int], **options: object) -> None:
        super().__init__(model, **options)


def say(rank: int, claim: str) -> None:
    if rank == 0:
        print(claim, flush=True)


if __name__ == "__main__":
    data, folder = (Path(argument).resolve() for argument in sys.argv[1:3])
    folder.mkdir(exist_ok=True)
    (folder / "meeting").unlink(missing_ok=True)  # of a call that died
    torch.multiprocessing.spawn(rank_main, (data, folder), nprocs=2)
