"""Photos of real lenses become pictures of pinhole cameras."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from lsplat_ns.data.undistortion import PinholeView
from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.conventions import intrinsics_px_from_norm
from lsplat_ns.geometry.rays import camera_rays, pixel_centers

SIZE = (120, 160)
INTRINSICS = torch.tensor([[0.75, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
BARREL = torch.tensor([-0.28, 0.09, -0.01, 0.0, 0.004, -0.003])  # k1 k2 k3 k4 p1 p2
FISHEYE = torch.tensor([-0.04, 0.01, -0.002, 0.0005, 0.0, 0.0])


def seen_along(directions: np.ndarray) -> np.ndarray:
    """A smooth world at infinity: colours [..., 3] in [0, 1] of directions [..., 3]."""
    x, y, z = np.moveaxis(directions / np.linalg.norm(directions, axis=-1, keepdims=True), -1, 0)
    return 0.5 + 0.5 * np.stack([np.sin(9 * x + 2 * y), np.cos(8 * y - 3 * z), np.sin(7 * x * y + 6 * z)], -1)


def photograph(intrinsics: torch.Tensor, parameters: torch.Tensor, lens: str) -> np.ndarray:
    """What a lens makes of that world; rays of distorted pixels by OpenCV's point functions."""
    height, width = SIZE
    matrix = intrinsics_px_from_norm(intrinsics.double(), SIZE).numpy()
    pixels = (pixel_centers(height, width, torch.zeros(1, dtype=torch.float64)) * torch.tensor([width, height])).numpy()
    k1, k2, k3, k4, p1, p2 = parameters.double().numpy()
    if lens == "fisheye":
        plane = cv2.fisheye.undistortPoints(pixels[:, None], matrix, np.array([k1, k2, k3, k4]))
    else:
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)
        plane = cv2.undistortPointsIter(pixels[:, None], matrix, np.array([k1, k2, p1, p2, k3]), None, None, criteria)
    rays = np.concatenate([plane[:, 0], np.ones((len(plane), 1))], -1)
    return (seen_along(rays).reshape(height, width, 3) * 255).round().astype(np.uint8)


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.53, 0.46)], ids=["centred", "off centre"])
@pytest.mark.parametrize(
    ("lens", "parameters"), [("radial-tangential", BARREL), ("radial-tangential", -BARREL), ("fisheye", FISHEYE),
                             ("fisheye", torch.zeros(6)), ("radial-tangential", torch.zeros(6))],
    ids=["barrel", "pincushion", "fisheye", "ideal fisheye", "pinhole"],
)  # fmt: skip
def test_the_picture_shows_what_a_pinhole_camera_of_its_intrinsics_sees(
    lens: str, parameters: torch.Tensor, centre: tuple[float, float]
) -> None:
    intrinsics = INTRINSICS.clone()
    intrinsics[:2, 2] = torch.tensor(centre)
    view = PinholeView.of(intrinsics, parameters, lens, SIZE)
    picture = view.apply(photograph(intrinsics, parameters, lens))
    assert picture.shape == (*view.size, 3) and picture.dtype == np.uint8
    height, width = view.size
    points = pixel_centers(height, width, torch.zeros(1))
    truth = seen_along(camera_rays(points, view.intrinsics_norm).double().numpy()).reshape(height, width, 3)
    assert np.abs(picture / 255 - truth).max() < 0.006
    # A pixel's shift would show: the world changes by more than that from one pixel to the next.
    assert np.abs(picture[:, 1:] / 255 - truth[:, :-1]).max() > 0.03


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.53, 0.46)])
@pytest.mark.parametrize(("lens", "parameters"), [("radial-tangential", BARREL), ("fisheye", FISHEYE)])
def test_the_principal_point_becomes_the_centre_to_half_a_pixel(
    lens: str, parameters: torch.Tensor, centre: tuple[float, float]
) -> None:
    intrinsics = INTRINSICS.clone()
    intrinsics[:2, 2] = torch.tensor(centre)
    view = PinholeView.of(intrinsics, parameters, lens, SIZE)
    offset = (view.intrinsics_norm[:2, 2] - 0.5).abs() * torch.tensor(view.size[::-1])
    assert offset.max() <= 0.5 + 1e-4
    assert min(view.size) > 0.7 * min(SIZE)


def test_a_pinhole_photo_is_left_alone() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    view = PinholeView.of(INTRINSICS, torch.zeros(6), "radial-tangential", SIZE)
    assert np.array_equal(view.apply(photo), photo)
    torch.testing.assert_close(view.intrinsics_norm, INTRINSICS)


@pytest.mark.parametrize(
    ("parameters", "centre", "message"),
    [
        (torch.tensor([0.1, 0, 0, 0.2, 0, 0]), (0.5, 0.5), "k4"),
        (torch.zeros(6), (0.98, 0.5), "nothing of the image"),
        (torch.zeros(6), (-3.0, 0.5), "nothing of the image"),
    ],
)
def test_cameras_that_cannot_be_right_are_refused(parameters: torch.Tensor, centre: tuple, message: str) -> None:
    intrinsics = INTRINSICS.clone()
    intrinsics[:2, 2] = torch.tensor(centre)
    with pytest.raises(SceneDataError, match=message):
        PinholeView.of(intrinsics, parameters, "radial-tangential", SIZE)
