"""A distribution of depth per ray, draws from it, and the opacity that follows from a draw's probability.

Source: latentSplat section 3.2 after pixelSplat section 4.2: the opacity of a Gaussian is the probability of its depth
bucket, so that gradients reach a discrete choice.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsplat_ns.errors import ConfigError, ShapeMismatch
from lsplat_ns.geometry.rays import FLOAT32_EPSILON, depth_from_relative_disparity

TRANSMITTANCE_EPSILON = 1e-10


@dataclass(frozen=True)
class DepthHeadConfig:
    """How depth is discretised and becomes opacity."""

    num_depth_buckets: int = 32
    """Buckets of relative disparity between near and far."""
    num_surfaces: int = 1
    """Independent depth distributions per ray."""
    use_transmittance: bool = False
    """Take a bucket's probability given that no nearer bucket was hit."""
    opacity_exponent_initial: float = 0.0
    """Base-2 logarithm of the opacity mapping's exponent at step 0. 0 makes opacity equal to probability."""
    opacity_exponent_final: float = 0.0
    """The same after the warm-up."""
    opacity_warm_up_steps: int = 1
    """Steps over which the exponent changes linearly."""

    def __post_init__(self) -> None:
        if min(self.num_depth_buckets, self.num_surfaces, self.opacity_warm_up_steps) < 1:
            raise ConfigError("num_depth_buckets, num_surfaces and opacity_warm_up_steps must be at least 1")

    def settled_step(self, step: int) -> int | None:
        """A step that stands for this one and all later ones; None while the opacity mapping still changes."""
        if self.opacity_exponent_initial == self.opacity_exponent_final:
            return 0
        return self.opacity_warm_up_steps if step >= self.opacity_warm_up_steps else None

    def opacity_exponent(self, step: int) -> float:
        """Exponent of :func:`opacity_from_probability` at a training step."""
        progress = min(step / self.opacity_warm_up_steps, 1.0)
        return 2.0 ** (
            self.opacity_exponent_initial + progress * (self.opacity_exponent_final - self.opacity_exponent_initial)
        )


@dataclass(frozen=True)
class DepthDraw:
    """Depths chosen along rays. Axes: batch, view, ray, surface, sample."""

    bucket: Tensor  # [b, v, r, surface, sample], int64
    relative_disparity: Tensor  # [b, v, r, surface, sample], 0 near, 1 far, differentiable to the offsets
    probability: Tensor  # [b, v, r, surface, sample], differentiable to the distribution

    def depth(self, near: Tensor, far: Tensor) -> Tensor:
        """Distances along the rays [b, v, r, surface, sample] for near and far [b, v]."""
        near, far = (bound[:, :, None, None, None] for bound in (near, far))
        return depth_from_relative_disparity(self.relative_disparity, near, far)


@dataclass(frozen=True)
class DepthDistribution:
    """Probabilities of depth buckets, and where in each bucket the surface lies."""

    pdf: Tensor  # [..., buckets], sums to 1
    offset: Tensor  # [..., buckets], in [0, 1]
    use_transmittance: bool = False

    @property
    def _normalised(self) -> Tensor:
        return self.pdf / (self.pdf.sum(-1, keepdim=True) + FLOAT32_EPSILON)

    def mode(self) -> DepthDraw:
        """The most likely bucket, as one sample."""
        return self._gather(self._normalised.argmax(-1, keepdim=True))

    def sample(self, count: int, generator: torch.Generator | None = None, noise: Tensor | None = None) -> DepthDraw:
        """Draw ``count`` buckets independently; equal ones may come up.

        Args:
            count: Number of draws per ray and surface.
            generator: Source of the uniform numbers, on the device of ``pdf``; the global one when None.
            noise: Use these uniform numbers [..., count] instead.
        """
        shape = (*self.pdf.shape[:-1], count)
        if noise is None:
            noise = torch.rand(shape, generator=generator, device=self.pdf.device, dtype=self.pdf.dtype)
        elif noise.shape != shape:
            raise ShapeMismatch("depth_noise", str(list(shape)), noise.shape)
        cumulative = self._normalised.detach().cumsum(-1)
        bucket = torch.searchsorted(cumulative, noise.contiguous(), right=True)
        return self._gather(bucket.clamp_max(self.pdf.shape[-1] - 1))

    def _gather(self, bucket: Tensor) -> DepthDraw:
        density = self._normalised
        if self.use_transmittance:
            before = self.pdf.cumsum(-1) - self.pdf
            # Differs from upstream: rounding can push the quotient above 1, where fractional powers of 1 - p are NaN.
            density = (self.pdf / (1 - before + TRANSMITTANCE_EPSILON)).clamp(0, 1)
        relative_disparity = (bucket + self.offset.gather(-1, bucket)) / self.pdf.shape[-1]
        return DepthDraw(bucket, relative_disparity, density.gather(-1, bucket))


class DepthHead(nn.Module):
    """Predicts a depth distribution per ray and surface."""

    def __init__(self, config: DepthHeadConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Sequential(
            nn.ReLU(), nn.Linear(channels, 2 * config.num_depth_buckets * config.num_surfaces)
        )

    def forward(self, features: Tensor) -> DepthDistribution:
        """Features [..., rays, channels] to a distribution [..., rays, surfaces, buckets]."""
        logits = self.projection(features).unflatten(-1, (self.config.num_depth_buckets, self.config.num_surfaces, 2))
        logits, offset = logits.transpose(-3, -2).unbind(-1)
        return DepthDistribution(F.softmax(logits, dim=-1), offset.sigmoid(), self.config.use_transmittance)


def opacity_from_probability(probability: Tensor, exponent: float) -> Tensor:
    """Opacity in [0, 1] of a bucket's probability, increasing; the identity for exponent 1."""
    if exponent == 1.0:
        return probability
    return 0.5 * (1 - _power(1 - probability, exponent) + _power(probability, 1 / exponent))


def _power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent, and 0 with a gradient of 0 instead of an infinite one where the base is not positive."""
    positive = base > 0
    return torch.where(positive, torch.where(positive, base, 1.0) ** exponent, 0.0)
