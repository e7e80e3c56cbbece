"""One scene as every dataset presents it: a video whose frames have cameras and are decoded on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lsplat_ns.errors import SceneDataError


@dataclass(frozen=True)
class PosedVideo:
    """Frames of one scene. Poses are in the dataset's own world frame and units."""

    scene: str
    world_from_camera: Tensor  # [n, 4, 4] OpenCV axes
    intrinsics_norm: Tensor  # [n, 3, 3]
    read_image: Callable[[int], np.ndarray]  # frame -> uint8 [height, width, 3]
    read_size: Callable[[int], tuple[int, int]]  # frame -> (height, width), without decoding the image
    circular: bool = False  # a turntable: frame 0 follows the last one

    def __post_init__(self) -> None:
        if not torch.isfinite(self.world_from_camera).all() or not torch.isfinite(self.intrinsics_norm).all():
            raise SceneDataError(f"scene {self.scene} has a camera with NaN or infinite numbers")

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
        """The largest field of view of any frame along either axis."""
        focal = torch.stack([self.intrinsics_norm[:, 0, 0], self.intrinsics_norm[:, 1, 1]])
        centre = torch.stack([self.intrinsics_norm[:, 0, 2], self.intrinsics_norm[:, 1, 2]])
        fov = torch.atan(centre / focal) + torch.atan((1 - centre) / focal)
        return float(torch.rad2deg(fov).max())
