"""Pixels, rays, projection, and the relative disparity that the encoder measures depth in.

Depths, near and far are distances along unit rays, not z (latentSplat's convention; its checkpoints depend on it).
Cameras have no skew and rigid poses.

Products are summed one by one, in the order of the original's matrix products on a CPU: almost every float32 ray then
has the bits of the original's, whose rounding the encoder magnifies a hundredfold and more (``geometry.epipolar``). A
matrix product would leave the order to the BLAS, and the precision to autocast and TF32.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lsplat_ns.scene import Cameras, SceneBatch

FLOAT32_EPSILON = 1.1920929e-07
"""Guards divisions by z. Part of the trained numbers, so the same in every precision."""

DISPARITY_EPSILON = 1e-10
"""Guards divisions by depth and by disparity."""

MIN_BASELINE = 1e-6
"""Distance, in world units, that two context cameras have at least when the scene's bounds are derived from it."""


def pixel_centers(height: int, width: int, like: Tensor) -> Tensor:
    """Image points [height * width, 2] (x, y) of all pixel centres, row by row; dtype and device of ``like``."""
    rows = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
    columns = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def camera_rays(points_xy: Tensor, intrinsics_norm: Tensor) -> Tensor:
    """Unit directions [..., 3], camera axes, through image points [..., 2]. Intrinsics [..., 3, 3] broadcast."""
    inverse_focal = 1 / torch.stack([intrinsics_norm[..., 0, 0], intrinsics_norm[..., 1, 1]], dim=-1)
    offset = points_xy * inverse_focal - intrinsics_norm[..., :2, 2] * inverse_focal
    length = (
        (offset.square().sum(-1, keepdim=True) + 1).double().sqrt().to(offset.dtype)
    )  # torch's own float32 root misrounds
    return torch.cat([offset, torch.ones_like(length)], dim=-1) / length


def world_rays(points_xy: Tensor, world_from_camera: Tensor, intrinsics_norm: Tensor) -> tuple[Tensor, Tensor]:
    """Rays through image points, in world space.

    Args:
        points_xy: Image points [..., 2] in [0, 1].
        world_from_camera: Poses [..., 4, 4], broadcast against the points.
        intrinsics_norm: Intrinsics [..., 3, 3], likewise.

    Returns:
        Origins and unit directions, both [..., 3]. Differentiable to all arguments.
    """
    x, y, z = camera_rays(points_xy, intrinsics_norm)[..., None, :].unbind(-1)
    rotation = world_from_camera[..., :3, :3]
    directions = (rotation[..., 0] * x + rotation[..., 2] * z) + rotation[..., 1] * y
    return world_from_camera[..., :3, 3].expand_as(directions), directions


def camera_from_world(vectors: Tensor, world_from_camera: Tensor, *, points: bool) -> Tensor:
    """World vectors [..., 3] in camera axes; ``points`` are moved by the camera centre first. Poses broadcast.

    A rotation in float32 is not quite orthogonal: its inverse, not its transpose, undoes :func:`world_rays`.
    """
    if points:
        vectors = vectors - world_from_camera[..., :3, 3]
    rotation = torch.linalg.inv_ex(world_from_camera[..., :3, :3]).inverse  # inv would check, and wait for the GPU
    return (rotation * vectors[..., None, :]).sum(-1)


def project_camera_space(points: Tensor, intrinsics_norm: Tensor) -> Tensor:
    """Image points [..., 2] of camera-space points [..., 3]; finite everywhere, meaningless behind the camera."""
    ratio = points / (points[..., 2:] + FLOAT32_EPSILON)  # the last is not quite 1 near the camera
    ratio = ratio.nan_to_num(nan=0.0, posinf=1e8, neginf=-1e8)
    focal = torch.stack([intrinsics_norm[..., 0, 0], intrinsics_norm[..., 1, 1]], dim=-1)
    return focal * ratio[..., :2] + intrinsics_norm[..., :2, 2] * ratio[..., 2:]


def project(points: Tensor, world_from_camera: Tensor, intrinsics_norm: Tensor) -> tuple[Tensor, Tensor]:
    """Project world points [..., 3]. Returns image points [..., 2] and whether z >= 0 [...]."""
    points = camera_from_world(points, world_from_camera, points=True)
    return project_camera_space(points, intrinsics_norm), points[..., 2] >= 0


def field_of_view(intrinsics_norm: Tensor) -> Tensor:
    """Angles [..., 2] (horizontal, vertical) in radians between the rays through the middles of opposite edges."""
    edges = intrinsics_norm.new_tensor([[[0.0, 0.5], [1.0, 0.5]], [[0.5, 0.0], [0.5, 1.0]]])
    rays = camera_rays(edges, intrinsics_norm[..., None, None, :, :])
    return (rays[..., 0, :] * rays[..., 1, :]).sum(-1).clamp(-1, 1).acos()


def pixel_size_at_unit_depth(intrinsics_norm: Tensor, size: tuple[int, int]) -> Tensor:
    """Width and height [..., 2], in world units, of a pixel of a (height, width) image at z = 1."""
    height, width = size
    return torch.stack([1 / (width * intrinsics_norm[..., 0, 0]), 1 / (height * intrinsics_norm[..., 1, 1])], dim=-1)


def depth_from_relative_disparity(relative_disparity: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Depths where 0 is ``near``, 1 is ``far``, and steps are equal in disparity (1 / depth). Shapes broadcast."""
    near, far = 1 / (near + DISPARITY_EPSILON), 1 / (far + DISPARITY_EPSILON)
    return 1 / ((1 - relative_disparity) * (near - far) + far + DISPARITY_EPSILON)


def relative_disparity_from_depth(depth: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """The inverse of :func:`depth_from_relative_disparity`."""
    near, far = 1 / (near + DISPARITY_EPSILON), 1 / (far + DISPARITY_EPSILON)
    return 1 - (1 / (depth + DISPARITY_EPSILON) - far) / (near - far + DISPARITY_EPSILON)


def bounds_from_baseline(
    context: Cameras, size: tuple[int, int], near_disparity: float = 3.0, far_disparity: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Near and far [b] of a scene from how far apart its context cameras are.

    Between the widest pair of views a point at ``near`` shifts by ``near_disparity`` times the shorter image side, a
    point at ``far`` by ``far_disparity`` pixels. Whatever bounds a dataset states are not used.

    Args:
        context: Context cameras [b, v].
        size: (height, width) of the context images in pixels, after cropping.
        near_disparity: In shorter image sides.
        far_disparity: In pixels.

    Source: the original's bounds shim.
    """
    origins = context.origins
    distances = (origins[:, :, None] - origins[:, None]).norm(dim=-1)
    baseline = distances.flatten(1).amax(1).clamp_min(MIN_BASELINE)
    pixel = pixel_size_at_unit_depth(context.intrinsics_norm, size).flatten(1).mean(1)
    return baseline / (near_disparity * min(size) * pixel), baseline / (far_disparity * pixel)


def with_scene_bounds(batch: SceneBatch, near_disparity: float = 3.0, far_disparity: float = 0.5) -> SceneBatch:
    """The batch with :func:`bounds_from_baseline` of its context in all context and target cameras."""
    near, far = bounds_from_baseline(batch.context.cameras, batch.context.size, near_disparity, far_disparity)
    context, target = (
        replace(views, cameras=views.cameras.with_bounds(near[:, None], far[:, None]))
        for views in (batch.context, batch.target)
    )
    return replace(batch, context=context, target=target)
