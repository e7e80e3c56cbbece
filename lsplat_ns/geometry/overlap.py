"""How much two views see of one another, from their cameras alone."""

from __future__ import annotations

import torch
from torch import Tensor

from lsplat_ns.geometry.epipolar import project_rays
from lsplat_ns.geometry.rays import pixel_centers, world_rays

RAY_GRID = (64, 64)
"""Rays per view, rows and columns. Shares of a grid of 256x256 (the original's) differ from these by less than 0.01."""


def view_overlap(
    world_from_camera: tuple[Tensor, Tensor], intrinsics_norm: tuple[Tensor, Tensor], grid: tuple[int, int] = RAY_GRID
) -> Tensor:
    """The share of a view's rays that pass through the other view's image, the smaller one of both directions.

    A ray passes through an image where any part of it, from its origin to infinity, is seen there: the scene's depth is
    unknown, so this is an upper bound of what both views see.

    Args:
        world_from_camera: Poses [..., 4, 4] of the first and the second view, broadcast against each other.
        intrinsics_norm: Their intrinsics [..., 3, 3].
        grid: Rows and columns of rays per view.

    Returns:
        Shares [...] in [0, 1]; not differentiable.

    Source: the original's generator of evaluation indices (spec section 2.6).
    """
    points = pixel_centers(*grid, like=intrinsics_norm[0])

    def seen(by: int, of: int) -> Tensor:
        origins, directions = world_rays(
            points, world_from_camera[of][..., None, :, :], intrinsics_norm[of][..., None, :, :]
        )
        segments = project_rays(
            origins, directions, world_from_camera[by][..., None, :, :], intrinsics_norm[by][..., None, :, :]
        )
        return segments.overlaps.float().mean(-1)

    with torch.no_grad():
        return torch.minimum(seen(1, 0), seen(0, 1))
