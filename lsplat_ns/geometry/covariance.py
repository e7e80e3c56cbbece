"""Covariances of 3D Gaussians from scales and rotations, and back."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-8
"""Keeps a quaternion of length zero finite. Part of the numbers that the released checkpoints were trained with."""
DECOMPOSED_AT_ONCE = 1 << 14
"""Covariances per call of the eigenvalue solver: cuSOLVER's batched one refuses more than some 32,000."""


def unit_quaternions(quaternions: Tensor) -> Tensor:
    """Quaternions [..., 4] divided by their length (plus epsilon), differentiable."""
    return quaternions / (quaternions.norm(dim=-1, keepdim=True) + EPSILON)


def rotation_from_quaternions(quaternions_xyzw: Tensor) -> Tensor:
    """Rotation matrices of quaternions in the order (x, y, z, w).

    Args:
        quaternions_xyzw: [..., 4], any length: the matrix divides by the squared length (plus epsilon).

    Returns:
        [..., 3, 3], differentiable.
    """
    x, y, z, w = quaternions_xyzw.unbind(-1)
    two = 2 / (quaternions_xyzw.square().sum(-1) + EPSILON)
    entries = [
        1 - two * (y * y + z * z),
        two * (x * y - z * w),
        two * (x * z + y * w),
        two * (x * y + z * w),
        1 - two * (x * x + z * z),
        two * (y * z - x * w),
        two * (x * z - y * w),
        two * (y * z + x * w),
        1 - two * (x * x + y * y),
    ]
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def covariances_from_scales(scales: Tensor, quaternions_xyzw: Tensor, world_from_local: Tensor | None = None) -> Tensor:
    """Covariances R diag(s^2) R^T, differentiable to everything.

    Args:
        scales: [..., 3] standard deviations along the Gaussian's axes.
        quaternions_xyzw: [..., 4] in the order (x, y, z, w).
        world_from_local: [..., 3, 3] rotation applied on top, for instance the camera's: latentSplat predicts
            orientations in camera axes. Leading axes broadcast.

    Returns:
        [..., 3, 3] in the squared unit of the scales. Source: the original's Gaussian adapter.
    """
    rotation = rotation_from_quaternions(quaternions_xyzw)
    if world_from_local is not None:
        rotation = world_from_local @ rotation
    axes = rotation * scales[..., None, :]
    return axes @ axes.mT


def scales_and_quaternions(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and rotations of covariances, for file formats that store them apart.

    Args:
        covariances: [..., 3, 3], symmetric. Eigenvalues that rounding made negative count as zero.

    Returns:
        Scales [..., 3] in ascending order and unit quaternions [..., 4] in the order (w, x, y, z), w >= 0. Not
        differentiable where scales coincide.
    """
    # Dividing by the size first keeps tiny Gaussians clear of the solver's absolute tolerances.
    size = covariances.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(torch.finfo(covariances.dtype).tiny)
    values, axes = _eigen(covariances / size[..., None, None])
    scales = (values.clamp_min(0) * size[..., None]).sqrt()
    handed = torch.where(torch.linalg.det(axes) < 0, -1.0, 1.0).to(axes)
    axes = torch.cat([axes[..., :2], axes[..., 2:] * handed[..., None, None]], dim=-1)
    return scales, quaternions_from_rotation(axes)


def _eigen(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [..., 3], ascending, and eigenvectors [..., 3, 3] (columns) of symmetric matrices [..., 3, 3]."""
    parts = [torch.linalg.eigh(part) for part in matrices.reshape(-1, 3, 3).split(DECOMPOSED_AT_ONCE)]
    values, axes = (torch.cat(found) for found in zip(*parts, strict=True))
    return values.view(matrices.shape[:-1]), axes.view(matrices.shape)


def quaternions_from_rotation(rotation: Tensor) -> Tensor:
    """Unit quaternions (w, x, y, z) [..., 4] with w >= 0 of rotation matrices [..., 3, 3]."""
    xx, xy, xz, yx, yy, yz, zx, zy, zz = rotation.flatten(-2).unbind(-1)
    # Each row is the quaternion times four of its own components; the row with the largest one is the most exact.
    rows = torch.stack(
        [
            torch.stack([1 + xx + yy + zz, zy - yz, xz - zx, yx - xy], -1),
            torch.stack([zy - yz, 1 + xx - yy - zz, yx + xy, xz + zx], -1),
            torch.stack([xz - zx, yx + xy, 1 - xx + yy - zz, zy + yz], -1),
            torch.stack([yx - xy, xz + zx, zy + yz, 1 - xx - yy + zz], -1),
        ],
        dim=-2,
    )
    best = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    quaternion = rows.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    quaternion = torch.nn.functional.normalize(quaternion, dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
