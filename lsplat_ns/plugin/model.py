"""The nerfstudio model: a feed-forward network that shows its active scene as Gaussians.

It subclasses SplatfactoModel because six hard-coded type checks in nerfstudio's viewer, render and export code let only
such models through; it shares no code with splatfacto's optimisation. Networks live in ``lsplat_ns.latentsplat``.
"""

import logging
from dataclasses import dataclass, field
from typing import Any, Dict, List, Literal, Mapping, Optional, Tuple, Type

import torch
import tyro
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.data.scene_box import OrientedBox, SceneBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.models.splatfacto import SplatfactoModel
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException
from torch import Tensor, nn
from torch.nn import Parameter

from lsplat_ns.acceleration import accelerate, prepare_training
from lsplat_ns.checkpoints.exports import viewer_gaussians
from lsplat_ns.checkpoints.pretrained import check_pretrained, load_pretrained
from lsplat_ns.errors import ConfigError
from lsplat_ns.fusion import FusedGaussians, predict_scene
from lsplat_ns.latentsplat import LatentSplat, LatentSplatConfig
from lsplat_ns.losses import LossSchedule, PerceptualDistance
from lsplat_ns.losses.objective import step_losses
from lsplat_ns.losses.perceptual import locate_backbone
from lsplat_ns.plugin.active_scene import ActiveScene, network_camera
from lsplat_ns.plugin.drawing import message_outputs, view_outputs, with_spread
from lsplat_ns.plugin.loading import load_strictly
from lsplat_ns.plugin.optimizers import FINE_TUNED
from lsplat_ns.plugin.viewer_panel import ViewerPanel
from lsplat_ns.scene import Cameras, Gaussians, SceneBatch, VariationalGaussians


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
    view_size: Optional[int] = None
    """Shorter side at which views are decoded before they are resized; by default that of training images."""
    refresh_every: int = 50
    """While training, the scene in the viewer is predicted anew every so many steps."""
    training_precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the large networks in training; geometry, splatting and losses are float32 always."""
    low_memory: bool = False
    """Train in far less memory and more time: large results are computed twice instead of being kept."""
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

    def check_weights(self, resuming: bool) -> None:
        """Check, before anything is built, that the files that training needs are on this machine.

        Raises:
            MissingWeights: If not.
        """
        if self.pretrained == "require" and not resuming:
            check_pretrained(self.network, self.schedule.uses_discriminator)
        if self.perceptual == "lpips" and self.schedule.uses("lpips"):
            locate_backbone()


@dataclass(frozen=True)
class PredictedScene:
    """An active scene with the Gaussians predicted for it, both in the network's frame."""

    scene: ActiveScene
    fused: FusedGaussians  # from one pair of context views, or several
    gaussians: Gaussians  # the mode or a draw of it
    shown: Gaussians  # the same with the spread of its features, as views are drawn

    @property
    def distribution(self) -> VariationalGaussians:
        """The predicted distribution, without the layers it came in."""
        return self.fused.gaussians


