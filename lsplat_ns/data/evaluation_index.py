"""New evaluation indices, drawn by the published rule.

Source: spec section 2.6. The form is the originals' ``{scene: [{"context": [l, r], "target": [...]}, ...]}``, which
``view_sampling.read_evaluation_index`` reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from lsplat_ns.data.atomic_files import replacing
from lsplat_ns.data.batches import SMALLEST_BASELINE, PreparationConfig, baseline_of
from lsplat_ns.data.co3d import Co3dSplit
from lsplat_ns.data.evaluation_rule import EvaluationIndexConfig
from lsplat_ns.data.layouts import layout_of
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.published_indices import OWN_NAME
from lsplat_ns.data.re10k import Re10kSplit
from lsplat_ns.data.skips import SkipTally
from lsplat_ns.data.sources import SceneSource
from lsplat_ns.data.transforms import cropped_intrinsics
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.geometry.overlap import view_overlap
from lsplat_ns.interrupts import children_leave_interrupts_to_us, termination_unwinds, termination_waits
from lsplat_ns.wording import counted

SQUARE = (256, 256)
"""Any square: only its shape tells in the overlap."""
LARGEST_BLOCK = 16
"""Partners whose overlap is measured at once, at most."""
WORTH_PROCESSES = 64
"""Scenes, a quarter of a second each, from which on more processes are started."""


def draw_entries(video: PosedVideo, config: EvaluationIndexConfig) -> list[FrameChoice]:
    """Evaluation entries of one scene; empty where no pair of context views qualifies.

    An open path (RealEstate10k) gets pairs whose overlap qualifies: first views come in random order, partners are
    found by walking away from each on both sides until the overlap is too small, and one of them is drawn. Targets are
    frames from the left to the right view, both included, or up to ``reach`` frames outside. A turntable (CO3D) gets
    random first views and partners a random gap to either side; targets lie on the arc, or on the rest of the circle.
    What the sources leave open is chosen so: two pairs never have the same first view; a pair closer than
    ``SMALLEST_BASELINE``, which no example can be made of, does not qualify; for ``both``, each of the two entries
    needs enough targets; a turntable's gap is shorter than the circle.

    # Differs from upstream: the generator is seeded per scene, so that an entry does not depend on the scenes before
    # it; the right view is no extrapolated target on turntables.

    Args:
        video: The scene. No image is decoded.
        config: The rule.

    Raises:
        SceneDataError: If the size of a frame cannot be read.
    """
    if baseline_of(video.world_from_camera) < SMALLEST_BASELINE:
        return []
    generator = torch.Generator().manual_seed(_seed_of(video.scene, config.seed))
    wanted = config.pairs or (20 if video.circular else 1)
    partners = _turntable_partner if video.circular else _overlapping_partner
    entries: list[FrameChoice] = []
    for first in torch.randperm(len(video), generator=generator).tolist():
        pair = partners(video, first, config, generator)
        drawn = [] if pair is None else _entries_of_pair(len(video), pair, video.circular, config, generator)
        entries += drawn
        wanted -= bool(drawn)
        if wanted == 0:
            break
    return entries


def _seed_of(scene: str, seed: int) -> int:
    """A seed of its own for every scene, the same on every machine."""
    return int.from_bytes(sha256(f"{seed}/{scene}".encode()).digest()[:7], "big")


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    """A uniform integer, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _overlapping_partner(
    video: PosedVideo, first: int, config: EvaluationIndexConfig, generator: torch.Generator
) -> tuple[int, int] | None:
    """A pair (left, right) of an open path with ``first`` in it, or None."""
    reachable = [frame for direction in (-1, 1) for frame in _overlapping(video, first, direction, config)]
    reachable = [frame for frame in reachable if _distance(video, first, frame) >= SMALLEST_BASELINE]
    if not reachable:
        return None
    partner = reachable[_draw(0, len(reachable) - 1, generator)]
    return min(first, partner), max(first, partner)


