"""The datamanager: an endless stream over all scenes for training, and one active scene for everything else."""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Iterator, List, Literal, Optional, Tuple, Type, Union

import torch
import tyro
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import (
    DataManager,
    VanillaDataManager,
    VanillaDataManagerConfig,
)
from nerfstudio.data.dataparsers.base_dataparser import DataParser
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.data.skips import SkipTally
from lsplat_ns.data.sources import VideoList
from lsplat_ns.data.streams import StreamConfig, TrainingBatch, TrainingStream, training_batches
from lsplat_ns.data.view_sampling import ViewSamplingConfig
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.plugin.active_scene import ActiveScene, SceneDataset
from lsplat_ns.plugin.added_photos import added_capture, added_scenes
from lsplat_ns.plugin.captures import (
    CaptureContextConfig,
    active_scene_from_dataparser,
    best_pair,
    capture_name,
    open_dataparser,
    video_from_dataparser,
)
from lsplat_ns.plugin.dataparsers import Re10kDataParserConfig, SceneSetDataParser
from lsplat_ns.plugin.scene_notes import SceneNotes
from lsplat_ns.scene import SceneBatch

if TYPE_CHECKING:
    from lsplat_ns.plugin.generated_layers import GeneratedLayer

ContextChoice = Union[Tuple[int, ...], Literal["auto"], None]
"""Context frames, "auto" for the pair with the best overlap, or None for those of the index or the options."""


@dataclass
class LatentSplatDataManagerConfig(CaptureContextConfig, VanillaDataManagerConfig):
    """Data of a feed-forward model: many scenes to train on, one to look at."""

    _target: Type = field(default_factory=lambda: LatentSplatDataManager)
    """target class to instantiate"""
    dataparser: AnnotatedDataParserUnion = field(default_factory=Re10kDataParserConfig)
    """Where scenes come from: re10k-data, or any capture that nerfstudio reads (nerfstudio-data, colmap, ...)."""
    preparation: PreparationConfig = field(default_factory=PreparationConfig)
    """How frames become network inputs."""
    sampling: ViewSamplingConfig = field(default_factory=ViewSamplingConfig)
    """Which frames of a video become context and target views in training."""
    batch_size: int = 2
    """Examples per step and device."""
    num_workers: int = 4
    """Loader processes per device; 0 loads in the training process. Another number gives another order of scenes."""
    mirror: bool = True
    """Reflect every second training example."""
    seed: int = 1234
    """Seed of the order of scenes and frames; ranks and loader workers derive theirs from it."""
    layers: Optional[Path] = None
    """Generated views that were saved with the scene of the options: the viewer writes this file beside its config."""
    run_dir: tyro.conf.Suppress[Optional[Path]] = None
    """Run folder, known to the trainer and to every tool that opens the run; holds the sidecar."""
    # Options of ray-based methods, which have no meaning here.
    train_num_rays_per_batch: tyro.conf.Suppress[int] = 1024
    train_num_images_to_sample_from: tyro.conf.Suppress[int] = -1
    train_num_times_to_repeat_images: tyro.conf.Suppress[int] = -1
    eval_num_rays_per_batch: tyro.conf.Suppress[int] = 1024
    eval_num_images_to_sample_from: tyro.conf.Suppress[int] = -1
    eval_num_times_to_repeat_images: tyro.conf.Suppress[int] = -1
    eval_image_indices: tyro.conf.Suppress[Optional[Tuple[int, ...]]] = (0,)
    camera_res_scale_factor: tyro.conf.Suppress[float] = 1.0
    patch_size: tyro.conf.Suppress[int] = 1


def training_stream(
    config: LatentSplatDataManagerConfig, dataparser: DataParser, rank: int = 0, world_size: int = 1
) -> TrainingStream:
    """The endless stream of training batches: over all scenes of a dataset, or over one capture.

    Raises:
        SceneDataError: If the data cannot be read; the stream itself, when it is indexed, if no scene can be used.
        ConfigError: If the view sampler does not suit a network of two context views, or its index is absent.
    """
    sampler, many = config.sampling.sampler, isinstance(dataparser, SceneSetDataParser)
    if sampler == "all":
        raise ConfigError("sampler all makes every frame a context view, but latentSplat takes two; choose another")
    entries = dataparser.evaluation_choices() if many and sampler == "evaluation" else {}
    if sampler == "evaluation" and not entries:
        raise ConfigError("sampler evaluation needs an evaluation index; pass one with --evaluation-index")
    source = dataparser.split("train") if many else VideoList((video_from_dataparser(dataparser),))
    stream_config = StreamConfig(
        config.preparation,
        config.sampling,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        lanes=max(1, config.num_workers),
        mirror=config.mirror,
        entries=entries,
    )
    return TrainingStream(source, stream_config)


