"""Which frames of a video become context and target views.

Source: spec section 2.4, and 2.5 of MV-LDM's. Given the same random numbers, every sampler draws exactly what the
original draws.
"""

import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import torch

from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.wording import counted

Stage = Literal["train", "val", "test"]
Sampler = Literal["bounded", "arbitrary", "evaluation", "all"]


@dataclass(frozen=True)
class FrameChoice:
    """Frame indices of one example."""

    context: tuple[int, ...]
    target: tuple[int, ...]


@dataclass
class ViewSamplingConfig:
    """How the frames of an example are drawn. Gaps, margins and warm-ups are the bounded sampler's."""

    sampler: Sampler = "bounded"
    """bounded: two context frames a random gap apart, targets between and around them; arbitrary: any frames;
    evaluation: the entries of the evaluation index; all: every frame, as context and as target."""
    num_target_views: int = 4
    """Target views per example, where they are drawn at random."""
    without_replacement: bool = False
    """Draw no frame twice among the targets (arbitrary: nor among the context views), as MV-LDM does."""
    min_gap: int = 45
    """Least number of frames between the two context views, after the warm-up."""
    max_gap: int = 45
    """Largest number of frames between the two context views, after the warm-up."""
    initial_min_gap: int = 25
    """Least gap at step 0."""
    initial_max_gap: int = 25
    """Largest gap at step 0."""
    target_margin: int = 45
    """How many frames outside the context pair a target may lie, after the warm-up."""
    initial_target_margin: int = 0
    """The same at step 0: targets lie between the context views."""
    gap_warm_up_steps: int = 50_000
    """Steps over which the gaps go from their initial to their final values."""
    margin_warm_up_steps: int = 50_000
    """Steps over which the margin does."""

    def __post_init__(self) -> None:
        if not (1 <= self.min_gap <= self.max_gap and 1 <= self.initial_min_gap <= self.initial_max_gap):
            raise ConfigError(
                f"view sampling needs 1 <= min-gap <= max-gap, but got {self.min_gap}..{self.max_gap} "
                f"(initially {self.initial_min_gap}..{self.initial_max_gap})"
            )
        if self.num_target_views < 1:
            raise ConfigError(f"num-target-views must be at least 1, but is {self.num_target_views}")

    def gap_limits(self, step: int, stage: Stage) -> tuple[int, int]:
        """Least and largest gap at a step. The test stage always takes the largest."""
        if stage == "test":
            return self.max_gap, self.max_gap
        return (
            _ramp(self.initial_min_gap, self.min_gap, step, self.gap_warm_up_steps),
            _ramp(self.initial_max_gap, self.max_gap, step, self.gap_warm_up_steps),
        )

    def margin(self, step: int, stage: Stage) -> int:
        """How far outside the context pair targets may lie at a step."""
        if stage == "test":
            return self.target_margin
        return _ramp(self.initial_target_margin, self.target_margin, step, self.margin_warm_up_steps)


def _ramp(initial: int, final: int, step: int, steps: int) -> int:
    if steps <= 0 or step >= steps:
        return final
    # Differs from upstream: a falling ramp (final < initial) works too; the original clamps it to `final` at once.
    return initial + int((final - initial) * step / steps)


def sample_views(
    num_frames: int,
    config: ViewSamplingConfig,
    *,
    step: int = 0,
    circular: bool = False,
    generator: Optional[torch.Generator] = None,
    entries: Sequence[FrameChoice] = (),
) -> FrameChoice:
    """Draw the frames of a training example with the configured sampler.

    Args:
        num_frames: Length of the video.
        config: Which sampler, and its options.
        step: Global training step, which the bounded sampler's warm-up follows.
        circular: Whether frame 0 follows the last one (bounded).
        generator: Source of the random numbers; torch's global one by default.
        entries: The video's entries in the evaluation index, one of which is drawn (evaluation).

    Raises:
        SceneDataError: If the video is too short, or has no entry.
    """
    if config.sampler == "bounded":
        return sample_bounded(num_frames, config, step=step, circular=circular, generator=generator)
    if config.sampler == "arbitrary":
        return _sample_arbitrary(num_frames, config, generator)
    if config.sampler == "all":
        return FrameChoice(tuple(range(num_frames)), tuple(range(num_frames)))
    if not entries:
        raise SceneDataError("has no entry in the evaluation index")
    return entries[int(torch.randint(len(entries), (), generator=generator))]


