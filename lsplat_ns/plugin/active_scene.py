"""The one scene that a viewer, a renderer or an exporter looks at.

nerfstudio's tools know one scene per run; latentSplat knows thousands. The active scene joins the two: its context
views are what nerfstudio calls the train split, its target views the test split.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from lsplat_ns.data.batches import (
    SMALLEST_BASELINE,
    PreparationConfig,
    baseline_of,
    cameras_of,
    network_scale,
    read_views,
)
from lsplat_ns.data.pair_selection import pair_up
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.transforms import rescale_and_crop
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.fusion import ScenePair
from lsplat_ns.geometry.conventions import (
    intrinsics_norm_from_px,
    intrinsics_px_from_norm,
    opencv_from_opengl,
    opengl_from_opencv,
    z_up_rotation,
)
from lsplat_ns.geometry.rays import MIN_BASELINE, bounds_from_baseline
from lsplat_ns.geometry.similarity import Similarity
from lsplat_ns.scene import Cameras, SceneBatch, Views

if TYPE_CHECKING:
    from lsplat_ns.plugin.generated_layers import GeneratedLayer

SIDECAR = "active_scene.json"
"""File beside config.yml that remembers the scene last chosen in a viewer, and the generated layers of every scene."""


@dataclass(frozen=True)
class CaptureRecord:
    """What nerfstudio knows of a capture besides its cameras; passed on, so that its tools say what they always say."""

    image_files: tuple[Path, ...]  # one per frame of the video
    dataparser_transform: Tensor  # [3, 4], from the capture's original frame
    dataparser_scale: float  # applied after the transform
    generated: frozenset[int] = frozenset()  # frames that are no photos


@dataclass(frozen=True)
class ActiveScene:
    """A scene with chosen context and target frames, and the way from the network's frame to nerfstudio's.

    Three frames meet here: the dataset's (``video``), the network's (the dataset's in units of the first context pair's
    baseline) and nerfstudio's (upright, scaled to the unit cube). One of them is the lasting one, which stays when
    other context views are chosen: of a capture nerfstudio's, of a scene of a dataset the dataset's.
    """

    video: PosedVideo
    choice: FrameChoice
    preparation: PreparationConfig
    nerfstudio_from_video: Similarity
    capture: CaptureRecord | None = None
    layers: tuple[GeneratedLayer, ...] = ()  # accepted in the viewer; views of the scene in its lasting frame

    def __post_init__(self) -> None:
        self.video.check_frames(self.choice.context + self.choice.target)

    @property
    def name(self) -> str:
        """Scene id."""
        return self.video.scene

    @property
    def network_from_nerfstudio(self) -> Similarity:
        """Where a nerfstudio camera stands in the frame that the network predicts in."""
        scale = network_scale(self.video, self.choice.context[:2], self.preparation)
        there = self.nerfstudio_from_video
        return Similarity(there.scale / scale, there.rotation, there.translation).inverse()

    @property
    def lasting_from_video(self) -> Similarity:
        """From the video's frame to the one that no choice of context views changes."""
        return Similarity() if self.capture is None else self.nerfstudio_from_video

    @property
    def nerfstudio_from_lasting(self) -> Similarity:
        """From the frame that no choice of context views changes to nerfstudio's."""
        return self.nerfstudio_from_video if self.capture is None else Similarity()

    @cached_property
    def pairs(self) -> tuple[ScenePair, ...]:
        """The context views in pairs, as they are encoded, then the generated views of visible layers.

        The first pair's frame is the network's. A generated view is paired with the context view that goes with it
        best, so that no layer depends on another one.

        Raises:
            SceneDataError: If an image cannot be read, or two paired cameras coincide.
        """
        return (*self._context_pairs, *self._layer_pairs)

    @cached_property
    def _context_pairs(self) -> tuple[ScenePair, ...]:
        frames = self.choice.context
        views = read_views(self.video, frames, self.preparation.image_size)
        numbers = pair_up(views.cameras.world_from_camera[0], views.cameras.intrinsics_norm[0])
        scales = [network_scale(self.video, tuple(frames[i] for i in pair), self.preparation) for pair in numbers]
        generated = [self.capture is not None and frame in self.capture.generated for frame in frames]
        found = []
        for number, (pair, scale) in enumerate(zip(numbers, scales, strict=True)):
            both = self._bounded(views.select(list(pair)), scale)
            new = (0, 1) if number == 0 else (1,)
            for kind in sorted({generated[pair[i]] for i in new}):  # photos before generated views
                of_kind = tuple(i for i in new if generated[pair[i]] == kind)
                found.append(ScenePair(both, scales[0] / scale, of_kind, kind))
        return tuple(found)

    @cached_property
    def _layer_pairs(self) -> tuple[ScenePair, ...]:
        layers = [layer for layer in self.layers if layer.visible]
        if not layers:
            return ()
        size, found = self.preparation.image_size, []
        context = read_views(self.video, self.choice.context, size)
        first_scale = network_scale(self.video, self.choice.context[:2], self.preparation)
        video_from_lasting = self.lasting_from_video.inverse()
        for layer in layers:
            poses = video_from_lasting.apply_to_poses(layer.video.world_from_camera)
            video = replace(layer.video, world_from_camera=poses)
            for view in range(len(video)):
                generated = read_views(video, (view,), size)
                cameras = context.cameras.concat(generated.cameras)
                partner, _ = pair_up(cameras.world_from_camera[0], cameras.intrinsics_norm[0])[-1]
                both = context.select([partner]).concat(generated)
                scale = self._scale_of_pair(both.cameras)
                found.append(ScenePair(self._bounded(both, scale), first_scale / scale, (1,), generated=True))
        return tuple(found)

    def _scale_of_pair(self, cameras: Cameras) -> float:
        """As :func:`network_scale`, of cameras [1, 2] that are not both the video's."""
        baseline = baseline_of(cameras.world_from_camera[0])
        if baseline < (SMALLEST_BASELINE if self.preparation.baseline_to_one else MIN_BASELINE):
            raise SceneDataError(f"a generated view stands where a photo of {self.name} does, which shows no depth")
        return 1.0 / baseline if self.preparation.baseline_to_one else 1.0

    @property
    def opacities(self) -> tuple[float, ...]:
        """Factors of opacity of the predicted layers, as ``lsplat_ns.fusion`` numbers them: one for each pair."""
        lifted = [layer.opacity for layer in self.layers if layer.visible for _ in range(len(layer.video))]
        return (*[1.0] * (len(self.pairs) - len(lifted)), *lifted)

    def _bounded(self, views: Views, scale: float) -> Views:
        """Views in units of their own baseline, with the bounds that follow from it."""
        poses = views.cameras.world_from_camera.clone()
        poses[..., :3, 3] *= scale
        cameras = replace(views.cameras, world_from_camera=poses)
        near, far = bounds_from_baseline(cameras, views.size, self.preparation.near_disparity)
        return replace(views, cameras=cameras.with_bounds(near[:, None], far[:, None]))

    @property
    def context(self) -> Views:
        """The first pair of context views [1, 2] in the network's frame, with bounds."""
        return self.pairs[0].views

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Near and far [1, 1] in the network's frame, between which lies whatever any pair may predict."""
        near = torch.stack([pair.scale * pair.views.cameras.near[:, :1] for pair in self.pairs])
        far = torch.stack([pair.scale * pair.views.cameras.far[:, :1] for pair in self.pairs])
        return near.amin(0), far.amax(0)

    def example(self, targets: tuple[int, ...]) -> SceneBatch:
        """Context views and the given target frames as a batch of one, in the network's frame.

        Raises:
            SceneDataError: If an image cannot be read.
        """
        scale = network_scale(self.video, self.choice.context[:2], self.preparation)
        frames = self.choice.context + targets
        views = read_views(self.video, frames, self.preparation.image_size, scale)
        views = replace(views, cameras=views.cameras.with_bounds(*self.bounds))
        count = len(self.choice.context)
        return SceneBatch(views.select(slice(count)), views.select(slice(count, None)), (self.name,))

    def nerfstudio_cameras(self, frames: tuple[int, ...]) -> NerfstudioCameras:
        """Cameras of the cropped frames in nerfstudio's frame."""
        height, width = self.preparation.image_size
        cameras = cameras_of(self.video, frames, (height, width))
        poses = self.nerfstudio_from_video.apply_to_poses(cameras.world_from_camera[0])
        intrinsics = intrinsics_px_from_norm(cameras.intrinsics_norm[0], (height, width))
        return NerfstudioCameras(
            camera_to_worlds=opengl_from_opencv(poses)[:, :3],
            fx=intrinsics[:, 0, 0],
            fy=intrinsics[:, 1, 1],
            cx=intrinsics[:, 0, 2],
            cy=intrinsics[:, 1, 2],
            width=width,
            height=height,
            camera_type=CameraType.PERSPECTIVE,
        )

    def dataparser_outputs(self, frames: tuple[int, ...]) -> DataparserOutputs:
        """The frames as nerfstudio wants them. The images themselves come from :class:`SceneDataset`.

        File names of a dataset of many scenes are made up.
        """
        if self.capture is not None:
            record = self.capture
            return DataparserOutputs(
                image_filenames=[record.image_files[frame] for frame in frames],
                cameras=self.nerfstudio_cameras(frames),
                metadata={"scene": self.name},
                dataparser_transform=record.dataparser_transform,
                dataparser_scale=record.dataparser_scale,
            )
        similarity = self.nerfstudio_from_video
        rotation = torch.eye(3) if similarity.rotation is None else similarity.rotation
        translation = torch.zeros(3) if similarity.translation is None else similarity.translation
        return DataparserOutputs(
            image_filenames=[Path("/") / self.name / f"{frame:06d}.png" for frame in frames],
            cameras=self.nerfstudio_cameras(frames),
            metadata={"scene": self.name},
            dataparser_transform=torch.cat([rotation, translation[:, None] / similarity.scale], dim=1),
            dataparser_scale=similarity.scale,
        )


