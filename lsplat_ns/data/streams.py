"""Endless streams of training examples, for a torch DataLoader.

A stream is deterministic given its seed, rank and worker. Examples that cannot be used are counted by reason.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import IterableDataset, get_worker_info

from lsplat_ns.data.batches import PreparationConfig, make_example
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.sources import SceneSource
from lsplat_ns.data.view_sampling import ViewSamplingConfig, sample_bounded
from lsplat_ns.errors import SceneDataError
from lsplat_ns.scene import SceneBatch


class SharedStep:
    """The global training step, visible inside loader workers; the view sampler's curriculum depends on it."""

    def __init__(self) -> None:
        self._value = torch.zeros((), dtype=torch.int64).share_memory_()

    def set(self, step: int) -> None:
        """Publish the step."""
        self._value.fill_(step)

    def get(self) -> int:
        """The step last published."""
        return int(self._value)


@dataclass(frozen=True)
class StreamConfig:
    """What a stream draws, and its place among its siblings."""

    preparation: PreparationConfig
    sampling: ViewSamplingConfig
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    mirror: bool = True


class ExampleStream(IterableDataset):
    """Examples drawn without end from the scenes of a source.

    Scenes are dealt to ranks and loader workers so that no two of them read the same ones in an epoch (unless there are
    fewer scenes than readers); every reader visits its scenes in an order of its own.
    """

    def __init__(self, source: SceneSource, config: StreamConfig, step: SharedStep) -> None:
        super().__init__()
        self.source, self.config, self.step = source, config, step
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[SceneBatch]:
        worker = get_worker_info()
        worker_id, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        reader = self.config.rank * workers + worker_id
        readers = self.config.world_size * workers
        shuffler = random.Random(f"{self.config.seed}-{reader}")
        generator = torch.Generator().manual_seed(hash((self.config.seed, reader)) % 2**63)
        while True:
            used = 0
            self.skipped.clear()
            for video in self._scenes(reader, readers, shuffler):
                example = self._example(video, generator)
                if example is not None:
                    used += 1
                    yield example
            if used == 0:
                reasons = "; ".join(f"{count} scenes: {why}" for why, count in self.skipped.most_common(3))
                raise SceneDataError(f"no scene can be used for training ({reasons or 'no scene at all'})")

    def _scenes(self, reader: int, readers: int, shuffler: random.Random) -> Iterator[PosedVideo]:
        shards = self.source.shards
        deal_shards = len(shards) >= readers
        mine = shards[reader::readers] if deal_shards else shards
        for shard in shuffler.sample(mine, len(mine)):
            try:
                videos = list(self.source.read_shard(shard, on_broken=self._skip))
            except SceneDataError as error:
                self._skip(error)
                continue
            if not deal_shards:
                videos = videos[reader::readers] or videos
            yield from shuffler.sample(videos, len(videos))

    def _example(self, video: PosedVideo, generator: torch.Generator) -> SceneBatch | None:
        preparation = self.config.preparation
        if video.largest_fov_degrees() > preparation.max_fov_degrees:
            self.skipped[f"field of view above {preparation.max_fov_degrees:g} degrees"] += 1
            return None
        try:
            choice = sample_bounded(
                len(video),
                self.config.sampling,
                step=self.step.get(),
                circular=video.circular,
                generator=generator,
            )
            return make_example(video, choice, preparation, mirror_generator=generator if self.config.mirror else None)
        except SceneDataError as error:
            self._skip(error)
            return None

    def _skip(self, error: SceneDataError) -> None:
        self.skipped[str(error)] += 1
