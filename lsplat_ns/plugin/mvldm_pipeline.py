"""Training and evaluation of MV-LDM in nerfstudio: scenes in, denoiser out, and generated views to look at."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple, Type

import torch
from nerfstudio.utils import profiler
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape
from rich.progress import track
from torch import Tensor

from lsplat_ns.checkpoints.mvldm_runs import update_mvldm
from lsplat_ns.data.batches import make_example
from lsplat_ns.diffusion.sampler import generate
from lsplat_ns.diffusion.view_plan import ViewPlanConfig, plan_views
from lsplat_ns.errors import LsplatError, SceneDataError
from lsplat_ns.evaluation.image_folders import scene_folder_name
from lsplat_ns.evaluation.metrics import psnr, ssim
from lsplat_ns.plugin.datamanager import LatentSplatDataManagerConfig
from lsplat_ns.plugin.mvldm_model import MvldmModel, MvldmModelConfig
from lsplat_ns.plugin.trained_pipeline import TrainedPipeline, TrainedPipelineConfig
from lsplat_ns.plugin.trainer import LatentSplatTrainer, LatentSplatTrainerConfig
from lsplat_ns.scene import SceneBatch


@dataclass
class MvldmPipelineConfig(TrainedPipelineConfig):
    """Data and model of MV-LDM."""

    _target: Type = field(default_factory=lambda: MvldmPipeline)
    """target class to instantiate"""
    datamanager: LatentSplatDataManagerConfig = field(default_factory=LatentSplatDataManagerConfig)
    """Scenes to train on, and the one whose generated views are logged."""
    model: MvldmModelConfig = field(default_factory=MvldmModelConfig)
    """Networks and their training."""


class MvldmPipeline(TrainedPipeline):
    """nerfstudio's pipeline over many scenes, for a model that generates views."""

    config: MvldmPipelineConfig
    model: MvldmModel

    # ----------------------------------------------------------------------------------------------- evaluation

    @profiler.time_function
    def get_eval_loss_dict(self, step: int) -> Tuple[Dict, Dict, Dict]:
        """The loss on views of the active scene, with the same random numbers every time."""
        self.eval()
        batch, _ = self.datamanager.next_eval(step)
        with torch.no_grad():
            loss = self.model.diffusion_loss(batch, seed=0)
        self.train()
        return {}, {"diffusion": loss}, {}

    @profiler.time_function
    def get_eval_image_metrics_and_images(self, step: int) -> Tuple[Dict, Dict]:
        """Views of the active scene generated from its first context view, below the truth, and that view."""
        self.eval()
        batch, _ = self.datamanager.next_eval(step)
        generated, truth = self._generated(batch)
        self.train()
        rows = [torch.cat(list(images.permute(0, 2, 3, 1)), dim=1) for images in (truth, generated)]
        context = batch.context.image[0, 0].permute(1, 2, 0)
        metrics = {"psnr": float(psnr(generated, truth).mean()), "num_rays": truth.shape[0] * truth[0, 0].numel()}
        return metrics, {"img": torch.cat(rows), "context": context}

    def _generated(self, batch: SceneBatch) -> Tuple[Tensor, Tensor]:
        """Images of all views of an example [n, 3, height, width] generated from its first one, and the truth."""
        views, model = batch.context.concat(batch.target), self.model
        given, others = views.select([0]), views.select(slice(1, None))
        frames = tuple(range(1, len(others.frame[0]) + 1))  # a target may be a context view as well
        given = type(given)(given.image, given.cameras, torch.zeros_like(given.frame))
        plan = plan_views((0,), frames, ViewPlanConfig())
        groups = generate(model.generating_network(), given, others.cameras, frames, plan, model.config.sampling)
        images = {frame: image for group in groups for frame, image in zip(group.frames, group.images, strict=True)}
        return torch.stack([images[frame] for frame in frames]), others.image[0].cpu()

    @profiler.time_function
    def get_average_eval_image_metrics(
        self, step: Optional[int] = None, output_path: Optional[Path] = None, get_std: bool = False
    ) -> Dict[str, float]:
        """PSNR and SSIM of views generated from the first context view of every entry of the evaluation index.

        Args:
            step: Not used.
            output_path: Folder for the generated views, as ``<scene>/<context>/<frame>.png``.
            get_std: Whether to add standard deviations over entries.
        """
        self.eval()
        scores: List[Tuple[float, float]] = []
        for example in track(list(self._entries()), description="Evaluating", transient=True):
            generated, truth = self._generated(example.to(self.device))
            scores.append((float(psnr(generated, truth).mean()), float(ssim(generated, truth).mean())))
            if output_path is not None:
                _save_images(example, generated, output_path)
        self.train()
        if not scores:
            raise SystemExit("error: no entry of the evaluation index could be evaluated")
        values = torch.tensor(scores, dtype=torch.float64)
        result = {"entries": float(len(scores)), "psnr": float(values[:, 0].mean()), "ssim": float(values[:, 1].mean())}
        if get_std:
            deviation = values.std(0, unbiased=False)
            result.update(psnr_std=float(deviation[0]), ssim_std=float(deviation[1]))
        return result

    def _entries(self) -> Iterator[SceneBatch]:
        """Examples of the evaluation index, or of the active scene where there is none."""
        datamanager = self.datamanager
        index = datamanager.dataparser.evaluation_choices() if datamanager.has_many_scenes else {}
        known = set(datamanager.scene_ids())
        entries = [(scene, choice) for scene, choices in index.items() if scene in known for choice in choices]
        if not entries:
            yield datamanager.scene.example(datamanager.scene.choice.target)
        for scene, choice in entries:
            try:
                video = datamanager.dataparser.read_scene(scene)
                yield make_example(video, choice, datamanager.config.preparation)
            except SceneDataError as error:
                CONSOLE.print(f"[yellow]Skipped scene {escape(scene)}: {escape(str(error))}")


def _save_images(example: SceneBatch, images: Tensor, output_path: Path) -> None:
    from torchvision.utils import save_image

    context, *others = example.context.frame[0].tolist()
    folder = output_path / scene_folder_name(example.scene[0]) / str(context)
    folder.mkdir(parents=True, exist_ok=True)
    for frame, image in zip([*others, *example.target.frame[0].tolist()], images, strict=True):
        save_image(image, folder / f"{frame:06d}.png")


@dataclass
class MvldmTrainerConfig(LatentSplatTrainerConfig):
    """The trainer's config, for MV-LDM."""

    _target: Type = field(default_factory=lambda: MvldmTrainer)
    """target class to instantiate"""


class MvldmTrainer(LatentSplatTrainer):
    """Besides checkpoints it writes the network by itself, as ``lsplat generate`` reads it."""

    def save_checkpoint(self, step: int) -> None:
        """Write the checkpoint, and beside config.yml the network to generate with."""
        super().save_checkpoint(step)
        if self.local_rank != 0 or self.config.machine.machine_rank != 0:
            return
        network = self.pipeline.model.generating_network()
        provenance = {"source": "ns-train", "method": self.config.method_name, "steps_done": step + 1}
        try:
            update_mvldm(self.base_dir, network.config, network.state_dict(), provenance)
        except LsplatError as error:
            CONSOLE.print(f"[red]{error}. Checkpoints are untouched.")
