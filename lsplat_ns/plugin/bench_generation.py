"""``lsplat bench-generation``: time and memory of generating four views with the published MV-LDM.

Random weights: neither time nor memory depends on them. Whole calls from images to images, medians after a warm-up.
"""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lsplat_ns.diffusion.guidance import Conditioning, predict_guided_noise
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
REACHABLE_TFLOPS = 400.0
"""What large bfloat16 products and convolutions reach on an H200; the floor is the counted work at this speed."""


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
    with device:
        model = MultiViewDiffusion(config).eval()
    for parameter in model.denoiser.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def counted_tflop(config: MultiViewDiffusionConfig, size: int, steps: int) -> tuple[float, float]:
    """Work of one group in 10^12 operations: that of the network's calls, and that of the autoencoder.

    Matrix products, convolutions and attention, two operations per multiplication. Nothing is computed. What both
    branches of guidance have in common counts once, as it is computed.
    """
    from torch.utils.flop_counter import FlopCounterMode

    meta = torch.device("meta")
    with meta:
        model = MultiViewDiffusion(config).eval().requires_grad_(False)
    shape = model.latent_shape((size, size))
    told = Conditioning(
        torch.empty(1, 1, *shape, device=meta),
        torch.empty(1, 1 + TARGETS, config.rays.channels, *shape[1:], device=meta),
    )
    noisy, level = torch.empty(1, TARGETS, *shape, device=meta), torch.zeros(1, dtype=torch.int64, device=meta)
    with torch.no_grad(), FlopCounterMode(display=False) as step:
        predict_guided_noise(model.denoiser, noisy, level, told, 3.0)
    with torch.no_grad(), FlopCounterMode(display=False) as autoencoder:
        model.autoencoder.encode(torch.empty(1, 3, size, size, device=meta))
        model.autoencoder.decode(torch.empty(TARGETS, *shape, device=meta))
    return steps * step.get_total_flops() / 1e12, autoencoder.get_total_flops() / 1e12


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
        gc.collect()  # before the next one is measured
    return rows


def sample(model: MultiViewDiffusion, views: Views, solver: SolverConfig) -> Tensor:
    """Images of all views but the first, generated from that, always with the same noise."""
    noise = GroupNoise.draw(ViewGroup((0,), tuple(range(1, 1 + TARGETS)), 0), 0, model.latent_shape(views.size), seed=0)
    return model.sample(views.select([0]), views.cameras.select(slice(1, None)), noise, SamplingConfig(solver))


def _time(
    model: MultiViewDiffusion, views: Views, solver: SolverConfig, setting: str, repeats: int, exact: Tensor | None
) -> tuple[GenerationTiming, Tensor]:
    on_gpu = views.image.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        images = sample(model, views, solver)
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    quality = None if exact is None else float(psnr(images, exact).mean())
    return GenerationTiming(solver, setting, statistics.median(times[1:]), times[0], peak, quality), images


def print_generation_benchmark(repeats: int, memory_gb: float | None = None) -> None:
    """Build the published model, time it and print the table.

    Args:
        repeats: Timed calls per row.
        memory_gb: Let the process use so much of the GPU's memory only, as if it had no more.
    """
    console, config, size = Console(), MultiViewDiffusionConfig(), 256
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        console.print("No CUDA device: a group of the published model takes many minutes here.")
    elif memory_gb is not None:
        whole = torch.cuda.get_device_properties(device).total_memory / 1e9
        torch.cuda.set_per_process_memory_fraction(min(memory_gb / whole, 1.0))
    with console.status("Generating (compiling takes minutes the first time)"):
        rows = run_generation_benchmark(config, size, device, repeats)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    limit = "" if memory_gb is None else f", limited to {memory_gb:g} GB"
    title = f"MV-LDM, published size, 1 context to {TARGETS} target views, {size}x{size}, guidance 3, random weights"
    table = Table(title=f"{title}, on {where}{limit}")
    columns = (
        "solver",
        "steps",
        "setting",
        "s",
        "first call, s",
        "peak GB",
        "PSNR, dB",
        "TFLOP/s",
        "original on an H200",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("solver", "setting") else "right")
    for row in rows:
        key = (row.solver.kind, row.solver.steps)
        original = "{:.2f} s, {:.1f} GB".format(*ORIGINAL_ON_H200[key]) if key in ORIGINAL_ON_H200 else ""
        peak, quality = ("" if value is None else f"{value:.1f}" for value in (row.peak_gb, row.psnr))
        speed = f"{sum(counted_tflop(config, size, row.solver.steps)) / row.seconds:.0f}"
        cells = (row.solver.kind, str(row.solver.steps), row.setting, f"{row.seconds:.3f}", f"{row.first_call:.1f}")
        table.add_row(*cells, peak, quality, speed, original)
    console.print(table)
    for solver in SOLVERS:
        network, autoencoder = counted_tflop(config, size, solver.steps)
        console.print(
            f"{solver.steps} steps: {network:.0f} TFLOP counted, {autoencoder:.1f} for the autoencoder; at "
            f"{REACHABLE_TFLOPS:.0f} TFLOP/s they would take {(network + autoencoder) / REACHABLE_TFLOPS:.2f} s"
        )
