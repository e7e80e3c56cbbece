"""The one scene that a viewer, a renderer or an exporter looks at.

nerfstudio's tools know one scene per run; latentSplat knows thousands. The active scene joins the two: its context
views are what nerfstudio calls the train split, its target views the test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from lsplat_ns.data.batches import PreparationConfig, cameras_of, network_scale, read_views
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.transforms import rescale_and_crop
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.geometry.conventions import (
    intrinsics_norm_from_px,
    intrinsics_px_from_norm,
    opencv_from_opengl,
    opengl_from_opencv,
    z_up_rotation,
)
from lsplat_ns.geometry.rays import bounds_from_baseline
from lsplat_ns.geometry.similarity import Similarity
from lsplat_ns.scene import Cameras, Views


@dataclass(frozen=True)
class ActiveScene:
    """A scene with chosen context and target frames, and the way from the network's frame to nerfstudio's.

    Three frames meet here: the dataset's (``video``), the network's (the dataset's in units of the context baseline)
    and nerfstudio's (upright, scaled to the unit cube).
    """

    video: PosedVideo
    choice: FrameChoice
    preparation: PreparationConfig
    nerfstudio_from_video: Similarity

    def __post_init__(self) -> None:
        self.video.check_frames(self.choice.context + self.choice.target)

    @property
    def name(self) -> str:
        """Scene id."""
        return self.video.scene

    @property
    def network_from_nerfstudio(self) -> Similarity:
        """Where a nerfstudio camera stands in the frame that the network predicts in."""
        scale = network_scale(self.video, self.choice.context, self.preparation)
        there = self.nerfstudio_from_video
        return Similarity(there.scale / scale, there.rotation, there.translation).inverse()

    @cached_property
    def context(self) -> Views:
        """Context views [1, v] in the network's frame, with bounds."""
        scale = network_scale(self.video, self.choice.context, self.preparation)
        views = read_views(self.video, self.choice.context, self.preparation.image_size, scale)
        near, far = bounds_from_baseline(views.cameras, views.size, self.preparation.near_disparity)
        return Views(views.image, views.cameras.with_bounds(near[:, None], far[:, None]), views.frame)

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
        """The frames as nerfstudio wants them. File names are made up: the images come from :class:`SceneDataset`."""
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


def network_camera(
    camera: NerfstudioCameras, scene: ActiveScene, device: torch.device
) -> tuple[Cameras, tuple[int, int]]:
    """A nerfstudio camera (one view, any size) in the network's frame.

    Returns:
        Cameras [1, 1] with the scene's bounds, and the (height, width) that was asked for.
    """
    flat = camera.reshape((-1,))[0]
    height, width = int(flat.height), int(flat.width)
    pose = scene.network_from_nerfstudio.apply_to_poses(opencv_from_opengl(flat.camera_to_worlds.cpu()))
    intrinsics = intrinsics_norm_from_px(
        *(getattr(flat, name).cpu().reshape(()) for name in ("fx", "fy", "cx", "cy")), width, height
    )
    bounds = scene.context.cameras

    def first(value: Tensor) -> Tensor:
        return value[:, :1].cpu()

    cameras = Cameras(pose[None, None], intrinsics[None, None], first(bounds.near), first(bounds.far))
    return cameras.to(device), (height, width)