def _overlapping(video: PosedVideo, first: int, direction: int, config: EvaluationIndexConfig) -> Iterator[int]:
    """Frames on one side of ``first`` that see enough of its view, walking away from it until the first that does not.

    Views are taken as squares from the middle of their frames: what the networks see.
    """
    least, largest = config.gap or (45, 136)  # the original states 135 and tests it after the fact: 136 occurs
    low, high = config.overlap
    walk = [frame for gap in range(least, largest + 1) if 0 <= (frame := first + direction * gap) < len(video)]
    block = 1  # most walks end at once; the others are worth measuring many frames together
    while walk:
        frames = [first, *walk[:block]]
        walk, block = walk[block:], min(2 * block, LARGEST_BLOCK)
        poses = video.world_from_camera[frames]
        square = [cropped_intrinsics(video.intrinsics_norm[i], video.read_size(i), SQUARE) for i in frames]
        intrinsics = torch.stack(square)
        overlaps = view_overlap((poses[:1], poses[1:]), (intrinsics[:1], intrinsics[1:])).tolist()
        for frame, overlap in zip(frames[1:], overlaps, strict=True):
            if overlap < low:
                return
            if overlap <= high:
                yield frame


def _distance(video: PosedVideo, first: int, second: int) -> float:
    centres: Tensor = video.world_from_camera[[first, second], :3, 3]
    return float((centres[0] - centres[1]).norm())


def _turntable_partner(
    video: PosedVideo, first: int, config: EvaluationIndexConfig, generator: torch.Generator
) -> tuple[int, int] | None:
    """A pair (left, right) on a circle with ``first`` in it; numbers below 0 or beyond the last frame wrap around."""
    least, largest = config.gap or (16, 24)
    largest = min(largest, len(video) - 1)
    if largest < least:
        return None
    gap, forward = _draw(least, largest, generator), _draw(0, 1, generator)
    left = first if forward else first - gap
    if _distance(video, left % len(video), (left + gap) % len(video)) < SMALLEST_BASELINE:
        return None
    return left, left + gap


def _entries_of_pair(
    num_frames: int, pair: tuple[int, int], circular: bool, config: EvaluationIndexConfig, generator: torch.Generator
) -> list[FrameChoice]:
    """One entry per kind; none where one of the kinds has too few frames to choose targets from."""
    left, right = pair
    candidates = {}
    if config.kind != "extrapolation":
        inset = int(config.exclude_context)
        candidates["interpolation"] = list(range(left + inset, right + 1 - inset))
    if config.kind != "interpolation":
        if circular:
            outside = list(range(right + 1, left + num_frames))
        else:
            before = range(max(left - config.reach, 0), left)
            outside = [*before, *range(right + 1, min(right + config.reach, num_frames - 1) + 1)]
        candidates["extrapolation"] = outside
    if any(len(frames) < config.num_targets for frames in candidates.values()):
        return []
    entries = []
    for frames in candidates.values():
        chosen = torch.randperm(len(frames), generator=generator)[: config.num_targets].tolist()
        targets = sorted(frames[i] for i in chosen)
        entries.append(FrameChoice((left % num_frames, right % num_frames), tuple(t % num_frames for t in targets)))
    return entries


@dataclass
class EvaluationIndex:
    """A new evaluation index, and what could not be used."""

    entries: dict[str, list[FrameChoice]] = field(default_factory=dict)  # scenes without a pair have an empty list
    tally: SkipTally = field(default_factory=SkipTally)  # of scenes: used, and left out for which reason

    def describe(self) -> str:
        """One or two lines for people."""
        empty = sum(not choices for choices in self.entries.values())
        line = f"{counted(self.count, 'entry', 'entries')} of {counted(len(self.entries) - empty, 'scene')}; "
        line += f"{counted(empty, 'scene has', 'scenes have')} no pair that qualifies"
        return f"{line}\nleft out {self.tally.reasons()}" if self.tally.skipped else line

    @property
    def count(self) -> int:
        """Number of entries of all scenes."""
        return sum(map(len, self.entries.values()))

    def write(self, path: Path) -> None:
        """Write the originals' JSON, whole or not at all. Raises SceneDataError where that fails."""
        plain = {
            scene: [{"context": list(choice.context), "target": list(choice.target)} for choice in choices]
            for scene, choices in self.entries.items()
        }
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(plain) + "\n", encoding="utf-8")


