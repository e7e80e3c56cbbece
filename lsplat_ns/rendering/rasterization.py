"""What both rasterisers take and give: ellipsoids, cameras in pixels, one value vector per view and Gaussian."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from lsplat_ns.scene import Cameras


@dataclass(frozen=True)
class Ellipsoids:
    """Geometry of one scene's Gaussians in world space."""

    means: Tensor  # [G, 3]
    covariances: Tensor  # [G, 3, 3]
    opacities: Tensor  # [G], in [0, 1]

    def detach(self) -> Ellipsoids:
        """The same geometry, out of reach of gradients."""
        return Ellipsoids(self.means.detach(), self.covariances.detach(), self.opacities.detach())


@dataclass(frozen=True)
class PixelCameras:
    """Pinhole cameras whose image plane is measured in pixels, from the outer corner of the top-left one.

    The rasterisers take one leading axis V.
    """

    camera_from_world: Tensor  # [..., 4, 4], OpenCV axes
    intrinsics_px: Tensor  # [..., 3, 3], without skew
    z_min: Tensor  # [...], Gaussians nearer than this are not drawn, in world units

    def select(self, scene: int, views: slice) -> PixelCameras:
        """Some views of one scene, from leading axes [b, t]."""
        return PixelCameras(
            self.camera_from_world[scene, views], self.intrinsics_px[scene, views], self.z_min[scene, views]
        )

    def detach(self) -> PixelCameras:
        """The same cameras, out of reach of gradients."""
        return PixelCameras(self.camera_from_world.detach(), self.intrinsics_px.detach(), self.z_min)


@dataclass(frozen=True)
class Maps:
    """Alpha-weighted sums of one scene, without background."""

    values: Tensor  # [V, C, height, width]
    depth_z: Tensor  # [V, height, width], in world units
    alpha: Tensor  # [V, height, width]

    @staticmethod
    def concat(parts: list[Maps]) -> Maps:
        """All views of the parts."""
        return Maps(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Maps)))


def pixel_cameras(
    cameras: Cameras, size: tuple[int, int], principal_point: Literal["centred", "true"], near_cull: float
) -> PixelCameras:
    """Cameras of one image size (height, width); leading axes [...] stay. Differentiable to poses and intrinsics.

    ``centred`` derives the focal length from the field of view between the middles of opposite image edges and puts
    the principal point into the image centre, as the original's renderer does; ``true`` keeps the intrinsics.
    """
    height, width = size
    normalised = cameras.intrinsics_norm
    if principal_point == "centred":
        tangents = _half_angle_tangents(normalised)
        focal = 0.5 / tangents
        centre = torch.full_like(focal, 0.5)
    else:
        focal, centre = normalised.diagonal(dim1=-2, dim2=-1)[..., :2], normalised[..., :2, 2]
    pixels = focal.new_tensor([width, height])
    intrinsics = torch.diag_embed(torch.cat([focal * pixels, torch.ones_like(focal[..., :1])], -1))
    shift = torch.nn.functional.pad((centre * pixels)[..., None], (2, 0, 0, 1))
    camera_from_world = torch.linalg.inv_ex(cameras.world_from_camera).inverse
    return PixelCameras(camera_from_world, intrinsics + shift, near_cull * cameras.near)


def _half_angle_tangents(intrinsics_norm: Tensor) -> Tensor:
    """Tangents [..., 2] of half the horizontal and vertical field of view.

    tan(a / 2) = |u x v| / (|u| |v| + u . v) avoids the arc cosine, which loses half the digits at small angles.
    """
    edges = intrinsics_norm.new_tensor([[0, 0.5, 1], [1, 0.5, 1], [0.5, 0, 1], [0.5, 1, 1]])
    left, right, top, bottom = (edges @ torch.linalg.inv_ex(intrinsics_norm).inverse.mT).unbind(-2)
    first, second = torch.stack([left, top], -2), torch.stack([right, bottom], -2)
    cross = torch.linalg.cross(first, second, dim=-1).norm(dim=-1)
    return cross / (first.norm(dim=-1) * second.norm(dim=-1) + (first * second).sum(-1))
