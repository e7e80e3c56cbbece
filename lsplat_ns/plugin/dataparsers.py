"""Dataparsers of datasets with many scenes. Light on purpose: nerfstudio imports them on every command."""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Type

from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.utils.rich_utils import CONSOLE

from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.data.co3d import Co3dOptions, Co3dSplit
from lsplat_ns.data.layouts import layout_of
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.published_indices import find_evaluation_indices
from lsplat_ns.data.re10k import Re10kSplit
from lsplat_ns.data.sources import JoinedSources, SceneSource
from lsplat_ns.data.view_sampling import FrameChoice, read_evaluation_index, spread_choice
from lsplat_ns.errors import SceneDataError


@dataclass
class SceneSetDataParserConfig(DataParserConfig):
    """A dataset of many scenes, one of which is shown."""

    _target: Type = field(default_factory=lambda: SceneSetDataParser)
    """target class to instantiate"""
    data: Path = Path("datasets")
    """Folder of the dataset."""
    scene: Optional[str] = None
    """Scene id (or its number in the index) to show; else the last one chosen in a viewer, else the first."""
    context: Optional[Tuple[int, int]] = None
    """Frames of that scene that the network sees; else those of the evaluation index, else a centred pair."""
    context_gap: int = 45
    """Largest gap of that centred pair, in frames."""
    scene_split: str = "test"
    """Split that the shown scene comes from (train or test)."""
    evaluation_index: Optional[Path] = None
    """Evaluation index (JSON); by default evaluation_index.json in the data folder, else a published file there or in
    assets/, such as re10k_extra.json, where one exists."""


class SceneSetDataParser(DataParser):
    """Serves one scene of many: its context views as train split, its targets as test split."""

    config: SceneSetDataParserConfig

    def __init__(self, config: SceneSetDataParserConfig):
        super().__init__(config)
        self._splits: Dict[str, SceneSource] = {}

    def open_split(self, name: str) -> SceneSource:
        """Read and check a split of the dataset. Raises SceneDataError where it is broken."""
        raise NotImplementedError

    def split(self, name: str) -> SceneSource:
        """A split, opened once. Raises SceneDataError where it is broken."""
        if name not in self._splits:
            self._splits[name] = self.open_split(name)
        return self._splits[name]

    def read_scene(self, scene: str) -> PosedVideo:
        """A scene of the shown split. Raises SceneDataError where there is none of that id."""
        return self.split(self.config.scene_split).read_scene(scene)

    def published_sets(self) -> Tuple[str, ...]:
        """Names of this dataset in the file names of published evaluation indices."""
        return ()

    def evaluation_indices(self) -> List[Path]:
        """The stated evaluation index, or those that belong to the data (``find_evaluation_indices`` says where)."""
        stated = self.config.evaluation_index
        if stated is None:
            return find_evaluation_indices(self.config.data, self.published_sets())
        if not stated.is_file():
            raise SceneDataError(f"no evaluation index {stated}")
        return [stated]

    def evaluation_choices(self) -> Dict[str, List[FrameChoice]]:
        """Evaluation entries by scene; empty where there is no index."""
        return {
            scene: found for path in self.evaluation_indices() for scene, found in read_evaluation_index(path).items()
        }

    def scene_ids(self) -> List[str]:
        """Scenes that can be shown, those of the evaluation index first."""
        scenes = self.split(self.config.scene_split).scenes
        listed = self.evaluation_choices()
        return [s for s in scenes if s in listed] + [s for s in scenes if s not in listed]

    def resolve_scene(self, wanted: Optional[str]) -> str:
        """A scene id from an id or a number; the first scene for None. Raises SceneDataError for an unknown one."""
        scenes = self.scene_ids()
        if wanted is None:
            return scenes[0]
        if wanted in scenes:
            return wanted
        if wanted.isdecimal() and int(wanted) < len(scenes):
            return scenes[int(wanted)]
        raise SceneDataError(
            f"no scene {wanted!r} in {self.config.data / self.config.scene_split}; "
            f"give a number from 0 to {len(scenes) - 1} or an id such as {scenes[0]}"
        )

    def active_scene(
        self, preparation: PreparationConfig, scene: Optional[str] = None, context: Optional[Tuple[int, int]] = None
    ):
        """Read a scene and choose its views. Arguments win over the configuration.

        Returns:
            The ActiveScene.
        """
        from lsplat_ns.plugin.active_scene import ActiveScene, upright_and_unit_sized

        name = self.resolve_scene(scene if scene is not None else self.config.scene)
        video = self.read_scene(name)
        context = context if context is not None else self.config.context
        listed = [entry for entry in self.evaluation_choices().get(name, []) if _can_be_shown(entry, len(video))]
        if context is not None:
            video.check_frames(tuple(context))
            targets = tuple(i for i in range(len(video)) if i not in context)
            choice = FrameChoice(tuple(context), targets)
        elif listed:
            choice = listed[0]
        else:
            choice = spread_choice(len(video), self.config.context_gap)
        frames = tuple(range(min(choice.context), max(choice.context) + 1))
        return ActiveScene(video, choice, preparation, upright_and_unit_sized(video, frames))

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs) -> DataparserOutputs:
        scene = self.active_scene(PreparationConfig(image_size=kwargs.get("image_size", (256, 256))))
        return scene.dataparser_outputs(scene.choice.context if split == "train" else scene.choice.target)


