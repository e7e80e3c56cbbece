"""Images and cameras as a caller of the Python API hands them over, checked before a network sees them.

Every function takes numpy arrays, torch tensors on any device, or nested lists, and leaves them unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsplat_ns.data.matching import match_points
from lsplat_ns.data.posed_video import FARTHEST_CENTRE_NORM, LARGEST_ROTATION_ERROR, LONGEST_FOCAL_NORM
from lsplat_ns.errors import SceneDataError, ShapeMismatch
from lsplat_ns.geometry.overlap import view_overlap
from lsplat_ns.geometry.two_view import agreeing

COLORS = 3
UNIT_RANGE_SLACK = 1e-3
"""Resizing lets floating-point images leave [0, 1] by a little."""
ONE_PLACE = 1e-10
"""Cameras closer together than this share of their distance from the origin differ by rounding only."""
NOTHING_SHARED = 0.02
"""Views that share fewer rays than this cannot be matched by the network."""
WANTED_POSES = "poses must be camera to world with OpenCV axes (+x right, +y down, +z forward)"
FEWEST_MATCHES = 30
AGREEMENT = 0.01
"""Distance from its epipolar line, in image sides, up to which a matching point agrees with the poses."""
CONTRADICTED, CONFIRMED = 0.5, 0.7
"""Poses with less agreement than the first are wrong if those of another convention have more than the second."""
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def as_array(value: Any) -> np.ndarray:
    """A numpy array of an array, a tensor, or a sequence of either."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, (list, tuple)):
        return np.array([as_array(part) for part in value])
    return np.asarray(value)


def images_from_arrays(images: Any) -> list[np.ndarray]:
    """Images as uint8 [height, width, 3], one per view; sizes may differ.

    Args:
        images: Array or sequence of images [height, width, 3], or [3, height, width]; uint8, or float in [0, 1] (which
            is rounded to 1/255, as every picture file is).

    Raises:
        ShapeMismatch: If an image has neither shape.
        SceneDataError: If there are fewer than two, or values are of another type or range.
    """
    listed = [as_array(image) for image in images]
    if listed and listed[0].ndim == 2:
        raise ShapeMismatch("images", "[views, height, width, 3]", as_array(images).shape)
    if len(listed) < 2:
        raise SceneDataError(f"{len(listed)} image was given; the network needs at least two")
    return [_image(image, f"images[{number}]") for number, image in enumerate(listed)]


def _image(image: np.ndarray, name: str) -> np.ndarray:
    if image.ndim == 3 and image.shape[-1] != COLORS and image.shape[0] == COLORS:
        image = np.moveaxis(image, 0, -1)
    if image.ndim != 3 or image.shape[-1] != COLORS:
        raise ShapeMismatch(name, "[height, width, 3] or [3, height, width] (RGB without alpha)", image.shape)
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise SceneDataError(f"{name} has type {image.dtype}; pass uint8, or floats in [0, 1]")
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise SceneDataError(f"{name} holds NaN or infinite values")
    if low < -UNIT_RANGE_SLACK or high > 1 + UNIT_RANGE_SLACK:
        fix = "divide by 255, or pass uint8" if low >= 0 and high > 2 else "bring them into [0, 1]"
        raise SceneDataError(f"{name} holds values from {low:g} to {high:g}, but floats must lie in [0, 1]; {fix}")
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def poses_from_arrays(world_from_camera: Any, count: int | None = None) -> np.ndarray:
    """Camera poses as float64 [n, 4, 4].

    Args:
        world_from_camera: [n, 4, 4] or [n, 3, 4], camera to world, OpenCV axes.
        count: Number of poses that is needed.

    Raises:
        ShapeMismatch: If the shape is another one.
        SceneDataError: If a pose is not rigid; the message says in which way.
    """
    poses = as_array(world_from_camera).astype(np.float64)
    if poses.ndim != 3 or poses.shape[1:] not in ((4, 4), (3, 4)) or not len(poses) or count not in (None, len(poses)):
        raise ShapeMismatch("world_from_camera", f"[{'views' if count is None else count}, 4, 4]", poses.shape)
    if poses.shape[1] == 3:
        poses = np.concatenate([poses, np.broadcast_to([0.0, 0.0, 0.0, 1.0], (len(poses), 1, 4))], axis=1)
    for number, pose in enumerate(poses):
        wrong = _why_not_rigid(pose)
        if wrong:
            raise SceneDataError(f"world_from_camera[{number}] is no rigid pose: {wrong}")
    return poses


def _why_not_rigid(pose: np.ndarray) -> str:
    """What is wrong with a pose [4, 4], and how to mend it; empty where nothing is."""
    if not np.isfinite(pose).all():
        return "it holds NaN or infinite values"
    if np.abs(pose[3] - [0, 0, 0, 1]).max() > LARGEST_ROTATION_ERROR:
        transposed = np.abs(pose[:3, 3]).max() < LARGEST_ROTATION_ERROR
        return "its last row is not 0 0 0 1" + ("; it seems to be transposed" if transposed else "")
    rotation = pose[:3, :3]
    scale = np.cbrt(np.linalg.det(rotation))
    if scale < 0:
        return (
            "it mirrors (determinant -1); turn two axes or none: OpenGL cameras become OpenCV's by "
            "pose @ np.diag([1, -1, -1, 1])"
        )
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if error <= LARGEST_ROTATION_ERROR:
        return ""
    if scale > 0 and np.abs(rotation.T @ rotation / scale**2 - np.eye(3)).max() <= LARGEST_ROTATION_ERROR:
        return f"its rotation is scaled by {scale:.4g}; divide the upper left 3x3 block by that"
    return f"its rotation is not orthonormal (R^T R is off by {error:.2g})"


