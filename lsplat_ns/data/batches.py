"""From a posed video and a choice of frames to the tensors that a network takes.

Source: spec sections 1 (bounds), 2.1 (baseline normalisation), 2.3 (crop, mirror) and 2.5.
"""

from dataclasses import dataclass, replace
from typing import Optional

import torch
from torch import Tensor

from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.transforms import cropped_intrinsics, image_tensor, mirror, rescale_and_crop
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.geometry.rays import with_scene_bounds
from lsplat_ns.scene import Cameras, SceneBatch, Views

SMALLEST_BASELINE = 1e-3
"""Context cameras closer than this (dataset units) carry no parallax; the original skips such examples."""


@dataclass
class PreparationConfig:
    """How the frames of an example become network inputs."""

    image_size: tuple[int, int] = (256, 256)
    """Height and width of context and target images; frames are scaled to cover it, then centre-cropped."""
    baseline_to_one: bool = True
    """Scale each example so that its two context cameras are 1 apart (RealEstate10k; CO3D keeps its units)."""
    near_disparity: float = 3.0
    """A point at the near bound moves by this many image sides between the context views."""
    max_fov_degrees: float = 100.0
    """Scenes with a wider field of view are skipped."""

    def __post_init__(self) -> None:
        if min(self.image_size) < 16:
            raise ConfigError(f"image-size must be at least 16x16, but is {self.image_size[0]}x{self.image_size[1]}")


def baseline_of(world_from_camera: Tensor) -> float:
    """Largest distance between any two of the cameras [v, 4, 4], in their units."""
    centres = world_from_camera[:, :3, 3]
    return float(torch.cdist(centres[None], centres[None]).max())


def network_scale(video: PosedVideo, context: tuple[int, ...], config: PreparationConfig) -> float:
    """Network units per dataset unit: 1 / baseline of the context views, or 1 where units are kept.

    Raises:
        SceneDataError: If the context cameras coincide.
    """
    if not config.baseline_to_one:
        return 1.0
    video.check_frames(context)
    baseline = baseline_of(video.world_from_camera[list(context)])
    if baseline < SMALLEST_BASELINE:
        raise SceneDataError(f"context views {list(context)} are only {baseline:.2g} apart; choose others")
    return 1.0 / baseline


def cameras_of(video: PosedVideo, frames: tuple[int, ...], image_size: tuple[int, int], scale: float = 1.0) -> Cameras:
    """Cameras [1, n] of the cropped frames, positions multiplied by ``scale``, without decoding an image.

    Near and far are placeholders until the scene's bounds are known (``geometry.rays.bounds_from_baseline``).
    """
    video.check_frames(frames)
    poses = video.world_from_camera[list(frames)].clone()
    poses[:, :3, 3] *= scale
    intrinsics = [cropped_intrinsics(video.intrinsics_norm[f], video.read_size(f), image_size) for f in frames]
    ones = torch.ones(1, len(frames))
    return Cameras(poses[None], torch.stack(intrinsics)[None], ones, ones)


def read_views(video: PosedVideo, frames: tuple[int, ...], image_size: tuple[int, int], scale: float = 1.0) -> Views:
    """Decode and crop frames to views [1, n, ...]; cameras as in :func:`cameras_of`."""
    cameras = cameras_of(video, frames, image_size, scale)
    images = [image_tensor(rescale_and_crop(video.read_image(f), image_size)) for f in frames]
    return Views(torch.stack(images)[None], cameras, torch.tensor(frames)[None])


def make_example(
    video: PosedVideo,
    choice: FrameChoice,
    config: PreparationConfig,
    *,
    mirror_generator: Optional[torch.Generator] = None,
) -> SceneBatch:
    """One example as a batch of one.

    Args:
        video: The scene; it is left unchanged.
        choice: Context and target frames.
        config: Image size and units.
        mirror_generator: When given, reflect the example with probability 1/2 (training).

    Raises:
        SceneDataError: Without a usable baseline, with frames that do not exist or are too small.
    """
    scale = network_scale(video, choice.context, config)
    context = read_views(video, choice.context, config.image_size, scale)
    target = read_views(video, choice.target, config.image_size, scale)
    if mirror_generator is not None and torch.rand((), generator=mirror_generator) >= 0.5:
        context, target = _mirrored(context), _mirrored(target)
    return with_scene_bounds(SceneBatch(context, target, (video.scene,)), config.near_disparity)


def _mirrored(views: Views) -> Views:
    image, poses, intrinsics = mirror(views.image, views.cameras.world_from_camera, views.cameras.intrinsics_norm)
    return replace(
        views, image=image, cameras=replace(views.cameras, world_from_camera=poses, intrinsics_norm=intrinsics)
    )


def collate(examples: list[SceneBatch]) -> SceneBatch:
    """Join examples along the batch axis. All must have the same numbers of views and image sizes."""

    def join_views(views: list[Views]) -> Views:
        cameras = Cameras(
            *(
                torch.cat([getattr(v.cameras, name) for v in views])
                for name in ("world_from_camera", "intrinsics_norm", "near", "far")
            )
        )
        return Views(torch.cat([v.image for v in views]), cameras, torch.cat([v.frame for v in views]))

    return SceneBatch(
        join_views([e.context for e in examples]),
        join_views([e.target for e in examples]),
        tuple(scene for e in examples for scene in e.scene),
    )
