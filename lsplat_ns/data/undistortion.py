"""From photos of real lenses to pictures of pinhole cameras, which is all that the network knows.

Lens models are OpenCV's, in the order in which nerfstudio stores their parameters: radial-tangential (k1, k2, k3,
k4 = 0, p1, p2) and fisheye (k1, k2, k3, k4). What is cut off follows nerfstudio's full-image datamanager: only pixels
that the photo has are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.conventions import intrinsics_px_from_norm

Lens = Literal["radial-tangential", "fisheye"]
SMALLEST_SHARE = 0.1
"""An image that loses more of a side than this leaves is refused: its intrinsics cannot be right."""


@dataclass(frozen=True)
class Crop:
    """A window of an image, in whole pixels."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The window of an image [height, width, ...]."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class PinholeView:
    """How a photo becomes the picture of a pinhole camera whose principal point is the picture's centre.

    The centre, because the released models draw every view around it; a window around the principal point is cut out,
    so that it is true to half a pixel.
    """

    lens: Lens | None  # None: the photo is a pinhole picture already
    distortion: np.ndarray  # parameters in OpenCV's order for the lens
    photo_px: np.ndarray  # intrinsics [3, 3] of the photo, pixel centres at whole numbers (OpenCV)
    pinhole_px: np.ndarray  # intrinsics [3, 3] after undistortion, before the crop, likewise
    crop: Crop

    @staticmethod
    def of(intrinsics_norm: Tensor, parameters: Tensor, lens: Lens, size: tuple[int, int]) -> PinholeView:
        """The way for photos of ``size`` (height, width) pixels.

        Args:
            intrinsics_norm: [3, 3] of the photo.
            parameters: Six distortion parameters as nerfstudio stores them.
            lens: What they mean. A fisheye whose parameters are zero is an ideal (equidistant) one, not a pinhole.
            size: Of the photo.

        Raises:
            SceneDataError: If a number is not finite, or the lens model is not supported or leaves (nearly) nothing of
                the image.
        """
        import cv2

        values = parameters.double().numpy()
        if not (np.isfinite(values).all() and bool(intrinsics_norm.isfinite().all())):
            raise SceneDataError("the camera has NaN or infinite numbers among its intrinsics or distortion parameters")
        photo = intrinsics_px_from_norm(intrinsics_norm.double(), size).numpy()
        photo[:2, 2] -= 0.5  # OpenCV counts from the middle of the first pixel
        height, width = size
        valid = Crop(0, 0, width, height)
        if lens == "fisheye":
            distortion = values[:4]
            pinhole = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
                photo, distortion, (width, height), np.eye(3), balance=0
            )
            valid = _valid_part(*_fisheye_maps(photo, distortion, pinhole, size))
            return PinholeView("fisheye", distortion, photo, pinhole, _centred(pinhole, valid))
        if not values.any():
            return PinholeView(None, values, photo, photo, _centred(photo, valid))
        k1, k2, k3, k4, p1, p2 = values
        if k4 != 0:
            raise SceneDataError(
                f"k4 = {k4:g} is not supported for lenses that are no fisheye; undistort the images first"
            )
        distortion = np.array([k1, k2, p1, p2, k3])
        pinhole, valid = cv2.getOptimalNewCameraMatrix(photo, distortion, (width, height), 0)
        return PinholeView("radial-tangential", distortion, photo, pinhole, _centred(pinhole, Crop(*valid)))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture."""
        return self.crop.height, self.crop.width

    @property
    def intrinsics_norm(self) -> Tensor:
        """Intrinsics [3, 3] of the picture; the principal point is the centre up to half a pixel."""
        matrix = self.pinhole_px.copy()
        matrix[0, 2] += 0.5 - self.crop.left
        matrix[1, 2] += 0.5 - self.crop.top
        return torch.from_numpy(matrix / np.array([[self.crop.width], [self.crop.height], [1.0]])).float()

    def apply(self, photo: np.ndarray) -> np.ndarray:
        """The picture uint8 [height, width, 3] of a photo uint8 of the size stated."""
        import cv2

        if self.lens == "fisheye":
            maps = _fisheye_maps(self.photo_px, self.distortion, self.pinhole_px, photo.shape[:2])
            photo = cv2.remap(photo, *maps, interpolation=cv2.INTER_LINEAR)
        elif self.lens == "radial-tangential":
            photo = cv2.undistort(photo, self.photo_px, self.distortion, None, self.pinhole_px)
        return np.ascontiguousarray(self.crop.cut(photo))


def _fisheye_maps(
    photo_px: np.ndarray, distortion: np.ndarray, pinhole_px: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Where in the photo (x, y) each pixel of the pinhole picture comes from, each [height, width]."""
    import cv2

    return cv2.fisheye.initUndistortRectifyMap(photo_px, distortion, np.eye(3), pinhole_px, size[::-1], cv2.CV_32FC1)


def _valid_part(x: np.ndarray, y: np.ndarray) -> Crop:
    """The picture without edges that the photo does not reach: OpenCV leaves a row or two of them."""
    height, width = x.shape
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    top, bottom, left, right = 0, height, 0, width
    while bottom - top > 1 and right - left > 1 and not inside[top:bottom, left:right].all():
        part = inside[top:bottom, left:right]
        edges = part[0].mean(), part[-1].mean(), part[:, 0].mean(), part[:, -1].mean()
        worst = int(np.argmin(edges))
        top, bottom, left, right = top + (worst == 0), bottom - (worst == 1), left + (worst == 2), right - (worst == 3)
    return Crop(left, top, right - left, bottom - top)


def _centred(intrinsics_px: np.ndarray, valid: Crop) -> Crop:
    """The largest part of a window whose centre is the principal point."""
    x, y = intrinsics_px[0, 2] + 0.5, intrinsics_px[1, 2] + 0.5  # distance from the image's outer edge
    left, width = _centred_interval(x, valid.left, valid.left + valid.width)
    top, height = _centred_interval(y, valid.top, valid.top + valid.height)
    if width < SMALLEST_SHARE * valid.width or height < SMALLEST_SHARE * valid.height or min(width, height) < 1:
        raise SceneDataError(
            f"the camera's principal point ({x:.0f}, {y:.0f}) px or its distortion leaves nothing of the image; "
            f"check cx, cy and the distortion parameters"
        )
    return Crop(left, top, width, height)


def _centred_interval(centre: float, start: int, end: int) -> tuple[int, int]:
    """First pixel and length of the longest interval within [start, end] whose middle is nearest to ``centre``."""
    half = min(centre - start, end - centre)
    first, last = round(centre - half), round(centre + half)
    return max(first, start), min(last, end) - max(first, start)