def intrinsics_from_arrays(intrinsics_norm: Any, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Normalised intrinsics as float64 [n, 3, 3], one per (height, width) in ``sizes``.

    Args:
        intrinsics_norm: [n, 3, 3], or one [3, 3] for all; of images that span [0, 1] x [0, 1].
        sizes: Of the images, for the message.

    Raises:
        ShapeMismatch: If the shape is another one.
        SceneDataError: If they are in pixels, or no pinhole camera has them.
    """
    matrices = as_array(intrinsics_norm).astype(np.float64)
    if matrices.shape == (3, 3):
        matrices = np.broadcast_to(matrices, (len(sizes), 3, 3))
    if matrices.shape != (len(sizes), 3, 3):
        raise ShapeMismatch("intrinsics_norm", f"[3, 3] or [{len(sizes)}, 3, 3]", matrices.shape)
    for number, (matrix, size) in enumerate(zip(matrices, sizes, strict=True)):
        wrong = _why_not_normalised(matrix, size)
        if wrong:
            raise SceneDataError(f"intrinsics_norm[{number}]: {wrong}")
    return matrices.copy()


def _why_not_normalised(matrix: np.ndarray, size: tuple[int, int]) -> str:
    """What is wrong with an intrinsics matrix [3, 3], and how to mend it; empty where nothing is."""
    if not np.isfinite(matrix).all():
        return "holds NaN or infinite values"
    focal, centre, (height, width) = matrix[[0, 1], [0, 1]], matrix[:2, 2], size
    if (focal > LONGEST_FOCAL_NORM).any() or (np.abs(centre - 0.5) > FARTHEST_CENTRE_NORM).any():
        return (
            f"fx {focal[0]:g} and cx {centre[0]:g} look like pixels; divide the first row by the image's width "
            f"({width}) and the second by its height ({height})"
        )
    if (focal <= 0).any():
        return f"focal lengths must be positive, but are {focal[0]:g} and {focal[1]:g}"
    if np.abs(matrix[[0, 1], [1, 0]]).max() > LARGEST_ROTATION_ERROR or not np.allclose(matrix[2], [0, 0, 1]):
        return "must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; skew is not supported"
    return ""


def check_views(world_from_camera: np.ndarray, intrinsics_norm: np.ndarray) -> None:
    """Refuse context views that say nothing about depth.

    Raises:
        SceneDataError: If the first two were taken from one place, or one shares nothing with any other.
    """
    centres = world_from_camera[:, :3, 3]
    if np.linalg.norm(centres[1] - centres[0]) <= ONE_PLACE * np.abs(centres[:2]).max():
        raise SceneDataError("views 0 and 1 were taken from one place; depth needs two")
    alone = np.flatnonzero(_largest_shared(world_from_camera, intrinsics_norm) < NOTHING_SHARED)
    if len(alone):
        raise SceneDataError(
            f"view {alone[0]} shares nothing with any other view; {WANTED_POSES}, and views must overlap"
        )


def check_convention(images: Sequence[np.ndarray], world_from_camera: np.ndarray, intrinsics_norm: np.ndarray) -> None:
    """Compare the poses of the first two views with points that match in their images.

    Poses in another convention are rigid as well, and only the images can tell. Where these have too little texture, or
    the points fit no convention, nothing is said.

    Raises:
        SceneDataError: If the points contradict the poses, and would agree if these were meant as world to camera or
            with OpenGL axes.
    """
    points = match_points(images[0], images[1])
    if len(points[0]) < FEWEST_MATCHES:
        return
    at_unit_depth, focal = [], []
    for xy, image, matrix in zip(points, images[:2], intrinsics_norm[:2], strict=True):
        scale = matrix[[0, 1], [0, 1]]
        at_unit_depth.append((xy / image.shape[1::-1] - matrix[:2, 2]) / scale)
        focal.append(scale.mean())
    tolerance = AGREEMENT / np.mean(focal)
    shares = {
        meant: float(agreeing(np.linalg.inv(poses[1]) @ poses[0], *at_unit_depth, tolerance).mean())
        for meant, poses in _readings(world_from_camera[:2]).items()
    }
    best = max(shares, key=shares.get)
    if shares[""] < CONTRADICTED and shares[best] > CONFIRMED:
        raise SceneDataError(
            f"{1 - shares['']:.0%} of matching points contradict world_from_camera, but {shares[best]:.0%} would agree "
            f"if it were {best}; {WANTED_POSES}"
        )


def _readings(poses: np.ndarray) -> dict[str, np.ndarray]:
    """Camera-to-world poses [n, 4, 4] with OpenCV axes, if the given ones are in one convention or another."""
    return {
        "": poses,
        "world to camera": np.linalg.inv(poses),
        "camera to world with OpenGL axes": poses @ OPENCV_FROM_OPENGL,
        "world to camera with OpenGL axes": np.linalg.inv(poses) @ OPENCV_FROM_OPENGL,
    }


def _largest_shared(world_from_camera: np.ndarray, intrinsics_norm: np.ndarray) -> np.ndarray:
    """For each view [n], the share of rays that pass through the picture of the view it shares most with."""
    poses, intrinsics = torch.from_numpy(world_from_camera), torch.from_numpy(intrinsics_norm)
    shared = torch.stack(
        [view_overlap((pose, poses), (matrix, intrinsics)) for pose, matrix in zip(poses, intrinsics, strict=True)]
    )
    return shared.fill_diagonal_(0).amax(1).numpy()
