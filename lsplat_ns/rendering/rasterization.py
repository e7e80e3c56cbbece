"""What both rasterisers take and give: ellipsoids, cameras in pixels, one value vector per view and Gaussian."""

from __future__ import annotations

from collections.abc import Callable
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
    z_min: Tensor  # [...], Gaussians nearer than this are not drawn, in world units; on the CPU, where gsplat wants it

    def select(self, scene: int, views: slice) -> PixelCameras:
        """Some views of one scene, from leading axes [b, t]."""
        return self.at((scene, views))

    def at(self, index: slice | tuple[int, slice]) -> PixelCameras:
        """The cameras at an index into the leading axes."""
        return PixelCameras(self.camera_from_world[index], self.intrinsics_px[index], self.z_min[index])

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
        """All views of the parts; a single one is not copied."""
        if len(parts) == 1:
            return parts[0]
        return Maps(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Maps)))


def pixel_cameras(
    cameras: Cameras,
    size: tuple[int, int],
    principal_point: Literal["centred", "true"],
    near_cull: float,
    pinholes: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> PixelCameras:
    """Cameras of one image size (height, width); leading axes [...] stay. Differentiable to poses and intrinsics.

    ``centred`` derives the focal length from the field of view between the middles of opposite image edges and puts
    the principal point into the image centre, as the original's renderer does; ``true`` keeps the intrinsics.
    ``pinholes`` stands in for :func:`matrices_in_pixels`, e.g. a compiled version of it.
    """
    z_min = least_depth(cameras, near_cull)  # first of all: later this would wait for everything before it
    pinholes = pinholes or matrices_in_pixels
    matrices = pinholes(cameras.world_from_camera, cameras.intrinsics_norm, size, principal_point)
    return PixelCameras(*matrices, z_min)


def least_depth(cameras: Cameras, near_cull: float) -> Tensor:
    """``z_min`` of :class:`PixelCameras`, from ``near_cull`` times the near distance. Waits for the GPU."""
    return near_cull * cameras.near.cpu()


def matrices_in_pixels(
    world_from_camera: Tensor, intrinsics_norm: Tensor, size: tuple[int, int], principal_point: str
) -> tuple[Tensor, Tensor]:
    """The matrices of :class:`PixelCameras`: camera_from_world [..., 4, 4] and intrinsics_px [..., 3, 3]."""
    height, width = size
    if principal_point == "centred":
        focal = 0.5 / _half_angle_tangents(intrinsics_norm)
        centre = torch.full_like(focal, 0.5)
    else:
        focal, centre = intrinsics_norm.diagonal(dim1=-2, dim2=-1)[..., :2], intrinsics_norm[..., :2, 2]
    pixels = torch.stack([torch.full_like(focal[..., 0], width), torch.full_like(focal[..., 0], height)], -1)
    intrinsics = torch.diag_embed(torch.cat([focal * pixels, torch.ones_like(focal[..., :1])], -1))
    shift = torch.nn.functional.pad((centre * pixels)[..., None], (2, 0, 0, 1))
    return _inverse_of_rigid(world_from_camera), intrinsics + shift


def _inverse_of_rigid(poses: Tensor) -> Tensor:
    """Inverses [..., 4, 4] of rigid motions; a handful of launches on a GPU, where a general one takes twenty."""
    rotation = poses[..., :3, :3].mT
    upper = torch.cat([rotation, -rotation @ poses[..., :3, 3:]], -1)
    return torch.cat([upper, poses[..., 3:, :]], -2)


def _half_angle_tangents(intrinsics_norm: Tensor) -> Tensor:
    """Tangents [..., 2] of half the horizontal and vertical field of view, between the middles of opposite edges.

    tan(a / 2) = |u x v| / (|u| |v| + u . v) avoids the arc cosine, which loses half the digits at small angles. With
    u = (p, m, 1) and v = (q, m, 1), where p and q are the edges and m the middle of the other axis, |u x v| is
    |q - p| sqrt(m^2 + 1).
    """
    focal, centre = intrinsics_norm.diagonal(dim1=-2, dim2=-1)[..., :2], intrinsics_norm[..., :2, 2]
    first, second = -centre / focal, (1 - centre) / focal
    across = 1 + (0.5 * (first + second)).flip(-1).square()  # m^2 + 1
    lengths = ((first.square() + across) * (second.square() + across)).sqrt()
    return (second - first) * across.sqrt() / (lengths + first * second + across)
