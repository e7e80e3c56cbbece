"""What the denoiser is told about the views, and classifier-free guidance: away from what it would do untold.

Source: MV-LDM; classifier-free guidance (arXiv 2207.12598).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lsplat_ns.diffusion.multiview_unet import MultiViewUNet
from lsplat_ns.errors import ShapeMismatch


@dataclass(frozen=True)
class Conditioning:
    """The known views of some samples, and the cameras of all: what stays the same in every step."""

    context_latents: Tensor  # [b, v, c, h, w], clean; v may be 0
    ray_maps: Tensor  # [b, v + t, r, h, w], context first

    def __post_init__(self) -> None:
        samples, context, _, height, width = self.context_latents.shape
        shape = self.ray_maps.shape
        if len(shape) != 5 or shape[0] != samples or shape[1] <= context or shape[3:] != (height, width):
            raise ShapeMismatch("ray maps", f"[{samples}, {context} + targets, channels, {height}, {width}]", shape)

    @property
    def context_count(self) -> int:
        """Number of context views, v."""
        return self.context_latents.shape[1]

    def without_context(self) -> Conditioning:
        """Only the target views, with the same rays: what the unconditional pass sees."""
        return Conditioning(self.context_latents[:, :0], self.ray_maps[:, self.context_count :])


def denoiser_input(noisy: Tensor, conditioning: Conditioning) -> Tensor:
    """Input channels of all views [b, v + t, c + 1 + r, h, w]: latents, mask (0 context, 1 target), rays.

    Args:
        noisy: Latents of the target views [b, t, c, h, w].
        conditioning: The rest.
    """
    latents = torch.cat([conditioning.context_latents, noisy], dim=1)
    mask = torch.zeros_like(latents[:, :, :1])
    mask[:, conditioning.context_count :] = 1
    return torch.cat([latents, mask, conditioning.ray_maps], dim=2)


def view_timesteps(timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Noise level of every view [b, v + t]: that of its sample [b] for target views, 0 for context views."""
    levels = timesteps[:, None].repeat(1, conditioning.ray_maps.shape[1])
    levels[:, : conditioning.context_count] = 0
    return levels


def predict_noise(denoiser: MultiViewUNet, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Noise in the target views [b, t, c, h, w], given the context. Differentiable to the noisy latents.

    Of a network that was trained to predict velocity, that.

    Args:
        denoiser: The network.
        noisy: Latents of the target views [b, t, c, h, w].
        timesteps: Noise level of each sample, int64 [b].
        conditioning: Context and rays.
    """
    inputs, levels = denoiser_input(noisy, conditioning), view_timesteps(timesteps, conditioning)
    predicted = denoiser(inputs.flatten(0, 1), levels.flatten(), (inputs.shape[:2],))
    return predicted.unflatten(0, inputs.shape[:2])[:, conditioning.context_count :]


def predict_guided_noise(
    denoiser: MultiViewUNet, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, scale: float
) -> Tensor:
    """:func:`predict_noise`, moved away from what the network predicts without context views.

    Both predictions are one batch: only attention over views keeps them apart. Before it, both see the same noisy
    latents, rays and noise levels of the target views, which are computed once.

    Args:
        denoiser: The network.
        noisy: Latents of the target views [b, t, c, h, w].
        timesteps: Noise level of each sample, int64 [b].
        conditioning: Context and rays.
        scale: 1 is no guidance (and half the work), 3 the published strength.
    """
    if scale == 1:
        return predict_noise(denoiser, noisy, timesteps, conditioning)
    inputs, levels = denoiser_input(noisy, conditioning), view_timesteps(timesteps, conditioning)
    samples, views = inputs.shape[:2]
    context = conditioning.context_count
    sequences = ((samples, views), (samples, views - context))

    def with_targets_again(images: Tensor) -> Tensor:
        targets = images.unflatten(0, (samples, views))[:, context:]
        return torch.cat([images, targets.flatten(0, 1)])

    predicted = denoiser(inputs.flatten(0, 1), levels.flatten(), sequences, with_targets_again).float()
    with_context, without = predicted.split([samples * views, samples * (views - context)])
    with_context = with_context.unflatten(0, sequences[0])[:, context:]
    without = without.unflatten(0, sequences[1])
    return without + scale * (with_context - without)
