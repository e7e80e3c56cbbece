"""Camera paths through a predicted scene."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotation_between(start: Tensor, end: Tensor, fractions: Tensor) -> Tensor:
    """Rotations [n, 3, 3] on the shortest way from ``start`` to ``end`` [3, 3]; fractions [n] may leave [0, 1]."""
    relative = (start.T @ end).double()
    cosine = ((relative.trace() - 1) / 2).clamp(-1, 1)
    angle = torch.arccos(cosine)
    skew = (relative - relative.T) / 2
    sine = torch.linalg.norm(torch.stack([skew[2, 1], skew[0, 2], skew[1, 0]]))
    if sine < 1e-9:  # no rotation to speak of; half turns between two photos of one scene do not occur
        return start.expand(len(fractions), 3, 3)
    axis = skew / sine
    angles = (angle * fractions.double())[:, None, None]
    steps = torch.eye(3, dtype=torch.float64) + angles.sin() * axis + (1 - angles.cos()) * (axis @ axis)
    return (start.double() @ steps).to(start.dtype)


def poses_between(start: Tensor, end: Tensor, fractions: Tensor) -> Tensor:
    """Poses [n, 4, 4] on the straight line from one ``world_from_camera`` [4, 4] to another, turning evenly."""
    poses = torch.eye(4).repeat(len(fractions), 1, 1)
    poses[:, :3, :3] = rotation_between(start[:3, :3], end[:3, :3], fractions)
    poses[:, :3, 3] = start[:3, 3] + fractions[:, None].to(start.dtype) * (end[:3, 3] - start[:3, 3])
    return poses


def fly_through(start: Tensor, end: Tensor, frames: int, swing: float = 0.12, overshoot: float = 0.0) -> Tensor:
    """A smooth round trip from ``start`` to ``end`` and back, with a gentle circle on the way.

    Args:
        start: ``world_from_camera`` [4, 4] of the first context view.
        end: The same of the other one.
        frames: Length of the path; the last frame meets the first.
        swing: Radius of the circle in the image plane, as a fraction of the baseline.
        overshoot: How far beyond both views the path goes, as a fraction of the baseline.

    Returns:
        Poses [frames, 4, 4].
    """
    phase = torch.arange(frames) * (2 * math.pi / max(frames, 1))
    eased = (1 - phase.cos()) / 2
    poses = poses_between(start, end, eased * (1 + 2 * overshoot) - overshoot)
    radius = swing * float((end[:3, 3] - start[:3, 3]).norm())
    circle = torch.stack([(2 * phase).cos() - 1, (2 * phase).sin(), torch.zeros(frames)], dim=-1) * radius
    poses[:, :3, 3] += torch.einsum("nij,nj->ni", poses[:, :3, :3], circle)
    return poses
