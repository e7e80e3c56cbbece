"""The half of the nerfstudio model that shows a scene: predicts it, renders it, and hands out its Gaussians.

It subclasses SplatfactoModel because six hard-coded type checks in nerfstudio's viewer, render and export code let only
such models through; it shares no code with splatfacto's optimisation. Networks live in ``lsplat_ns.latentsplat``.
"""

import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterator, Literal, Optional, Tuple

import torch
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.splatfacto import SplatfactoModel
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException
from rich.markup import escape
from torch import Tensor

from lsplat_ns.checkpoints.exports import viewer_gaussians
from lsplat_ns.errors import ConfigError, LsplatError
from lsplat_ns.fusion import FusedGaussians, predict_scene
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.plugin.active_scene import ActiveScene, check_perspective, network_camera
from lsplat_ns.plugin.drawing import (
    DIFFERENCE,
    OUTPUTS,
    ViewOptions,
    backdrop_outputs,
    message_outputs,
    tinted,
    view_outputs,
    with_spread,
)
from lsplat_ns.plugin.viewer_panel import ViewerPanel
from lsplat_ns.plugin.viewing import EXPLAINED, Draw, FrameTimes, plain_message
from lsplat_ns.scene import Cameras, Gaussians, VariationalGaussians


@dataclass(frozen=True)
class PredictedScene:
    """An active scene with the Gaussians predicted for it, both in the network's frame."""

    scene: ActiveScene
    fused: FusedGaussians  # from one pair of context views, or several
    gaussians: Gaussians  # the mode or a draw of it
    shown: Gaussians  # the same with the spread of its features, as views are drawn
    draw: Draw = Draw()

    @property
    def distribution(self) -> VariationalGaussians:
        """The predicted distribution, without the layers it came in, as opaque as they are shown."""
        return replace(self.fused.gaussians, opacities=self.gaussians.opacities)

    def faded(self, scene: ActiveScene) -> "PredictedScene":
        """The same for a scene that differs at most in how opaque its generated layers are."""
        factors = self.gaussians.opacities.new_tensor(scene.opacities)
        opacities = self.fused.gaussians.opacities * factors[self.fused.layer]
        gaussians, shown = (replace(drawn, opacities=opacities) for drawn in (self.gaussians, self.shown))
        return replace(self, scene=scene, gaussians=gaussians, shown=shown)