def _can_be_shown(entry: FrameChoice, num_frames: int) -> bool:
    """Whether an entry has two context views, a target, and no frame that the video lacks.

    MV-LDM's indices have entries of one context view; those that are broken are named when they are evaluated.
    """
    frames = entry.context + entry.target
    return len(entry.context) >= 2 and len(entry.target) >= 1 and all(0 <= frame < num_frames for frame in frames)


@dataclass
class Re10kDataParserConfig(SceneSetDataParserConfig):
    """RealEstate10k chunks in pixelSplat's layout: thousands of scenes, one of which is shown."""

    _target: Type = field(default_factory=lambda: Re10kDataParser)
    """target class to instantiate"""
    data: Path = Path("datasets/re10k")
    """Folder with train/ and test/, each with an index.json and .torch chunks."""
    more_data: Tuple[Path, ...] = ()
    """Further such folders, whose scenes are added; one without test/ adds scenes to train on only."""


class Re10kDataParser(SceneSetDataParser):
    """Scenes of a folder of chunks."""

    config: Re10kDataParserConfig

    def published_sets(self) -> Tuple[str, ...]:
        """RealEstate10k."""
        return ("re10k",)

    def open_split(self, name: str) -> SceneSource:
        """Read and check the index of a split in every folder. Raises SceneDataError where one is broken."""
        first, *others = (Path(folder) for folder in (self.config.data, *self.config.more_data))
        roots = [first, *(root for root in others if name == "train" or (root / name).is_dir())]
        splits = {str(root): Re10kSplit.open(root, name) for root in roots}
        return JoinedSources(splits) if len(splits) > 1 else splits[str(first)]


@dataclass
class Co3dDataParserConfig(SceneSetDataParserConfig):
    """CO3D v2: walks around objects by category, one of which is shown."""

    _target: Type = field(default_factory=lambda: Co3dDataParser)
    """target class to instantiate"""
    data: Path = Path("datasets")
    """Folder that holds the category folders, each with its frame_annotations.jgz."""
    category: Tuple[str, ...] = ()
    """Categories to read, such as hydrant; by default all that are in the folder."""
    split_lists: Optional[Path] = None
    """Folder of latentSplat's lists co3d_CATEGORY_train.json and co3d_CATEGORY_eval.json; by default dataset_splits in
    the data folder, or assets/dataset_splits beside it. A split without a list is derived, and training says how."""
    min_viewpoint_quality: Optional[float] = None
    """Leave out sequences whose cameras CO3D itself scores lower; by default all are used, as in the original."""
    circular: bool = True
    """Sequences go around their object: views are drawn across the seam between last and first frame."""
    context_gap: int = 25
    """Largest gap of the centred pair that is shown where there is no evaluation index, in frames."""


class Co3dDataParser(SceneSetDataParser):
    """Scenes of a folder of categories."""

    config: Co3dDataParserConfig

    def published_sets(self) -> Tuple[str, ...]:
        """One per category."""
        return tuple(f"co3d_{name}" for name in self.split(self.config.scene_split).tables)

    def open_split(self, name: str) -> SceneSource:
        """Read annotations and lists of a split. Raises SceneDataError where they are broken."""
        config = self.config
        lists = None if config.split_lists is None else Path(config.split_lists)
        options = Co3dOptions(tuple(config.category), lists, config.min_viewpoint_quality, config.circular)
        split = Co3dSplit.open(Path(config.data), name, options)
        for note in split.notes:
            _say_once(note)
        return split


@cache
def _say_once(note: str) -> None:
    """Print a note, the first time that a dataparser of this process has it."""
    CONSOLE.print(f"CO3D {note}", markup=False)


def dataparser_for(data: Path, similar: DataParserConfig) -> DataParserConfig:
    """The config that reads a dataset, by its layout; with the options of a similar one where that reads it as well.

    Raises:
        SceneDataError: If the folder is no dataset.
    """
    layout = layout_of(data)
    if layout == "capture":
        from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

        return NerfstudioDataParserConfig(data=data)
    kind = Co3dDataParserConfig if layout == "co3d" else Re10kDataParserConfig
    return replace(similar, data=data) if isinstance(similar, kind) else kind(data=data)
