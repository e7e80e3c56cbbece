"""Where a second camera stands, from points seen in both pictures: relative pose up to scale, and how far to trust it.

Cameras are calibrated: points are given on the plane z = 1 of each camera (OpenCV axes), all in float64 numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lsplat_ns.errors import SceneDataError
from lsplat_ns.wording import counted

FEWEST_POINTS = 8
"""Fewer matches are not even tried."""
CONFIDENCE = 0.9999
REFINEMENTS = 3
"""Rounds of refining the pose and choosing the inliers anew."""
SHARPNESS = 0.2
"""Errors beyond this share of the tolerance count for little when the pose is refined: most points are far better."""
ROTATION_ROUNDS = 10
"""Rounds of fitting a rotation; outliers count from 2^10 tolerances in the first to one in the last."""
ROTATION_SLACK = 2.0
"""A rotation explains a match within this many tolerances: its error has two dimensions, that of a pose only one."""


@dataclass(frozen=True)
class RelativePose:
    """A second camera in the frame of the first, one unit away."""

    first_from_second: np.ndarray  # [4, 4], rigid
    inliers: np.ndarray  # [n] bool, matches that agree with it and lie in front of both cameras
    points: np.ndarray  # [inliers, 3] in the first camera's frame, in baselines

    @property
    def rotation_degrees(self) -> float:
        """Angle by which the second camera is turned against the first."""
        cosine = (np.trace(self.first_from_second[:3, :3]) - 1) / 2
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))

    @cached_property
    def triangulation_degrees(self) -> float:
        """Median angle at which the two lines of sight meet in the points."""
        to_second = self.points - self.first_from_second[:3, 3]
        return float(np.degrees(np.median(_angles(self.points, to_second)))) if len(self.points) else 0.0


def estimate_relative_pose(first_xy: np.ndarray, second_xy: np.ndarray, tolerance: float) -> RelativePose:
    """Relative pose of matched points, with outliers: five-point RANSAC, cheirality, then least squares.

    The same points give the same pose: nothing here is random beyond a fixed seed.

    Args:
        first_xy: Points [n, 2] at z = 1 of the first camera.
        second_xy: Their matches in the second one.
        tolerance: Error of a point at z = 1 (pixels over focal length) up to which a match counts as an inlier.

    Raises:
        SceneDataError: If there are too few matches, or no pose that fits any.

    Source: Nister 2004 (five points), Barath et al. 2020 (MAGSAC++), as in OpenCV.
    """
    first_xy, second_xy = np.asarray(first_xy, np.float64), np.asarray(second_xy, np.float64)
    if len(first_xy) < FEWEST_POINTS:
        raise SceneDataError(f"only {counted(len(first_xy), 'matching point')}; at least {FEWEST_POINTS} are needed")
    pose = _first_guess(first_xy, second_xy, tolerance)
    inliers = agreeing(pose, first_xy, second_xy, tolerance)
    for _ in range(REFINEMENTS):
        if inliers.sum() < FEWEST_POINTS:
            raise SceneDataError(f"only {inliers.sum()} of {len(first_xy)} matching points agree on a camera motion")
        pose = _refined(pose, first_xy[inliers], second_xy[inliers], tolerance)
        inliers = agreeing(pose, first_xy, second_xy, tolerance)
    first_from_second = np.eye(4)
    first_from_second[:3, :3], first_from_second[:3, 3] = pose[:, :3].T, -pose[:, :3].T @ pose[:, 3]
    points, _, _ = _triangulated(pose, first_xy[inliers], second_xy[inliers])
    return RelativePose(first_from_second, inliers, points)


def agreeing(
    second_from_first: np.ndarray, first_xy: np.ndarray, second_xy: np.ndarray, tolerance: float
) -> np.ndarray:
    """Which matches [n] agree with a pose [3 or 4, 4]: near their epipolar lines, and in front of both cameras."""
    length = max(np.linalg.norm(second_from_first[:3, 3]), 1e-12)
    pose = np.c_[second_from_first[:3, :3], second_from_first[:3, 3] / length]
    _, depth, other_depth = _triangulated(pose, first_xy, second_xy)
    return (np.abs(_sampson(pose, first_xy, second_xy)) < tolerance) & (depth > 0) & (other_depth > 0)


def rotation_share(first_xy: np.ndarray, second_xy: np.ndarray, tolerance: float) -> float:
    """Share of matches [n, 2] that one rotation explains within :data:`ROTATION_SLACK` tolerances.

    Close to 1 where the camera turned on the spot (or everything is far away): nothing is known about depth then.
    """
    first, second = _rays(first_xy), _rays(second_xy)
    angles = np.zeros(len(first))
    for scale in tolerance * 2.0 ** np.arange(ROTATION_ROUNDS, -1, -1):  # outliers lose their weight bit by bit
        weights = 1 / (1 + (angles / scale) ** 2)
        left, _, right = np.linalg.svd((second * weights[:, None]).T @ first)
        signs = np.diag([1.0, 1.0, np.linalg.det(left @ right)])
        angles = _angles(first @ (left @ signs @ right).T, second)
    return float((angles < ROTATION_SLACK * tolerance).mean()) if len(first) else 0.0


def shared_view(
    image_xy: np.ndarray,
    points: np.ndarray,
    intrinsics_norm: np.ndarray,
    other_intrinsics_norm: np.ndarray,
    other_from_camera: np.ndarray,
    cells: int = 24,
) -> float:
    """Share of a camera's picture that another camera sees, occlusion apart.

    Each cell of a grid over the picture gets the depth of the nearest triangulated point.

    Args:
        image_xy: Image points [k, 2] in [0, 1] of the triangulated points.
        points: The points [k, 3] in this camera's frame.
        intrinsics_norm: Intrinsics [3, 3] of this camera.
        other_intrinsics_norm: Intrinsics of the other one.
        other_from_camera: Pose [4, 4] of this camera in the other one's frame.
        cells: Cells along each side.
    """
    steps = (np.arange(cells) + 0.5) / cells
    grid = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    nearest = ((grid[:, None] - image_xy[None]) ** 2).sum(-1).argmin(1)
    rays = np.c_[grid, np.ones(len(grid))] @ np.linalg.inv(intrinsics_norm).T
    there = rays * points[nearest, 2:] @ other_from_camera[:3, :3].T + other_from_camera[:3, 3]
    projected = there @ other_intrinsics_norm.T
    with np.errstate(divide="ignore", invalid="ignore"):
        xy = projected[:, :2] / projected[:, 2:]
    return float(((xy > 0).all(1) & (xy < 1).all(1) & (there[:, 2] > 0)).mean())


def _rays(points_xy: np.ndarray) -> np.ndarray:
    """Unit rays [n, 3] through points at z = 1."""
    rays = np.c_[points_xy, np.ones(len(points_xy))]
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Angles [n] in radians between vectors [n, 3], exact for small ones too."""
    return np.arctan2(np.linalg.norm(np.cross(first, second), axis=1), (first * second).sum(1))