def _sample_arbitrary(num_frames: int, config: ViewSamplingConfig, generator: Optional[torch.Generator]) -> FrameChoice:
    """Two context frames, then targets, each uniform over the video."""

    def draw(count: int) -> tuple[int, ...]:
        if not config.without_replacement:
            return tuple(torch.randint(num_frames, (count,), generator=generator).tolist())
        if count > num_frames:
            raise SceneDataError(
                f"has {counted(num_frames, 'frame')}, too few for {count} different ones", reason="too short"
            )
        return tuple(torch.randperm(num_frames, generator=generator)[:count].tolist())

    return FrameChoice(draw(2), draw(config.num_target_views))


def sample_bounded(
    num_frames: int,
    config: ViewSamplingConfig,
    *,
    step: int = 0,
    stage: Stage = "train",
    circular: bool = False,
    generator: Optional[torch.Generator] = None,
) -> FrameChoice:
    """Draw two context frames and their targets.

    Order of the draws: gap, left frame, targets (context frames may be drawn). In the test stage the pair starts at
    frame 0 and every frame of the window is a target.

    Raises:
        SceneDataError: If the video is shorter than the least gap, or the window than the number of different targets.
    """

    def draw(low: int, high: int, shape: tuple[int, ...] = ()) -> torch.Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    least, largest = config.gap_limits(step, stage)
    if not circular:
        largest = min(num_frames - 1, largest)
    if largest < least:
        raise SceneDataError(
            f"has {counted(num_frames, 'frame')}, but context views {counted(least, 'frame')} apart were asked for",
            reason="too short",
        )
    gap = int(draw(least, largest))
    left = int(draw(0, num_frames - 1 if circular else num_frames - 1 - gap))
    left = 0 if stage == "test" else left
    right = left + gap

    margin = config.margin(step, stage)
    first, last = left - margin, right + margin
    if not circular:
        first, last = max(first, 0), min(last, num_frames - 1)
    if stage == "test":
        targets = list(range(first, last + 1))
    elif config.without_replacement:
        if last - first + 1 < config.num_target_views:
            raise SceneDataError(
                f"has {counted(last - first + 1, 'frame')} to draw {config.num_target_views} different targets from",
                reason="too short",
            )
        weights = torch.ones(last - first + 1)
        drawn = torch.multinomial(weights, config.num_target_views, replacement=False, generator=generator)
        targets = (drawn + first).tolist()
    else:
        targets = draw(first, last, (config.num_target_views,)).tolist()
    if circular:
        left, right, targets = left % num_frames, right % num_frames, [t % num_frames for t in targets]
    return FrameChoice((left, right), tuple(targets))


def spread_choice(num_frames: int, max_gap: int) -> FrameChoice:
    """A pair for scenes without an evaluation index: centred, ``max_gap`` apart at most, all other frames are targets.

    Raises:
        SceneDataError: If there are fewer than three frames.
    """
    if num_frames < 3:
        raise SceneDataError(
            f"has {counted(num_frames, 'frame')}; two context views and a target need at least 3", reason="too short"
        )
    gap = max(1, min(max_gap, num_frames - 1))
    left = (num_frames - 1 - gap) // 2
    context = (left, left + gap)
    return FrameChoice(context, tuple(i for i in range(num_frames) if i not in context))


def read_evaluation_index(path: Path) -> dict[str, list[FrameChoice]]:
    """Read an evaluation index ``{scene: [{"context": [l, r], "target": [...]}, ...]}``.

    A scene may also map to a single entry or to null, as in pixelSplat's files. Scenes without entry are left out.

    Raises:
        SceneDataError: If the file cannot be read, or is not such an index.
    """
    what = f"{path} is not an evaluation index of scene -> context and target frames"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SceneDataError(f"cannot read the evaluation index {path}: {error.strerror}") from None
    except ValueError as error:
        raise SceneDataError(f"{what}: {error}") from None
    if not isinstance(content, dict):
        raise SceneDataError(f"{what}: it holds a {type(content).__name__}")
    index = {}
    for scene, listed in content.items():
        try:
            choices = _choices(listed)
        except (TypeError, KeyError) as error:
            wrong = f"an entry lacks {error}" if isinstance(error, KeyError) else str(error)
            raise SceneDataError(f"{what}: of scene {scene}, {wrong}") from None
        if choices:
            index[scene] = choices
    return index


def _choices(listed: Any) -> list[FrameChoice]:
    """The entries of a scene. Raises TypeError or KeyError where they are none."""
    entries = [listed] if isinstance(listed, dict) else listed or []
    return [
        FrameChoice(tuple(map(operator.index, entry["context"])), tuple(map(operator.index, entry["target"])))
        for entry in entries
        if entry is not None
    ]
