"""Generating a long sequence group by group, with progress, cancellation and resumption.

Random numbers of a group depend on the seed and the group's number alone, and generated images are rounded to 8 bits
before they serve as context. So a sequence that goes on from stored 8-bit images is the one that was never interrupted,
bit by bit (on one machine).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lsplat_ns.diffusion.schedule import SolverConfig
from lsplat_ns.diffusion.view_plan import ViewGroup
from lsplat_ns.errors import ConfigError, GenerationCancelled, LsplatError, SceneDataError
from lsplat_ns.scene import Cameras, Views


@dataclass(frozen=True)
class SamplingConfig:
    """How views are generated. The defaults are the published ones."""

    solver: SolverConfig = field(default_factory=SolverConfig)
    """How noise is turned into latents, in how many steps."""
    guidance: float = 3.0
    """Strength of classifier-free guidance. 1 is none, and takes half the time."""
    seed: int = 0
    """The same seed, cameras and plan give the same images."""

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            raise ConfigError(f"guidance must be 0 or more and finite, not {self.guidance}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"a seed is a number from 0 to 2^63 - 1, not {self.seed}")


@dataclass(frozen=True)
class GroupNoise:
    """All random numbers of one group, standard normal."""

    context: Tensor  # [b, v, c, h, w], of the context's latents
    targets: Tensor  # [b, t, c, h, w], what the solver starts from

    @staticmethod
    def draw(group: ViewGroup, number: int, latent_shape: tuple[int, int, int], seed: int) -> GroupNoise:
        """The numbers of a plan's group, b = 1, on the CPU: every device gets the same."""
        state = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        context, targets = (
            torch.randn(1, count, *latent_shape, generator=generator)
            for count in (len(group.context), len(group.targets))
        )
        return GroupNoise(context, targets)


@dataclass(frozen=True)
class GeneratedGroup:
    """The result of one group of a plan."""

    number: int  # of the group in its plan, from 0
    frames: tuple[int, ...]
    images: Tensor  # [t, 3, height, width] on the CPU, whole multiples of 1/255


@dataclass(frozen=True)
class GenerationProgress:
    """How far a sequence is."""

    group: int  # number of the current group in the plan, from 0
    groups: int
    step: int  # steps of the current group that are done
    steps: int

    @property
    def share(self) -> float:
        """Share of all steps that is done, from 0 to 1; finished groups of an earlier run count as done."""
        return (self.group + self.step / self.steps) / self.groups


class GroupSampler(Protocol):
    """What :func:`generate` needs of a model; ``lsplat_ns.mvldm.MultiViewDiffusion`` is one."""

    def latent_shape(self, image_size: tuple[int, int]) -> tuple[int, int, int]:
        """(channels, height, width) of latents."""

    def sample(
        self,
        context: Views,
        targets: Cameras,
        noise: GroupNoise,
        config: SamplingConfig,
        *,
        reference: int,
        on_step: Callable[[int], None] | None,
    ) -> Tensor:
        """Images [1, t, 3, height, width]."""


