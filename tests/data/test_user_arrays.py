"""Arrays from callers of the Python API: what is taken, and that everything else is refused with the fix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from demo_captures import photo, room

from lsplat_ns.data.user_arrays import (
    check_convention,
    check_views,
    images_from_arrays,
    intrinsics_from_arrays,
    poses_from_arrays,
)
from lsplat_ns.errors import SceneDataError, ShapeMismatch

SIZE = (192, 288)
INTRINSICS = np.array([[0.8, 0, 0.5], [0, 1.1, 0.5], [0, 0, 1]])
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def poses() -> np.ndarray:
    return np.stack([room(SIZE).cameras[frame].world_from_camera for frame in (0, 9)])


def test_images_are_taken_in_every_usual_form_and_stay_the_same() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 10, 14, 3), np.uint8)
    first = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    forms: list = [
        pixels, list(pixels), torch.from_numpy(pixels), pixels / 255, (pixels / 255).astype(np.float32), first,
        first.float() / 255, [first[0], first[1].float() / 255],
    ]  # fmt: skip
    for form in forms:
        for image, expected in zip(images_from_arrays(form), pixels, strict=True):
            assert image.dtype == np.uint8
            np.testing.assert_array_equal(image, expected)


def test_images_may_differ_in_size() -> None:
    images = images_from_arrays([np.zeros((10, 20, 3), np.uint8), torch.zeros(3, 30, 12)])
    assert [image.shape for image in images] == [(10, 20, 3), (30, 12, 3)]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((10, 14, 3), np.uint8), "images must have shape"),
        (np.zeros((1, 10, 14, 3), np.uint8), "at least two"),
        ([], "at least two"),
        (np.zeros((2, 10, 14, 4), np.uint8), r"images\[0\] must have shape .*RGB without alpha"),
        (np.zeros((2, 10, 14, 3), np.int64), "type int64; pass uint8"),
        (np.full((2, 10, 14, 3), 200.0), "divide by 255"),
        (np.full((2, 10, 14, 3), -1.0), r"bring them into \[0, 1\]"),
        (np.full((2, 10, 14, 3), 1.5), r"bring them into \[0, 1\]"),
        (np.full((2, 10, 14, 3), np.nan), "NaN"),
    ],
)
def test_images_that_cannot_be_right_are_refused(images: object, words: str) -> None:
    with pytest.raises((SceneDataError, ShapeMismatch), match=words):
        images_from_arrays(images)


def test_poses_are_taken_with_three_rows_or_four_from_numpy_or_torch() -> None:
    expected = poses()
    for form in (expected, expected[:, :3], torch.from_numpy(expected).float(), list(expected), expected.tolist()):
        np.testing.assert_allclose(poses_from_arrays(form, 2), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p[0], "must have shape"),
        (lambda p: p[:1], "must have shape"),
        (lambda p: p * np.nan, "NaN"),
        (lambda p: np.swapaxes(p, 1, 2), "seems to be transposed"),
        (lambda p: p + np.eye(4)[3][:, None] * 0.5, "last row is not 0 0 0 1"),
        (lambda p: p @ np.diag([1, -1, 1, 1.0]), "mirrors.*diag"),
        (lambda p: p @ np.diag([2, 2, 2, 1.0]), "scaled by 2; divide"),
        (lambda p: p @ np.diag([1, 1, 1.1, 1.0]), "not orthonormal"),
        (lambda p: p * 0 + np.diag([0, 0, 0, 1.0]), "not orthonormal"),
    ],
    ids=["one", "too few", "nan", "transposed", "last row", "mirrored", "scaled", "sheared", "zero"],
)
def test_poses_that_are_not_rigid_are_refused(change: Callable, words: str) -> None:
    with pytest.raises((SceneDataError, ShapeMismatch), match=words):
        poses_from_arrays(change(poses()), 2)


def test_one_camera_matrix_serves_all_images() -> None:
    for form in (INTRINSICS, torch.from_numpy(INTRINSICS), np.stack([INTRINSICS] * 2), INTRINSICS.tolist()):
        np.testing.assert_array_equal(intrinsics_from_arrays(form, [(10, 14)] * 2), np.stack([INTRINSICS] * 2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda k: np.diag([640, 480, 1.0]) @ k, r"fx 512 and cx 320 look like pixels.*width \(640\).*height \(480\)"),
        (lambda k: k * [[1], [1], [np.nan]], "NaN"),
        (lambda k: k * [[-1], [1], [1]], "positive"),
        (lambda k: k + np.eye(3, k=1) * [0, 0.1, 0], "skew"),
        (lambda k: k.T, "skew"),
        (lambda k: k[:2], "must have shape"),
        (lambda k: np.stack([k] * 3), "must have shape"),
    ],
    ids=["pixels", "nan", "negative", "skew", "transposed", "two rows", "too many"],
)
def test_intrinsics_that_cannot_be_right_are_refused(change: Callable, words: str) -> None:
    with pytest.raises((SceneDataError, ShapeMismatch), match=words):
        intrinsics_from_arrays(change(INTRINSICS), [(480, 640)] * 2)


def test_views_from_one_place_or_with_nothing_in_common_are_refused() -> None:
    both = np.stack([INTRINSICS] * 2)
    check_views(poses(), both)
    turned = poses()
    turned[1, :3, 3] = turned[0, :3, 3]
    with pytest.raises(SceneDataError, match="views 0 and 1 were taken from one place"):
        check_views(turned, both)
    apart = np.stack([np.eye(4), np.diag([-1.0, 1.0, -1.0, 1.0])])  # back to back
    apart[1, 2, 3] = -1
    with pytest.raises(SceneDataError, match=r"view 0 shares nothing.*camera to world with OpenCV axes"):
        check_views(apart, both)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.linalg.inv, "world to camera;"),
        (lambda p: p @ FLIP, "camera to world with OpenGL axes"),
        (lambda p: np.linalg.inv(p @ FLIP), "world to camera with OpenGL axes"),
    ],
    ids=["world to camera", "OpenGL", "both"],
)
def test_poses_in_another_convention_are_told_by_the_images(change: Callable, words: str) -> None:
    images = [photo(frame, SIZE) for frame in (0, 9)]
    both = np.stack([room(SIZE).cameras[frame].intrinsics_norm for frame in (0, 9)])
    check_convention(images, poses(), both)
    with pytest.raises(SceneDataError, match=rf"matching points contradict.*if it were {words}"):
        check_convention(images, change(poses()), both)


def test_images_without_texture_contradict_nothing() -> None:
    blank = [np.full((64, 64, 3), 90, np.uint8)] * 2
    check_convention(blank, np.linalg.inv(poses()), np.stack([INTRINSICS] * 2))
