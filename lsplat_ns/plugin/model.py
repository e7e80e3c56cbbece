"""The nerfstudio model: options, training and checkpoints. How it shows a scene is the other half, ``scene_model``."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Literal, Mapping, Optional, Tuple, Type

import torch
import tyro
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn
from torch.nn import Parameter

from lsplat_ns.acceleration import accelerate, prepare_training
from lsplat_ns.checkpoints.pretrained import check_pretrained, load_pretrained
from lsplat_ns.errors import ConfigError
from lsplat_ns.latentsplat import LatentSplat, LatentSplatConfig
from lsplat_ns.losses import LossSchedule, PerceptualDistance
from lsplat_ns.losses.objective import step_losses
from lsplat_ns.losses.perceptual import locate_backbone
from lsplat_ns.plugin.loading import load_strictly
from lsplat_ns.plugin.optimizers import FINE_TUNED
from lsplat_ns.plugin.scene_model import SceneModel
from lsplat_ns.scene import SceneBatch


@dataclass
class LatentSplatModelConfig(ModelConfig):
    """latentSplat: networks, losses, and how a scene is shown."""

    _target: Type = field(default_factory=lambda: LatentSplatModel)
    """target class to instantiate"""
    network: LatentSplatConfig = field(default_factory=LatentSplatConfig)
    """Sizes of the networks."""
    schedule: LossSchedule = field(default_factory=LossSchedule)
    """Which losses count at which steps."""
    perceptual: Literal["lpips", "none"] = "lpips"
    """lpips needs VGG16 weights on disk; none trains without that term."""
    scene_mode: Literal["mode", "sample"] = "mode"
    """Show the mode of the predicted Gaussians and latents, or one draw of them."""
    scene_seed: int = 0
    """Seed of that draw; the same seed shows the same scene."""
    scene_temperature: float = 1.0
    """Factor of the noise in that draw; 0 leaves only the draw of depths."""
    generator: Optional[Path] = None
    """MV-LDM run that generates missing views in the viewer: a folder that lsplat import or ns-train mvldm made."""
    compare_seed: Optional[int] = None
    """Adds the output difference: the scene as it is shown against the draw of this seed."""
    view_size: Optional[int] = None
    """Shorter side at which views are decoded before they are resized; by default that of training images."""
    refresh_every: int = 50
    """While training, the scene in the viewer is predicted anew every so many steps."""
    training_precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the large networks in training; geometry, splatting and losses are float32 always."""
    low_memory: bool = False
    """Train in far less memory and more time: large results are computed twice instead of being kept."""
    compiled_training: bool = False
    """Fuse kernels in training by torch.compile: faster steps after a minute or two at the start of each stage. Not
    with low-memory."""
    frozen: Tuple[Literal["encoder", "autoencoder", "discriminator"], ...] = ()
    """Parts that training leaves as they are."""
    pretrained: Literal["auto", "require", "none"] = "require"
    """Published weights to start from: auto takes what is on this machine, require wants all, none starts at random."""
    acceleration: Literal["auto", "off", "mixed", "compiled"] = "auto"
    """How a GPU works outside training. auto is mixed precision; compiled is faster after a minute; off is float32."""
    sh_degree: tyro.conf.Suppress[int] = 3
    """Exports carry harmonics of this degree, in the basis of other viewers."""
    enable_collider: tyro.conf.Suppress[bool] = False
    collider_params: tyro.conf.Suppress[Optional[Dict[str, float]]] = None
    loss_coefficients: tyro.conf.Suppress[Optional[Dict[str, float]]] = None
    eval_num_rays_per_chunk: tyro.conf.Suppress[int] = 4096

    def __post_init__(self) -> None:
        if {"encoder", "autoencoder"} <= set(self.frozen):
            raise ConfigError("with encoder and autoencoder frozen nothing is left to train")

    @property
    def size_multiple(self) -> int:
        """Both sides of training images must be multiples of this: they are encoded, and decoded."""
        return math.lcm(self.network.encoder.size_multiple, self.network.autoencoder.downscale)

    def check_weights(self, resuming: bool) -> None:
        """Check, before anything is built, that the files that training needs are on this machine.

        Raises:
            MissingWeights: If not.
        """
        if self.pretrained == "require" and not resuming:
            check_pretrained(self.network, self.schedule.uses_discriminator)
        if self.perceptual == "lpips" and self.schedule.uses("lpips"):
            locate_backbone()


