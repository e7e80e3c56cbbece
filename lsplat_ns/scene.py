"""The values that travel between the stages. Read this file first, then ``latentsplat.py``.

Conventions, everywhere in this package:

* ``world_from_camera`` maps camera to world coordinates. Camera axes are OpenCV's: +x right, +y down, +z forward.
* ``intrinsics_norm`` are pinhole intrinsics of an image that spans [0, 1] x [0, 1]; (0, 0) is the outer corner of the
  top-left pixel, and the pixel in row i, column j has its centre at ((j + 1/2) / width, (i + 1/2) / height).
* ``near`` and ``far`` are distances along unit rays, as the encoder uses them; ``depth_z`` is camera-space z.
* Images are sRGB in [0, 1], channels first, float32.

Leading axes: batch ``b`` (scenes), then view ``v`` (context) or ``t`` (target); ``G`` counts Gaussians.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.errors import ShapeMismatch

T = TypeVar("T")


def map_tensors(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """Apply ``function`` to every tensor of a value object or tuple, however nested, and return a new one."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(part, function) for part in value)
    if hasattr(value, "__dataclass_fields__"):
        return replace(value, **{f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)})
    return value


class _TensorValue:
    """The verbs that every value object has."""

    def to(self: T, device: torch.device | str) -> T:
        """Move every tensor to ``device``."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def detach(self: T) -> T:
        """Cut every tensor from the graph that made it."""
        return map_tensors(self, torch.Tensor.detach)


@dataclass(frozen=True)
class Cameras(_TensorValue):
    """Posed pinhole cameras. All fields share the leading axes, usually [b, v]."""

    world_from_camera: Tensor  # [..., 4, 4]
    intrinsics_norm: Tensor  # [..., 3, 3]
    near: Tensor  # [...], distance along the ray, in world units
    far: Tensor  # [...]

    def __post_init__(self) -> None:
        leading = self.world_from_camera.shape[:-2]
        for name, tail in (("world_from_camera", (4, 4)), ("intrinsics_norm", (3, 3)), ("near", ()), ("far", ())):
            shape = getattr(self, name).shape
            if shape != (*leading, *tail):
                raise ShapeMismatch(f"Cameras.{name}", str([*leading, *tail]), shape)

    @property
    def origins(self) -> Tensor:
        """Camera centres in world space [..., 3]."""
        return self.world_from_camera[..., :3, 3]

    def select(self, views: slice | list[int] | Tensor) -> Cameras:
        """The cameras of the given views (second axis)."""
        return map_tensors(self, lambda tensor: tensor[:, views])

    def concat(self, other: Cameras) -> Cameras:
        """These cameras followed by the other ones, along the view axis."""
        return Cameras(*(torch.cat([getattr(self, f.name), getattr(other, f.name)], 1) for f in fields(self)))

    def with_bounds(self, near: Tensor, far: Tensor) -> Cameras:
        """The same cameras with other near and far distances, broadcast to [...]."""
        return replace(self, near=near.expand(self.near.shape), far=far.expand(self.far.shape))


@dataclass(frozen=True)
class Views(_TensorValue):
    """Images with their cameras."""

    image: Tensor  # [b, v, 3, height, width]
    cameras: Cameras  # [b, v]
    frame: Tensor  # [b, v] int64, index of the view in its source video

    def __post_init__(self) -> None:
        if self.image.ndim != 5 or self.image.shape[2] != 3:
            raise ShapeMismatch("Views.image", "[batch, view, 3, height, width]", self.image.shape)
        if self.image.shape[:2] != self.frame.shape or self.image.shape[:2] != self.cameras.near.shape:
            raise ShapeMismatch("Views.frame", str(list(self.image.shape[:2])), self.frame.shape)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[-2], self.image.shape[-1]

    def select(self, views: slice | list[int] | Tensor) -> Views:
        """The given views (second axis)."""
        return map_tensors(self, lambda tensor: tensor[:, views])

    def concat(self, other: Views) -> Views:
        """These views followed by the other ones, along the view axis."""
        return Views(
            torch.cat([self.image, other.image], 1),
            self.cameras.concat(other.cameras),
            torch.cat([self.frame, other.frame], 1),
        )


@dataclass(frozen=True)
class SceneBatch(_TensorValue):
    """One training or evaluation batch: what the network sees, and what it must predict."""

    context: Views  # [b, v]
    target: Views  # [b, t]
    scene: tuple[str, ...]  # b scene ids


@dataclass(frozen=True)
class Gaussians(_TensorValue):
    """3D Gaussians in world space, ready to be splatted.

    Harmonics follow latentSplat's basis (``geometry.harmonics``), coefficients last. ``feature_harmonics`` are None
    when only colour is wanted.
    """

    means: Tensor  # [b, G, 3]
    covariances: Tensor  # [b, G, 3, 3]
    opacities: Tensor  # [b, G], in [0, 1]
    color_harmonics: Tensor  # [b, G, 3, 25]
    feature_harmonics: Tensor | None = None  # [b, G, channels, 9]

    def __post_init__(self) -> None:
        leading = self.means.shape[:2]
        for name, tail in (("means", (3,)), ("covariances", (3, 3)), ("opacities", ())):
            shape = getattr(self, name).shape
            if shape != (*leading, *tail):
                raise ShapeMismatch(f"Gaussians.{name}", str([*leading, *tail]), shape)

    @property
    def count(self) -> int:
        """Number of Gaussians per scene."""
        return self.means.shape[1]

    def select(self, kept: Tensor) -> Gaussians:
        """The Gaussians with the given indices, or where a mask [G] is true."""
        return map_tensors(self, lambda tensor: tensor[:, kept])

    def concat(self, other: Gaussians) -> Gaussians:
        """The union of both sets. Both must have features, or neither."""
        features = None
        if self.feature_harmonics is not None and other.feature_harmonics is not None:
            features = torch.cat([self.feature_harmonics, other.feature_harmonics], 1)
        rest = ("means", "covariances", "opacities", "color_harmonics")
        return Gaussians(*(torch.cat([getattr(self, n), getattr(other, n)], 1) for n in rest), features)


@dataclass(frozen=True)
class VariationalGaussians(_TensorValue):
    """What the encoder predicts: Gaussians whose feature harmonics are random.

    ``sample`` and ``mode`` turn them into plain :class:`Gaussians`. Geometry and colour are already drawn.
    """

    means: Tensor  # [b, G, 3]
    covariances: Tensor  # [b, G, 3, 3]
    opacities: Tensor  # [b, G]
    color_harmonics: Tensor  # [b, G, 3, 25]
    features: DiagonalGaussian  # [b, G, channels, 9]

    @property
    def count(self) -> int:
        """Number of Gaussians per scene."""
        return self.means.shape[1]

    def select(self, kept: Tensor) -> VariationalGaussians:
        """The Gaussians with the given indices, or where a mask [G] is true."""
        return map_tensors(self, lambda tensor: tensor[:, kept])

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Gaussians:
        """Draw feature harmonics once per Gaussian; ``noise`` [b, G, channels, 9] replaces the draw."""
        return self._with_features(self.features.sample(generator, noise))

    def mode(self) -> Gaussians:
        """Gaussians that carry the mean features."""
        return self._with_features(self.features.mode())

    def _with_features(self, features: Tensor) -> Gaussians:
        return Gaussians(self.means, self.covariances, self.opacities, self.color_harmonics, features)


@dataclass(frozen=True)
class Rendering(_TensorValue):
    """Splatted maps of target views. Features carry latentSplat's offset of +1/2 and no background."""

    alpha: Tensor  # [b, t, height, width], in [0, 1)
    depth_z: Tensor  # [b, t, height, width], alpha-weighted sum of z in world units, not normalised
    color: Tensor | None = None  # [b, t, 3, height, width], >= 0
    features: Tensor | None = None  # [b, t, channels, height, width]
