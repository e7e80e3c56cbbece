"""What is evaluated: entries of an index over the scenes of a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lsplat_ns.data.batches import PreparationConfig, make_example, network_scale
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.sources import SceneSource
from lsplat_ns.data.view_sampling import FrameChoice, read_evaluation_index
from lsplat_ns.errors import SceneDataError
from lsplat_ns.evaluation.protocol import Encode, Kind, frames_from_context, target_kinds
from lsplat_ns.scene import SceneBatch
from lsplat_ns.wording import counted

CONTEXT_VIEWS = 2
NO_ENTRY, NOT_IN_DATA = "the index has no entry for it", "not in the data"
REPEATED = "it repeats views of an earlier entry, and would overwrite its pictures"


@dataclass(frozen=True)
class Entry:
    """Context and target frames of one scene."""

    scene: str
    choice: FrameChoice

    @property
    def key(self) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        """What tells entries apart."""
        return self.scene, self.choice.context, self.choice.target

    @property
    def title(self) -> str:
        """The key in words."""
        context, target = (", ".join(map(str, frames)) for frames in (self.choice.context, self.choice.target))
        return f"{self.scene} ({context} → {target})"

    def repeats(self, other: Entry) -> bool:
        """Whether it shows what another entry of the scene does: its targets, or one of them from the swapped pair.

        Published indices have pairs with several entries, whose targets may overlap: those are no repetitions.
        """
        context, target = self.choice.context, set(self.choice.target)
        if sorted(context) != sorted(other.choice.context):
            return False
        return target == set(other.choice.target) or (
            context != other.choice.context and not target.isdisjoint(other.choice.target)
        )


@dataclass(frozen=True)
class LoadedEntry:
    """An entry with its images."""

    example: SceneBatch  # a batch of one
    kinds: tuple[Kind, ...]  # one per target; empty where the data does not say
    distances: tuple[int, ...]  # in frames from the nearest context view, one per target
    path: Tensor  # [n, 4, 4] world_from_camera of the whole video, in the example's frame
    circular: bool = False


class EvaluationData(Protocol):
    """Entries in the order in which they are best read, and how to read them."""

    name: str
    """Of the dataset: re10k, co3d_<category>, or a capture's name."""
    index: str
    """File name of the evaluation index; empty where there is none."""
    entries: Sequence[Entry]
    left_out: dict[str, str]
    """Scenes of the index that have no entry here, and why."""
    repeated: dict[str, str]
    """Entries of the index that are not here because an earlier one shows the same, by title, and why."""
    size: tuple[int, int]
    """(height, width) of the network's images."""

    def load(self, entry: Entry) -> LoadedEntry:
        """Read an entry. Raises SceneDataError where it cannot be used."""

    def encode(self, entry: Entry, device: torch.device, deterministic: bool) -> Encode | None:
        """How its scene is predicted, where not from the two context views alone."""


@dataclass(frozen=True)
class IndexedScenes:
    """The entries of evaluation indices over a split of many scenes."""

    name: str
    index: str
    entries: tuple[Entry, ...]
    left_out: dict[str, str]
    preparation: PreparationConfig
    read_scene: Callable[[str], PosedVideo] = field(repr=False)
    repeated: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(
        name: str, index_files: Sequence[Path], source: SceneSource, preparation: PreparationConfig
    ) -> IndexedScenes:
        """Join indices and scenes. Entries come in the order of the data's shards, so that each is read once.

        An entry that repeats an earlier one is left out: both would have the same files, and count twice.

        Raises:
            SceneDataError: If an index cannot be read, or none of its scenes is in the data.
        """
        choices = {scene: found for path in index_files for scene, found in read_evaluation_index(path).items()}
        stored = {scene for shard in source.shards for scene in source.scenes_of(shard)}
        left_out = {scene: NO_ENTRY for path in index_files for scene in _scenes_of_index(path) if scene not in choices}
        left_out |= {scene: NOT_IN_DATA for scene in choices if scene not in stored}
        order = [scene for shard in source.shards for scene in source.scenes_of(shard) if scene in choices]
        entries, repeated = [], {}
        for scene in order:
            kept: list[Entry] = []
            for number, choice in enumerate(choices[scene], start=1):
                entry = Entry(scene, choice)
                if any(entry.repeats(other) for other in kept):
                    repeated[f"{entry.title}, entry {number} of the scene"] = REPEATED
                else:
                    kept.append(entry)
            entries += kept
        names = " + ".join(path.name for path in index_files)
        if not entries:
            raise SceneDataError(
                f"no scene of the evaluation index {names} is in the data, which has {min(stored)}, ...; "
                f"name another index with --index"
            )
        return IndexedScenes(name, names, tuple(entries), left_out, preparation, source.read_scene, repeated)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's images."""
        return self.preparation.image_size

    def load(self, entry: Entry) -> LoadedEntry:
        """Read an entry by the published rules. Raises SceneDataError where it cannot be used."""
        context, target = entry.choice.context, entry.choice.target
        if len(context) != CONTEXT_VIEWS or not target:
            views = f"{counted(len(context), 'context view')} and {counted(len(target), 'target')}"
            raise SceneDataError(
                f"scene {entry.scene}: an entry of the index has {views}; the network takes {CONTEXT_VIEWS}, and at "
                "least one target is needed"
            )
        video = self.read_scene(entry.scene)
        if video.largest_fov_degrees() > self.preparation.max_fov_degrees:
            raise SceneDataError(
                f"scene {entry.scene} has a field of view above {self.preparation.max_fov_degrees:g} degrees",
                reason="field of view",
            )
        example = make_example(video, entry.choice, self.preparation)
        path = video.world_from_camera.clone()
        path[:, :3, 3] *= network_scale(video, entry.choice.context, self.preparation)
        kinds, distances = target_kinds(video, entry.choice), frames_from_context(video, entry.choice)
        return LoadedEntry(example, kinds, distances, path, video.circular)

    def encode(self, entry: Entry, device: torch.device, deterministic: bool) -> Encode | None:
        """From the two context views."""
        return None

    def thinned(self, count: int) -> IndexedScenes:
        """At most ``count`` entries, evenly spread."""
        chosen = tuple(self.entries[i] for i in spread_out(len(self.entries), count))
        return replace(self, entries=chosen, repeated={})


def _scenes_of_index(path: Path) -> list[str]:
    return list(json.loads(path.read_text()))


def spread_out(length: int, count: int) -> list[int]:
    """At most ``count`` distinct positions in ``range(length)``, evenly spread from the first on."""
    count = min(length, count)
    return [i * length // count for i in range(count)]
