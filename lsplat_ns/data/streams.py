"""Endless streams of training batches, and the loader that prepares them ahead of training.

A batch is a function of the stream's configuration and the global step alone: ``stream[step]``. So a resumed run goes
on with the batches that an uninterrupted one would have seen, without walking through those before them, and what
loader processes prepare ahead follows the view sampler's curriculum at the step that will use it.
"""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lsplat_ns.data.batches import PreparationConfig, collate, in_unit_range, make_byte_example
from lsplat_ns.data.skips import SkipTally
from lsplat_ns.data.sources import SceneSource
from lsplat_ns.data.view_sampling import FrameChoice, ViewSamplingConfig, sample_views
from lsplat_ns.errors import ConfigError, LsplatError, SceneDataError
from lsplat_ns.scene import Cameras, SceneBatch, Views
from lsplat_ns.wording import counted

MOST_TRIES = 1000
"""Scenes tried for one example before the data count as unusable."""
LEAST_TRIES = 24
"""Of fewer scenes each is tried again with other frames: a capture with one broken photo can be trained on."""
ORDERS_KEPT = 2
"""Shuffled orders in memory: a batch may straddle two epochs."""


@dataclass(frozen=True)
class StreamConfig:
    """What a stream draws, and its place among the streams of other ranks."""

    preparation: PreparationConfig
    sampling: ViewSamplingConfig
    batch_size: int = 1
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    lanes: int = 1  # loader processes that share the stream; each reads chunks of its own
    mirror: bool = True
    entries: Mapping[str, Sequence[FrameChoice]] = field(default_factory=dict)  # evaluation index, for its sampler


@dataclass(frozen=True)
class TrainingBatch:
    """What one step trains on, in the form that a loader process sends fastest.

    Images are bytes in one tensor, cameras are arrays: each further tensor would cost as much as the images do.
    """

    step: int
    images: Tensor  # uint8 [b, v + t, 3, height, width], context views first
    cameras: dict[str, np.ndarray]  # fields of Cameras [b, v + t, ...]
    frames: np.ndarray  # [b, v + t]
    num_context_views: int
    scenes: tuple[str, ...]
    skips: SkipTally  # what was passed over to find the examples

    @staticmethod
    def of(step: int, examples: SceneBatch, skips: SkipTally) -> TrainingBatch:
        """Pack a batch whose images are uint8."""
        views = examples.context.concat(examples.target)
        cameras = {f.name: getattr(views.cameras, f.name).numpy() for f in fields(Cameras)}
        context_views = examples.context.frame.shape[1]
        return TrainingBatch(step, views.image, cameras, views.frame.numpy(), context_views, examples.scene, skips)

    def pin_memory(self) -> TrainingBatch:
        """The batch with images in page-locked memory; torch's DataLoader asks for it."""
        return replace(self, images=self.images.pin_memory())

    def to(self, device: torch.device | str) -> SceneBatch:
        """The examples on a device, images float32 in [0, 1]."""
        cameras = Cameras(**{name: torch.from_numpy(values) for name, values in self.cameras.items()})
        views = in_unit_range(Views(self.images, cameras, torch.from_numpy(self.frames)).to(device))
        context, target = slice(self.num_context_views), slice(self.num_context_views, None)
        return SceneBatch(views.select(context), views.select(target), self.scenes)


