"""What one training step minimises.

Source: latentSplat section 3.4 and spec section 7.4. The trainer sums the losses and runs one backward pass; see
``losses.adversarial`` for why that equals alternating generator and discriminator steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from lsplat_ns.autoencoder.kl_autoencoder import resize_antialiased
from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.losses.adversarial import adversarial_losses
from lsplat_ns.losses.schedule import LossSchedule, StepPlan
from lsplat_ns.losses.terms import (
    LossInputs,
    PerceptualFunction,
    TermValue,
    depth_smoothness,
    evaluate_terms,
    total,
    weighted_by_name,
)
from lsplat_ns.scene import Gaussians, Rendering, SceneBatch


@dataclass(frozen=True)
class StepNoise:
    """Recorded random numbers of one step, in the order in which they are drawn; None draws."""

    depth: Tensor | None = None  # uniform [b, v, rays, surfaces, samples]
    features: Tensor | None = None  # normal [b, G, channels, 9]
    latent: Tensor | None = None  # normal [b, t, channels, h_r, w_r]


@dataclass(frozen=True)
class StepLosses:
    """Losses of one step and what they were computed from."""

    losses: dict[str, Tensor]  # "group/name" -> weighted loss [], to be summed
    metrics: dict[str, Tensor]  # name -> number [], for logs only
    color: Tensor | None  # [b, t, 3, h_r, w_r] splatted colour
    decoded: Tensor | None  # [b, t, 3, height, width]


def step_losses(
    network: LatentSplat,
    batch: SceneBatch,
    schedule: LossSchedule,
    step: int,
    *,
    perceptual: PerceptualFunction | None = None,
    generator: torch.Generator | None = None,
    noise: StepNoise | None = None,
) -> StepLosses:
    """Evaluate every loss that is active at a step.

    Differentiable to encoder, autoencoder and discriminator, each through its own terms only.

    Args:
        network: In training mode.
        batch: Context and target views with bounds.
        schedule: Which losses count when.
        step: Training step, from 0.
        perceptual: Distance behind "lpips" terms.
        generator: Source of all draws, on the batch's device.
        noise: Recorded numbers instead of draws.
    """
    noise = noise or StepNoise()
    plan = schedule.plan(step, network.config.autoencoder.color_in_skip)
    predicted = network.encode(batch.context, step=step, generator=generator, depth_noise=noise.depth)
    groups: dict[str, tuple[TermValue, ...]] = {}
    groups["gaussian"] = evaluate_terms(
        schedule.active("gaussian", step), LossInputs(posterior=predicted.features), perceptual
    )
    groups.update(_autoencoder_groups(network, batch, schedule, step, plan, perceptual, generator))

    gaussians = predicted.sample(generator, noise.features) if plan.render_features else predicted.mode()
    rendering, latent = _render(network, gaussians, batch, plan, generator, noise)
    metrics: dict[str, Tensor] = {"gaussians": torch.tensor(float(predicted.count))}
    if rendering.color is not None:
        truth = resize_antialiased(batch.target.image, network.config.render_scale)
        inputs = LossInputs(rendering.color, truth)
        groups["render_image"] = evaluate_terms(schedule.active("render_image", step), inputs, perceptual)
        metrics["psnr_splat"] = _psnr(rendering.color, truth)
    if schedule.active("render_latent", step):
        truth = network.autoencoder.encode(batch.target.image).sample(generator)
        inputs = LossInputs(resize_antialiased(latent, Fraction(1, network.config.encoder.supersampling)), truth)
        groups["render_latent"] = evaluate_terms(schedule.active("render_latent", step), inputs, perceptual)
    if schedule.depth.is_active(step):
        groups["render_depth"] = (_depth_term(rendering, batch, schedule),)

    decoded = None
    adversarial: tuple[TermValue, ...] = ()
    if plan.decode:
        decoded = network.decode(rendering, latent)
        inputs = LossInputs(decoded, batch.target.image)
        groups["combined"] = evaluate_terms(schedule.active("combined", step), inputs, perceptual)
        metrics["psnr"] = _psnr(decoded, batch.target.image)
    if plan.discriminate:
        last = network.autoencoder.last_layer
        terms = adversarial_losses(
            network.discriminator,
            decoded,
            batch.target.image,
            total(groups["combined"]),
            network.encoder.to_gaussians[1].weight if last is None else last,
            schedule.adversarial,
        )
        adversarial = terms.values
        metrics["adaptive_weight"] = terms.balance
    losses = {}
    for name, values in groups.items():
        losses.update(weighted_by_name(name, values))
    losses.update(weighted_by_name("combined", adversarial))
    return StepLosses(losses, metrics, rendering.color, decoded)


def _render(
    network: LatentSplat,
    gaussians: Gaussians,
    batch: SceneBatch,
    plan: StepPlan,
    generator: torch.Generator | None,
    noise: StepNoise,
) -> tuple[Rendering, Tensor | None]:
    """Rendered maps and the drawn latent map (None where the step needs no latents)."""
    if not plan.render_features:
        gaussians = replace(gaussians, feature_harmonics=None)
    rendering = network.render(
        gaussians, batch.target.cameras, batch.target.size, color=plan.render_color, features=plan.render_features
    )
    if not plan.render_features:
        return rendering, None
    return rendering, network.latent_distribution(rendering).sample(generator, noise.latent)


def _autoencoder_groups(
    network: LatentSplat,
    batch: SceneBatch,
    schedule: LossSchedule,
    step: int,
    plan: StepPlan,
    perceptual: PerceptualFunction | None,
    generator: torch.Generator | None,
) -> dict[str, tuple[TermValue, ...]]:
    """Losses of the image autoencoder on its own, which no published experiment uses."""
    groups = {}
    for name, wanted, images in (
        ("context_autoencoder", plan.encode_context, batch.context.image),
        (
            "target_autoencoder",
            plan.encode_target and bool(schedule.active("target_autoencoder", step)),
            batch.target.image,
        ),
    ):
        if wanted:
            posterior: DiagonalGaussian = network.autoencoder.encode(images)
            decoded = network.autoencoder.decode(posterior.sample(generator))
            groups[name] = evaluate_terms(
                schedule.active(name, step), LossInputs(decoded, images, posterior), perceptual
            )
    return groups


def _depth_term(rendering: Rendering, batch: SceneBatch, schedule: LossSchedule) -> TermValue:
    cameras = batch.target.cameras
    value = depth_smoothness(rendering.depth_z, cameras.near, cameras.far, batch.target.image, schedule.depth)
    return TermValue("depth", value, schedule.depth.weight * value)


def _psnr(prediction: Tensor, target: Tensor) -> Tensor:
    error = (prediction.detach().clamp(0, 1) - target).square().mean((-3, -2, -1))
    return (-10 * error.clamp_min(1e-10).log10()).mean()
