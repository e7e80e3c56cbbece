"""Image and camera transforms of latentSplat's loaders (the original's crop and augmentation shims).

Source: spec section 2.3. All functions leave their inputs unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lsplat_ns.errors import SceneDataError


def cropped_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) to which an image is scaled before the centre crop to ``target``: it just covers it."""
    factor = max(target[0] / size[0], target[1] / size[1])
    return round(size[0] * factor), round(size[1] * factor)


def cropped_intrinsics(intrinsics_norm: Tensor, size: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Intrinsics [3, 3] of the centre crop that :func:`rescale_and_crop` takes from an image of ``size``.

    The principal point stays where it was, although crop offsets round down: half a pixel at most, as in the original.
    """
    scaled_height, scaled_width = cropped_size(size, target)
    intrinsics = intrinsics_norm.clone()
    intrinsics[0, 0] *= scaled_width / target[1]
    intrinsics[1, 1] *= scaled_height / target[0]
    return intrinsics


def check_covers(size: tuple[int, int], target: tuple[int, int]) -> None:
    """Raise SceneDataError where an image (height, width) is smaller than ``target``; enlarging would invent detail."""
    if size[0] < target[0] or size[1] < target[1]:
        raise SceneDataError(
            f"an image of {size[1]}x{size[0]} is smaller than the {target[1]}x{target[0]} that the model works on; "
            f"use larger images or a smaller image-size",
            reason="image size",
        )


def rescale_and_crop(image: np.ndarray | Image.Image, target: tuple[int, int], *, mirrored: bool = False) -> np.ndarray:
    """Scale an image so that it just covers ``target`` (height, width), then crop its centre.

    Of what is cropped away little is computed: half the time, for RealEstate10k's frames, at the same pixels.

    Args:
        image: uint8 [height, width, 3], or the same as a Pillow image.
        target: Output (height, width).
        mirrored: Reflect the image left to right before it is cropped. Crop offsets round down, so that this may keep
            another column than reflecting the crop.

    Returns:
        uint8 [target height, target width, 3].

    Raises:
        SceneDataError: If the image is smaller than the target in any direction.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    size = picture.height, picture.width
    check_covers(size, target)
    scaled = cropped_size(size, target)
    rows = _Window.of(size[0], scaled[0], target[0])
    columns = _Window.of(size[1], scaled[1], target[1], from_end=mirrored)
    if scaled == size:
        picture = picture.crop((columns.source_first, rows.source_first, columns.source_last, rows.source_last))
    else:
        # One axis after the other: Pillow's order depends on its version and the shapes, and the pixels on the order.
        box = (columns.source_first, 0, columns.source_last, size[0])
        picture = picture.resize((columns.computed, size[0]), Image.Resampling.LANCZOS, box=box)
        box = (0, rows.source_first, columns.computed, rows.source_last)
        picture = picture.resize((columns.computed, rows.computed), Image.Resampling.LANCZOS, box=box)
    crop = np.asarray(picture)[rows.kept, columns.kept]
    return np.ascontiguousarray(crop[:, ::-1] if mirrored else crop)


@dataclass(frozen=True)
class _Window:
    """What to compute along one axis so that the kept pixels are those of the whole rescaled image."""

    source_first: int
    source_last: int
    computed: int
    kept: slice

    @staticmethod
    def of(length: int, scaled: int, target: int, *, from_end: bool = False) -> _Window:
        # Only where a border between rescaled pixels meets one between source pixels, resampling the part equals
        # resampling the whole: Pillow takes its box in single precision.
        step = scaled // gcd(length, scaled)
        offset = (scaled - target) // 2
        if from_end:
            offset = scaled - target - offset
        first, last = offset // step * step, -(-(offset + target) // step) * step
        kept = slice(offset - first, offset - first + target)
        return _Window(first * length // scaled, last * length // scaled, last - first, kept)


def byte_tensor(image: np.ndarray) -> Tensor:
    """uint8 [height, width, 3] as uint8 [3, height, width]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def mirror_cameras(world_from_camera: Tensor, intrinsics_norm: Tensor) -> tuple[Tensor, Tensor]:
    """Cameras [..., 4, 4], [..., 3, 3] of images reflected left to right, in a world reflected in its y-z plane.

    # Differs from upstream: the principal point is reflected too (cx -> 1 - cx); the original forgets it, which only
    # matters where cx is not 1/2 (CO3D).
    """
    reflection = torch.diag(world_from_camera.new_tensor([-1.0, 1.0, 1.0, 1.0]))
    intrinsics = intrinsics_norm.clone()
    intrinsics[..., 0, 2] = 1 - intrinsics[..., 0, 2]
    return reflection @ world_from_camera @ reflection, intrinsics
