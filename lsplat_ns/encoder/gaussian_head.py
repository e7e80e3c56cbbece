"""From raw numbers per ray to Gaussians in world space. Source: latentSplat section 3.2, after pixelSplat."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.errors import ConfigError
from lsplat_ns.geometry.covariance import covariances_from_scales, unit_quaternions
from lsplat_ns.geometry.harmonics import MAX_DEGREE, band_mask, coefficient_count, rotate_harmonics
from lsplat_ns.geometry.rays import pixel_centers, pixel_size_at_unit_depth, world_rays
from lsplat_ns.scene import Cameras, VariationalGaussians

COLOR_CHANNELS = 3
PIXEL_SCALE = 0.1
"""Scales are predicted in tenths of the summed pixel sides at the Gaussian's depth."""


@dataclass(frozen=True)
class GaussianHeadConfig:
    """What is predicted per Gaussian."""

    gaussians_per_pixel: int = 3
    """Depths drawn per ray and surface. Opacities are divided by it even when a single, most likely depth is used."""
    scale_min: float = 0.5
    """Smallest scale, in tenths of the pixel size at the Gaussian's depth."""
    scale_max: float = 15.0
    """Largest scale, in the same unit."""
    color_degree: int = 4
    """Degree of the colour harmonics; the renderer uses up to 3."""
    feature_degree: int = 2
    """Degree of the feature harmonics."""
    feature_channels: int = 4
    """Channels of the latent space of the autoencoder."""
    variational: Literal["gaussians", "none", "latents"] = "gaussians"
    """gaussians: features are distributions. none: plain features. latents: means and log-variances are splatted."""
    predict_opacity: bool = False
    """Multiply opacities by one predicted number per ray."""
    consistent_rotation: bool = False
    """Rotate harmonics exactly. The released checkpoints need the original's inconsistent rotation (False)."""

    def __post_init__(self) -> None:
        if not 0 < self.scale_min <= self.scale_max:
            raise ConfigError(f"scales must satisfy 0 < {self.scale_min} (min) <= {self.scale_max} (max)")
        if not (0 <= self.color_degree <= MAX_DEGREE and 0 <= self.feature_degree <= MAX_DEGREE):
            raise ConfigError(f"color_degree and feature_degree must lie between 0 and {MAX_DEGREE}")
        if min(self.gaussians_per_pixel, self.feature_channels) < 1:
            raise ConfigError("gaussians_per_pixel and feature_channels must be at least 1")

    @property
    def predicted_feature_channels(self) -> int:
        """Feature channels including log-variances."""
        return self.feature_channels * (1 if self.variational == "none" else 2)

    @property
    def split_sizes(self) -> list[int]:
        """Numbers per Gaussian in order: 2 offsets, 3 scales, 4 of a quaternion, colour and feature harmonics."""
        color = COLOR_CHANNELS * coefficient_count(self.color_degree)
        return [2, 3, 4, color, self.predicted_feature_channels * coefficient_count(self.feature_degree)]


@dataclass(frozen=True)
class RawGaussians:
    """Unconstrained network outputs per ray and surface, split by meaning. Leading axes [b, v, rays, surfaces]."""

    offset_xy: Tensor  # [..., 2]
    scales: Tensor  # [..., 3]
    quaternions: Tensor  # [..., 4], (x, y, z, w)
    color_harmonics: Tensor  # [..., 3, K]
    feature_harmonics: Tensor  # [..., predicted feature channels, K']

    @classmethod
    def split(cls, raw: Tensor, config: GaussianHeadConfig) -> "RawGaussians":
        """Name the parts of raw outputs [..., numbers per Gaussian]."""
        offset, scales, quaternions, color, features = raw.split(config.split_sizes, dim=-1)
        color = color.unflatten(-1, (COLOR_CHANNELS, -1))
        return cls(offset, scales, quaternions, color, features.unflatten(-1, (config.predicted_feature_channels, -1)))


def place_gaussians(
    raw: RawGaussians,
    depth: Tensor,
    opacities: Tensor,
    cameras: Cameras,
    grid: tuple[int, int],
    config: GaussianHeadConfig,
    trace: dict[str, Tensor] | None = None,
) -> VariationalGaussians:
    """Turn network outputs into Gaussians in world space.

    Args:
        raw: Outputs per ray and surface.
        depth: Distances along the rays [b, v, rays, surfaces, samples]; samples of a ray share all else.
        opacities: [b, v, rays, surfaces, samples].
        cameras: [b, v].
        grid: (height, width) of the ray grid.
        config: Ranges and degrees.
        trace: Collects intermediate results.

    Returns:
        Gaussians ordered by view, ray, surface, sample. Scales grow with depth and pixel size; orientations are
        relative to the camera. Differentiable to raw outputs, depth and opacities.
    """
    pose, intrinsics = (part[:, :, None, None] for part in (cameras.world_from_camera, cameras.intrinsics_norm))
    height, width = grid
    pixel = depth.new_tensor([1 / width, 1 / height])
    points_xy = pixel_centers(height, width, depth)[:, None] + (raw.offset_xy.sigmoid() - 0.5) * pixel
    origins, directions = world_rays(points_xy, pose, intrinsics)
    means = origins[..., None, :] + depth[..., None] * directions[..., None, :]

    scales = config.scale_min + (config.scale_max - config.scale_min) * raw.scales.sigmoid()
    unit = PIXEL_SCALE * pixel_size_at_unit_depth(intrinsics, grid).sum(-1)
    scales = scales[..., None, :] * (depth * unit[..., None])[..., None]
    quaternions = unit_quaternions(raw.quaternions)[..., None, :]
    covariances = covariances_from_scales(scales, quaternions, pose[:, :, :, :, None, :3, :3])

    color, features = (
        _harmonics_in_world(part, cameras, config) for part in (raw.color_harmonics, raw.feature_harmonics)
    )
    if trace is not None:
        trace.update(xy_ray=points_xy[..., None, :], scales=scales, rotations=quaternions.expand(*scales.shape[:-1], 4))
    samples = depth.shape[-1]
    return VariationalGaussians(
        means=means.flatten(1, 4),
        covariances=covariances.flatten(1, 4),
        opacities=opacities.flatten(1, 4),
        color_harmonics=_per_sample(color, samples),
        features=_feature_distribution(features, samples, config),
    )


def _harmonics_in_world(coefficients: Tensor, cameras: Cameras, config: GaussianHeadConfig) -> Tensor:
    """Mask the bands of coefficients [b, v, rays, surfaces, channels, K] and turn them from camera to world axes."""
    degree = round(coefficients.shape[-1] ** 0.5) - 1
    rotation = cameras.world_from_camera[:, :, None, None, None, :3, :3]
    mask = band_mask(degree, coefficients.device)
    return rotate_harmonics(coefficients * mask, rotation, consistent=config.consistent_rotation)


def _per_sample(coefficients: Tensor, samples: int) -> Tensor:
    """Repeat [b, v, rays, surfaces, channels, K] for each sample: [b, G, channels, K]."""
    return coefficients[:, :, :, :, None].expand(-1, -1, -1, -1, samples, -1, -1).flatten(1, 4)


def _feature_distribution(features: Tensor, samples: int, config: GaussianHeadConfig) -> DiagonalGaussian:
    """Split channels into means and log-variances. Band mask and rotation act on both: published weights need it."""
    if config.variational != "gaussians":
        return DiagonalGaussian(_per_sample(features, samples))
    mean, logvar = features.chunk(2, dim=-2)
    return DiagonalGaussian(_per_sample(mean, samples), _per_sample(logvar, samples))
