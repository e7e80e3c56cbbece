"""Splatting Gaussians into target views: the one entry point of the renderer."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lsplat_ns.cuda_graphs import RepeatedCalls
from lsplat_ns.errors import ConfigError, ShapeMismatch
from lsplat_ns.geometry.harmonics import coefficient_count, harmonic_functions
from lsplat_ns.rendering.compositing import GSPLAT_RULES, ORIGINAL_RULES
from lsplat_ns.rendering.gsplat_adapter import Projected, gsplat_status, project, rasterize_with_gsplat, sort
from lsplat_ns.rendering.rasterization import (
    Ellipsoids,
    Maps,
    PixelCameras,
    least_depth,
    matrices_in_pixels,
    pixel_cameras,
)
from lsplat_ns.rendering.reference import rasterize_in_pytorch
from lsplat_ns.scene import Cameras, Gaussians, Rendering

__all__ = ["SplattingConfig", "gsplat_status", "splat"]

VALUES_AT_ONCE = 1 << 22
"""Views are drawn together up to this many pairs of view and Gaussian."""


@dataclass
class SplattingConfig:
    """How Gaussians become images. The defaults are latentSplat's."""

    backend: Literal["auto", "gsplat", "reference"] = "auto"
    """Rasteriser: gsplat's CUDA kernels, plain PyTorch, or gsplat exactly for tensors on a CUDA device."""
    principal_point: Literal["centred", "true"] = "centred"
    """Whether images are drawn around their centre, as the released models were trained, or with the true principal
    point."""
    near_cull: float = 0.2
    """Gaussians whose camera-space z lies under this fraction of the near distance are not drawn."""
    color_degree: int = 3
    """Highest harmonic band of colours that is drawn. Coefficients of higher bands are predicted, but not used."""
    feature_offset: float = 0.5
    """Added to every Gaussian's features. Zero draws quantities that are not centred, such as deviations."""
    couple_features: bool = False
    """Let gradients of the feature maps reach means, covariances and opacities."""
    reference_rules: Literal["gsplat", "original"] = "gsplat"
    """Constants of the reference rasteriser: gsplat's, or those of the original's own CUDA rasteriser."""

    def __post_init__(self) -> None:
        if self.near_cull <= 0:
            raise ConfigError(f"splatting near_cull must be positive, but is {self.near_cull}; latentSplat uses 0.2")
        if not 0 <= self.color_degree <= 4:
            raise ConfigError(f"splatting color_degree must be 0 to 4, but is {self.color_degree}")


@dataclass(frozen=True)
class SplattingParts:
    """Steps of :func:`splat` that may be replaced by faster functions of the same results, such as compiled ones."""

    values: Callable[..., Tensor] | None = None  # for values_seen_from
    pinholes: Callable[..., tuple[Tensor, Tensor]] | None = None  # for rasterization.matrices_in_pixels
    repeated: RepeatedCalls | None = None  # captures all of gsplat's work before the sort, where no gradient is needed


def splat(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    config: SplattingConfig | None = None,
    *,
    color: bool = True,
    features: bool = True,
    parts: SplattingParts | None = None,
) -> Rendering:
    """Render Gaussians from target cameras.

    Args:
        gaussians: [b, G] in world space.
        cameras: [b, t]; ``near`` scales the culling distance, ``far`` is not used.
        size: Height and width in pixels.
        config: None stands for the defaults.
        color: Draw the colour map.
        features: Draw the feature map, if the Gaussians have features.
        parts: Faster stand-ins for some steps.

    Returns:
        Rendering [b, t] on black: colours are offset by 1/2 and clamped at 0 per Gaussian, features only offset.
        ``depth_z`` is in world units. Colour, depth and alpha are differentiable to geometry, harmonics and cameras;
        features only to harmonics and, through the viewing direction, to means (unless coupled). Uses no randomness;
        on CUDA gradients are summed in no fixed order.

    Raises:
        ShapeMismatch, ConfigError: The inputs do not fit together.
        MissingExtra: gsplat was asked for and cannot run.

    Source: latentSplat's splatting decoder and its rasteriser; 3D Gaussian splatting (Kerbl et al. 2023).
    """
    config, parts = config or SplattingConfig(), parts or SplattingParts()
    _check(gaussians, cameras, size)
    gaussians = _in_type(gaussians, cameras.world_from_camera.dtype)
    harmonics = (gaussians.color_harmonics if color else None, gaussians.feature_harmonics if features else None)
    rasterize = _rasterizer(config, gaussians, cameras, color)
    with torch.autocast(gaussians.means.device.type, enabled=False):
        scenes = None
        if parts.repeated is not None and not torch.is_grad_enabled() and _draws_with_gsplat(config, gaussians):
            scenes = _seen_again(gaussians, harmonics, cameras, size, config, parts)
        if scenes is None:
            scenes = _seen(gaussians, harmonics, cameras, size, config, parts, rasterize)
    maps = _stacked([scene.values for scene in scenes])
    return Rendering(
        alpha=_stacked([scene.alpha for scene in scenes]),
        depth_z=_stacked([scene.depth_z for scene in scenes]),
        color=maps[:, :, :3] if color else None,
        features=None if harmonics[1] is None else maps[:, :, 3 if color else 0 :],
    )