def write_evaluation_index(
    data: Path, split: str, config: EvaluationIndexConfig, output: Path | None = None
) -> EvaluationIndex:
    """Draw an evaluation index for a RealEstate10k or CO3D folder and write it, with a progress bar.

    Ctrl-C and SIGTERM leave neither a process nor a file behind.

    Args:
        data: Dataset folder.
        split: ``test`` or ``train``.
        config: The rule.
        output: File to make; ``data/evaluation_index.json`` when None.

    Raises:
        ConfigError: If the file exists, the folder is a capture, or an option does not fit the dataset.
        SceneDataError: If the split cannot be read, or no pair qualifies.
    """
    from rich.console import Console
    from rich.progress import Progress

    path = output or data / OWN_NAME
    if path.exists():
        raise ConfigError(f"{path} exists; name another file with --output, or remove it")
    layout = layout_of(data)
    if layout == "capture":
        raise ConfigError(f"{data} is a capture; evaluation indices are made for RealEstate10k and CO3D")
    if layout == "co3d":
        config.refuse_what_circles_lack()
    source = Co3dSplit.open(data, split) if layout == "co3d" else Re10kSplit.open(data, split)
    # Overlap is measured on open paths only; where there is little of it, starting processes takes longer.
    many = layout == "re10k" and len(source.scenes) >= WORTH_PROCESSES
    workers = min(os.cpu_count() or 1, len(source.shards)) if many else 1
    with termination_unwinds(), Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Drawing context views and targets", total=len(source.scenes))
        index = make_evaluation_index(
            source, config, workers=workers, on_scenes=lambda count: progress.advance(task, count)
        )
        index.write(path)
    return index


def make_evaluation_index(
    source: SceneSource,
    config: EvaluationIndexConfig,
    *,
    max_fov_degrees: float = PreparationConfig.max_fov_degrees,
    workers: int = 1,
    on_scenes: Callable[[int], None] | None = None,
) -> EvaluationIndex:
    """Draw entries for every scene of a split, in the source's order. Cameras and image sizes are read, no image.

    Args:
        source: The split; to be sent to other processes where there is more than one worker.
        config: The rule.
        max_fov_degrees: Scenes with a wider field of view, which training and evaluation skip, are left out.
        workers: Processes. What is drawn does not depend on their number.
        on_scenes: Called after each shard with its number of scenes, used or not.

    Raises:
        SceneDataError: If no scene has a pair that qualifies.
    """
    index = EvaluationIndex()
    draw = partial(_draw_shard, source, config, max_fov_degrees)
    with _parallel_map(workers) as run:
        for shard, part in zip(source.shards, run(draw, source.shards), strict=True):
            index.entries.update(part.entries)
            index.tally.add(part.tally)
            if on_scenes is not None:
                on_scenes(len(source.scenes_of(shard)))
    if index.count == 0:
        left_out = f"; left out {index.tally.reasons()}" if index.tally.skipped else ""
        raise SceneDataError(
            f"no pair of context views qualifies in {counted(index.tally.used, 'scene')}{left_out}; "
            f"short videos need a smaller --gap, fast camera motions a lower --min-overlap"
        )
    index.entries = {scene: index.entries[scene] for scene in source.scenes if scene in index.entries}
    return index


@contextmanager
def _parallel_map(workers: int) -> Iterator[Callable]:
    """``map``, by other processes where there is more than one worker. They end with the block, whatever ends it."""
    if workers == 1:
        yield map
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,))

    def run(function: Callable, items: list[str]) -> Iterator:
        with termination_waits(), children_leave_interrupts_to_us():  # map starts them
            return pool.map(function, items)

    try:
        yield run
    except BrokenProcessPool:
        raise SceneDataError("a worker process died while evaluation views were drawn; nothing was written") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _draw_shard(
    source: SceneSource, config: EvaluationIndexConfig, max_fov_degrees: float, shard: str
) -> EvaluationIndex:
    """Entries of the scenes of one shard."""
    index, listed = EvaluationIndex(), set(source.scenes_of(shard))
    skip = index.tally.note_skipped
    try:
        for video in source.read_shard(shard, skip):
            if video.scene not in listed:  # a chunk may hold more than its index says
                continue
            if video.largest_fov_degrees() > max_fov_degrees:
                why = f"scene {video.scene} has a field of view above {max_fov_degrees:g} degrees"
                skip(SceneDataError(why, reason="field of view"))
                continue
            try:
                index.entries[video.scene] = draw_entries(video, config)
                index.tally.note_used()
            except SceneDataError as error:
                skip(error)
    except SceneDataError as error:
        skip(error)
    return index