class LatentSplatModel(SplatfactoModel):
    """Trains latentSplat, and renders the active scene for any nerfstudio camera.

    Scene tensors are plain attributes: they are no part of checkpoints and are not broadcast by DDP.
    """

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
        self.viewer_control = ViewerPanel(self)
        self.step = 0
        self.background_color = torch.zeros(3)
        self._perceptual: Optional[PerceptualDistance] = None
        self._scene: Optional[ActiveScene] = None
        self._prediction: Optional[PredictedScene] = None
        self._exported: Optional[Tuple[PredictedScene, Dict[str, Tensor]]] = None
        self._predicted_at_step = 0

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
        prepare_training(self.network, dtype, self.config.low_memory)
        if self.schedule.uses("lpips"):
            self._perceptual = PerceptualDistance(dtype)
        for part, path in load_pretrained(self.network, self.config.pretrained).items():
            CONSOLE.print(f"{part}: starts from {path}")

    def forward(self, batch: SceneBatch, seed: int) -> Dict[str, Any]:
        """All losses of one step. Under DDP everything differentiable must happen here, inside the wrapped call.

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

    # -------------------------------------------------------------------------------------------- the active scene

    def set_scene(self, scene: ActiveScene) -> None:
        """Show another scene; it is predicted when first looked at."""
        self._scene, self._prediction = scene, None

    @property
    def active_scene(self) -> Optional[ActiveScene]:
        """The scene that is shown."""
        return self._scene

    def show_draw(self, mode: Literal["mode", "sample"], seed: int) -> None:
        """Show the mode of the scene, or the draw of a seed."""
        self.config.scene_mode, self.config.scene_seed, self._prediction = mode, seed, None

    @torch.no_grad()
    def prediction(self) -> Optional[PredictedScene]:
        """The active scene's Gaussians, predicted when they are missing or older than ``refresh_every`` steps."""
        if self._scene is None:
            return None
        current = self._prediction
        stale = abs(self.step - self._predicted_at_step) >= self.config.refresh_every
        if current is None or stale:
            scene, step = self._scene, self.step
            current = self._predict(scene)
            # One assignment at the end: the viewer may interrupt this method at any line.
            self._prediction, self._predicted_at_step = current, step
        return current

    def _predict(self, scene: ActiveScene) -> PredictedScene:
        was_training = self.training
        self.eval()
        try:
            sample = self.config.scene_mode == "sample"
            generator = torch.Generator(self.device).manual_seed(self.config.scene_seed)
            count = len(scene.pairs)
            fused = predict_scene(
                self.network,
                [pair.to(self.device) for pair in scene.pairs],
                step=self.step,
                deterministic=not sample,
                generator=generator,
                on_pair=(lambda done: CONSOLE.print(f"Encoded pair {done} of {count}")) if count > 1 else None,
            )
            distribution = fused.gaussians
            gaussians = distribution.sample(generator) if sample else distribution.mode()
            return PredictedScene(scene, fused, gaussians, with_spread(gaussians, distribution.features))
        finally:
            self.train(was_training)

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
                self._view(prediction, prediction.shown, first, prediction.scene.preparation.image_size)

    # ------------------------------------------------------------------------------------------------- rendering

    @torch.no_grad()
    def get_outputs_for_camera(
        self, camera: NerfstudioCameras, obb_box: Optional[OrientedBox] = None
    ) -> Dict[str, Tensor]:
        """Render one camera of any size.

        Never raises: an exception would end the browser tab's render thread for good. Instead the picture says what is
        wrong. Only the viewer's own interrupt passes.

        Returns:
            Tensors [height, width, channels]: rgb (decoded), rgb_splat, depth (z, nerfstudio units), accumulation,
            uncertainty, latent (a fixed projection to colour).
        """
        try:
            return self._outputs(camera, obb_box)
        except IOChangeException:
            raise
        except Exception as error:
            logging.getLogger(__name__).exception("rendering failed")
            CONSOLE.print(f"[red]Rendering failed: {type(error).__name__}: {error}")
            size = int(camera.height.flatten()[0]), int(camera.width.flatten()[0])
            return message_outputs(f"{type(error).__name__}: {error}", size, self.device)

    def get_outputs(self, ray_bundle: NerfstudioCameras) -> Dict[str, Tensor]:
        """The same; some nerfstudio code calls this name."""
        return self.get_outputs_for_camera(ray_bundle)

    def _outputs(self, camera: NerfstudioCameras, obb_box: Optional[OrientedBox]) -> Dict[str, Tensor]:
        prediction = self.prediction()
        if prediction is None:
            size = int(camera.height.flatten()[0]), int(camera.width.flatten()[0])
            return message_outputs("no scene is loaded", size, self.device)
        cameras, size = network_camera(camera, prediction.scene, self.device)
        shown = prediction.shown
        if obb_box is not None:
            shown = shown.select(obb_box.within(self.means).to(self.device))
        return self._view(prediction, shown, cameras, size, decode=self.viewer_control.should_decode())

    def _view(
        self,
        prediction: PredictedScene,
        shown: Gaussians,
        cameras: Cameras,
        size: Tuple[int, int],
        decode: bool = True,
    ) -> Dict[str, Tensor]:
        return view_outputs(
            self.network,
            shown,
            cameras,
            size,
            short_side=self.config.view_size or min(prediction.scene.preparation.image_size),
            decode=decode,
            seed=self.config.scene_seed if self.config.scene_mode == "sample" else None,
            units_per_network_unit=1.0 / prediction.scene.network_from_nerfstudio.scale,
            background=self.background_color,
        )

    def get_rgba_image(self, outputs: Dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Colour with accumulation as alpha [height, width, 4]."""
        return torch.cat([outputs[output_name], outputs["accumulation"]], dim=-1)

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

    # -------------------------------------------------------------------------- what nerfstudio's exporter reads

    @property
    def gauss_params(self) -> Dict[str, Tensor]:
        """The Gaussians as splatfacto names them, in nerfstudio's frame; empty tensors before a scene is set.

        means [N, 3], log scales [N, 3], quats wxyz [N, 4], opacity logits [N, 1], features_dc [N, 3] and
        features_rest [N, 15, 3] in the basis of other viewers.
        """
        prediction = self.prediction()
        if prediction is None:
            empty = torch.empty(0, 1, device=self.device)
            widths = {"means": 3, "scales": 3, "quats": 4, "opacities": 1, "features_dc": 3}
            params = {name: empty.expand(0, width) for name, width in widths.items()}
            return {**params, "features_rest": torch.empty(0, 15, 3, device=self.device)}
        if self._exported is None or self._exported[0] is not prediction:
            self._exported = (prediction, self._splatfacto_params(prediction))
        return self._exported[1]

    @torch.no_grad()
    def _splatfacto_params(self, prediction: PredictedScene) -> Dict[str, Tensor]:
        to_nerfstudio = prediction.scene.network_from_nerfstudio.inverse()
        splats = viewer_gaussians(prediction.gaussians, to_nerfstudio, keep="all")
        return {
            "means": splats.means,
            "scales": splats.log_scales,
            "quats": splats.quaternions_wxyz,
            "opacities": splats.opacity_logits[:, None],
            "features_dc": splats.harmonics[:, :, 0],
            "features_rest": splats.harmonics[:, :, 1:].mT.contiguous(),
        }

    @property
    def colors(self) -> Tensor:
        """View-independent colour [N, 3] in [0, 1]."""
        from nerfstudio.models.splatfacto import SH2RGB

        return SH2RGB(self.features_dc).clamp(0, 1)

    @property
    def shs_0(self) -> Tensor:
        """Degree-0 harmonics [N, 3]."""
        return self.features_dc