def _sampson(pose: np.ndarray, first_xy: np.ndarray, second_xy: np.ndarray) -> np.ndarray:
    """Signed first-order distance [n], at z = 1, of matches from the epipolar geometry of second_from_first [3, 4]."""
    first, second = np.c_[first_xy, np.ones(len(first_xy))], np.c_[second_xy, np.ones(len(second_xy))]
    essential = np.cross(np.eye(3), pose[:, 3]).T @ pose[:, :3]
    lines, other_lines = first @ essential.T, second @ essential
    slopes = np.hypot(np.linalg.norm(lines[:, :2], axis=1), np.linalg.norm(other_lines[:, :2], axis=1))
    return (second * lines).sum(1) / np.maximum(slopes, 1e-12)


def _triangulated(
    pose: np.ndarray, first_xy: np.ndarray, second_xy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where lines of sight come closest: points [n, 3] in the first frame, and the depths [n] along both."""
    first, second = _rays(first_xy), _rays(second_xy) @ pose[:, :3]
    centre = -pose[:, :3].T @ pose[:, 3]
    cosine = (first * second).sum(1)
    sine_squared = np.maximum((np.cross(first, second) ** 2).sum(1), 1e-16)
    along, other_along = first @ centre, second @ centre
    depth = (along - cosine * other_along) / sine_squared
    other_depth = (cosine * along - other_along) / sine_squared
    middle = (first * depth[:, None] + centre + second * other_depth[:, None]) / 2
    return middle, depth, other_depth


def _first_guess(first_xy: np.ndarray, second_xy: np.ndarray, tolerance: float) -> np.ndarray:
    """A rough pose second_from_first [3, 4] that most matches agree with."""
    import cv2

    camera = np.eye(3)
    essential, kept = cv2.findEssentialMat(
        first_xy, second_xy, camera, method=cv2.USAC_MAGSAC, prob=CONFIDENCE, threshold=tolerance
    )
    if essential is None or essential.shape != (3, 3):
        raise SceneDataError("no camera motion explains the matching points")
    _, rotation, translation, _ = cv2.recoverPose(essential, first_xy, second_xy, camera, mask=kept)
    return np.hstack([rotation, translation])


def _refined(pose: np.ndarray, first_xy: np.ndarray, second_xy: np.ndarray, tolerance: float) -> np.ndarray:
    """The pose [3, 4] that minimises a robust Sampson error, over three angles and the direction of the baseline."""
    import cv2
    from scipy.optimize import least_squares

    across = np.linalg.svd(pose[:, 3:].T)[2][1:]  # two directions at right angles to the baseline

    def moved(step: np.ndarray) -> np.ndarray:
        translation = pose[:, 3] + step[3:] @ across
        return np.c_[cv2.Rodrigues(step[:3])[0] @ pose[:, :3], translation / np.linalg.norm(translation)]

    def errors(step: np.ndarray) -> np.ndarray:
        return _sampson(moved(step), first_xy, second_xy) / tolerance

    return moved(least_squares(errors, np.zeros(5), loss="cauchy", f_scale=SHARPNESS).x)
