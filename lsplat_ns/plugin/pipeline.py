"""The pipeline: joins datamanager and model, evaluates over an index, and keeps headless tools on the right scene."""

import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Tuple, Type

import torch
from nerfstudio.utils import profiler
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape
from rich.progress import Progress
from torch.nn import Parameter

from lsplat_ns.errors import CheckpointMismatch
from lsplat_ns.evaluation.entries import Entry, EvaluationData
from lsplat_ns.evaluation.evaluate import Evaluation, evaluate_entries, finish
from lsplat_ns.evaluation.metrics import find_image_metrics
from lsplat_ns.evaluation.protocol import OURS
from lsplat_ns.evaluation.results import EvaluationFolder, flat_results
from lsplat_ns.plugin.active_scene import ActiveScene
from lsplat_ns.plugin.datamanager import ContextChoice, LatentSplatDataManagerConfig
from lsplat_ns.plugin.evaluation_data import ActiveSceneData, indexed_scenes
from lsplat_ns.plugin.model import LatentSplatModel, LatentSplatModelConfig
from lsplat_ns.plugin.optimizers import LR_FACTOR
from lsplat_ns.plugin.trained_pipeline import TrainedPipeline, TrainedPipelineConfig
from lsplat_ns.plugin.trainer import checkpoint_steps, one_line_errors


@dataclass
class LatentSplatPipelineConfig(TrainedPipelineConfig):
    """Data and model of a feed-forward method."""

    _target: Type = field(default_factory=lambda: LatentSplatPipeline)
    """target class to instantiate"""
    datamanager: LatentSplatDataManagerConfig = field(default_factory=LatentSplatDataManagerConfig)
    """Scenes to train on, and the one to look at."""
    model: LatentSplatModelConfig = field(default_factory=LatentSplatModelConfig)
    """Networks and losses."""
    evaluation: Literal["sample", "mode"] = "sample"
    """Evaluate draws, as published (seeded per entry), or modes."""


class LatentSplatPipeline(TrainedPipeline):
    """nerfstudio's pipeline over many scenes."""

    config: LatentSplatPipelineConfig
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
        if test_mode != "val":
            _check_run(config.datamanager.run_dir)
            make_ffmpeg_visible()
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
        self.model.set_scene(self.datamanager.scene)
        self.model.viewer_control.pipeline = self
        if local_rank == 0:
            self.datamanager.announce()

    def set_scene(self, scene: str, context: ContextChoice = None) -> None:
        """Show another scene in every tool, and remember it beside the run.

        Args:
            scene: Id or number.
            context: Frames that the network sees, or "auto" for the pair with the best overlap.

        Raises:
            SceneDataError: If there is no such scene or frame, or nothing can be predicted; the one before stays.
        """
        self.show_scene(self.find_scene(scene, context))

    def find_scene(self, scene: str, context: ContextChoice = None) -> ActiveScene:
        """A scene with the generated views that it has. Nothing is shown. Arguments and errors as :meth:`set_scene`."""
        found, shown = self.datamanager.find_scene(scene, context), self.datamanager.scene
        layers = shown.layers if found.name == shown.name else self.datamanager.layers_of(found.name)
        return replace(found, layers=layers)

    def show_scene(self, scene: ActiveScene) -> None:
        """Predict a scene and show it in every tool. Raises as :meth:`set_scene`; the one before then stays."""
        prediction = self.model.predict(scene)
        self.datamanager.show(prediction.scene)
        self.model.show(prediction)

    # ------------------------------------------------------------------------------------------------- training

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """Parameter groups; each parameter knows the effective batch size, which scales some learning rates."""
        groups = super().get_param_groups()
        factor = self.config.datamanager.batch_size * self.world_size
        for parameters in groups.values():
            for parameter in parameters:
                setattr(parameter, LR_FACTOR, factor)
        return groups

    def load_pipeline(self, loaded_state: Dict[str, Any], step: int) -> None:
        """Load a checkpoint strictly; tools that show a run may then compute faster."""
        super().load_pipeline(loaded_state, step)
        if self.test_mode != "val":
            self.model.accelerate()

    # ----------------------------------------------------------------------------------------------- evaluation

    @profiler.time_function
    def get_eval_loss_dict(self, step: int) -> Tuple[Dict, Dict, Dict]:
        """Losses on the active scene's target views."""
        self.eval()
        batch, _ = self.datamanager.next_eval(step)
        scene = self.datamanager.scene
        data = ActiveSceneData(scene, self.model.network)
        evaluation = Evaluation(self.model.network, data, find_image_metrics(), self._draws, yardsticks=False)
        score = evaluation.score(Entry(scene.name, scene.choice), batch)
        self.train()
        metrics = {name: values.mean() for name, values in score.metrics[OURS].items()}
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
    ) -> Dict[str, Any]:
        """Metrics over all entries of the evaluation index, or over the active scene where there is none.

        Args:
            step: Not used.
            output_path: Folder for the decoded views, as ``<scene>/<left>_<right>/color/<frame>.png``.
            get_std: Whether to add everything else that ``lsplat evaluate`` measures: standard deviations over
                entries, FID and KID, kinds of targets, scenes, times, and what was left out and why.
        """
        self.eval()
        data = self._evaluation_data()
        evaluation = Evaluation(self.model.network, data, find_image_metrics(), self._draws, yardsticks=get_std)
        with tempfile.TemporaryDirectory(prefix="lsplat-eval-") as scratch, one_line_errors():
            folder = EvaluationFolder(Path(scratch), {"index": data.index}, pictures=output_path)
            with Progress(console=CONSOLE, transient=True) as progress:
                task = progress.add_task("Evaluating", total=len(data.entries))
                outcome = evaluate_entries(
                    evaluation, folder, truths=get_std, on_entry=lambda done, _: progress.update(task, completed=done)
                )
            if not outcome.finished:
                raise KeyboardInterrupt
            summary = finish(evaluation, outcome, distances=get_std)
        self.train()
        for name, reason in outcome.skipped.items():
            CONSOLE.print(f"[yellow]Skipped {escape(name)}: {escape(reason)}")
        return flat_results(summary, everything=get_std)

    @property
    def _draws(self) -> int:
        return 0 if self.config.evaluation == "mode" else 1

    def _evaluation_data(self) -> EvaluationData:
        """The evaluation index, or the active scene where there is none or the options name a scene."""
        datamanager = self.datamanager
        if datamanager.has_many_scenes and datamanager.dataparser.config.scene is None:
            indexed = indexed_scenes(datamanager.dataparser, self.config.datamanager.preparation)
            if indexed is not None:
                return indexed
        return ActiveSceneData(datamanager.scene, self.model.network)


def _check_run(run_dir: Optional[Path]) -> None:
    """Raise CheckpointMismatch where a run has no checkpoint yet."""
    if run_dir is None:
        return
    folder = Path(run_dir) / "nerfstudio_models"
    if not folder.is_dir() or not checkpoint_steps(folder):
        raise CheckpointMismatch(
            f"no checkpoint in {folder}; train first (ns-train), or start this tool in the folder that training ran in"
        )


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