class SceneDataset(InputDataset):
    """The context or the target frames of an active scene, decoded and cropped on demand."""

    def __init__(self, scene: ActiveScene, frames: tuple[int, ...]) -> None:
        super().__init__(scene.dataparser_outputs(frames))
        self.scene, self.frames = scene, frames

    def get_numpy_image(self, image_idx: int) -> npt.NDArray[np.uint8]:
        """The image uint8 [height, width, 3] of one of the frames."""
        image = self.scene.video.read_image(self.frames[image_idx])
        return rescale_and_crop(image, self.scene.preparation.image_size)


def upright_and_unit_sized(video: PosedVideo, frames: tuple[int, ...]) -> Similarity:
    """The similarity that centres the given cameras, turns their mean up direction to +z and fits them into [-1, 1]."""
    poses = video.world_from_camera[list(frames)]
    rotation = z_up_rotation(poses)
    centre = poses[:, :3, 3].mean(0)
    extent = float((poses[:, :3, 3] - centre).abs().max())
    scale = 1.0 / extent if extent > 0 else 1.0
    return Similarity(scale, rotation, -scale * (rotation @ centre))


def context_baseline(scene: ActiveScene) -> float:
    """Distance of the first pair of context cameras, in nerfstudio's units."""
    places = scene.nerfstudio_cameras(scene.choice.context[:2]).camera_to_worlds[:, :, 3]
    return float((places[0] - places[1]).norm())