class TrainingStream(Dataset):
    """Training batches by global step, without end.

    An epoch is one shuffled order of all scenes, chunk by chunk. It is cut into equal parts, one for each lane of each
    rank, so that within an epoch no two of them read the same scene (unless there are fewer scenes than lanes; then
    each walks through all of them in an order of its own). Step ``s`` belongs to lane ``s % lanes``, and example ``i``
    of that step is number ``s // lanes * batch_size + i`` of the lane. An example that cannot be used is replaced by
    another scene's. With gradient accumulation every forward pass is a step of its own.

    Deterministic given configuration and data. Another number of lanes or ranks gives another stream.

    Raises:
        SceneDataError: If there is no scene, or (by indexing) none that can be used.
    """

    def __init__(self, source: SceneSource, config: StreamConfig) -> None:
        self.source, self.config = source, config
        listed = config.entries if config.sampling.sampler == "evaluation" else None
        shards = [[s for s in source.scenes_of(shard) if listed is None or s in listed] for shard in source.shards]
        self._shards = [scenes for scenes in shards if scenes]
        self._count = sum(map(len, self._shards))
        if not self._count:
            where = "" if listed is None else " of the evaluation index; give one that lists training scenes"
            raise SceneDataError(f"no scene can be used for training: the data hold none{where}")
        self._orders: dict[int, list[str]] = {}

    def __getitem__(self, step: int) -> TrainingBatch:
        """The batch of a global step (0 and up)."""
        lane, turn = step % self.config.lanes, step // self.config.lanes
        reader = self.config.rank * self.config.lanes + lane
        size, skips = self.config.batch_size, SkipTally()
        examples = [self._example(reader, turn * size + i, step, skips) for i in range(size)]
        return TrainingBatch.of(step, collate(examples), skips)

    def noise_seed(self, step: int) -> int:
        """Seed of what a network draws at a step of this rank, so that a resumed run draws the same."""
        return _seed_of("noise", self.config.seed, self.config.rank, step)

    def _example(self, reader: int, number: int, step: int, skips: SkipTally) -> SceneBatch:
        generator = torch.Generator().manual_seed(_seed_of(self.config.seed, reader, number))
        rounds: list[SkipTally] = []
        while len(rounds) * self._count < LEAST_TRIES:
            rounds.append(SkipTally())
            for scene in itertools.islice(self._candidates(reader, number, generator), MOST_TRIES):
                try:
                    example = self._prepare(scene, step, generator)
                except SceneDataError as error:
                    rounds[-1].note_skipped(error)
                    continue
                rounds[-1].note_used()
                for tried in rounds:
                    skips.add(tried)
                return example
        raise SceneDataError(f"no scene can be used for training at step {step}: {rounds[0].reasons()}")

    def _prepare(self, scene: str, step: int, generator: torch.Generator) -> SceneBatch:
        video, preparation = self.source.read_scene(scene), self.config.preparation
        if video.largest_fov_degrees() > preparation.max_fov_degrees:
            raise SceneDataError(
                f"scene {scene} has a field of view above {preparation.max_fov_degrees:g} degrees",
                reason="field of view",
            )
        try:
            choice = sample_views(
                len(video),
                self.config.sampling,
                step=step,
                circular=video.circular,
                generator=generator,
                entries=self.config.entries.get(scene, ()),
            )
        except SceneDataError as error:
            raise SceneDataError(f"scene {scene} {error}", reason=error.reason) from None
        return make_byte_example(video, choice, preparation, mirror_generator=generator if self.config.mirror else None)

    def _candidates(self, reader: int, number: int, generator: torch.Generator) -> Iterator[str]:
        """The scene whose turn it is; then, should it be unusable, others: of the reader's own part first."""
        readers = self.config.world_size * self.config.lanes
        share = self._count // readers
        if share:
            epoch, turn = divmod(number, share)
            order, first = self._order(epoch), reader * share
        else:
            epoch, turn = divmod(number, self._count)
            order, first, share = self._order(epoch * readers + reader), 0, self._count
        own = order[first : first + share]
        yield own[turn]
        # From a random place on: the next scene in the order has its own turn right after, perhaps in the same batch.
        start = int(torch.randint(share, (), generator=generator))
        yield from (scene for scene in own[start:] + own[:start] if scene != own[turn])
        yield from order[first + share :] + order[:first]

    def _order(self, epoch: int) -> list[str]:
        """All scenes in the order of an epoch; scenes of one shard stay together, so that each is opened once."""
        if epoch not in self._orders:
            if len(self._orders) == ORDERS_KEPT:
                del self._orders[next(iter(self._orders))]
            shuffler = random.Random(f"{self.config.seed} {epoch}")
            shards = shuffler.sample(self._shards, len(self._shards))
            self._orders[epoch] = [scene for scenes in shards for scene in shuffler.sample(scenes, len(scenes))]
        return self._orders[epoch]


def _seed_of(*parts: object) -> int:
    """A seed that follows from all parts; unlike sums, no two of them meet."""
    bits = blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(bits, "big") >> 1


def training_batches(
    stream: TrainingStream, first_step: int = 0, *, num_workers: int = 0, pin_memory: bool = False
) -> Iterator[TrainingBatch]:
    """The batches of ``first_step`` and all steps after it, prepared ahead by ``num_workers`` processes.

    Raises:
        ConfigError: If the stream was made for another number of processes, or the examples of a batch do not match.
        SceneDataError: If no scene can be used, in one line also where a loader process found out.
    """
    if stream.config.lanes != max(1, num_workers):
        lanes, processes = counted(stream.config.lanes, "lane"), counted(num_workers, "process", "processes")
        raise ConfigError(f"a stream of {lanes} cannot be read by {processes}")
    loader = DataLoader(
        _Answers(stream),
        batch_size=None,
        sampler=_StepsFrom(first_step),
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_interrupts_to_the_main_process,
    )
    for answer in loader:
        if isinstance(answer, LsplatError):
            raise answer
        yield answer


class _Answers(Dataset):
    """A stream that returns its errors: the loader would turn a raised one into pages of stack traces."""

    def __init__(self, stream: TrainingStream) -> None:
        self._stream = stream

    def __getitem__(self, step: int) -> TrainingBatch | LsplatError:
        try:
            return self._stream[step]
        except LsplatError as error:
            return error


@dataclass(frozen=True)
class _StepsFrom:
    """All steps from one on."""

    first: int

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main one ends its step and then stops the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
