"""``lsplat bench-generation``: time and memory of generating four views with the published MV-LDM.

Random weights: neither time nor memory depends on them. Whole calls from images to images, medians after a warm-up.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lsplat_ns.diffusion.sampler import GroupNoise, SamplingConfig
from lsplat_ns.diffusion.schedule import SolverConfig
from lsplat_ns.diffusion.view_plan import ViewGroup
from lsplat_ns.evaluation.metrics import psnr
from lsplat_ns.mvldm import MultiViewDiffusion, MultiViewDiffusionConfig
from lsplat_ns.mvldm_acceleration import accelerate_generation
from lsplat_ns.scene import Cameras, Views

TARGETS = 4
SOLVERS = (SolverConfig("ddim", 70), SolverConfig("dpm-solver++", 20))
ORIGINAL_ON_H200 = {("ddim", 70): (4.45, 6.0)}
"""The original code on one NVIDIA H200, float32: seconds and GB."""


@dataclass(frozen=True)
class GenerationTiming:
    """One row of the table."""

    solver: SolverConfig
    setting: str
    seconds: float
    first_call: float  # seconds, with capturing and compiling
    peak_gb: float | None  # of GPU memory (10^9 bytes); None on a CPU
    psnr: float | None  # dB against float32 with the same noise; None for float32 itself


def build(config: MultiViewDiffusionConfig, device: torch.device) -> MultiViewDiffusion:
    """A network whose zero layers are random as well, so that every part counts."""
    torch.manual_seed(0)
    model = MultiViewDiffusion(config).eval()
    for parameter in model.denoiser.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.02)
    return model.to(device)


def _views(size: int, device: torch.device) -> Views:
    count = 1 + TARGETS
    poses = torch.eye(4).repeat(1, count, 1, 1)
    poses[0, :, 0, 3] = 0.25 * torch.arange(count)
    intrinsics = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]]).repeat(1, count, 1, 1)
    ones = torch.ones(1, count)
    image = torch.rand(1, count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Views(image, Cameras(poses, intrinsics, ones, ones), torch.arange(count)[None]).to(device)


def run_generation_benchmark(
    config: MultiViewDiffusionConfig,
    size: int,
    device: torch.device,
    repeats: int,
    solvers: tuple[SolverConfig, ...] = SOLVERS,
) -> list[GenerationTiming]:
    """Time whole groups of one context and four target views, in float32 and accelerated.

    Args:
        config: Sizes of the networks.
        size: Side of the images in pixels.
        device: Where to generate.
        repeats: Timed calls per row.
        solvers: What to time.
    """
    views = _views(size, device)
    rows, exact_images = [], {}
    for setting in ("float32", "mixed", "compiled"):
        model = build(config, device)
        if setting != "float32":
            accelerate_generation(model, compiled=setting == "compiled")
        for solver in solvers:
            row, images = _time(model, views, solver, setting, repeats, exact_images.get(solver))
            exact_images.setdefault(solver, images)
            rows.append(row)
        del model
    return rows


def _time(
    model: MultiViewDiffusion, views: Views, solver: SolverConfig, setting: str, repeats: int, exact: Tensor | None
) -> tuple[GenerationTiming, Tensor]:
    on_gpu = views.image.device.type == "cuda"
    shape = model.latent_shape(views.size)
    noise = GroupNoise.draw(ViewGroup((0,), tuple(range(1, 1 + TARGETS)), 0), 0, shape, seed=0)
    context, cameras = views.select([0]), views.cameras.select(slice(1, None))
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        images = model.sample(context, cameras, noise, SamplingConfig(solver))
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    quality = None if exact is None else float(psnr(images, exact).mean())
    return GenerationTiming(solver, setting, statistics.median(times[1:]), times[0], peak, quality), images


def print_generation_benchmark(repeats: int) -> None:
    """Build the published model, time it and print the table."""
    console = Console()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        console.print("No CUDA device: a group of the published model takes many minutes here.")
    with console.status("Generating (compiling takes minutes the first time)"):
        rows = run_generation_benchmark(MultiViewDiffusionConfig(), 256, device, repeats)
    table = Table(title="MV-LDM, published size, 1 context to 4 target views, 256x256, guidance 3, random weights")
    for column in ("solver", "steps", "setting", "s", "first call, s", "peak GB", "PSNR, dB", "original on an H200"):
        table.add_column(column, justify="left" if column in ("solver", "setting") else "right")
    for row in rows:
        key = (row.solver.kind, row.solver.steps)
        original = "{:.2f} s, {:.1f} GB".format(*ORIGINAL_ON_H200[key]) if key in ORIGINAL_ON_H200 else ""
        peak, quality = ("" if value is None else f"{value:.1f}" for value in (row.peak_gb, row.psnr))
        cells = (row.solver.kind, str(row.solver.steps), row.setting, f"{row.seconds:.3f}", f"{row.first_call:.1f}")
        table.add_row(*cells, peak, quality, original)
    console.print(table)
