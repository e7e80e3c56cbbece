"""Cameras as image-like maps: the origin and direction of the ray through every latent pixel.

Everything is float32 (poses are composed in float64) and free of matrix products, so autocast and TF32 leave it alone.
Source: MV-LDM's ``ray_encode``; the encodings are NeRF's (arXiv 2003.08934) and SRT's (2111.13152).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lsplat_ns.errors import ConfigError
from lsplat_ns.geometry.rays import pixel_centers, world_rays
from lsplat_ns.scene import Cameras


@dataclass(frozen=True)
class RayMapConfig:
    """What of each ray the denoiser sees. The defaults are the published model's."""

    encoding: Literal["raw", "positional", "srt"] = "raw"
    """"raw": the six numbers; "positional": sines and cosines by coordinate; "srt": all sines, then all cosines."""
    moments: bool = False
    """Plücker rays: the moment, origin x direction, instead of the origin."""
    origin_octaves: int = 15
    """Frequencies of the origin (or moment) in the two encodings; 0 leaves it raw."""
    direction_octaves: int = 15
    """Frequencies of the direction in the two encodings; 0 leaves it raw."""

    def __post_init__(self) -> None:
        if self.encoding not in ("raw", "positional", "srt"):
            raise ConfigError(f"no ray encoding {self.encoding!r}; take raw, positional or srt")
        if min(self.origin_octaves, self.direction_octaves) < 0:
            raise ConfigError("ray maps have 0 or more octaves")

    @property
    def channels(self) -> int:
        """Channels of a ray map."""
        if self.encoding == "raw":
            return 6
        # Differs from upstream: it counts 0 channels for 0 octaves, but produces 3, and fails.
        return sum(6 * octaves or 3 for octaves in (self.origin_octaves, self.direction_octaves))


def relative_to(cameras: Cameras, reference: int) -> Cameras:
    """The cameras [b, v] in the frame of one of them, which becomes the identity. Scale is kept."""
    poses = cameras.world_from_camera.double()
    reference_from_world = torch.linalg.inv_ex(poses[:, reference, None]).inverse  # inv would check, and wait for a GPU
    return replace(cameras, world_from_camera=(reference_from_world @ poses).float())


def ray_maps(cameras: Cameras, size: tuple[int, int], config: RayMapConfig) -> Tensor:
    """Rays through the pixel centres of (height, width) maps, [b, v, channels, height, width], origin part first.

    Directions have length 1. Differentiable to the cameras.
    """
    height, width = size
    points = pixel_centers(height, width, cameras.intrinsics_norm)
    poses, intrinsics = cameras.world_from_camera[..., None, :, :], cameras.intrinsics_norm[..., None, :, :]
    origins, directions = world_rays(points, poses, intrinsics)
    if config.moments:
        origins = torch.linalg.cross(origins, directions)
    parts = torch.cat([_encode(origins, config.origin_octaves, config.encoding),
                       _encode(directions, config.direction_octaves, config.encoding)], dim=-1)  # fmt: skip
    return parts.mT.unflatten(-1, size)


def _encode(coordinates: Tensor, octaves: int, encoding: str) -> Tensor:
    """Coordinates [..., 3] as channels [..., 6 * octaves]; unchanged where they are raw."""
    if encoding == "raw" or octaves == 0:
        return coordinates
    powers = 2.0 ** torch.arange(octaves, device=coordinates.device, dtype=coordinates.dtype)
    if encoding == "positional":
        angles = coordinates[..., None] * (2 * torch.pi * powers)
        return torch.stack([angles, angles + torch.pi / 2], -1).sin().flatten(-3)
    angles = (coordinates[..., None] * (torch.pi * powers)).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], -1)
