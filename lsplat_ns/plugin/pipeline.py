"""The pipeline: joins datamanager and model, evaluates over an index, and keeps headless tools on the right scene."""

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Literal, Mapping, Optional, Tuple, Type

import torch
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import profiler
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch.nn import Parameter

from lsplat_ns.data.batches import make_example
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import CheckpointMismatch, MissingWeights, SceneDataError
from lsplat_ns.evaluation.protocol import EntryScore, average, score_entry
from lsplat_ns.fusion import predict_scene
from lsplat_ns.losses import PerceptualDistance
from lsplat_ns.plugin.active_scene import ActiveScene
from lsplat_ns.plugin.datamanager import LatentSplatDataManager, LatentSplatDataManagerConfig
from lsplat_ns.plugin.loading import model_state
from lsplat_ns.plugin.model import LatentSplatModel, LatentSplatModelConfig
from lsplat_ns.plugin.optimizers import LR_FACTOR
from lsplat_ns.plugin.trainer import checkpoint_steps, one_line_errors
from lsplat_ns.scene import SceneBatch, VariationalGaussians


@dataclass
class LatentSplatPipelineConfig(VanillaPipelineConfig):
    """Data and model of a feed-forward method."""

    _target: Type = field(default_factory=lambda: LatentSplatPipeline)
    """target class to instantiate"""
    datamanager: LatentSplatDataManagerConfig = field(default_factory=LatentSplatDataManagerConfig)
    """Scenes to train on, and the one to look at."""
    model: LatentSplatModelConfig = field(default_factory=LatentSplatModelConfig)
    """Networks and losses."""
    evaluation: Literal["sample", "mode"] = "sample"
    """Evaluate draws, as published (seeded per entry), or modes."""

    def setup(self, **kwargs: Any) -> "LatentSplatPipeline":
        """Build the pipeline; a user error ends the program with one line."""
        with one_line_errors():
            return super().setup(**kwargs)


