"""``lsplat bench-data``: how fast training data are prepared here, and what the time goes into.

Beside it runs the straightforward path: load whole chunks, decode, rescale whole images with Pillow, crop, convert to
float, and let torch's defaults collate and send.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lsplat_ns.data.batches import PreparationConfig, make_byte_example
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.re10k import Re10kSplit, read_chunk, scene_video
from lsplat_ns.data.streams import StreamConfig, TrainingStream, training_batches
from lsplat_ns.data.transforms import cropped_size, rescale_and_crop
from lsplat_ns.data.view_sampling import ViewSamplingConfig, sample_views
from lsplat_ns.errors import SceneDataError
from lsplat_ns.wording import counted

ROUNDS = 3
STAGE_EXAMPLES = 48
"""Examples that are timed stage by stage at least: whole chunks, as opening one serves all its scenes."""


@dataclass(frozen=True)
class LoaderTiming:
    """How a loader did."""

    examples_per_second: float
    cpu_ms_per_example: float  # of all processes, and so hardly disturbed by what else runs
    seconds_to_first: float
    worker_peak_mb: float | None  # the largest process, where the system tells; includes what it inherited


@dataclass(frozen=True)
class DataBenchmark:
    """What ``lsplat bench-data`` prints."""

    stages: dict[str, float]  # milliseconds per example, in one process
    loader: LoaderTiming
    straightforward: LoaderTiming
    largest_difference: int  # between both paths, in 1/255


def run_data_benchmark(
    root: Path, preparation: PreparationConfig, sampling: ViewSamplingConfig, *, workers: int, seconds: float
) -> DataBenchmark:
    """Time the training stream of a RealEstate10k folder.

    Args:
        root: Folder with ``train/``.
        preparation: Image size and the rest.
        sampling: Which frames an example has.
        workers: Loader processes of either path; the batch size is 2.
        seconds: How long each path is measured in each of ``ROUNDS`` rounds, of which the best counts.

    Raises:
        SceneDataError: If the folder cannot be read, or no scene can be used.
    """
    split = Re10kSplit.open(root, "train")
    lanes = max(1, workers)
    stream = TrainingStream(split, StreamConfig(preparation, sampling, batch_size=2, lanes=lanes))
    stream[0]  # data that cannot be used end the benchmark here
    plain = DataLoader(_Straightforward(split, preparation, sampling), batch_size=2, num_workers=workers)
    ours, theirs = [], []
    for _ in range(ROUNDS):  # in turn, so that whatever else the machine does disturbs both
        ours.append(_time_loader(lambda: training_batches(stream, num_workers=workers), seconds))
        theirs.append(_time_loader(lambda: iter(plain), seconds))
    return DataBenchmark(
        _time_stages(split, preparation, sampling), _best(ours), _best(theirs), _largest_difference(split, preparation)
    )


def print_data_benchmark(root: Path, size: tuple[int, int], workers: int, seconds: float) -> None:
    """Run the benchmark with the published view sampling, or with shorter gaps where videos are short, and print it."""
    console = Console()
    preparation = PreparationConfig(image_size=size)
    sampling = _fitting_sampling(Re10kSplit.open(root, "train"))
    with console.status(f"Reading {root} for {2 * ROUNDS * seconds:g} seconds"):
        result = run_data_benchmark(root, preparation, sampling, workers=workers, seconds=seconds)
    stages = Table(title=f"One example in one process: 2 + {sampling.num_target_views} views at {size[1]}x{size[0]}")
    for column in ("stage", "ms", "share"):
        stages.add_column(column, justify="left" if column == "stage" else "right")
    total = sum(result.stages.values())
    for name, milliseconds in result.stages.items():
        stages.add_row(name, f"{milliseconds:.2f}", f"{milliseconds / total:.0%}")
    console.print(stages)
    loaders = Table(title=f"Loading with {counted(workers, 'process', 'processes')}")
    for column in ("path", "examples/s", "CPU ms each", "first, s", "peak MB"):
        loaders.add_column(column, justify="left" if column == "path" else "right")
    for name, timing in (("lsplat", result.loader), ("straightforward", result.straightforward)):
        peak = "unknown" if timing.worker_peak_mb is None else f"{timing.worker_peak_mb:.0f}"
        rates = f"{timing.examples_per_second:.1f}", f"{timing.cpu_ms_per_example:.1f}"
        loaders.add_row(name, *rates, f"{timing.seconds_to_first:.2f}", peak)
    console.print(loaders)
    ours, theirs = result.loader, result.straightforward
    faster = ours.examples_per_second / theirs.examples_per_second
    less = theirs.cpu_ms_per_example / ours.cpu_ms_per_example
    console.print(
        f"{faster:.2f} times as fast, {less:.2f} times by CPU time; pixels differ by at most "
        f"{result.largest_difference}/255"
    )
    console.print(
        "CPU ms: of all processes, per example. first: seconds to the first batch. peak: of the largest process."
    )


class _Straightforward(IterableDataset):
    """Examples as dicts of float tensors, chunk by chunk."""

    def __init__(self, split: Re10kSplit, preparation: PreparationConfig, sampling: ViewSamplingConfig) -> None:
        self._split, self._preparation, self._sampling = split, preparation, sampling

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        shards = self._split.shards
        used = -1
        while used:
            used = 0
            for shard in shards[first::step] or shards:
                path = self._split.root / self._split.split / shard
                for scene in torch.load(path, weights_only=True):
                    try:
                        example = self._example(scene_video(scene, path))
                    except SceneDataError:
                        continue
                    used += 1
                    yield example

    def _example(self, video: PosedVideo) -> dict[str, Tensor]:
        frames = sample_views(len(video), self._sampling)
        target_size = self._preparation.image_size
        example = {}
        for name, chosen in (("context", frames.context), ("target", frames.target)):
            images = [whole_image_crop(video.read_image(frame), target_size) for frame in chosen]
            example[f"{name}_image"] = torch.stack(
                [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images]
            )
            example[f"{name}_pose"] = video.world_from_camera[list(chosen)]
            example[f"{name}_intrinsics"] = video.intrinsics_norm[list(chosen)]
            example[f"{name}_frame"] = torch.tensor(chosen)
        return example


def whole_image_crop(image: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """What :func:`rescale_and_crop` computes, by rescaling the whole image first."""
    height, width = cropped_size(image.shape[:2], target)
    rescaled = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    top, left = (height - target[0]) // 2, (width - target[1]) // 2
    return np.array(rescaled[top : top + target[0], left : left + target[1]])


def _time_loader(make: Callable[[], Iterator], seconds: float) -> LoaderTiming:
    cpu_before, started = _cpu_seconds(), time.perf_counter()
    batches = make()
    next(batches)
    first = time.perf_counter() - started
    count, started = 2, time.perf_counter()
    while count == 2 or time.perf_counter() - started < seconds:
        next(batches)
        count += 2
    rate = (count - 2) / (time.perf_counter() - started)
    peaks = [_peak_mb(process.pid) for process in multiprocessing.active_children()]
    known = [peak for peak in peaks if peak is not None]
    del batches  # ends the processes, whose time is known only then
    return LoaderTiming(rate, 1000 * (_cpu_seconds() - cpu_before) / count, first, max(known) if known else None)


def _best(rounds: list[LoaderTiming]) -> LoaderTiming:
    peaks = [timing.worker_peak_mb for timing in rounds if timing.worker_peak_mb is not None]
    return LoaderTiming(
        max(timing.examples_per_second for timing in rounds),
        min(timing.cpu_ms_per_example for timing in rounds),
        min(timing.seconds_to_first for timing in rounds),
        max(peaks) if peaks else None,
    )


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it has ended."""
    times = os.times()  # in steps of 10 ms
    return time.process_time() + times.children_user + times.children_system


