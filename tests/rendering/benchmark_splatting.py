"""Times the reference rasteriser on the CPU and gsplat on CUDA: ``python tests/rendering/benchmark_splatting.py``.

Prints medians after a warm-up and the memory a call needs beyond its inputs and results. Scenes look like the
encoder's: every pixel of two views unprojected to a random depth, opacities up to one third.
"""

import argparse
import resource
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lsplat_ns.geometry.covariance import covariances_from_scales
from lsplat_ns.rendering.splatting import SplattingConfig, gsplat_status, splat
from lsplat_ns.scene import Cameras, Gaussians


@dataclass(frozen=True)
class Workload:
    """What is drawn: a scene from ``views`` pixel grids of ``grid`` x ``grid``, and the images."""

    name: str
    grid: int
    samples: int
    size: int
    targets: int
    footprint: tuple[float, float] = (0.5, 2.0)  # standard deviations in context pixels
    repeats: int = 5


WORKLOADS = (
    Workload("32,768 Gaussians, 1 x 128^2", grid=128, samples=1, size=128, targets=1),
    Workload("24,576 Gaussians, 4 x 64^2", grid=64, samples=3, size=64, targets=4),
    Workload("32,768 large Gaussians, 1 x 128^2", grid=128, samples=1, size=128, targets=1, footprint=(10, 60)),
    Workload("393,216 Gaussians, 1 x 256^2", grid=256, samples=3, size=256, targets=1, repeats=3),
)


def cameras_on_an_arc(count: int, baseline: float = 1.0) -> Cameras:
    """Cameras [1, count] beside each other, turned slightly inwards, near 0.3 and far 460."""
    world_from_camera = torch.eye(4).repeat(1, count, 1, 1)
    for index, position in enumerate(torch.linspace(-0.5, 0.5, count) if count > 1 else torch.zeros(1)):
        angle = -0.2 * position
        world_from_camera[0, index, :3, :3] = torch.tensor(
            [[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]]
        )
        world_from_camera[0, index, 0, 3] = position * baseline
    intrinsics = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]]).repeat(1, count, 1, 1)
    return Cameras(world_from_camera, intrinsics, torch.full((1, count), 0.3), torch.full((1, count), 460.0))


def unprojected_scene(
    grid: int, samples: int = 1, footprint: tuple[float, float] = (0.5, 2.0), opacity: float = 1 / 3, seed: int = 0
) -> Gaussians:
    """Gaussians [1, 2 * grid^2 * samples] on the pixels of two views, at depths of 1 to 8 baselines."""
    generator = torch.Generator().manual_seed(seed)
    context = cameras_on_an_arc(2)
    centres = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    count = grid * grid * samples
    means, scales = [], []
    for view in range(2):
        points = torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 1, 3).repeat(1, samples, 1).reshape(-1, 3)
        z = 8 ** torch.rand(count, 1, generator=generator)
        local = points @ torch.linalg.inv(context.intrinsics_norm[0, view]).T * z
        pose = context.world_from_camera[0, view]
        means.append(local @ pose[:3, :3].T + pose[:3, 3])
        low, high = footprint
        scales.append((low + (high - low) * torch.rand(count, 3, generator=generator)) * z / (0.9 * grid))
    quaternions = torch.randn(2 * count, 4, generator=generator)
    return Gaussians(
        torch.cat(means)[None],
        covariances_from_scales(torch.cat(scales), quaternions)[None],
        opacity * torch.rand(1, 2 * count, generator=generator),
        torch.randn(1, 2 * count, 3, 25, generator=generator) * 0.3,
        torch.randn(1, 2 * count, 4, 9, generator=generator) * 0.3,
    )


class PeakMemory:
    """Largest growth of memory inside the ``with`` block, in MiB: CUDA's own count, or this process's pages."""

    def __init__(self, device: str) -> None:
        self.device, self.mib = device, 0.0

    def __enter__(self) -> "PeakMemory":
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            self.start, self.done = self._resident(), threading.Event()
            self.watcher = threading.Thread(target=self._watch)
            self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            self.mib = (torch.cuda.max_memory_allocated() - self.start) / 2**20
        else:
            self.done.set()
            self.watcher.join()

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def _watch(self) -> None:
        while not self.done.wait(0.002):
            self.mib = max(self.mib, (self._resident() - self.start) / 2**20)


def median_ms(call: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of a call in milliseconds, after one warm-up."""
    call()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(work: Workload, backend: str, device: str) -> tuple[float, float, float, float]:
    """Forward ms, forward + backward ms, and the peak MiB of each."""
    scene = unprojected_scene(work.grid, work.samples, work.footprint).to(device)
    cameras = cameras_on_an_arc(work.targets).to(device)
    config = SplattingConfig(backend=backend)
    size = (work.size, work.size)
    names = ("means", "covariances", "opacities", "color_harmonics", "feature_harmonics")
    leaves = replace(scene, **{name: getattr(scene, name).clone().requires_grad_() for name in names})

    @torch.no_grad()
    def forward() -> None:
        splat(scene, cameras, size, config)

    def train() -> None:
        drawn = splat(leaves, cameras, size, config)
        loss = drawn.color.square().sum() + drawn.features.square().sum() + drawn.alpha.sum()
        torch.autograd.grad(loss, [getattr(leaves, name) for name in names])

    results = []
    for call in (forward, train):
        with PeakMemory(device) as peak:  # first, before the allocator holds pages of earlier calls
            call()
        milliseconds = median_ms(call, device, work.repeats)
        results.append((milliseconds, peak.mib))
    (drawing, drawing_mib), (training, training_mib) = results
    return drawing, training, drawing_mib, training_mib


def main() -> None:
    """Measure every workload on every usable backend."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    torch.set_num_threads(parser.parse_args().threads)
    backends = [("reference", "cpu")]
    problem = gsplat_status()
    if problem is None:
        backends.append(("gsplat", "cuda"))
        device_line = f"CUDA: {torch.cuda.get_device_name()}"
    else:
        device_line = problem
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads. {device_line}")
    print(f"{'colour + features + depth + alpha':36s} {'backend':10s} {'draw':>10s} {'train':>10s} {'peak MiB':>14s}")
    for work in WORKLOADS:
        for backend, device in backends:
            draw, train, draw_mib, train_mib = measure(work, backend, device)
            peak = f"{draw_mib:.0f} / {train_mib:.0f}"
            print(f"{work.name:36s} {backend:10s} {draw:7.1f} ms {train:7.1f} ms {peak:>14s}")


if __name__ == "__main__":
    main()
