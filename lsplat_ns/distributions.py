"""Diagonal Gaussian distributions, as predicted per 3D Gaussian and per rendered pixel.

Source: latentSplat section 3.2 (variational Gaussians) and the latent distribution of latent diffusion's autoencoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0
"""Bounds of a log-variance: log(0) of a fully covered pixel becomes a standard deviation of e^-15, never NaN."""


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normal distributions, one per element.

    ``logvar`` is None for a distribution of zero variance: sampling it returns the mean and draws no random number.
    """

    mean: Tensor  # [...]
    logvar: Tensor | None = None  # [...], natural logarithm of the variance, clamped on use

    @property
    def clamped_logvar(self) -> Tensor | None:
        """``logvar`` within its bounds."""
        return None if self.logvar is None else self.logvar.clamp(LOGVAR_MIN, LOGVAR_MAX)

    @property
    def std(self) -> Tensor:
        """Standard deviation [...], zeros where the distribution has no variance."""
        return torch.zeros_like(self.mean) if self.logvar is None else (0.5 * self.clamped_logvar).exp()

    def mode(self) -> Tensor:
        """The most likely value: the mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Draw mean + std * n with n ~ N(0, 1), differentiable to mean and logvar.

        Args:
            generator: Source of n, on the device of ``mean``; the global generator when None.
            noise: Use this n [...] instead of drawing one (recorded noise, tests).
        """
        if self.logvar is None:
            return self.mean
        if noise is None:
            noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * noise

    def kl_to_standard_normal(self) -> Tensor:
        """KL divergence to N(0, 1), elementwise [...]. Needs a variance."""
        logvar = self.clamped_logvar
        if logvar is None:
            raise ValueError("the KL divergence of a distribution without variance is infinite")
        return 0.5 * (self.mean**2 + logvar.exp() - 1.0 - logvar)
