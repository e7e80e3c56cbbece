"""One training step of the denoiser: which views it is told, at which noise level, and how far its prediction is off.

Random choices are values (:class:`TrainingDraw`), so a step is a pure function of them. Source: MV-LDM's
``training_step``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lsplat_ns.diffusion.guidance import Conditioning, predict_noise
from lsplat_ns.diffusion.multiview_unet import MultiViewUNet
from lsplat_ns.diffusion.ray_maps import RayMapConfig, ray_maps, relative_to
from lsplat_ns.diffusion.schedule import TIMESTEPS, Prediction, add_noise, prediction_target
from lsplat_ns.errors import ConfigError
from lsplat_ns.scene import Cameras


@dataclass(frozen=True)
class TrainingConfig:
    """Probabilities of the choices of a step. The defaults are the published ones."""

    relative_poses: float = 0.5
    """How often cameras are given relative to a context view, instead of in the frame of the data."""
    drop_context: float = 0.1
    """How often the context views are withheld, for guidance. Guidance needs it; 0 trains without."""

    def __post_init__(self) -> None:
        for name in ("relative_poses", "drop_context"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a probability, from 0 to 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class TrainingDraw:
    """The random choices of a step. One choice of views holds for the whole batch, as in the original."""

    views: tuple[int, ...]  # order of the batch's views (context, then targets) in this step
    context_count: int  # how many of them, from the front, are context in this step
    reference: int | None  # position, in this order, of the view that poses are relative to; None: as they are
    drop_context: bool
    timesteps: Tensor  # [b] int64, one per sample, for all its targets
    encoding_noise: Tensor  # [b, views, c, h, w], of the latents of all views
    target_noise: Tensor  # [b, targets, c, h, w]


def draw_training_step(
    samples: int,
    context_count: int,
    target_count: int,
    latent_shape: tuple[int, int, int],
    config: TrainingConfig,
    generator: torch.Generator,
) -> TrainingDraw:
    """Choose a number of context views, from 1 to all, equally often; the others become targets. And so on.

    Args:
        samples: Batch size.
        context_count: Context views of the batch.
        target_count: Target views of the batch.
        latent_shape: (channels, height, width) of a view's latents.
        config: Probabilities.
        generator: Source of all random numbers, on the CPU: a run on any device draws the same.
    """

    def chance(probability: float) -> bool:
        return torch.rand((), generator=generator).item() < probability

    def whole(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    kept = 1 + whole(context_count)
    order = torch.randperm(context_count, generator=generator).tolist()
    chosen, others = sorted(order[:kept]), sorted(order[kept:])
    targets = [*range(context_count, context_count + target_count), *others]
    # Differs from upstream: with the second view as the only context, it takes the first target as the reference.
    reference = whole(kept)
    return TrainingDraw(
        views=(*chosen, *targets),
        context_count=kept,
        reference=reference if chance(config.relative_poses) else None,
        # Differs from upstream: where dropping is switched off, it drops the context always.
        drop_context=chance(config.drop_context),
        timesteps=torch.randint(TIMESTEPS, (samples,), generator=generator),
        encoding_noise=torch.randn(samples, kept + len(targets), *latent_shape, generator=generator),
        target_noise=torch.randn(samples, len(targets), *latent_shape, generator=generator),
    )


def denoising_loss(
    denoiser: MultiViewUNet,
    latents: Tensor,
    cameras: Cameras,
    draw: TrainingDraw,
    rays: RayMapConfig,
    prediction: Prediction = "noise",
) -> Tensor:
    """Mean squared error of what is predicted over all target latents, a float32 scalar. Differentiable.

    Args:
        denoiser: The network.
        latents: Clean latents [b, views, c, h, w], in the order of the draw.
        cameras: [b, views], in the same order.
        draw: The random choices, on the device of the latents.
        rays: What the network sees of the cameras.
        prediction: What it predicts.
    """
    if draw.reference is not None:
        cameras = relative_to(cameras, draw.reference)
    context, clean = latents[:, : draw.context_count], latents[:, draw.context_count :]
    conditioning = Conditioning(context, ray_maps(cameras, latents.shape[-2:], rays))
    if draw.drop_context:
        conditioning = conditioning.without_context()
    noisy = add_noise(clean, draw.target_noise, draw.timesteps)
    predicted = predict_noise(denoiser, noisy, draw.timesteps, conditioning)
    target = prediction_target(clean, draw.target_noise, draw.timesteps, prediction)
    return functional.mse_loss(predicted.float(), target.float())
