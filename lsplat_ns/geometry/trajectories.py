"""Camera paths: through a predicted scene, and away from a single view."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lsplat_ns.errors import ConfigError

PathKind = Literal["orbit", "dolly", "truck", "pan", "spiral"]


def rotation_between(start: Tensor, end: Tensor, fractions: Tensor) -> Tensor:
    """Rotations [n, 3, 3] on the shortest way from ``start`` to ``end`` [3, 3]; fractions [n] may leave [0, 1]."""
    relative = (start.T @ end).double()
    skew = (relative - relative.T) / 2
    sine = torch.linalg.norm(torch.stack([skew[2, 1], skew[0, 2], skew[1, 0]]))
    if sine < 1e-9:  # no rotation to speak of; half turns between two photos of one scene do not occur
        return start.expand(len(fractions), 3, 3)
    angle = torch.atan2(sine, (relative.trace() - 1) / 2)  # arccos would turn rounding errors into 0.02 degrees
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


@dataclass(frozen=True)
class PathConfig:
    """A camera path that starts at a view and leaves it. Lengths are in the units of that view's pose."""

    kind: PathKind = "orbit"
    """orbit: on an arc to the right around a point ahead; dolly: forwards; truck: to the right; pan: a turn to the
    right on the spot; spiral: a widening double turn in the image plane, with the eye on a point ahead."""
    frames: int = 40
    """Length of the path, without the view where it starts."""
    reach: float = 0.5
    """How far dolly and truck go, and the last radius of the spiral; negative goes the other way."""
    degrees: float = 20.0
    """Angle of orbit and pan; negative goes to the left."""
    pivot: float = 2.0
    """How far ahead lies the point that orbit and spiral look at."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ConfigError(f"a camera path needs 1 frame or more, not {self.frames}")
        if self.kind in ("dolly", "truck", "spiral") and not (math.isfinite(self.reach) and self.reach):
            raise ConfigError(f"a {self.kind} of reach {self.reach:g} goes nowhere: all its poses would be the same")
        if self.kind in ("orbit", "pan") and not 0 < abs(self.degrees) <= 360:
            raise ConfigError(f"{self.kind} takes an angle up to 360 degrees other than 0, not {self.degrees:g}")
        if self.kind in ("orbit", "spiral") and not (math.isfinite(self.pivot) and self.pivot > 0):
            raise ConfigError(f"the pivot must lie ahead of the camera, but its distance is {self.pivot:g}")


def camera_path(start: Tensor, config: PathConfig) -> Tensor:
    """Poses [frames, 4, 4] of a path away from ``start``, evenly paced; the last one has gone the whole way.

    Args:
        start: ``world_from_camera`` [4, 4], OpenCV axes; itself not part of the path.
        config: Which path.
    """
    time = torch.arange(1, config.frames + 1, dtype=torch.float64) / config.frames
    still = torch.zeros_like(time)
    angle = math.radians(config.degrees) * time
    steps = torch.eye(4, dtype=torch.float64).repeat(config.frames, 1, 1)  # start_from_camera
    if config.kind == "dolly":
        steps[:, 2, 3] = config.reach * time
    elif config.kind == "truck":
        steps[:, 0, 3] = config.reach * time
    elif config.kind == "pan":
        steps[:, :3, :3] = _turned_right(angle)
    elif config.kind == "orbit":
        steps[:, :3, :3] = _turned_right(-angle)
        steps[:, :3, 3] = config.pivot * torch.stack([angle.sin(), still, 1 - angle.cos()], dim=-1)
    else:
        turn, radius = 4 * math.pi * time, config.reach * time
        steps[:, :3, 3] = torch.stack([radius * turn.cos(), radius * turn.sin(), still], dim=-1)
        steps[:, :3, :3] = _looking_at(steps[:, :3, 3], steps.new_tensor([0.0, 0.0, config.pivot]))
    return (start.double() @ steps).float()


def _turned_right(angle: Tensor) -> Tensor:
    """Rotations [n, 3, 3] about the camera's vertical axis, by ``angle`` [n] in radians."""
    sine, cosine, zero, one = angle.sin(), angle.cos(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cosine, zero, sine, zero, one, zero, -sine, zero, cosine], dim=-1).unflatten(-1, (3, 3))


def _looking_at(places: Tensor, point: Tensor) -> Tensor:
    """Rotations [n, 3, 3] of cameras at ``places`` [n, 3] that look at a point, level with the frame's x-z plane."""
    forward = torch.nn.functional.normalize(point - places, dim=-1)
    right = torch.linalg.cross(forward.new_tensor([0.0, 1.0, 0.0]).expand_as(forward), forward)
    right = torch.nn.functional.normalize(right, dim=-1)
    return torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-1)
