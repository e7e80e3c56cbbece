"""``lsplat bench-training --model mvldm``: time and memory of a training step of the published MV-LDM.

Random weights and images: neither time nor memory depends on them. The first row is the published step without any of
the options that save time or memory.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch.cuda.amp import GradScaler

from lsplat_ns.diffusion.objective import TrainingConfig, draw_training_step
from lsplat_ns.mvldm import MultiViewDiffusion, MultiViewDiffusionConfig
from lsplat_ns.mvldm_acceleration import AUTOENCODER_DTYPE, prepare_denoiser_training
from lsplat_ns.plugin.bench_training import settings_on
from lsplat_ns.plugin.mvldm_recipes import published_mvldm_trainer
from lsplat_ns.plugin.optimizers import GuardedOptimizers
from lsplat_ns.scene import Cameras, SceneBatch, Views

CONTEXT, TARGETS = 2, 3
SETTINGS: dict[str, tuple[bool, bool, bool]] = {
    "float32": (False, False, False),
    "bfloat16": (True, False, False),
    "bfloat16, compiled": (True, False, True),
    "bfloat16, low memory": (True, True, False),
}
"""--pipeline.model.training-precision is bfloat16, --pipeline.model.low-memory and
--pipeline.model.compiled-training."""
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class TrainingTiming:
    """One row of the table."""

    setting: str
    milliseconds: float  # median of whole steps, optimizer included
    peak_gb: float | None  # of GPU memory (10^9 bytes); None on a CPU
    loss: float  # of the first step, the same in every setting but for rounding


def random_batch(batch_size: int, size: int, device: torch.device) -> SceneBatch:
    """Examples of random pictures from cameras beside each other."""
    count = CONTEXT + TARGETS
    poses = torch.eye(4).repeat(batch_size, count, 1, 1)
    poses[:, :, 0, 3] = torch.tensor([0.0, 1.0, *torch.linspace(0.2, 0.8, TARGETS).tolist()])
    intrinsics = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]]).repeat(batch_size, count, 1, 1)
    ones = torch.ones(batch_size, count)
    image = torch.rand(batch_size, count, 3, size, size, generator=torch.Generator().manual_seed(0))
    views = Views(image, Cameras(poses, intrinsics, ones, ones), torch.arange(count).repeat(batch_size, 1))
    names = tuple(map(str, range(batch_size)))
    return SceneBatch(views.select(slice(CONTEXT)), views.select(slice(CONTEXT, None)), names).to(device)


def run_mvldm_training_benchmark(
    config: MultiViewDiffusionConfig,
    batch: SceneBatch,
    repeats: int,
    on_row: Callable[[TrainingTiming], None] = lambda row: None,
) -> list[TrainingTiming]:
    """Time steps in every setting.

    Args:
        config: Sizes of the networks.
        batch: What to train on, where to train.
        repeats: Timed steps per row, after some that are not.
        on_row: Called with each row when it is measured; compiling takes minutes.
    """
    device = batch.target.image.device
    rows = []
    torch.backends.cudnn.benchmark = True  # as ns-train has it
    for setting, (half, low_memory, compiled) in settings_on(device, SETTINGS).items():
        torch.manual_seed(0)
        with device:
            model = MultiViewDiffusion(config).train()
        model.autoencoder.requires_grad_(False)
        prepare_denoiser_training(model, low_memory, compiled)
        if half and device.type == "cuda":
            model.autoencoder_dtype = AUTOENCODER_DTYPE
        rows.append(_time_steps(model, batch, setting, half, repeats))
        on_row(rows[-1])
        del model
        gc.collect()  # before the next one is measured
    return rows


def _time_steps(model: MultiViewDiffusion, batch: SceneBatch, setting: str, half: bool, repeats: int) -> TrainingTiming:
    """Steps of the published optimizer; all views take part, so that all steps are alike."""
    samples, device = len(batch.scene), batch.target.image.device
    optimizers = GuardedOptimizers(
        published_mvldm_trainer("mvldm").optimizers, {"denoiser": list(model.denoiser.parameters())}
    )
    on_gpu = device.type == "cuda"
    shape, config = model.latent_shape(batch.target.size), TrainingConfig(drop_context=0.0)
    scaler, times, losses = GradScaler(enabled=False), [], []
    for repeat in range(WARM_UP_STEPS + repeats):
        if repeat == WARM_UP_STEPS and on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()  # what the search for convolution algorithms took is not a step's
        started = time.perf_counter()
        draw = draw_training_step(samples, CONTEXT, TARGETS, shape, config, torch.Generator().manual_seed(repeat))
        optimizers.zero_grad_all()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = model.training_loss(batch, draw)
        loss.backward()
        optimizers.optimizer_scaler_step_some(scaler, ["denoiser"])  # ends with a synchronisation
        if on_gpu:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
        losses.append(float(loss))
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    return TrainingTiming(setting, statistics.median(times[WARM_UP_STEPS:]), peak, losses[0])


def print_mvldm_training_benchmark(repeats: int) -> None:
    """Build the published model, time it and print the table."""
    console = Console()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        console.print("No CUDA device: a step of the published model takes many minutes and some 100 GB here.")
    batch_size = published_mvldm_trainer("mvldm").pipeline.datamanager.batch_size
    with console.status("Training"):
        batch = random_batch(batch_size, 256, device)
        rows = run_mvldm_training_benchmark(
            MultiViewDiffusionConfig(),
            batch,
            repeats,
            lambda row: console.print(f"{row.setting}: {row.milliseconds:.0f} ms"),
        )
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    views = CONTEXT + TARGETS
    table = Table(
        title=f"MV-LDM, training step, published size, {views} views of 256x256, batch {batch_size}, on {where}"
    )
    for column in ("setting", "ms", "peak GB", "loss of the first step"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    for row in rows:
        peak = "" if row.peak_gb is None else f"{row.peak_gb:.1f}"
        table.add_row(row.setting, f"{row.milliseconds:.0f}", peak, f"{row.loss:.4f}")
    console.print(table)
