"""The health of a dataset: what it holds, and everything in it that training or evaluation would stumble over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lsplat_ns.data.batches import SMALLEST_BASELINE, PreparationConfig, baseline_of
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.sources import SceneSource
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import SceneDataError
from lsplat_ns.wording import counted

Entries = Mapping[str, Sequence[FrameChoice]]
"""An evaluation index: entries by scene."""


@dataclass(frozen=True)
class InspectionConfig:
    """What a dataset is held against."""

    image_size: tuple[int, int] = PreparationConfig.image_size
    """Height and width that a method works on; smaller frames are of no use to it."""
    max_fov_degrees: float = PreparationConfig.max_fov_degrees
    """Scenes with a wider field of view are skipped in training."""
    deep: bool = False
    """Decode every frame, instead of reading its header."""
    fewest_frames: int = 3
    """Two context views and a target, for training; a capture is shown from two."""


@dataclass(frozen=True)
class Problem:
    """One bad item."""

    reason: str  # a few words, the same for all items of the kind
    detail: str  # one line: what, where, and the fix where there is one


@dataclass(frozen=True)
class SceneFacts:
    """What a readable scene holds."""

    scene: str
    frames: int
    sizes: Counter[tuple[int, int]]  # (height, width) -> number of frames
    fov_degrees: float
    span: float  # largest distance between two cameras, in the dataset's units


@dataclass
class SplitInspection:
    """What was found in one split."""

    name: str
    source: SceneSource | None = None  # None where nothing can be read
    scenes: list[SceneFacts] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    entries: Entries = field(default_factory=dict)  # the evaluation index; may name scenes that are not here
    notes: list[str] = field(default_factory=list)  # what is no problem, but good to know

    @property
    def frames(self) -> int:
        """Number of frames of all readable scenes."""
        return sum(facts.frames for facts in self.scenes)

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """Number of frames by (height, width)."""
        return sum((facts.sizes for facts in self.scenes), Counter())


def inspect_source(
    inspection: SplitInspection, config: InspectionConfig, on_scene: Callable[[], None] | None = None
) -> SplitInspection:
    """Check every scene of a split and add what is found. Nothing is raised for what is broken.

    Args:
        inspection: With its source, if it has one, and its evaluation entries.
        config: What scenes are held against.
        on_scene: Called after each scene, readable or not.
    """
    source, done = inspection.source, on_scene or (lambda: None)

    def broken(error: SceneDataError) -> None:
        reason = "broken scene" if error.reason == "broken" else error.reason
        inspection.problems.append(Problem(reason, str(error)))
        done()

    for shard in source.shards if source else ():
        try:
            for video in source.read_shard(shard, broken):
                facts, problems = inspect_video(video, config, inspection.entries.get(video.scene, ()))
                inspection.scenes.append(facts)
                inspection.problems += problems
                done()
        except SceneDataError as error:
            broken(error)
    return inspection


def inspect_video(
    video: PosedVideo, config: InspectionConfig, entries: Sequence[FrameChoice] = ()
) -> tuple[SceneFacts, list[Problem]]:
    """Look at every frame of a scene and at its cameras, whose numbers :class:`PosedVideo` has checked already.

    Args:
        video: The scene.
        config: What it is held against.
        entries: Its entries in an evaluation index.
    """
    sizes, unreadable = _read_frames(video, config.deep)
    height, width = config.image_size
    small = [frame for frame, size in sizes.items() if size[0] < height or size[1] < width]
    span, fov = baseline_of(video.world_from_camera), video.largest_fov_degrees()
    problems = []

    def note(reason: str, what: str) -> None:
        problems.append(Problem(reason, f"scene {video.scene}: {what}"))

    if unreadable:
        note("unreadable frame", f"{_listed(list(unreadable))}: {next(iter(unreadable.values()))}")
    if small:
        smallest = min((sizes[frame] for frame in small), key=lambda size: size[0] * size[1])
        note("image size", f"{_listed(small)} below {width}x{height}, the smallest {smallest[1]}x{smallest[0]}")
    if len(video) < config.fewest_frames:
        count = counted(len(video), "frame")
        note("too short", f"{count}; two context views and a target need at least {config.fewest_frames}")
    if len(video) > 1 and span < SMALLEST_BASELINE:
        note("no baseline", f"all cameras within {span:.2g} of one another; there is no parallax")
    if fov > config.max_fov_degrees:
        note("field of view", f"{fov:.0f} degrees, more than {config.max_fov_degrees:g}")
    problems += _entry_problems(video, entries)
    return SceneFacts(video.scene, len(video), Counter(sizes.values()), fov, span), problems


def _read_frames(video: PosedVideo, deep: bool) -> tuple[dict[int, tuple[int, int]], dict[int, str]]:
    """(height, width) of the readable frames, and why the others cannot be read."""

    def read(frame: int) -> tuple[int, int] | str:
        try:
            return video.read_image(frame).shape[:2] if deep else video.read_size(frame)
        except SceneDataError as error:
            return str(error)

    frames = range(len(video))
    if deep:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
            results = list(pool.map(read, frames))
    else:
        results = [read(frame) for frame in frames]
    unreadable = {frame: result for frame, result in zip(frames, results, strict=True) if isinstance(result, str)}
    sizes = {frame: result for frame, result in zip(frames, results, strict=True) if frame not in unreadable}
    return sizes, unreadable


def _listed(frames: list[int], most: int = 4) -> str:
    more = f" and {len(frames) - most} more" if len(frames) > most else ""
    return f"frame{'s' if len(frames) > 1 else ''} {', '.join(map(str, frames[:most]))}{more}"


def _entry_problems(video: PosedVideo, entries: Sequence[FrameChoice]) -> Iterator[Problem]:
    """Entries of the evaluation index that no example can be made of."""
    for choice in entries:
        try:
            video.check_frames(choice.context + choice.target)
        except SceneDataError as error:
            yield Problem("evaluation entry", str(error))
            continue
        baseline = baseline_of(video.world_from_camera[list(choice.context)])
        if len(choice.context) > 1 and baseline < SMALLEST_BASELINE:
            context = ", ".join(map(str, choice.context))
            yield Problem("evaluation entry", f"scene {video.scene}: context views {context} are {baseline:.2g} apart")