Harmonics = tuple[Tensor | None, Tensor | None]
"""Of colours and features, [b, G, channels, coefficients]; None where they are not drawn."""
Rasterizer = Callable[[Ellipsoids, Tensor, PixelCameras, tuple[int, int]], Maps]


def _seen(
    gaussians: Gaussians,
    harmonics: Harmonics,
    cameras: Cameras,
    size: tuple[int, int],
    config: SplattingConfig,
    parts: SplattingParts,
    rasterize: Rasterizer,
) -> list[Maps]:
    """The maps of each scene."""
    pixels = pixel_cameras(cameras, size, config.principal_point, config.near_cull, parts.pinholes)
    scenes = []
    for scene in range(len(gaussians.means)):
        covariances = gaussians.covariances[scene]
        if covariances.requires_grad:
            covariances = _symmetric(covariances)
        ellipsoids = Ellipsoids(gaussians.means[scene], covariances, gaussians.opacities[scene])
        coefficients = [None if part is None else part[scene] for part in harmonics]
        groups = []
        for views in _view_groups(gaussians.count, cameras.near.shape[1]):
            origins = cameras.origins[scene, views]
            values = (parts.values or values_seen_from)(ellipsoids.means, origins, *coefficients, config)
            groups.append(rasterize(ellipsoids, values, pixels.select(scene, views), size))
        scenes.append(Maps.concat(groups))
    return scenes


def _seen_again(
    gaussians: Gaussians,
    harmonics: Harmonics,
    cameras: Cameras,
    size: tuple[int, int],
    config: SplattingConfig,
    parts: SplattingParts,
) -> list[Maps] | None:
    """The same by gsplat for one scene that may be looked at again, or None where one graph cannot hold it.

    Some 200 launches precede the sort, and take the host twice as long as they take the GPU.
    """
    z_min = least_depth(cameras, config.near_cull)
    planes = set(z_min.flatten().tolist())  # gsplat has one near plane per call
    views = cameras.near.shape[1]
    if len(gaussians.means) > 1 or len(planes) != 1 or len(_view_groups(gaussians.count, views)) > 1:
        return None
    (near,) = planes
    drawn = [part for part in harmonics if part is not None]

    def before_sorting(given: tuple[Tensor, Tensor]) -> tuple[Projected, Tensor]:
        poses, intrinsics = given
        matrices = (parts.pinholes or matrices_in_pixels)(poses, intrinsics, size, config.principal_point)
        coefficients = [None if part is None else part[0] for part in harmonics]
        values = (parts.values or values_seen_from)(gaussians.means[0], poses[0, :, :3, 3], *coefficients, config)
        ellipsoids = Ellipsoids(gaussians.means[0], gaussians.covariances[0], gaussians.opacities[0])
        pixels = PixelCameras(*matrices, z_min).select(0, slice(None))
        projected = project(ellipsoids, pixels, size, near, GSPLAT_RULES.blur)
        return projected, projected.with_depth(values)

    tensors = (gaussians.means, gaussians.covariances, gaussians.opacities, *drawn)
    kind = (size, views, near, *[part is None for part in harmonics], *vars(config).values())
    given = (cameras.world_from_camera, cameras.intrinsics_norm)
    with parts.repeated.result(tensors, kind, before_sorting, given) as (projected, values):
        return [sort(projected, size).draw(values)]