def generate(
    model: GroupSampler,
    context: Views,
    cameras: Cameras,
    frames: Sequence[int],
    plan: Sequence[ViewGroup],
    config: SamplingConfig,
    *,
    finished: Mapping[int, Tensor] | None = None,
    on_step: Callable[[GenerationProgress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[GeneratedGroup]:
    """Generate the groups of a plan one after another. Works only when the next group is asked for.

    Runs in any thread; callbacks are called in it. Store each group before asking for the next: nothing else is needed
    to go on later.

    Args:
        model: In eval mode, on the device of the context.
        context: The given views [1, v]; their frame numbers are the plan's.
        cameras: [1, n] of the requested frames, in the frame and scale of the context's cameras.
        frames: n frame numbers.
        plan: Of :func:`lsplat_ns.diffusion.view_plan.plan_views`.
        config: Solver, guidance, seed.
        finished: Images [3, height, width] of frames that an earlier run has stored; only those that serve as context
            are looked at. Groups that are complete are skipped, others are generated again as a whole.
        on_step: Called before and after each step of the solver.
        cancelled: Asked before each step; the generation ends when it says yes.

    Yields:
        The groups that are not finished, in the plan's order.

    Raises:
        GenerationCancelled: If ``cancelled`` said so.
        LsplatError: If the network's images are not finite.
        SceneDataError: If the plan names a frame without a camera, or a finished image has another size.
    """
    finished = {} if finished is None else finished  # not by truth: a store without files yet is empty
    known = {int(frame): context.select([i]) for i, frame in enumerate(context.frame[0])}
    places = {frame: place for place, frame in enumerate(frames)}
    _check_plan(plan, known, places, cameras)
    latent_shape = model.latent_shape(context.size)
    last_use = {frame: number for number, group in enumerate(plan) for frame in group.context}

    for number, group in enumerate(plan):
        targets = cameras.select([places[frame] for frame in group.targets])
        images = {f: _stored(finished, f, context.size) for f in group.targets if f in finished and f in last_use}
        if any(frame not in finished for frame in group.targets):
            report = _reporter(number, len(plan), config.solver.steps, on_step, cancelled)
            drawn = model.sample(
                _joined(known, group.context),
                targets,
                GroupNoise.draw(group, number, latent_shape, config.seed),
                config,
                reference=group.context.index(group.reference),
                on_step=report,
            )
            if not bool(drawn.isfinite().all()):
                raise LsplatError(
                    f"the network's images of group {number + 1} are not finite numbers; generate in float32 "
                    "(--acceleration off), or take another checkpoint"
                )
            # Differs from upstream: it hands on what no 8-bit file holds, so nothing stored could be continued.
            drawn = (drawn[0].cpu() * 255).round() / 255
            images = dict(zip(group.targets, drawn, strict=True)) | images
            yield GeneratedGroup(number, group.targets, torch.stack([images[frame] for frame in group.targets]))
        known = {frame: view for frame, view in known.items() if last_use.get(frame, -1) > number}
        for place, frame in enumerate(group.targets):
            if frame in last_use:
                known[frame] = _as_view(images[frame], targets.select([place]), frame, context)


def _joined(known: Mapping[int, Views], frames: Sequence[int]) -> Views:
    views = known[frames[0]]
    for frame in frames[1:]:
        views = views.concat(known[frame])
    return views


def _check_plan(
    plan: Sequence[ViewGroup], known: Mapping[int, Views], places: Mapping[int, int], cameras: Cameras
) -> None:
    if cameras.near.shape != (1, len(places)):
        raise SceneDataError(f"{len(places)} different frames need cameras [1, {len(places)}]")
    available = set(known)
    for group in plan:
        absent = [f"context {frame}" for frame in group.context if frame not in available]
        absent += [f"camera {frame}" for frame in group.targets if frame not in places]
        if absent:
            raise SceneDataError(f"the view plan belongs to other frames: it needs {', '.join(absent)}")
        available.update(group.targets)


def _reporter(
    number: int,
    groups: int,
    steps: int,
    on_step: Callable[[GenerationProgress], None] | None,
    cancelled: Callable[[], bool] | None,
) -> Callable[[int], None]:
    def report(step: int) -> None:
        if on_step is not None:
            on_step(GenerationProgress(number, groups, step, steps))
        if cancelled is not None and step < steps and cancelled():
            raise GenerationCancelled(f"cancelled in group {number + 1} of {groups}; finished groups are complete")

    return report


def _stored(finished: Mapping[int, Tensor], frame: int, size: tuple[int, int]) -> Tensor:
    image = finished[frame]
    if image.shape != (3, *size):
        raise SceneDataError(f"stored frame {frame} is no {size[1]}x{size[0]} image; generate into another folder")
    return image.detach().cpu().float()


def _as_view(image: Tensor, camera: Cameras, frame: int, context: Views) -> Views:
    return Views(image[None, None].to(context.image.device), camera, torch.tensor([[frame]]).to(context.frame.device))
