"""From a posed video and a choice of frames to the tensors that a network takes.

Source: spec sections 1 (bounds), 2.1 (baseline normalisation), 2.3 (crop, mirror) and 2.5.
"""

from dataclasses import dataclass, replace
from typing import Optional

import torch
from torch import Tensor

from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.transforms import byte_tensor, check_covers, cropped_intrinsics, mirror_cameras, rescale_and_crop
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.geometry.rays import MIN_BASELINE, with_scene_bounds
from lsplat_ns.scene import Cameras, SceneBatch, Views

SMALLEST_SIDE = 16
"""Of images, in pixels."""
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
    frame_size: Optional[tuple[int, int]] = None
    """Skip examples with frames of any other height and width (the original insists on 360 640); by default frames may
    have any size that covers the image size."""

    def __post_init__(self) -> None:
        if min(self.image_size) < SMALLEST_SIDE:
            least = f"{SMALLEST_SIDE}x{SMALLEST_SIDE}"
            raise ConfigError(f"image-size must be at least {least}, but is {self.image_size[0]}x{self.image_size[1]}")


def baseline_of(world_from_camera: Tensor) -> float:
    """Largest distance between any two of the cameras [v, 4, 4], in their units."""
    centres = world_from_camera[:, :3, 3]
    # The matrix products that are taken otherwise, from 26 cameras on, put one place at a distance from itself.
    return float(torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist").max())


def network_scale(video: PosedVideo, context: tuple[int, ...], config: PreparationConfig) -> float:
    """Network units per dataset unit: 1 / baseline of the context views, or 1 where units are kept or the view is one.

    Raises:
        SceneDataError: If the context cameras coincide.
    """
    video.check_frames(context)
    if len(context) < 2:
        return 1.0
    baseline = baseline_of(video.world_from_camera[list(context)])
    if baseline < (SMALLEST_BASELINE if config.baseline_to_one else MIN_BASELINE):
        raise SceneDataError(
            f"context views {list(context)} of scene {video.scene} are only {baseline:.2g} apart; choose others",
            reason="no baseline",
        )
    return 1.0 / baseline if config.baseline_to_one else 1.0


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
    return in_unit_range(_read_byte_views(video, frames, image_size, scale))


def in_unit_range(views: Views) -> Views:
    """The views with their uint8 images as float32 in [0, 1], on the device where they are."""
    return replace(views, image=views.image.float() / 255)


def _read_byte_views(
    video: PosedVideo, frames: tuple[int, ...], image_size: tuple[int, int], scale: float, mirrored: bool = False
) -> Views:
    cameras = cameras_of(video, frames, image_size, scale)
    if mirrored:
        poses, intrinsics = mirror_cameras(cameras.world_from_camera, cameras.intrinsics_norm)
        cameras = replace(cameras, world_from_camera=poses, intrinsics_norm=intrinsics)
    read = video.read_picture or video.read_image
    images = {f: byte_tensor(rescale_and_crop(read(f), image_size, mirrored=mirrored)) for f in set(frames)}
    return Views(torch.stack([images[f] for f in frames])[None], cameras, torch.tensor(frames)[None])


def make_example(video: PosedVideo, choice: FrameChoice, config: PreparationConfig) -> SceneBatch:
    """One example as a batch of one.

    Raises:
        SceneDataError: Without a usable baseline, with frames that do not exist, are broken, or of a wrong size.
    """
    example = make_byte_example(video, choice, config)
    return replace(example, context=in_unit_range(example.context), target=in_unit_range(example.target))


def make_byte_example(
    video: PosedVideo,
    choice: FrameChoice,
    config: PreparationConfig,
    *,
    mirror_generator: Optional[torch.Generator] = None,
) -> SceneBatch:
    """:func:`make_example` with uint8 images, a quarter of the bytes to send from a loader process to a GPU.

    Args:
        video: The scene; it is left unchanged.
        choice: Context and target frames. Each distinct one is decoded once.
        config: Image size and units.
        mirror_generator: When given, reflect the example with probability 1/2 (training).

    Raises:
        SceneDataError: As in :func:`make_example`.
    """
    frames = choice.context + choice.target
    scale = network_scale(video, choice.context, config)
    _check_sizes(video, frames, config)
    mirrored = mirror_generator is not None and bool(torch.rand((), generator=mirror_generator) >= 0.5)
    views = _read_byte_views(video, frames, config.image_size, scale, mirrored)
    count = len(choice.context)
    example = SceneBatch(views.select(slice(count)), views.select(slice(count, None)), (video.scene,))
    return with_scene_bounds(example, config.near_disparity)


def _check_sizes(video: PosedVideo, frames: tuple[int, ...], config: PreparationConfig) -> None:
    """Find unusable frames by their headers, before any is decoded."""
    video.check_frames(frames)
    for frame in set(frames):
        size = video.read_size(frame)
        check_covers(size, config.image_size)
        if config.frame_size is not None and size != tuple(config.frame_size):
            height, width = config.frame_size
            raise SceneDataError(
                f"frame {frame} of scene {video.scene} has {size[1]}x{size[0]} pixels, but frame-size asks for "
                f"{width}x{height}",
                reason="image size",
            )


def collate(examples: list[SceneBatch]) -> SceneBatch:
    """Join examples along the batch axis.

    Raises:
        ConfigError: If they differ in the number of views, as entries of an evaluation index may.
    """
    if len({(e.context.frame.shape[1], e.target.frame.shape[1]) for e in examples}) > 1:
        raise ConfigError(
            "the examples of a batch differ in their numbers of views; use batch-size 1 with this sampler"
        )

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
