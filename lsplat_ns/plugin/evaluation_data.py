"""What an evaluation reads: the entries of an index over many scenes, or one scene as the viewer shows it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lsplat_ns.data.batches import PreparationConfig, network_scale
from lsplat_ns.evaluation.entries import Entry, IndexedScenes, LoadedEntry
from lsplat_ns.evaluation.protocol import Encode, frames_from_context, target_kinds
from lsplat_ns.fusion import predict_scene
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.plugin.active_scene import ActiveScene
from lsplat_ns.plugin.dataparsers import SceneSetDataParser
from lsplat_ns.scene import VariationalGaussians


def indexed_scenes(dataparser: SceneSetDataParser, preparation: PreparationConfig) -> IndexedScenes | None:
    """The evaluation entries of a dataset of many scenes; None where it has no index.

    Raises:
        SceneDataError: If the data or an index cannot be read, or they have no scene in common.
    """
    files = dataparser.evaluation_indices()
    if not files:
        return None
    sets = dataparser.published_sets()
    return IndexedScenes.of("+".join(sets), files, dataparser.split(dataparser.config.scene_split), preparation)


@dataclass(frozen=True)
class ActiveSceneData:
    """One scene as the viewer shows it, with all its context views; for captures, which have no index."""

    scene: ActiveScene
    network: LatentSplat
    index: str = ""

    @property
    def left_out(self) -> dict[str, str]:
        """Nothing."""
        return {}

    @property
    def repeated(self) -> dict[str, str]:
        """Nothing: there is one entry."""
        return {}

    @property
    def name(self) -> str:
        """Of the scene."""
        return self.scene.name

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's images."""
        return self.scene.preparation.image_size

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The views that the scene was opened with."""
        return (Entry(self.scene.name, self.scene.choice),)

    def load(self, entry: Entry) -> LoadedEntry:
        """Read the scene's views. Raises SceneDataError where an image cannot be read."""
        example = self.scene.example(entry.choice.target)
        video, choice = self.scene.video, entry.choice
        path = video.world_from_camera.clone()
        path[:, :3, 3] *= network_scale(video, choice.context[:2], self.scene.preparation)
        kinds = target_kinds(video, choice) if self.scene.capture is None else ()  # captures are no paths
        return LoadedEntry(example, kinds, frames_from_context(video, choice), path, video.circular)

    def encode(self, entry: Entry, device: torch.device, deterministic: bool) -> Encode | None:
        """From its pairs of context views, fused."""
        if len(self.scene.pairs) < 2:
            return None
        pairs = [pair.to(device) for pair in self.scene.pairs]

        def predict(generator: torch.Generator) -> VariationalGaussians:
            return predict_scene(self.network, pairs, deterministic=deterministic, generator=generator).gaussians

        return predict
