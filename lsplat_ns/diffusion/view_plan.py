"""Which views are generated together, in which order, from which others.

The network sees few views at once, so a long sequence is generated in groups. Every requested frame is a target of
exactly one group, and every context view is a given one or a target of an earlier group. Source: MV-LDM's anchored and
autoregressive sampling, for any number of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lsplat_ns.errors import ConfigError
from lsplat_ns.wording import counted

PUBLISHED_ANCHORS = 4


@dataclass(frozen=True)
class ViewPlanConfig:
    """How a sequence is divided. The defaults are the published ones."""

    mode: Literal["anchored", "autoregressive", "single"] = "anchored"
    """"anchored": frames spread over the sequence first, then the others, each from its nearest anchor;
    "autoregressive": in order, each group from the last frame of the one before; "single": all frames at once."""
    anchors: int | None = None
    """Frames that are generated first in anchored mode; by default 4, or as many as there are frames."""
    views_per_group: int = 5
    """Context and target views that the network sees at once, except in single mode; it was trained on 5."""

    def __post_init__(self) -> None:
        if self.mode not in ("anchored", "autoregressive", "single"):
            raise ConfigError(f"no view plan {self.mode!r}; take anchored, autoregressive or single")
        if self.anchors is not None and self.anchors < 1:
            raise ConfigError(f"a view plan needs 1 anchor or more, not {self.anchors}")


@dataclass(frozen=True)
class ViewGroup:
    """Frames that are generated together. Numbers are those of the frames in their video."""

    context: tuple[int, ...]
    targets: tuple[int, ...]
    reference: int  # the context frame in whose camera frame all poses are expressed


def plan_views(given: Sequence[int], requested: Sequence[int], config: ViewPlanConfig) -> tuple[ViewGroup, ...]:
    """Divide requested frames into groups; a pure function.

    Args:
        given: Frames whose images are known, at least one. They are context of every group; the first is the reference
            of those that have no generated context. The published sampling gives one.
        requested: Frames to generate, in the order of the camera path.
        config: How to divide them.

    Returns:
        Groups in an order in which they can be generated; the last of a kind may be short.

    Raises:
        ConfigError: If a frame is stated twice, there are none, there are more anchors than frames, or the given views
            leave no room for others in a group.
    """
    given, requested = tuple(given), tuple(requested)
    if not given or not requested:
        raise ConfigError("a view plan needs at least one given and one requested frame")
    if len({*given, *requested}) < len(given) + len(requested):
        raise ConfigError("a frame is stated twice; given and requested frames of a view plan must all differ")
    if config.mode == "single":
        return (ViewGroup(given, requested, given[0]),)
    first, following = config.views_per_group - len(given), config.views_per_group - len(given) - 1
    if following < 1:
        raise ConfigError(
            f"{counted(len(given), 'given view leaves', 'given views leave')} no room in groups of "
            f"{config.views_per_group}; give fewer, or raise views-per-group"
        )
    if config.mode == "autoregressive":
        return _autoregressive(given, requested, first, following)
    if config.anchors is not None and config.anchors > len(requested):
        raise ConfigError(
            f"{config.anchors} anchors for {counted(len(requested), 'frame')}; ask for at most as many as frames"
        )
    if len(requested) <= first:
        return (ViewGroup(given, requested, given[0]),)
    anchors = _anchors(requested, min(config.anchors or PUBLISHED_ANCHORS, len(requested)))
    return (
        *_autoregressive(given, anchors, first, following),
        *_around_anchors(given, anchors, [frame for frame in requested if frame not in anchors], following),
    )


def _autoregressive(
    given: tuple[int, ...], frames: tuple[int, ...], first: int, following: int
) -> tuple[ViewGroup, ...]:
    """Frames in order: a first group from the given views, then each group also from the last frame before it."""
    groups = [ViewGroup(given, frames[:first], given[0])]
    for start in range(first, len(frames), following):
        last = frames[start - 1]
        groups.append(ViewGroup((*given, last), frames[start : start + following], last))
    return tuple(groups)


def _anchors(frames: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Every ``len(frames) // count``-th frame but the first one: where the count divides, one fewer than asked for."""
    spacing = len(frames) // count
    return frames[spacing::spacing][:count] or frames[-1:]


def _around_anchors(
    given: tuple[int, ...], anchors: tuple[int, ...], frames: list[int], size: int
) -> tuple[ViewGroup, ...]:
    """The other frames, from their nearest anchor each (of two, the earlier); what fills no group joins the next."""
    waiting: dict[int, list[int]] = {anchor: [] for anchor in anchors}
    for frame in frames:
        waiting[min(anchors, key=lambda anchor: abs(anchor - frame))].append(frame)
    groups, pending = [], []
    for anchor in anchors:
        pending += waiting[anchor]
        # Differs from upstream: it drops what fills no group after the last anchor.
        while len(pending) >= size or (pending and anchor == anchors[-1]):
            groups.append(ViewGroup((*given, anchor), tuple(pending[:size]), anchor))
            pending = pending[size:]
    return tuple(groups)
