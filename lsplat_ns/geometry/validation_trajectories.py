"""The camera paths of latentSplat's validation videos.

Source: spec section 8.2.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lsplat_ns.geometry.trajectories import poses_between, rotation_between

Trajectory = Literal["interpolation", "wobble", "fly-through"]
PARALLEL = 1e-4
"""Look directions whose cosine is this close to 1 or -1 have no meeting point."""


def validation_trajectory(name: Trajectory, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The path of one of the original's videos, made for 30 frames per second.

    Args:
        name: interpolation goes from the first context camera to the second and back; wobble draws a widening circle
            around the first; fly-through goes far beyond both while it circles (the original calls it exaggerated).
        first: ``world_from_camera`` [4, 4] of the first context view.
        second: The same of the other one.

    Returns:
        Poses [frames, 4, 4], and for each frame how far it is between the cameras, 0 at the first and 1 at the second
        (intrinsics are blended by it): [frames].
    """
    baseline = float((second[:3, 3] - first[:3, 3]).norm())
    if name == "interpolation":
        eased = (1 - (math.pi * torch.linspace(0, 1, 30)).cos()) / 2
        fractions = torch.cat([eased, eased.flip(0)[1:-1]])
        return turned_about_meeting_point(first, second, fractions), fractions
    if name == "wobble":
        time = torch.linspace(0, 1, 60)
        return _shifted(first.expand(60, 4, 4), _circle(time, 1, 0.25 * baseline * time)), torch.zeros(60)
    time = torch.linspace(0, 1, 300)
    fractions = 5 * time - 2
    poses = turned_about_meeting_point(first, second, fractions)
    return _shifted(poses, _circle(time, 5, torch.full_like(time, 0.5 * baseline))), fractions


def turned_about_meeting_point(first: Tensor, second: Tensor, fractions: Tensor) -> Tensor:
    """Poses [n, 4, 4] from one camera [4, 4] to another that keep looking at where both look.

    The cameras turn evenly about the point where their look rays come closest, around the normal of the plane of both
    look directions; what then still differs is moved and turned evenly. Fractions [n] may leave [0, 1]. Parallel looks
    meet nowhere: the way is then a straight line.
    """
    first, second = first.double(), second.double()
    looks = first[:3, 2], second[:3, 2]
    cosine = float(torch.dot(*looks))
    fractions = fractions.double()
    if abs(abs(cosine) - 1) < PARALLEL:
        return poses_between(first.float(), second.float(), fractions.float())
    pivot = _meeting_point((first[:3, 3], second[:3, 3]), looks)
    turn = _rotation_of_looks(*looks)
    ahead = _turned(second[None], turn.mT[None], pivot)[0]  # the second camera, turned back to where the first looks
    identity = torch.eye(3, dtype=torch.float64)
    steps = rotation_between(identity, turn, fractions)
    poses = torch.eye(4, dtype=torch.float64).repeat(len(fractions), 1, 1)
    poses[:, :3, :3] = rotation_between(first[:3, :3], ahead[:3, :3], fractions)
    poses[:, :3, 3] = first[:3, 3] + fractions[:, None] * (ahead[:3, 3] - first[:3, 3])
    return _turned(poses, steps, pivot).float()


def _meeting_point(origins: tuple[Tensor, Tensor], directions: tuple[Tensor, Tensor]) -> Tensor:
    """The point [3] with the least squared distance to two lines."""
    across = [torch.eye(3, dtype=torch.float64) - torch.outer(d, d) for d in directions]
    return torch.linalg.solve(across[0] + across[1], across[0] @ origins[0] + across[1] @ origins[1])


def _rotation_of_looks(start: Tensor, end: Tensor) -> Tensor:
    """The rotation [3, 3] in the plane of two unit vectors that turns one to the other."""
    axis, cosine = torch.linalg.cross(start, end), torch.dot(start, end)
    x, y, z = axis.tolist()
    skew = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + skew + skew @ skew / (1 + cosine)


def _turned(poses: Tensor, rotations: Tensor, pivot: Tensor) -> Tensor:
    turned = poses.clone()
    turned[:, :3, :3] = rotations @ poses[:, :3, :3]
    turned[:, :3, 3] = pivot + torch.einsum("nij,nj->ni", rotations, poses[:, :3, 3] - pivot)
    return turned


def _circle(time: Tensor, rounds: int, radius: Tensor) -> Tensor:
    """Offsets [n, 3] in the image plane, from above the centre to the right."""
    angle = 2 * math.pi * rounds * time
    return torch.stack([angle.sin() * radius, -angle.cos() * radius, torch.zeros_like(radius)], dim=-1)


def _shifted(poses: Tensor, offsets: Tensor) -> Tensor:
    moved = poses.clone()
    moved[:, :3, 3] += torch.einsum("nij,nj->ni", poses[:, :3, :3], offsets)
    return moved
