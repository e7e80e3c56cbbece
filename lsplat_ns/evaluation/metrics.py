"""Image metrics as latentSplat's evaluation computes them.

Source: spec section 8.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

SSIM_WINDOW = 11
"""Side of the Gaussian window in pixels; images must be at least as large."""


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB [...] of images [..., 3, height, width], both clipped to [0, 1]."""
    error = (prediction.clamp(0, 1) - target.clamp(0, 1)).square().mean((-3, -2, -1))
    return -10 * error.log10()


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity [n] of images [n, 3, height, width].

    scikit-image's definition with an 11x11 Gaussian window (sigma 1.5) and sample covariance, as in the original. NaN
    for images smaller than the window.
    """
    from skimage.metrics import structural_similarity

    if min(prediction.shape[-2:]) < SSIM_WINDOW:
        return torch.full((len(prediction),), float("nan"))
    values = [
        structural_similarity(
            ours.detach().cpu().clamp(0, 1).numpy(),
            theirs.detach().cpu().clamp(0, 1).numpy(),
            win_size=SSIM_WINDOW,
            gaussian_weights=True,
            channel_axis=0,
            data_range=1.0,
        )
        for ours, theirs in zip(prediction, target, strict=True)
    ]
    return torch.tensor(values)
