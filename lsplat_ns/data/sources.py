"""Many scenes of one split: what every dataset offers to training streams and to the tools that show one scene."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

    def read_shard(self, shard: str, on_broken: OnBroken | None = None) -> Iterator[PosedVideo]:
        """The scenes of a shard. Broken ones are handed to ``on_broken``, or raise SceneDataError where it is None."""

    def read_scene(self, scene: str) -> PosedVideo:
        """One scene. Raises SceneDataError where there is none of that id."""


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

    def read_shard(self, shard: str, on_broken: OnBroken | None = None) -> Iterator[PosedVideo]:
        """The scene itself."""
        yield self.read_scene(shard)

    def read_scene(self, scene: str) -> PosedVideo:
        """One scene by id. Raises SceneDataError where there is none."""
        for video in self.videos:
            if video.scene == scene:
                return video
        raise SceneDataError(f"no scene {scene}; there are {', '.join(self.scenes[:3])}")
