"""Where the rays of one view fall in another view's image, and how far along the ray an image point of that view lies.

Source: latentSplat section 3.1 (epipolar transformer, after pixelSplat).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lsplat_ns.geometry.rays import camera_from_world, project_camera_space, world_rays

TOLERANCE = 1e-6
"""How far, in image widths or along a ray, a point may lie outside and still count as inside."""

PARALLEL_COSINE = 1 - 1e-5
"""Rays whose directions agree better than this meet at infinity."""

PARALLEL_POINT = 1e10
"""Every coordinate of the point where parallel rays meet."""


@dataclass(frozen=True)
class EpipolarSegments:
    """The part of each ray that another camera sees. Start and end are (0, 0) where ``overlaps`` is false."""

    start_xy: Tensor  # [..., 2], image points in [0, 1]
    end_xy: Tensor  # [..., 2]
    start_depth: Tensor  # [...], distance along the ray; meaningless where overlaps is false
    end_depth: Tensor  # [...], inf for a ray that stays in the image
    overlaps: Tensor  # [...], bool

    def sample(self, count: int) -> Tensor:
        """Image points [..., count, 2] in the middles of ``count`` equal parts of each segment."""
        steps = (torch.arange(count, device=self.start_xy.device, dtype=self.start_xy.dtype) + 0.5) / count
        span = self.end_xy - self.start_xy
        return self.start_xy[..., None, :] + steps[:, None] * span[..., None, :]


@dataclass(frozen=True)
class _Candidates:
    """Points that may be an end of a segment: image point, distance along the ray, and whether the camera sees it."""

    xy: Tensor  # [..., 2]
    depth: Tensor  # [...]
    valid: Tensor  # [...]

    @classmethod
    def checked(cls, xy: Tensor, depth: Tensor, z: Tensor) -> _Candidates:
        """Candidates, valid where inside the image, before the camera and forward along the ray."""
        inside = ((xy >= -TOLERANCE) & (xy <= 1 + TOLERANCE)).all(-1)
        return cls(xy, depth, inside & (z > -TOLERANCE) & (depth > -TOLERANCE))

    def extreme(self, *, largest: bool) -> _Candidates:
        """The valid candidate of the last axis with the smallest or largest depth."""
        fill = -torch.inf if largest else torch.inf
        ranked = torch.where(self.valid, self.depth, fill)
        index = ranked.argmax(-1, keepdim=True) if largest else ranked.argmin(-1, keepdim=True)
        xy = self.xy.gather(-2, index[..., None].expand(*index.shape, 2))[..., 0, :]
        return _Candidates(xy, self.depth.gather(-1, index)[..., 0], self.valid.any(-1))

    def otherwise(self, other: _Candidates) -> _Candidates:
        """These candidates where they are valid, else the other ones."""
        xy = torch.where(self.valid[..., None], self.xy, other.xy)
        return _Candidates(xy, torch.where(self.valid, self.depth, other.depth), self.valid | other.valid)


def project_rays(
    origins: Tensor,
    directions: Tensor,
    world_from_camera: Tensor,
    intrinsics_norm: Tensor,
    bounds: tuple[Tensor, Tensor] | None = None,
) -> EpipolarSegments:
    """Project rays into a camera and cut them off at its image frame.

    Args:
        origins: Ray origins [..., 3] in world space.
        directions: Unit directions [..., 3] in world space.
        world_from_camera: Pose [..., 4, 4] of the camera that looks at the rays, broadcast against them.
        intrinsics_norm: Its intrinsics [..., 3, 3].
        bounds: Nearest and farthest distance [...] along the rays; from the origin to infinity when None.

    A division by zero marks a ray parallel to an edge; it gives an infinite or undefined point, which is never valid.
    """
    origins = camera_from_world(origins, world_from_camera, points=True)
    directions = camera_from_world(directions, world_from_camera, points=False)
    frame = _frame_crossings(origins, directions, intrinsics_norm)
    if bounds is None:
        start, end = _unbounded_ends(origins, directions, intrinsics_norm)
    else:
        start, end = (_ray_points(origins, directions, intrinsics_norm, distance) for distance in bounds)
    start = start.otherwise(frame.extreme(largest=False))
    end = end.otherwise(frame.extreme(largest=True))
    overlaps = start.valid & end.valid
    start_xy, end_xy = (torch.where(overlaps[..., None], side.xy, 0.0) for side in (start, end))
    return EpipolarSegments(start_xy, end_xy, start.depth, end.depth, overlaps)


def _ray_points(origins: Tensor, directions: Tensor, intrinsics_norm: Tensor, distance: Tensor) -> _Candidates:
    """The points at ``distance`` along camera-space rays."""
    points = origins + distance[..., None] * directions
    xy = project_camera_space(points, intrinsics_norm)
    return _Candidates.checked(xy, distance.expand(xy.shape[:-1]), points[..., 2])


def _unbounded_ends(origins: Tensor, directions: Tensor, intrinsics_norm: Tensor) -> tuple[_Candidates, _Candidates]:
    """The origins and the vanishing points of camera-space rays. Rays from the camera centre start anywhere."""
    at_camera = origins.norm(dim=-1) < TOLERANCE
    first = torch.where(at_camera[..., None], directions, origins)
    start = _Candidates.checked(
        project_camera_space(first, intrinsics_norm), torch.zeros_like(first[..., 2]), first[..., 2]
    )
    visible = at_camera | (origins[..., 2] >= TOLERANCE)
    start = _Candidates(start.xy, start.depth, start.valid & visible)
    infinity = torch.full_like(directions[..., 2], torch.inf)
    end = _Candidates.checked(project_camera_space(directions, intrinsics_norm), infinity, directions[..., 2])
    return start, end


def _frame_crossings(origins: Tensor, directions: Tensor, intrinsics_norm: Tensor) -> _Candidates:
    """Where camera-space rays [..., 3] cross the four lines through the image edges, as candidates [..., 4]."""
    xy, depth = [], []
    for axis, other in ((0, 1), (1, 0)):
        o_axis, o_other, o_z = origins[..., axis], origins[..., other], origins[..., 2]
        d_axis, d_other, d_z = directions[..., axis], directions[..., other], directions[..., 2]
        for edge in (0.0, 1.0):
            slope = (edge - intrinsics_norm[..., axis, 2]) / intrinsics_norm[..., axis, axis]
            depth.append((slope * o_z - o_axis) / (d_axis - slope * d_z))
            numerator = o_other * (slope * d_z - d_axis) + d_other * (o_axis - slope * o_z)
            numerator = intrinsics_norm[..., other, other] * numerator
            along = intrinsics_norm[..., other, 2] + numerator / (d_z * o_axis - d_axis * o_z)
            point = [torch.full_like(along, edge), along]
            xy.append(torch.stack(point if axis == 0 else point[::-1], dim=-1))
    depth = torch.stack(depth, dim=-1)
    z = origins[..., 2:] + depth * directions[..., 2:]
    return _Candidates.checked(torch.stack(xy, dim=-2), depth, z)


def depth_of_closest_approach(
    origins: Tensor, directions: Tensor, points_xy: Tensor, world_from_camera: Tensor, intrinsics_norm: Tensor
) -> Tensor:
    """Distance from each ray's origin to where it passes closest to the ray of another camera's image point.

    The meeting point is the middle of the shortest connection, found by least squares. The distance is never negative,
    even where the point lies behind the origin; it is about 1.7e10 for parallel rays.

    Args:
        origins: Ray origins [..., 3] in world space.
        directions: Unit directions [..., 3].
        points_xy: Image points [..., 2] in [0, 1] of the other camera.
        world_from_camera: Pose [..., 4, 4] of the other camera.
        intrinsics_norm: Intrinsics [..., 3, 3] of the other camera.

    Returns:
        Distances [...] in the precision of the arguments. The smaller the angle between two rays, the more it
        magnifies their rounding.
    """
    other_origins, other_directions = world_rays(points_xy, world_from_camera, intrinsics_norm)
    cosine = (directions * other_directions).sum(-1, keepdim=True)
    # Least squares as in the original, since float32 directions are not quite unit vectors: the textbook formula for
    # skew lines takes that differently, and where rays are nearly parallel the answers part by a thousandth.
    across, other_across = (_off_the_ray(part) for part in (directions, other_directions))
    matrix = across + other_across
    vector = (across * origins[..., None, :]).sum(-1) + (other_across * other_origins[..., None, :]).sum(-1)
    # Differs from upstream: it divides by nearly zero where rays oppose each other. Here they meet in the middle.
    on_one_line = cosine.abs() > PARALLEL_COSINE
    matrix = torch.where(on_one_line[..., None], torch.eye(3, dtype=matrix.dtype, device=matrix.device), matrix)
    vector = torch.where(on_one_line, 0.5 * (origins + other_origins), vector)
    points = torch.where(cosine > PARALLEL_COSINE, PARALLEL_POINT, _solve(matrix, vector))
    return (points - origins).norm(dim=-1)


def _off_the_ray(directions: Tensor) -> Tensor:
    """Matrices [..., 3, 3] that give, negated, the part of a vector across unit directions [..., 3]."""
    identity = torch.eye(3, dtype=directions.dtype, device=directions.device)
    return directions[..., :, None] * directions[..., None, :] - identity


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """Solutions [..., 3] of regular symmetric systems [..., 3, 3], [..., 3] by Cramer's rule, in their precision.

    In between in float64, because determinants cancel. The systems themselves are what rounding decides: an exact
    solution of the original's float32 systems lies as close to its results as another float32 solver's.
    """
    rows, right = matrix.double().unbind(-2), vector.double()
    cofactors = torch.stack([torch.linalg.cross(rows[i - 2], rows[i - 1], dim=-1) for i in range(3)], dim=-1)
    determinant = (rows[0] * cofactors[..., 0]).sum(-1, keepdim=True)
    return ((right[..., None] * cofactors).sum(-2) / determinant).to(vector.dtype)
