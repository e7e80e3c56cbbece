"""Two photos without poses: where the second was taken from, seen from the first, or why that cannot be told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lsplat_ns.data.matching import match_points
from lsplat_ns.data.photos import Photo, describe_photos
from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.two_view import estimate_relative_pose, rotation_share, shared_view

TOLERANCE_PX = 1.0
"""Distance from its epipolar line up to which a match is an inlier."""
FEWEST_INLIERS = 50
LEAST_INLIER_SHARE = 0.5
"""Chance alone makes a few dozen matches of unrelated photos agree, but never half of all."""
LARGEST_ROTATION_SHARE = 0.75
LEAST_TRIANGULATION_DEGREES = 0.8
"""Below this angle, or above that share, the direction of the baseline is off by ten degrees and more."""
LARGEST_TRIANGULATION_DEGREES = 45.0
LEAST_OVERLAP = 0.25
"""Of either photo. The published models are trained on pairs that share six tenths and more."""


@dataclass(frozen=True)
class PhotoPair:
    """Two photos with their relative pose, and how sure it is."""

    first: Photo
    second: Photo
    first_from_second: np.ndarray  # [4, 4] OpenCV axes; the cameras are 1 apart
    matches: int
    inliers: int
    triangulation_degrees: float  # median angle at which lines of sight meet
    rotation_degrees: float
    overlap: tuple[float, float]  # share of the first photo that the second one sees, and the other way round

    def report(self) -> str:
        """What is known about the pair, in a few lines."""
        lines = describe_photos((self.first, self.second))
        lines += [
            f"{self.inliers} of {self.matches} matching points agree on the camera motion",
            f"the camera turned by {self.rotation_degrees:.1f} degrees; lines of sight meet at "
            f"{self.triangulation_degrees:.1f} degrees (median)",
            f"overlap: {self.overlap[0]:.0%} of {self.first.path.name}, {self.overlap[1]:.0%} of "
            f"{self.second.path.name}",
        ]
        return "\n".join(lines)


def pose_pair(first: Photo, second: Photo) -> PhotoPair:
    """Find the relative pose of two photos. The same photos give the same pose.

    Raises:
        SceneDataError: If the photos have too little in common, were taken from one place, or too far apart.
    """
    points = match_points(first.image, second.image)
    normalised = [_at_unit_depth(xy, photo) for xy, photo in zip(points, (first, second), strict=True)]
    tolerance = TOLERANCE_PX / np.sqrt(first.focal_px * second.focal_px)
    names, matches = f"{first.path.name} and {second.path.name}", len(points[0])
    if matches < FEWEST_INLIERS:
        raise SceneDataError(
            f"{names} have only {matches} matching points (at least {FEWEST_INLIERS} are needed): they show different "
            f"things, the gap between them is too wide, or there is too little texture"
        )
    share = rotation_share(*normalised, tolerance)
    if share > LARGEST_ROTATION_SHARE:
        raise SceneDataError(
            f"no baseline between {names}: a camera that turns on the spot explains {share:.0%} of the matching "
            f"points; take a step sideways between the photos"
        )
    try:
        pose = estimate_relative_pose(*normalised, tolerance)
    except SceneDataError as error:
        raise SceneDataError(f"{names}: {error}; take them closer together") from None
    inliers = int(pose.inliers.sum())
    if inliers < max(FEWEST_INLIERS, LEAST_INLIER_SHARE * matches):
        raise SceneDataError(
            f"only {inliers} of {matches} matching points of {names} agree on a camera motion: the gap between the "
            f"photos is too wide, things moved{_focal_doubt(first, second)}; take them closer together"
        )
    if pose.triangulation_degrees < LEAST_TRIANGULATION_DEGREES:
        raise SceneDataError(
            f"almost no baseline between {names}: lines of sight meet at {pose.triangulation_degrees:.1f} degrees (at "
            f"least {LEAST_TRIANGULATION_DEGREES} are needed); take a larger step sideways between the photos"
        )
    pair = PhotoPair(
        first=first,
        second=second,
        first_from_second=pose.first_from_second,
        matches=matches,
        inliers=inliers,
        triangulation_degrees=pose.triangulation_degrees,
        rotation_degrees=pose.rotation_degrees,
        overlap=_overlap(first, second, [xy[pose.inliers] for xy in points], pose.points, pose.first_from_second),
    )
    if pair.triangulation_degrees > LARGEST_TRIANGULATION_DEGREES or min(pair.overlap) < LEAST_OVERLAP:
        raise SceneDataError(
            f"the gap between {names} is too wide: they share {min(pair.overlap):.0%} of the view, seen from "
            f"directions {pair.triangulation_degrees:.0f} degrees apart; take them closer together"
        )
    return pair


def _focal_doubt(*photos: Photo) -> str:
    """What else may explain that no camera motion fits, where no camera measured the focal length."""
    unmeasured = [photo.focal_source for photo in photos if photo.focal_source != "EXIF"]
    return f", or the field of view is not the {unmeasured[0]} one (--fov)" if unmeasured else ""


def _at_unit_depth(points_px: np.ndarray, photo: Photo) -> np.ndarray:
    return (points_px - photo.intrinsics_px[:2, 2]) / photo.focal_px


def _overlap(
    first: Photo, second: Photo, inliers_px: list[np.ndarray], points: np.ndarray, first_from_second: np.ndarray
) -> tuple[float, float]:
    intrinsics = [photo.intrinsics_norm for photo in (first, second)]
    image_xy = [xy / photo.size[::-1] for xy, photo in zip(inliers_px, (first, second), strict=True)]
    second_from_first = np.linalg.inv(first_from_second)
    in_second = points @ second_from_first[:3, :3].T + second_from_first[:3, 3]
    return (
        shared_view(image_xy[0], points, intrinsics[0], intrinsics[1], second_from_first),
        shared_view(image_xy[1], in_second, intrinsics[1], intrinsics[0], first_from_second),
    )