class SceneModel(SplatfactoModel):
    """Renders the active scene for any nerfstudio camera. Subclasses hold the network and the options.

    Scene tensors are plain attributes: they are no part of checkpoints, and every rank has its own.
    """

    config: Any  # of the subclass, with the options of how a scene is shown
    network: LatentSplat
    step: int

    def forget_scene(self) -> None:
        """Begin without a scene. Called by the constructor of subclasses."""
        self.viewer_control = ViewerPanel(self)
        self.background_color = torch.zeros(3)
        self._scene: Optional[ActiveScene] = None
        self._prediction: Optional[PredictedScene] = None
        self._compared: Optional[Tuple[PredictedScene, PredictedScene]] = None  # the one shown, and the other
        self._exported: Optional[Tuple[PredictedScene, Dict[str, Tensor]]] = None
        self._predicted_at_step = 0
        self._failure_said = ""

    # -------------------------------------------------------------------------------------------- the active scene

    def set_scene(self, scene: ActiveScene) -> None:
        """Show another scene; it is predicted when first looked at."""
        self._scene, self._prediction = scene, None

    @property
    def is_trained(self) -> bool:
        """Whether training looks at the model: it goes on even if a picture cannot be made."""
        pipeline = self.viewer_control.pipeline
        return pipeline is None or pipeline.test_mode == "val"

    @property
    def active_scene(self) -> Optional[ActiveScene]:
        """The scene that is shown."""
        return self._scene

    @property
    def draw(self) -> Draw:
        """Which draw of the scene is shown."""
        return Draw(self.config.scene_mode, self.config.scene_seed, self.config.scene_temperature)

    def show_draw(self, mode: Literal["mode", "sample"], seed: int, temperature: float = 1.0) -> None:
        """Show the mode of the scene, or the draw of a seed. Raises ConfigError for impossible values."""
        draw = Draw(mode, seed, temperature)
        self.config.scene_mode, self.config.scene_seed = draw.mode, draw.seed
        self.config.scene_temperature, self._prediction = draw.temperature, None

    def show(self, prediction: PredictedScene) -> None:
        """Show a scene that :meth:`predict` predicted."""
        self._scene, self._prediction, self._predicted_at_step = prediction.scene, prediction, self.step

    @torch.no_grad()
    def prediction(self) -> Optional[PredictedScene]:
        """The active scene's Gaussians, predicted when they are missing or older than ``refresh_every`` steps."""
        if self._scene is None:
            return None
        current = self._prediction
        stale = abs(self.step - self._predicted_at_step) >= self.config.refresh_every
        if current is None or stale:
            scene, step = self._scene, self.step
            current = self.predict(scene)
            # One assignment at the end: the viewer may interrupt this method at any line.
            self._prediction, self._predicted_at_step = current, step
        return current

    @torch.no_grad()
    def predict(self, scene: ActiveScene, draw: Optional[Draw] = None) -> PredictedScene:
        """Predict a scene without showing it; ``draw`` is by default the one that is shown.

        Raises:
            SceneDataError: If a context view cannot be read.
        """
        draw = draw or self.draw
        with self.evaluating():
            sample = draw.mode == "sample"
            generator = torch.Generator(self.device).manual_seed(draw.seed)
            count = len(scene.pairs)
            fused = predict_scene(
                self.network,
                [pair.to(self.device) for pair in scene.pairs],
                step=self.step,
                deterministic=not sample,
                generator=generator,
                on_pair=(lambda done: CONSOLE.print(f"Encoded pair {done} of {count}")) if count > 1 else None,
            )
            features = fused.gaussians.features
            if sample:
                shape, device = features.mean.shape, features.mean.device
                noise = draw.temperature * torch.randn(shape, generator=generator, device=device)
                gaussians = fused.gaussians.sample(noise=noise)
            else:
                gaussians = fused.gaussians.mode()
            predicted = PredictedScene(scene, fused, gaussians, with_spread(gaussians, features), draw)
            return predicted.faded(scene) if scene.layers else predicted

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode for a while; a viewer looks at a model that is being trained."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    # ------------------------------------------------------------------------------------------------- rendering

    @torch.no_grad()
    def get_outputs_for_camera(
        self, camera: NerfstudioCameras, obb_box: Optional[OrientedBox] = None
    ) -> Dict[str, Tensor]:
        """Render one camera of any size.

        Raises nothing in a viewer: an exception would end the browser tab's render thread for good. Instead the picture
        says what is wrong. Only the viewer's own interrupt passes. A tool without a viewer ends with one line where a
        camera cannot be drawn (fisheye, equirectangular), a file is gone or memory too small: nobody shall find that
        written in the frames of a video.

        Returns:
            Tensors [height, width, channels]: rgb (decoded), rgb_splat, depth (z, nerfstudio units), accumulation,
            uncertainty, latent (a fixed projection to colour); in the viewer, and with ``compare_seed``, difference.
        """
        try:
            check_perspective(camera)
            return self._outputs(camera, obb_box)
        except IOChangeException:
            raise
        except Exception as error:
            if isinstance(error, ConfigError if self.is_trained else EXPLAINED) and self.viewer_control.viewer is None:
                raise SystemExit(
                    f"error: {error if isinstance(error, LsplatError) else plain_message(error)}"
                ) from None
            self._report_failure(error)
            return self._message(plain_message(error), camera)

    def _report_failure(self, error: Exception) -> None:
        """Say in the terminal why a picture could not be made: once, and not with every picture of a moving camera."""
        said = f"{type(error).__name__}: {error}"
        if said != self._failure_said:
            self._failure_said = said
            if not isinstance(error, EXPLAINED):
                logging.getLogger(__name__).error("rendering failed", exc_info=error)
            CONSOLE.print(f"[red]Rendering failed: {escape(said)}")

    def get_outputs(self, ray_bundle: NerfstudioCameras) -> Dict[str, Tensor]:
        """The same; some nerfstudio code calls this name."""
        return self.get_outputs_for_camera(ray_bundle)

    def _outputs(self, camera: NerfstudioCameras, obb_box: Optional[OrientedBox]) -> Dict[str, Tensor]:
        prediction = self.prediction()
        if prediction is None:
            return self._message("no scene is loaded", camera)
        panel = self.viewer_control
        if panel.drawn_by_browser:
            panel.look_part.follow_prediction(prediction)
            return backdrop_outputs(_size_of(camera), self.device, self._output_names())
        times = FrameTimes(self.device) if panel.viewer is not None else None
        stage = None if times is None else times.stage
        shown = self.shown_gaussians(prediction, obb_box)
        outputs = self.shown_outputs(prediction, camera, obb_box, shown, panel.should_decode(), stage)
        if times is not None:
            panel.note_frame(times, shown.count, tuple(outputs["rgb"].shape[:2]))
        return outputs

    def shown_outputs(
        self,
        prediction: PredictedScene,
        camera: NerfstudioCameras,
        obb_box: Optional[OrientedBox],
        shown: Gaussians,
        decode: bool,
        on_stage: Optional[Callable[[str], None]] = None,
    ) -> Dict[str, Tensor]:
        """A picture as the panel's settings want it, in all outputs. Raises what goes wrong.

        Args:
            prediction: The scene.
            camera: In the nerfstudio frame of that scene.
            obb_box: What lies outside is left out.
            shown: Its Gaussians, from :meth:`shown_gaussians`.
            decode: Whether to decode; otherwise ``rgb`` is the splatted colour.
            on_stage: Told of what is done, for times.
        """
        panel = self.viewer_control
        options = panel.options()
        outputs = self.view(prediction, camera, shown=shown, decode=decode, options=replace(options, on_stage=on_stage))
        if self.config.compare_seed is not None and panel.looks_at(DIFFERENCE):
            other = self._other_draw(prediction)
            there = self.shown_gaussians(other, obb_box)
            compared = self.view(other, camera, shown=there, decode=decode, options=options)
            outputs[DIFFERENCE] = (outputs["rgb"] - compared["rgb"]).abs().mean(-1, keepdim=True)
        elif DIFFERENCE in self._output_names():
            outputs[DIFFERENCE] = torch.zeros_like(outputs["depth"])  # in the menu, but nobody looks at it
        return outputs

    def _message(self, message: str, camera: NerfstudioCameras) -> Dict[str, Tensor]:
        return message_outputs(message, _size_of(camera), self.device, self._output_names())

    def _output_names(self) -> Tuple[str, ...]:
        """What every picture holds; a viewer's menus must not change from frame to frame."""
        compared = self.viewer_control.viewer is not None or self.config.compare_seed is not None
        return (*OUTPUTS, DIFFERENCE) if compared else OUTPUTS

    def _other_draw(self, prediction: PredictedScene) -> PredictedScene:
        """The draw that the shown one is compared with."""
        draw = Draw("sample", self.config.compare_seed, self.config.scene_temperature)
        if self._compared is None or self._compared[0] is not prediction or self._compared[1].draw != draw:
            self._compared = (prediction, self.predict(prediction.scene, draw))
        return self._compared[1]

    def shown_gaussians(self, prediction: PredictedScene, obb_box: Optional[OrientedBox] = None) -> Gaussians:
        """The Gaussians that are drawn: those of the wanted kind, inside the crop box."""
        shown, kept = prediction.shown, self.viewer_control.kept(prediction.fused)
        if obb_box is not None:
            inside = self.inside(prediction, obb_box)
            kept = inside if kept is None else kept & inside
        if self.viewer_control.tinted:
            shown = tinted(shown, prediction.fused.generated)
        return shown if kept is None else shown.select(kept)

    def inside(self, prediction: PredictedScene, box: OrientedBox) -> Tensor:
        """A mask [G] of the Gaussians whose centres a crop box holds, which stands in nerfstudio's frame."""
        to_nerfstudio = prediction.scene.network_from_nerfstudio.inverse()
        return box.within(to_nerfstudio.apply_to_points(prediction.shown.means[0])).to(self.device)

    @torch.no_grad()
    def view(
        self,
        prediction: PredictedScene,
        camera: NerfstudioCameras,
        *,
        shown: Optional[Gaussians] = None,
        decode: bool = True,
        options: Optional[ViewOptions] = None,
    ) -> Dict[str, Tensor]:
        """Render a predicted scene, shown or not, from one camera of any size. Raises what goes wrong.

        Args:
            prediction: From :meth:`predict` or :meth:`prediction`.
            camera: In the nerfstudio frame of that scene.
            shown: Some of the prediction's ``shown`` Gaussians instead of all.
            decode: Whether to decode; otherwise ``rgb`` is the splatted colour.
            options: What a viewer changes.
        """
        cameras, size = network_camera(camera, prediction.scene, self.device)
        return self._view(prediction, prediction.shown if shown is None else shown, cameras, size, decode, options)

    def _view(
        self,
        prediction: PredictedScene,
        shown: Gaussians,
        cameras: Cameras,
        size: Tuple[int, int],
        decode: bool,
        options: Optional[ViewOptions] = None,
    ) -> Dict[str, Tensor]:
        draw = prediction.draw
        return view_outputs(
            self.network,
            shown,
            cameras,
            size,
            short_side=self.config.view_size or min(prediction.scene.preparation.image_size),
            decode=decode,
            seed=draw.seed if draw.mode == "sample" else None,
            units_per_network_unit=1.0 / prediction.scene.network_from_nerfstudio.scale,
            background=self.background_color,
            options=replace(options or ViewOptions(), temperature=draw.temperature),
        )

    def get_rgba_image(self, outputs: Dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Colour with accumulation as alpha [height, width, 4]."""
        return torch.cat([outputs[output_name], outputs["accumulation"]], dim=-1)

    # -------------------------------------------------------------------------- what nerfstudio's exporter reads

    @property
    def gauss_params(self) -> Dict[str, Tensor]:
        """The finite Gaussians as splatfacto names them, in nerfstudio's frame; empty tensors before a scene is set.

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
        splats = viewer_gaussians(prediction.gaussians, to_nerfstudio, keep="finite")
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


def _size_of(camera: NerfstudioCameras) -> Tuple[int, int]:
    """(height, width) of a camera's picture."""
    return int(camera.height.flatten()[0]), int(camera.width.flatten()[0])