class LatentSplatModel(SceneModel):
    """Trains latentSplat; its other half, :class:`SceneModel`, shows the active scene."""

    config: LatentSplatModelConfig

    def __init__(self, config: LatentSplatModelConfig, scene_box: SceneBox, num_train_data: int, **kwargs) -> None:
        kwargs.pop("seed_points", None)
        Model.__init__(self, config, scene_box, num_train_data, **kwargs)

    def populate_modules(self) -> None:
        """Build the networks with random weights."""
        schedule = self.config.schedule
        if self.config.perceptual == "none":
            schedule = schedule.without("lpips")
        self.schedule = schedule
        self.network = LatentSplat(self.config.network, discriminator=schedule.uses_discriminator)
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.step = 0
        self._perceptual: Optional[PerceptualDistance] = None
        self.forget_scene()

    # ------------------------------------------------------------------------------------------------ training

    def train(self, mode: bool = True) -> "LatentSplatModel":
        """Switch to training; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> List[nn.Module]:
        parts = (getattr(self.network, name) for name in self.config.frozen)
        return [part for part in parts if part is not None]

    def prepare_training(self) -> None:
        """Fetch what only training needs. Raises MissingWeights if the perceptual network is absent."""
        dtype = None if self.config.training_precision == "float32" else torch.bfloat16
        prepare_training(self.network, dtype, self.config.low_memory, self.config.compiled_training)
        if self.schedule.uses("lpips"):
            self._perceptual = PerceptualDistance(dtype)
        for part, path in load_pretrained(self.network, self.config.pretrained).items():
            CONSOLE.print(f"{part}: starts from {path}")

    def forward(self, batch: SceneBatch, seed: int) -> Dict[str, Any]:
        """All losses of one step.

        Args:
            batch: Examples on the model's device.
            seed: Of all random draws of the step.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        result = step_losses(
            self.network, batch, self.schedule, self.step, perceptual=self._perceptual, generator=generator
        )
        return {"losses": result.losses, "metrics": result.metrics, "color": result.color, "decoded": result.decoded}

    def get_metrics_dict(self, outputs: Dict[str, Any], batch: Any) -> Dict[str, Tensor]:
        """Numbers for the log."""
        return outputs["metrics"]

    def get_loss_dict(self, outputs: Dict[str, Any], batch: Any, metrics_dict: Any = None) -> Dict[str, Tensor]:
        """The losses that :meth:`forward` computed."""
        return outputs["losses"]

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """Encoder and autoencoder together (their gradients are clipped jointly), and the discriminator."""
        for parameter in self.network.autoencoder.parameters():
            setattr(parameter, FINE_TUNED, True)
        generator = [*self.network.encoder.parameters(), *self.network.autoencoder.parameters()]
        groups = {"generator": generator}
        if self.network.discriminator is not None:
            groups["discriminator"] = list(self.network.discriminator.parameters())
        return groups

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> List[TrainingCallback]:
        """Keeps the step; splatfacto's densification has no place here."""
        return [TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], func=self.update_to_step)]

    def update_to_step(self, step: int) -> None:
        """Publish the training step; losses and opacities depend on it."""
        self.step = step

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, **kwargs) -> Any:
        """Load weights strictly. The prediction of the active scene is dropped.

        Raises:
            CheckpointMismatch: If keys or shapes differ.
        """
        result = load_strictly(self, state_dict, **kwargs)
        self._prediction = None
        return result

    @torch.no_grad()
    def accelerate(self) -> None:
        """Make inference faster, as configured. For tools that do not train: weights are copied.

        Compiled code is made now, behind a progress line, and not when the first picture is wanted.
        """
        if self.config.acceleration == "off":
            return
        compiled = self.config.acceleration == "compiled"
        accelerate(self.network, compiled)
        if compiled and self.network.fast is not None and self._scene is not None:
            CONSOLE.print("Compiling the networks: a minute or two the first time, less when torch has cached it")
            with CONSOLE.status("Compiling"):
                prediction = self.prediction()
                first = prediction.scene.context.cameras.select([0]).to(self.device)
                self._view(prediction, prediction.shown, first, prediction.scene.preparation.image_size, decode=True)

    def get_image_metrics_and_images(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Tensor]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """PSNR of one view, and truth beside prediction."""
        from nerfstudio.utils.colormaps import apply_depth_colormap

        from lsplat_ns.evaluation.metrics import psnr

        truth, image = batch["image"].to(self.device), outputs["rgb"]
        score = psnr(image.permute(2, 0, 1), truth.permute(2, 0, 1))
        return {"psnr": float(score)}, {
            "img": torch.cat([truth, image], dim=1),
            "depth": apply_depth_colormap(outputs["depth"], outputs["accumulation"]),
        }