class LatentSplatDataManager(VanillaDataManager[SceneDataset]):
    """Serves :class:`SceneBatch` for training, and the active scene as nerfstudio datasets.

    The train dataset holds the context views of the active scene, the eval dataset its target views.

    Raises:
        SceneDataError: If the data cannot be read.
    """

    config: LatentSplatDataManagerConfig

    def __init__(
        self,
        config: LatentSplatDataManagerConfig,
        device: Union[torch.device, str] = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs,
    ):
        # nerfstudio's own constructor reads a single-scene dataparser; everything that its tools look at is set here.
        self.config = config
        self.device = device
        self.world_size = world_size
        self.local_rank = local_rank
        self.sampler = None
        self.test_mode = test_mode
        self.test_split = "val" if test_mode == "val" else "test"
        if config.data is not None:
            config.dataparser.data = Path(config.data)
        else:
            config.data = config.dataparser.data
        self.dataparser_config = config.dataparser
        self.dataparser = open_dataparser(config.dataparser)
        self.includes_time = False
        self.skips = SkipTally()
        self.notes = SceneNotes(config.run_dir)
        scene, self.scene_source = self._first_scene()
        self._show(scene)
        self.exclude_batch_keys_from_device = self.train_dataset.exclude_batch_keys_from_device
        DataManager.__init__(self)

    # ------------------------------------------------------------------------------------------ the active scene

    @property
    def has_many_scenes(self) -> bool:
        """Whether the data holds more than the active scene."""
        return isinstance(self.dataparser, SceneSetDataParser)

    def scene_ids(self) -> List[str]:
        """Ids of the scenes that can be shown: those of the data, then those made from photos added to the run."""
        if self.has_many_scenes:
            own = self.dataparser.scene_ids()
        else:
            own = [capture_name(Path(self.config.dataparser.data))]
        return [*own, *(scene for scene in added_scenes(self.config.run_dir) if scene not in own)]

    def find_scene(self, scene: str, context: ContextChoice = None) -> ActiveScene:
        """A scene by id or number, with the context frames that are wanted. Nothing is shown yet.

        Raises:
            SceneDataError: If there is no such scene or frame.
        """
        ids = self.scene_ids()
        scene = ids[int(scene)] if scene not in ids and scene.isdecimal() and int(scene) < len(ids) else scene
        if scene not in ids and not self.has_many_scenes:
            raise SceneDataError(f"no scene {scene!r} here; the run's data hold {', '.join(ids)}")
        if isinstance(context, tuple) and len(context) < 2:
            raise SceneDataError(f"the network sees two context views or more, not {list(context)}")
        preparation = self.config.preparation
        if scene in added_scenes(self.config.run_dir):
            options = CaptureContextConfig(None if context == "auto" else context)
            return active_scene_from_dataparser(added_capture(self.config.run_dir, scene), preparation, options)
        if self.has_many_scenes:
            found = self.dataparser.active_scene(preparation, scene, None if context == "auto" else context)
            if context == "auto":
                found = self.dataparser.active_scene(preparation, scene, best_pair(found.video, preparation))
            return found
        if context == "auto":
            return active_scene_from_dataparser(self.dataparser, preparation, CaptureContextConfig())
        return self._capture(context)

    def layers_of(self, scene: str) -> Tuple["GeneratedLayer", ...]:
        """The generated layers that a scene had when it was last shown, without those that can no longer be read."""
        return self.notes.layers_of(scene)

    def show(self, scene: ActiveScene) -> None:
        """Make a scene the active one, and remember it and its layers beside the run.

        Views of layers that were taken back are deleted, unless a saved scene has them.
        """
        before = self.scene
        self._show(scene)
        self.setup_eval()
        if self.notes.remember(before, scene) and before.name == scene.name and before.layers:
            from lsplat_ns.plugin.generated_layers import delete_unreferenced

            delete_unreferenced((layer.folder for layer in before.layers), Path(self.config.run_dir))

    def load_scene(self, scene: str, context: ContextChoice = None) -> None:
        """Make another scene (or other context views) the active one, and remember it beside the run.

        Raises:
            SceneDataError: If there is no such scene or frame; the active scene then stays.
        """
        self.show(self.find_scene(scene, context))

    def _capture(self, context: Optional[Tuple[int, ...]]) -> ActiveScene:
        """The capture with the given context frames, or those that the options say."""
        options = self.config if context is None else CaptureContextConfig(context)
        return active_scene_from_dataparser(self.dataparser, self.config.preparation, options)

    def _first_scene(self) -> Tuple[ActiveScene, str]:
        """The scene to start with, and why: options, else the sidecar of the run, else the first one."""
        preparation = self.config.preparation
        if self.has_many_scenes and self.config.dataparser.scene is not None:
            return self._with_saved_layers(self.dataparser.active_scene(preparation)), "from the options"
        if not self.has_many_scenes and self.config.context is not None:
            return self._with_saved_layers(self._capture(None)), "the capture, views from the options"
        if note := self.notes.read():
            try:
                found = self.find_scene(str(note["scene"]), tuple(note["context"]))
                found = replace(found, layers=self.layers_of(found.name))
                return found, f"last chosen in the viewer, {self.notes.file}"
            except (ValueError, KeyError, TypeError, SceneDataError) as error:
                self.notes.warn(f"Ignoring {self.notes.file}: {error}")
        if not self.has_many_scenes:
            return self._capture(None), f"the capture, views chosen by {self.config.context_choice}"
        return self.dataparser.active_scene(preparation), f"the first of {self.config.dataparser.scene_split}/"

    def _with_saved_layers(self, scene: ActiveScene) -> ActiveScene:
        if self.config.layers is None:
            return scene
        from lsplat_ns.plugin.generated_layers import read_layers

        path = Path(self.config.layers)
        try:
            notes = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise SceneDataError(f"{path} holds no generated layers: {error}") from None
        return replace(scene, layers=read_layers(notes, path.parent.parent))

    def _show(self, scene: ActiveScene) -> None:
        train, evaluation = SceneDataset(scene, scene.choice.context), SceneDataset(scene, scene.choice.target)
        self.scene, self.train_dataset, self.eval_dataset = scene, train, evaluation
        self.train_dataparser_outputs = train._dataparser_outputs

    def announce(self) -> None:
        """Say which scene is shown, and why."""
        *others, last = self.scene.choice.context
        frames = f"{', '.join(map(str, others))} and {last}"
        name, source = escape(self.scene.name), escape(self.scene_source)
        CONSOLE.print(f"Scene [bold]{name}[/bold] ({source}), context frames {frames}")

    # ------------------------------------------------------------------------------------------------- training

    def setup_train(self) -> None:
        """Prepare the stream of training batches. Only training needs it; reading starts with the first step."""
        if self.test_mode != "val":
            return
        # nerfstudio tells the rank on this machine only.
        rank = comms.get_rank() if comms.is_dist_avail_and_initialized() else self.local_rank
        self.stream = training_stream(self.config, self.dataparser, rank, self.world_size)
        self._batches: Iterator[TrainingBatch] = iter(())
        self._next_step: Optional[int] = None
        self.seconds_waited = 0.0  # for batches, in all

    def next_train(self, step: int) -> Tuple[SceneBatch, Dict[str, float]]:
        """The batch of a step on the device, and how many examples were skipped since training started or resumed.

        What a step trains on follows from seed, step and rank alone. Steps in sequence are read ahead; with any other
        step, such as the first one after a resume, reading starts anew there.
        """
        self.train_count += 1
        asked = time.perf_counter()
        if step != self._next_step:
            on_gpu = str(self.device).startswith("cuda")
            self._batches = training_batches(self.stream, step, num_workers=self.config.num_workers, pin_memory=on_gpu)
        self._next_step = step + 1
        batch = next(self._batches)
        examples = batch.to(self.device)
        self.seconds_waited += time.perf_counter() - asked
        self._report_skips(batch.skips)
        return examples, self.skips.metrics()

    def _report_skips(self, new: SkipTally) -> None:
        """Say what is skipped: the first time, and whenever the count has doubled."""
        before = self.skips.total_skipped
        self.skips.add(new)
        if self.skips.total_skipped.bit_length() > before.bit_length():
            where = f" (rank {self.stream.config.rank})" if self.world_size > 1 else ""
            CONSOLE.print(f"[yellow]Training data{where}: {escape(self.skips.summary())}")

    def get_train_rays_per_batch(self) -> int:
        """Target pixels per step; nerfstudio's viewer divides by it."""
        height, width = self.config.preparation.image_size
        return self.config.batch_size * self.config.sampling.num_target_views * height * width

    # ----------------------------------------------------------------------------------------------- evaluation

    def setup_eval(self) -> None:
        """Loaders over the target views of the active scene, which decode images on demand."""
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)
        self.eval_dataloader = RandIndicesEvalDataloader(self.eval_dataset, device=self.device)

    def next_eval(self, step: int) -> Tuple[SceneBatch, Dict]:
        """The active scene with as many of its targets as a training example has."""
        self.eval_count += 1
        count = self.config.sampling.num_target_views
        targets = self.scene.choice.target
        spread = tuple(targets[i * len(targets) // count] for i in range(count))
        return self.scene.example(spread).to(self.device), {}

    def get_eval_rays_per_batch(self) -> int:
        """Target pixels of :meth:`next_eval`."""
        return self.get_train_rays_per_batch() // self.config.batch_size