class LatentSplatPipeline(VanillaPipeline):
    """nerfstudio's pipeline over many scenes."""

    config: LatentSplatPipelineConfig
    datamanager: LatentSplatDataManager
    model: LatentSplatModel

    def __init__(
        self,
        config: LatentSplatPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Optional[Any] = None,
    ) -> None:
        training = test_mode == "val"
        if not training:
            _check_run(config.datamanager.run_dir)
            make_ffmpeg_visible()
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
        if training:
            self.model.prepare_training()
        self.model.set_scene(self.datamanager.scene)
        self.model.viewer_control.on_scene_wanted = self.set_scene
        self.model.viewer_control.scene_ids = self.datamanager.scene_ids
        if local_rank == 0:
            self.datamanager.announce()

    def set_scene(self, scene: str, context: Optional[Tuple[int, int]] = None) -> None:
        """Show another scene in every tool: predict it, and remember it beside the run.

        Raises:
            SceneDataError: If there is no such scene; the one before stays.
        """
        self.datamanager.load_scene(scene, context)
        self.model.set_scene(self.datamanager.scene)
        self.model.prediction()

    # ------------------------------------------------------------------------------------------------- training

    @profiler.time_function
    def get_train_loss_dict(self, step: int) -> Tuple[Dict, Dict, Dict]:
        """Outputs, losses and metrics of one step. All of it is computed inside the (possibly DDP-wrapped) model."""
        batch, skips = self.datamanager.next_train(step)
        outputs = self._model(batch, self.datamanager.stream.noise_seed(step))
        return outputs, outputs["losses"], {**outputs["metrics"], **skips}

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """Parameter groups; each parameter knows the effective batch size, which scales some learning rates."""
        groups = super().get_param_groups()
        factor = self.config.datamanager.batch_size * self.world_size
        for parameters in groups.values():
            for parameter in parameters:
                setattr(parameter, LR_FACTOR, factor)
        return groups

    def load_pipeline(self, loaded_state: Dict[str, Any], step: int) -> None:
        """Load a checkpoint strictly.

        Raises:
            SystemExit: With one line, if it does not fit; nerfstudio would silently load what fits.
        """
        with one_line_errors():
            state = {key.removeprefix("module."): value for key, value in loaded_state.items()}
            self.model.update_to_step(step)
            self.load_state_dict(state)
        if self.test_mode != "val":
            self.model.accelerate()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: Optional[bool] = None) -> None:
        """Load the model's part of a checkpoint, also one written under DDP.

        Raises:
            CheckpointMismatch: If keys or shapes differ.
        """
        self.model.load_state_dict(model_state(state_dict))

    # ----------------------------------------------------------------------------------------------- evaluation

    @profiler.time_function
    def get_eval_loss_dict(self, step: int) -> Tuple[Dict, Dict, Dict]:
        """Losses on the active scene's target views."""
        self.eval()
        batch, _ = self.datamanager.next_eval(step)
        with torch.no_grad():
            score = self._score(batch, seed=0, scene=self.datamanager.scene)
        self.train()
        metrics = {name: values.mean() for name, values in score.metrics.items()}
        mse = (score.images.to(batch.target.image) - batch.target.image[0]).square().mean()
        return {}, {"mse": mse}, metrics

    @profiler.time_function
    def get_eval_image_metrics_and_images(self, step: int) -> Tuple[Dict, Dict]:
        """Context, truth beside decoded view, splatted colour and depth of one target view of the active scene."""
        self.eval()
        targets = len(self.datamanager.eval_dataset)
        camera, batch = self.datamanager.eval_dataloader.get_camera(step % targets)
        outputs = self.model.get_outputs_for_camera(camera)
        metrics, images = self.model.get_image_metrics_and_images(outputs, batch)
        images["splat"] = outputs["rgb_splat"]
        images["context"] = torch.cat([image.permute(1, 2, 0) for image in self.datamanager.scene.context.image[0]], 1)
        self.train()
        return {**metrics, "num_rays": int(camera.height * camera.width)}, images

    @profiler.time_function
    def get_average_eval_image_metrics(
        self, step: Optional[int] = None, output_path: Optional[Path] = None, get_std: bool = False
    ) -> Dict[str, float]:
        """Metrics over all entries of the evaluation index, or over the active scene where there is none.

        Args:
            step: Not used.
            output_path: Folder for the decoded views, as ``<scene>/<left>_<right>/color/<frame>.png``.
            get_std: Whether to add standard deviations over entries.
        """
        self.eval()
        entries = list(self._evaluation_entries())
        scores: List[EntryScore] = []
        for number, (scene, choice) in enumerate(track(entries, description="Evaluating", transient=True)):
            active = self.datamanager.scene
            shown = active if choice is active.choice else None
            try:
                if shown is not None:
                    example = shown.example(choice.target)
                else:
                    video = active.video if scene == active.name else self.datamanager.dataparser.read_scene(scene)
                    example = make_example(video, choice, self.config.datamanager.preparation)
            except SceneDataError as error:
                CONSOLE.print(f"[yellow]Skipped scene {scene}: {error}")
                continue
            scores.append(self._score(example.to(self.device), seed=number, scene=shown))
            if output_path is not None:
                _save_images(scores[-1], output_path)
        self.train()
        if not scores:
            raise SystemExit("error: no entry of the evaluation index could be evaluated")
        result = average(scores)
        return result if get_std else {name: value for name, value in result.items() if not name.endswith("_std")}

    def _evaluation_entries(self) -> Iterator[Tuple[str, FrameChoice]]:
        datamanager = self.datamanager
        explicit = getattr(datamanager.config.dataparser, "scene", None) is not None
        if datamanager.has_many_scenes and not explicit:
            index = datamanager.dataparser.evaluation_choices()
            known = set(datamanager.scene_ids())
            entries = [(scene, choice) for scene, choices in index.items() if scene in known for choice in choices]
            if entries:
                yield from entries
                return
        yield datamanager.scene.name, datamanager.scene.choice

    def _score(self, example: SceneBatch, seed: int, scene: Optional[ActiveScene] = None) -> EntryScore:
        """Score an example; one of the active scene as that is shown, fused from its pairs of context views."""
        lpips = None
        try:
            lpips = PerceptualDistance().per_image
        except MissingWeights:
            pass  # the metric is simply absent; `lsplat doctor` says what is missing
        deterministic = self.config.evaluation == "mode"
        network, encode = self.model.network, None
        if scene is not None and len(scene.pairs) > 1:
            pairs = [pair.to(self.device) for pair in scene.pairs]

            def encode(generator: torch.Generator) -> VariationalGaussians:
                return predict_scene(network, pairs, deterministic=deterministic, generator=generator).gaussians

        return score_entry(network, example, seed=seed, deterministic=deterministic, lpips=lpips, encode=encode)


def _check_run(run_dir: Optional[Path]) -> None:
    """Raise CheckpointMismatch where a run has no checkpoint yet."""
    if run_dir is None:
        return
    folder = Path(run_dir) / "nerfstudio_models"
    if not folder.is_dir() or not checkpoint_steps(folder):
        raise CheckpointMismatch(
            f"no checkpoint in {folder}; train first (ns-train), or start this tool in the folder that training ran in"
        )


def _save_images(score: EntryScore, output_path: Path) -> None:
    from torchvision.utils import save_image

    folder = output_path / score.scene / "_".join(str(frame) for frame in sorted(score.context)) / "color"
    folder.mkdir(parents=True, exist_ok=True)
    for frame, image in zip(score.target, score.images, strict=True):
        save_image(image, folder / f"{frame:06d}.png")


def make_ffmpeg_visible() -> None:
    """Let ``ns-render`` find the ffmpeg of the imageio-ffmpeg wheel where the system has none."""
    if shutil.which("ffmpeg") is not None:
        return
    try:
        import imageio_ffmpeg

        binary = Path(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return  # nerfstudio then says itself that ffmpeg is missing
    folder = Path(tempfile.gettempdir()) / f"lsplat-ffmpeg-{os.getuid() if hasattr(os, 'getuid') else 0}"
    folder.mkdir(mode=0o700, exist_ok=True)
    link = folder / ("ffmpeg.exe" if os.name == "nt" else "ffmpeg")
    if not link.exists():
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(binary)
        except OSError:
            shutil.copy2(binary, link)
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{folder}"
