"""``lsplat bench-training``: time and memory of a training step of the published model, beside the original's.

Random weights and images: neither time nor memory depends on them. The perceptual network is a random one as well.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.cuda.amp import GradScaler

from lsplat_ns.acceleration import prepare_training
from lsplat_ns.geometry.rays import with_scene_bounds
from lsplat_ns.latentsplat import LatentSplat, LatentSplatConfig
from lsplat_ns.losses import LossSchedule, PerceptualDistance
from lsplat_ns.losses.objective import step_losses
from lsplat_ns.losses.perceptual import BACKBONE_FILE, STAGES
from lsplat_ns.plugin.optimizers import FINE_TUNED, GuardedOptimizers
from lsplat_ns.plugin.recipes import published_trainer
from lsplat_ns.scene import Cameras, SceneBatch, Views

BATCH, TARGETS = 2, 4
STAGES_OF_TRAINING = {"image (mse + lpips)": 60_000, "full (decoder + GAN)": 150_000}
"""A step of each stage of the published schedule."""
ORIGINAL_ON_H200 = {"image (mse + lpips)": (289.0, 19.5), "full (decoder + GAN)": (419.0, 32.7)}
"""The original code on one NVIDIA H200, float32: milliseconds per step and GB."""
SETTINGS: dict[str, tuple[torch.dtype | None, bool, bool]] = {
    "float32": (None, False, False),
    "bfloat16": (torch.bfloat16, False, False),
    "bfloat16, compiled": (torch.bfloat16, False, True),
    "bfloat16, low memory": (torch.bfloat16, True, False),
}
"""--pipeline.model.training-precision, --pipeline.model.low-memory and --pipeline.model.compiled-training."""


@dataclass(frozen=True)
class TrainingTiming:
    """One row of the table."""

    stage: str
    setting: str
    milliseconds: float  # median of whole steps, optimizers included
    peak_gb: float | None  # of GPU memory (10^9 bytes); None on a CPU


def settings_on(device: torch.device, settings: Mapping[str, tuple]) -> dict[str, tuple]:
    """What is timed on a device: on a CPU nothing that is compiled (the last option), which takes minutes a row."""
    return {name: options for name, options in settings.items() if device.type == "cuda" or not options[-1]}


def random_batch(size: int, device: torch.device) -> SceneBatch:
    """Examples of random pictures from cameras beside each other."""
    count = 2 + TARGETS
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4).repeat(BATCH, count, 1, 1)
    poses[:, :, 0, 3] = torch.tensor([0.0, 1.0, *torch.linspace(0.2, 0.8, TARGETS).tolist()])
    intrinsics = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]]).repeat(BATCH, count, 1, 1)
    ones = torch.ones(BATCH, count)
    image = torch.rand(BATCH, count, 3, size, size, generator=generator)
    views = Views(image, Cameras(poses, intrinsics, ones, ones), torch.arange(count).repeat(BATCH, 1))
    batch = SceneBatch(views.select(slice(2)), views.select(slice(2, None)), ("first", "second"))
    return with_scene_bounds(batch).to(device)


def write_random_perceptual_weights(folder: Path) -> Path:
    """A file like the published one of VGG16, with random numbers in it."""
    state, layer, inputs = {}, 0, 3
    for widths in STAGES:
        for width in widths:
            state[f"features.{layer}.weight"] = torch.randn(width, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
            state[f"features.{layer}.bias"] = torch.zeros(width)
            layer, inputs = layer + 2, width
        layer += 1
    path = folder / BACKBONE_FILE
    torch.save(state, path)
    return path


def run_training_benchmark(
    config: LatentSplatConfig, size: int, device: torch.device, repeats: int
) -> list[TrainingTiming]:
    """Time steps of both stages in every setting.

    Args:
        config: Sizes of the networks.
        size: Side of the images in pixels.
        device: Where to train.
        repeats: Timed steps per row, after three that are not.
    """
    batch = random_batch(size, device)
    torch.backends.cudnn.benchmark = True  # as ns-train has it
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        backbone = write_random_perceptual_weights(Path(folder))
        for stage, step in STAGES_OF_TRAINING.items():
            for setting, options in settings_on(device, SETTINGS).items():
                torch.manual_seed(0)
                network = LatentSplat(config).to(device).train()
                prepare_training(network, *options)
                dtype = options[0]
                perceptual = PerceptualDistance(dtype, backbone)
                rows.append(_time_steps(network, perceptual, batch, stage, step, setting, repeats))
                del network
                gc.collect()  # before the next one is measured
    return rows


def _time_steps(
    network: LatentSplat,
    perceptual: PerceptualDistance,
    batch: SceneBatch,
    stage: str,
    step: int,
    setting: str,
    repeats: int,
) -> TrainingTiming:
    for parameter in network.autoencoder.parameters():
        setattr(parameter, FINE_TUNED, True)
    groups = {
        "generator": [*network.encoder.parameters(), *network.autoencoder.parameters()],
        "discriminator": list(network.discriminator.parameters()),
    }
    optimizers = GuardedOptimizers(published_trainer("latentsplat").optimizers, groups)
    schedule, scaler, device = LossSchedule(), GradScaler(enabled=False), batch.target.image.device
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for repeat in range(3 + repeats):
        if repeat == 3 and on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()  # what the search for convolution algorithms took is not a step's
        started = time.perf_counter()
        optimizers.zero_grad_all()
        generator = torch.Generator(device).manual_seed(repeat)
        losses = step_losses(network, batch, schedule, step, perceptual=perceptual, generator=generator).losses
        sum(losses.values()).backward()
        optimizers.optimizer_scaler_step_some(scaler, list(groups))  # ends with a synchronisation
        if on_gpu:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    return TrainingTiming(stage, setting, statistics.median(times[3:]), peak)


def print_training_benchmark(repeats: int) -> None:
    """Build the published model, time it and print the table."""
    console = Console()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        console.print("No CUDA device: a step of the published model takes minutes and some 20 GB here.")
    with console.status("Training"):
        rows = run_training_benchmark(LatentSplatConfig(), 256, device, repeats)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    title = f"Training step, published size, 256x256, batch {BATCH}, {TARGETS} targets, random weights, on {where}"
    table = Table(title=title)
    for column in ("stage", "setting", "ms", "peak GB", "original on an H200"):
        table.add_column(column, justify="left" if column in ("stage", "setting") else "right")
    for row in rows:
        milliseconds, gigabytes = ORIGINAL_ON_H200[row.stage]
        peak = "" if row.peak_gb is None else f"{row.peak_gb:.1f}"
        original = f"{milliseconds:.0f} ms, {gigabytes:.1f} GB"
        table.add_row(row.stage, row.setting, f"{row.milliseconds:.0f}", peak, original)
    console.print(table)
