"""One scene as every dataset presents it: a video whose frames have cameras and are decoded on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.rays import field_of_view

LARGEST_ROTATION_ERROR = 1e-3
"""Of any number in R^T R: poses stored as float32 stay far below it, scaled or sheared ones do not."""
LONGEST_FOCAL_NORM = 50.0
"""In image sides, about one degree of view; what is beyond is a focal length in pixels."""
FARTHEST_CENTRE_NORM = 1.5
"""How far, in image sides, a principal point may lie from the image's centre, as it does in a cropped image."""


@dataclass(frozen=True)
class PosedVideo:
    """Frames of one scene. Poses are in the dataset's own world frame and units.

    Raises:
        SceneDataError: If a camera holds NaN, its pose is not rigid, or its intrinsics are in pixels.
    """

    scene: str
    world_from_camera: Tensor  # [n, 4, 4] OpenCV axes
    intrinsics_norm: Tensor  # [n, 3, 3]
    read_image: Callable[[int], np.ndarray]  # frame -> uint8 [height, width, 3]
    read_size: Callable[[int], tuple[int, int]]  # frame -> (height, width), without decoding the image
    circular: bool = False  # a turntable: frame 0 follows the last one
    read_picture: Callable[[int], Image.Image] | None = None  # as read_image, where Pillow decodes: saves two copies

    def __post_init__(self) -> None:
        if not len(self):
            raise SceneDataError(f"scene {self.scene} has no frame", reason="too short")
        poses, intrinsics = self.world_from_camera, self.intrinsics_norm
        finite = poses.flatten(1).isfinite().all(1) & intrinsics.flatten(1).isfinite().all(1)
        self._refuse(~finite, "a camera with NaN or infinite numbers")
        rotation = poses[:, :3, :3]
        product = rotation.transpose(1, 2) @ rotation
        error = (product - torch.eye(3).to(product)).abs().amax((1, 2))
        mirrored = torch.linalg.det(rotation) < 0
        last_row = (poses[:, 3] - poses.new_tensor([0.0, 0.0, 0.0, 1.0])).abs().amax(1)
        self._refuse(
            (error > LARGEST_ROTATION_ERROR) | mirrored | (last_row > LARGEST_ROTATION_ERROR),
            "a pose that is not rigid (rotation and translation alone)",
        )
        focal, centre = intrinsics[:, (0, 1), (0, 1)], intrinsics[:, :2, 2]
        self._refuse((focal <= 0).any(1), "a focal length that is not positive")
        in_pixels = (focal > LONGEST_FOCAL_NORM) | ((centre - 0.5).abs() > FARTHEST_CENTRE_NORM)
        self._refuse(
            in_pixels.any(1), "intrinsics in pixels; divide fx, cx by the image's width and fy, cy by its height"
        )

    def _refuse(self, wrong: Tensor, what: str) -> None:
        if wrong.any():
            raise SceneDataError(f"scene {self.scene}, frame {int(wrong.int().argmax())}, has {what}")

    def __len__(self) -> int:
        return len(self.world_from_camera)

    def check_frames(self, frames: tuple[int, ...]) -> None:
        """Raise SceneDataError unless every frame exists."""
        wrong = [frame for frame in frames if not 0 <= frame < len(self)]
        if wrong:
            raise SceneDataError(
                f"scene {self.scene} has frames 0 to {len(self) - 1}, but frame {wrong[0]} was asked for"
            )

    def largest_fov_degrees(self) -> float:
        """The largest field of view of any frame along either axis, through the image's middle."""
        return float(torch.rad2deg(field_of_view(self.intrinsics_norm)).max())