def check_perspective(camera: NerfstudioCameras) -> None:
    """Raise ConfigError unless all cameras are perspective ones: splats are drawn by no others."""
    for kind in camera.camera_type.unique().tolist() if camera.camera_type is not None else ():
        if kind != CameraType.PERSPECTIVE.value:
            name = CameraType(kind).name.lower().replace("_", " ")
            raise ConfigError(f"{name} cameras cannot be drawn; take Perspective as Camera type of the Render tab")


def network_camera(
    camera: NerfstudioCameras, scene: ActiveScene, device: torch.device
) -> tuple[Cameras, tuple[int, int]]:
    """A nerfstudio camera (one perspective view, any size) in the network's frame.

    Returns:
        Cameras [1, 1] with the scene's bounds, and the (height, width) that was asked for.
    """
    flat = camera.reshape((-1,))[0]
    height, width = int(flat.height), int(flat.width)
    pose = scene.network_from_nerfstudio.apply_to_poses(opencv_from_opengl(flat.camera_to_worlds.cpu()))
    intrinsics = intrinsics_norm_from_px(
        *(getattr(flat, name).cpu().reshape(()) for name in ("fx", "fy", "cx", "cy")), width, height
    )
    cameras = Cameras(pose[None, None], intrinsics[None, None], *scene.bounds)
    return cameras.to(device), (height, width)
