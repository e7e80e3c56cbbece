"""``lsplat bench``: how long the published model takes on this machine, beside what the original took.

Random weights and images: time does not depend on them. Medians after a warm-up, by CUDA events on a GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from lsplat_ns.acceleration import accelerate
from lsplat_ns.geometry.rays import bounds_from_baseline
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.plugin.drawing import view_outputs, with_spread
from lsplat_ns.scene import Cameras, Views
from lsplat_ns.wording import counted

SIZE = (256, 256)


@dataclass(frozen=True)
class Timing:
    """One row of the table, in milliseconds."""

    name: str
    milliseconds: float
    original_on_h200: float | None  # the original code on one NVIDIA H200, float32


def run_benchmark(network: LatentSplat, repeats: int) -> list[Timing]:
    """Time encoding and viewing of two random 256x256 pictures.

    Args:
        network: In eval mode, on its device, accelerated or not.
        repeats: Timed calls per row.
    """
    device = next(network.parameters()).device
    context = _random_context(device)
    with torch.no_grad():
        sampled = network.encode(context, generator=torch.Generator(device).manual_seed(0))
        gaussians = sampled.sample(torch.Generator(device).manual_seed(1))
        shown, black = with_spread(gaussians, sampled.features), torch.zeros(3, device=device)

        def view(count: int) -> Callable[[], object]:
            cameras = _cameras_between(context.cameras, count)
            return lambda: network.view(gaussians, cameras, SIZE, deterministic=True)

        def viewer_frame() -> object:
            return view_outputs(
                network, shown, _cameras_between(context.cameras, 1), SIZE, short_side=SIZE[0],
                decode=True, seed=None, units_per_network_unit=1.0, background=black,
            )  # fmt: skip

        return [
            Timing("encode 2 views", _median(lambda: network.encode(context), device, repeats), 70.7),
            Timing("novel view, splat + decode", _median(view(1), device, repeats), 11.1),
            Timing("8 novel views at once", _median(view(8), device, repeats), 51.1),
            Timing("viewer frame, all outputs", _median(viewer_frame, device, repeats), None),
        ]


def print_benchmark(device: str, acceleration: str, repeats: int) -> None:
    """Build the published model, time it and print the table."""
    console = Console()
    network = LatentSplat(discriminator=False).to(device).eval()
    started = time.perf_counter()
    if acceleration != "off":
        accelerate(network, compiled=acceleration == "compiled")
    with console.status("Warming up (compiling takes about a minute the first time)"):
        timings = run_benchmark(network, repeats)
    name = torch.cuda.get_device_name(0) if device == "cuda" else f"CPU, {counted(torch.get_num_threads(), 'thread')}"
    table = Table(title=f"latentSplat, published size, 256x256, {name}, acceleration {acceleration}")
    for column in ("work", "ms", "original on an H200, ms"):
        table.add_column(column, justify="left" if column == "work" else "right")
    for row in timings:
        original = "" if row.original_on_h200 is None else f"{row.original_on_h200:.1f}"
        table.add_row(row.name, f"{row.milliseconds:.2f}", original)
    console.print(table)
    if device == "cuda":
        console.print(f"Peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    console.print(f"Whole benchmark {time.perf_counter() - started:.0f} s")


def _random_context(device: torch.device) -> Views:
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    poses[0, 1, 0, 3] = 1.0
    intrinsics = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]]).repeat(1, 2, 1, 1)
    cameras = Cameras(poses, intrinsics, torch.ones(1, 2), torch.ones(1, 2))
    near, far = bounds_from_baseline(cameras, SIZE)
    image = torch.rand(1, 2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return Views(image, cameras.with_bounds(near[:, None], far[:, None]), torch.tensor([[0, 1]])).to(device)


def _cameras_between(context: Cameras, count: int) -> Cameras:
    device = context.near.device
    poses = torch.eye(4, device=device).repeat(1, count, 1, 1)
    poses[0, :, 0, 3] = torch.linspace(0.2, 0.8, count, device=device)
    intrinsics = context.intrinsics_norm[:, :1].expand(1, count, 3, 3)
    return Cameras(poses, intrinsics, context.near[:, :1].expand(1, count), context.far[:, :1].expand(1, count))


def _median(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    for _ in range(2 if device.type == "cpu" else 5):
        work()
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times)
    torch.cuda.synchronize()
    events = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        events.append(start.elapsed_time(end))
    return statistics.median(events)