def _stacked(tensors: list[Tensor]) -> Tensor:
    """The tensors along a new first axis; a single one is not copied."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def _in_type(gaussians: Gaussians, dtype: torch.dtype) -> Gaussians:
    """The same Gaussians in the cameras' type: mixed precision ends where geometry begins."""
    parts = (getattr(gaussians, field.name) for field in fields(gaussians))
    return Gaussians(*(None if part is None else part.to(dtype) for part in parts))


def _symmetric(covariances: Tensor) -> Tensor:
    """The same covariances; gradients come back symmetric, though the rasterisers read one triangle of them."""
    return 0.5 * (covariances + covariances.mT)


def _check(gaussians: Gaussians, cameras: Cameras, size: tuple[int, int]) -> None:
    """Refuse inputs that do not fit together."""
    if cameras.near.ndim != 2 or len(cameras.near) != len(gaussians.means):
        raise ShapeMismatch("cameras to splat into", f"[{len(gaussians.means)}, views]", cameras.near.shape)
    if min(size) < 1:
        raise ConfigError(f"an image of {size[0]} x {size[1]} pixels cannot be drawn; give a positive height and width")


def _draws_with_gsplat(config: SplattingConfig, gaussians: Gaussians) -> bool:
    """Whether these Gaussians are drawn by gsplat, which refuses an empty scene; the reference draws it at no cost."""
    return config.backend != "reference" and gaussians.means.is_cuda and gaussians.count > 0


def _rasterizer(config: SplattingConfig, gaussians: Gaussians, cameras: Cameras, color: bool) -> Rasterizer:
    """The backend for these inputs, set up."""
    device = gaussians.means.device.type
    if config.backend == "gsplat" and device != "cuda":
        raise ConfigError(f"backend gsplat draws tensors on CUDA, but these are on {device}; use auto or reference")
    geometry = (gaussians.means, gaussians.covariances, gaussians.opacities, cameras.world_from_camera)
    trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in geometry)
    attached = (3 if color else 0) if trained and not config.couple_features else None
    if not _draws_with_gsplat(config, gaussians):
        rules = GSPLAT_RULES if config.reference_rules == "gsplat" else ORIGINAL_RULES
        return partial(rasterize_in_pytorch, rules=rules, attached=attached)
    return partial(rasterize_with_gsplat, blur=GSPLAT_RULES.blur, attached=attached)


def _view_groups(gaussian_count: int, view_count: int) -> list[slice]:
    """Views that are drawn together."""
    together = max(1, VALUES_AT_ONCE // max(1, gaussian_count))
    return [slice(first, first + together) for first in range(0, view_count, together)]


def values_seen_from(
    means: Tensor, origins: Tensor, color: Tensor | None, features: Tensor | None, config: SplattingConfig
) -> Tensor:
    """Colours and features [V, G, C] of Gaussians [G] as seen from camera centres [V, 3]. Differentiable to all."""
    degrees = [-1 if part is None else math.isqrt(part.shape[-1]) - 1 for part in (color, features)]
    degrees[0] = min(degrees[0], config.color_degree)
    if max(degrees) < 0:
        return means.new_zeros(len(origins), len(means), 0)
    functions = harmonic_functions(normalize(means - origins[:, None], dim=-1), max(degrees))
    values = []
    for part, degree, offset in zip((color, features), degrees, (0.5, config.feature_offset), strict=True):
        if part is not None:
            count = coefficient_count(degree)
            values.append(_weighted_sum(functions[:count], part[..., :count]) + offset)
    if color is not None:
        values[0] = values[0].clamp_min(0)
    return torch.cat(values, -1)


def _weighted_sum(functions: list[Tensor], coefficients: Tensor) -> Tensor:
    """K basis functions [V, G] times coefficients [G, C, K], summed over K: [V, G, C]."""
    if torch.compiler.is_compiling():  # unrolled, so that all of it becomes one kernel that writes nothing in between
        return sum(function[..., None] * coefficients[..., k] for k, function in enumerate(functions))
    basis = torch.stack(functions, -1)
    if basis.is_cuda:  # one tiny matrix product per Gaussian takes five times as long there
        return (basis[..., None, :] * coefficients).sum(-1)
    return torch.einsum("vgk,gck->vgc", basis, coefficients)
