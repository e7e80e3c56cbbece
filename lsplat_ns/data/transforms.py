"""Image and camera transforms of latentSplat's loaders (the original's crop and augmentation shims).

Source: spec section 2.3. All functions leave their inputs unchanged.
"""

from __future__ import annotations

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


def rescale_and_crop(image: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """Scale an image so that it just covers ``target`` (height, width), then crop its centre.

    Args:
        image: uint8 [height, width, 3].
        target: Output (height, width).

    Returns:
        uint8 [target height, target width, 3].

    Raises:
        SceneDataError: If the image is smaller than the target in any direction; upscaling would invent detail.
    """
    height, width = image.shape[:2]
    if height < target[0] or width < target[1]:
        raise SceneDataError(
            f"an image of {width}x{height} is smaller than the {target[1]}x{target[0]} that the model works on; "
            f"use larger images or a smaller image-size"
        )
    scaled_height, scaled_width = cropped_size((height, width), target)
    if (scaled_height, scaled_width) != (height, width):
        image = np.asarray(Image.fromarray(image).resize((scaled_width, scaled_height), Image.Resampling.LANCZOS))
    top, left = (scaled_height - target[0]) // 2, (scaled_width - target[1]) // 2
    return np.ascontiguousarray(image[top : top + target[0], left : left + target[1]])


def image_tensor(image: np.ndarray) -> Tensor:
    """uint8 [height, width, 3] as float32 [3, height, width] in [0, 1]."""
    return (
        torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    )  # a copy: decoders hand out read-only arrays


def mirror(image: Tensor, world_from_camera: Tensor, intrinsics_norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reflect views [..., 3, H, W] and their cameras [..., 4, 4], [..., 3, 3] in the world's y-z plane.

    # Differs from upstream: the principal point is reflected too (cx -> 1 - cx); the original forgets it, which only
    # matters where cx is not 1/2 (CO3D).
    """
    reflection = torch.diag(world_from_camera.new_tensor([-1.0, 1.0, 1.0, 1.0]))
    intrinsics = intrinsics_norm.clone()
    intrinsics[..., 0, 2] = 1 - intrinsics[..., 0, 2]
    return image.flip(-1), reflection @ world_from_camera @ reflection, intrinsics