def _peak_mb(process_id: int) -> float | None:
    """The most memory that a process has held, where the system tells (Linux)."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


def _time_stages(split: Re10kSplit, preparation: PreparationConfig, sampling: ViewSamplingConfig) -> dict[str, float]:
    """Milliseconds per example, for each stage alone, one after the other in this process."""
    clock, used = _Clock(), 0
    for shard in itertools.cycle(split.shards):
        path = split.root / split.split / shard
        for scene in clock.time("open chunk", read_chunk, path):
            try:
                video = clock.time("cameras", scene_video, scene, path)
                choice = sample_views(len(video), sampling)
                for frame in set(choice.context + choice.target):
                    image = clock.time("decode", video.read_picture, frame)
                    clock.time("rescale and crop", rescale_and_crop, image, preparation.image_size)
                clock.time("whole example", make_byte_example, video, choice, preparation)
            except SceneDataError:
                continue
            used += 1
        if used >= STAGE_EXAMPLES:
            break
    return clock.per_example(used)


class _Clock:
    """Adds up the time of named stages."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def time(self, stage: str, function: Callable, *arguments: object) -> object:
        """Call a function and return its result."""
        started = time.perf_counter()
        result = function(*arguments)
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - started
        return result

    def per_example(self, count: int) -> dict[str, float]:
        """Milliseconds; what the whole example takes beyond its stages is called the rest."""
        stages = {name: 1000 * seconds / count for name, seconds in self._seconds.items()}
        rest = stages.pop("whole example") - stages["decode"] - stages["rescale and crop"]
        return {**stages, "rest (headers, tensors, bounds)": max(0.0, rest)}


def _fitting_sampling(split: Re10kSplit) -> ViewSamplingConfig:
    """The published sampling at step 0, its gap cut to the longest of the first chunk's videos."""
    lengths = [len(video) for video in split.read_shard(split.shards[0], on_broken=lambda error: None)]
    if not lengths or max(lengths) < 3:
        raise SceneDataError(f"the first chunk of {split.root / split.split} holds no video of 3 frames or more")
    gap = min(25, max(lengths) - 1)
    return ViewSamplingConfig(min_gap=gap, max_gap=gap, initial_min_gap=gap, initial_max_gap=gap)


def _largest_difference(split: Re10kSplit, preparation: PreparationConfig) -> int:
    """Between both ways to crop, over the first frames of the first scenes, in 1/255."""
    worst = 0
    for video in itertools.islice(split.read_shard(split.shards[0], on_broken=lambda error: None), 4):
        for frame in range(min(4, len(video))):
            image = video.read_image(frame)
            ours = rescale_and_crop(image, preparation.image_size).astype(int)
            worst = max(worst, int(np.abs(ours - whole_image_crop(image, preparation.image_size)).max()))
    return worst
