"""Many scenes of one split: what every dataset offers to training streams and to the tools that show one scene."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.errors import SceneDataError

OnBroken = Callable[[SceneDataError], None]
"""Told of a scene that cannot be used, so that the others can."""


class SceneSource(Protocol):
    """Scenes by id, stored in shards: what is read together and dealt to one reader (a chunk file, or one scene)."""

    @property
    def scenes(self) -> list[str]:
        """Scene ids in the dataset's order."""

    @property
    def shards(self) -> list[str]:
        """Names of the shards, sorted."""

    def scenes_of(self, shard: str) -> list[str]:
        """Scene ids of a shard, without reading it. Every scene belongs to exactly one shard."""

    def read_shard(self, shard: str, on_broken: OnBroken | None = None) -> Iterator[PosedVideo]:
        """The scenes of a shard. Broken ones are handed to ``on_broken``, or raise SceneDataError where it is None."""

    def read_scene(self, scene: str) -> PosedVideo:
        """One scene; cheap when scenes of one shard are read in a row. Raises SceneDataError where there is none."""


@dataclass(frozen=True)
class VideoList:
    """Scenes that are in memory already, such as a capture; one shard each."""

    videos: tuple[PosedVideo, ...]

    @property
    def scenes(self) -> list[str]:
        """Scene ids in the given order."""
        return [video.scene for video in self.videos]

    @property
    def shards(self) -> list[str]:
        """Scene ids, sorted."""
        return sorted(self.scenes)

    def scenes_of(self, shard: str) -> list[str]:
        """The scene itself."""
        return [shard]

    def read_shard(self, shard: str, on_broken: OnBroken | None = None) -> Iterator[PosedVideo]:
        """The scene itself."""
        yield self.read_scene(shard)

    def read_scene(self, scene: str) -> PosedVideo:
        """One scene by id. Raises SceneDataError where there is none."""
        for video in self.videos:
            if video.scene == scene:
                return video
        raise SceneDataError(f"no scene {scene}; there are {', '.join(self.scenes[:3])}")


@dataclass(frozen=True)
class JoinedSources:
    """The scenes of several sources of one split, one source after the other.

    Raises:
        SceneDataError: If two sources have a scene of the same id.
    """

    sources: Mapping[str, SceneSource]  # by a name that messages can use, such as the folder

    def __post_init__(self) -> None:
        owner: dict[str, str] = {}
        for name, source in self.sources.items():
            for scene in source.scenes:
                if scene in owner:
                    raise SceneDataError(f"scene {scene} is in {owner[scene]} and in {name}; name only one of them")
                owner[scene] = name

    @cached_property
    def _owner(self) -> dict[str, SceneSource]:
        return {scene: source for source in self.sources.values() for scene in source.scenes}

    @cached_property
    def _shards(self) -> dict[str, tuple[SceneSource, str]]:
        return {f"{name}/{shard}": (source, shard) for name, source in self.sources.items() for shard in source.shards}

    @property
    def scenes(self) -> list[str]:
        """Scene ids of the first source, then of the next ones."""
        return list(self._owner)

    @property
    def shards(self) -> list[str]:
        """Shard names behind the names of their sources, sorted."""
        return sorted(self._shards)

    def scenes_of(self, shard: str) -> list[str]:
        """Scene ids of a shard."""
        source, name = self._shards[shard]
        return source.scenes_of(name)

    def read_shard(self, shard: str, on_broken: OnBroken | None = None) -> Iterator[PosedVideo]:
        """The scenes of a shard, as its source reads them."""
        source, name = self._shards[shard]
        return source.read_shard(name, on_broken)

    def read_scene(self, scene: str) -> PosedVideo:
        """One scene by id. Raises SceneDataError where no source has it."""
        if scene not in self._owner:
            raise SceneDataError(f"no scene {scene} in {', '.join(self.sources)}; there are {self.scenes[0]}, ...")
        return self._owner[scene].read_scene(scene)
