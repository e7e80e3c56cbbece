"""What one training step minimises.

Source: latentSplat section 3.4 and spec section 7.4. The trainer sums the losses and runs one backward pass; see
``losses.adversarial`` for why that equals alternating generator and discriminator steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from lsplat_ns.autoencoder.kl_autoencoder import resize_antialiased
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.losses.adversarial import AdversarialLosses, adversarial_losses
from lsplat_ns.losses.schedule import GroupName, LossSchedule, StepPlan
from lsplat_ns.losses.terms import (
    LossInputs,
    PerceptualFunction,
    TermValue,
    depth_smoothness,
    evaluate_terms,
    total,
    weighted_by_name,
    with_gradient_taken,
)
from lsplat_ns.scene import Rendering, SceneBatch, VariationalGaussians


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

    Raises:
        ConfigError: An lpips term is active and ``perceptual`` is None.
    """
    plan = schedule.plan(step, network.config.autoencoder.color_in_skip)
    current = _Step(network, batch, schedule, step, plan, perceptual, generator, noise or StepNoise())
    predicted = network.encode(batch.context, step=step, generator=generator, depth_noise=current.noise.depth)
    groups = {"gaussian": current.evaluate("gaussian", LossInputs(posterior=predicted.features))}
    groups.update(current.autoencoder_groups())

    rendering, latent = current.render(predicted)
    groups.update(current.rendering_groups(rendering, latent))
    metrics = {"gaussians": torch.tensor(float(predicted.count))}
    if rendering.color is not None:
        metrics["psnr_splat"] = _psnr(rendering.color, current.low_resolution_truth)

    decoded, adversarial = None, ()
    if plan.decode:
        decoded = network.decode(rendering, latent)
        groups["combined"] = current.evaluate("combined", LossInputs(decoded, batch.target.image))
        metrics["psnr"] = _psnr(decoded, batch.target.image)
    if plan.discriminate:
        judged = current.adversarial_losses(decoded, groups["combined"])
        adversarial, metrics["adaptive_weight"] = judged.values, judged.balance

    losses = {}
    for name, values in groups.items():
        losses.update(weighted_by_name(name, values))
    losses.update(weighted_by_name("combined", adversarial))
    return StepLosses(losses, metrics, rendering.color, decoded)


@dataclass(frozen=True)
class _Step:
    """What all parts of one step share."""

    network: LatentSplat
    batch: SceneBatch
    schedule: LossSchedule
    step: int
    plan: StepPlan
    perceptual: PerceptualFunction | None
    generator: torch.Generator | None
    noise: StepNoise

    def evaluate(self, group: GroupName, inputs: LossInputs) -> tuple[TermValue, ...]:
        """The active terms of a group."""
        terms = self.schedule.active(group, self.step)
        if group not in ("render_image", "combined"):
            return evaluate_terms(terms, inputs, self.perceptual)
        return with_gradient_taken(
            inputs.prediction,
            lambda images: evaluate_terms(terms, replace(inputs, prediction=images), self.perceptual),
        )

    @property
    def low_resolution_truth(self) -> Tensor:
        """Target images at render size [b, t, 3, h_r, w_r]."""
        return resize_antialiased(self.batch.target.image, self.network.config.render_scale)

    def autoencoder_groups(self) -> Iterator[tuple[GroupName, tuple[TermValue, ...]]]:
        """Losses of the image autoencoder on its own, which no published experiment uses."""
        for group, images in (
            ("context_autoencoder", self.batch.context.image),
            ("target_autoencoder", self.batch.target.image),
        ):
            if self.schedule.active(group, self.step):
                posterior = self.network.autoencoder.encode(images)
                decoded = self.network.autoencoder.decode(posterior.sample(self.generator))
                yield group, self.evaluate(group, LossInputs(decoded, images, posterior))

    def render(self, predicted: VariationalGaussians) -> tuple[Rendering, Tensor | None]:
        """Rendered maps of the targets and the drawn latent map (None where the step needs no latents)."""
        plan, target = self.plan, self.batch.target
        gaussians = predicted.mode()
        if plan.render_features:
            gaussians = predicted.sample(self.generator, self.noise.features)
        rendering = self.network.render(
            gaussians, target.cameras, target.size, color=plan.render_color, features=plan.render_features
        )
        if not plan.render_features:
            return rendering, None
        return rendering, self.network.latent_distribution(rendering).sample(self.generator, self.noise.latent)

    def rendering_groups(
        self, rendering: Rendering, latent: Tensor | None
    ) -> Iterator[tuple[str, tuple[TermValue, ...]]]:
        """Losses on splatted colour, latents and depth."""
        target = self.batch.target
        if rendering.color is not None:
            yield "render_image", self.evaluate("render_image", LossInputs(rendering.color, self.low_resolution_truth))
        if self.schedule.active("render_latent", self.step):
            z = resize_antialiased(latent, Fraction(1, self.network.config.encoder.supersampling))
            truth = self.network.autoencoder.encode(target.image).sample(self.generator)
            yield "render_latent", self.evaluate("render_latent", LossInputs(z, truth))
        if self.plan.render_depth:
            term, cameras = self.schedule.depth, target.cameras
            value = depth_smoothness(rendering.depth_z, cameras.near, cameras.far, target.image, term)
            yield "render_depth", (TermValue("depth", value, term.weight * value),)

    def adversarial_losses(self, decoded: Tensor, combined: tuple[TermValue, ...]) -> AdversarialLosses:
        """Generator and discriminator losses on the decoded images, balanced against the combined losses."""
        last = self.network.autoencoder.last_layer
        if last is None or not last.requires_grad:  # no autoencoder, or a frozen one
            last = self.network.encoder.to_gaussians[1].weight
        return adversarial_losses(
            self.network.discriminator,
            decoded,
            self.batch.target.image,
            total(combined),
            last,
            self.schedule.adversarial,
        )


def _psnr(prediction: Tensor, target: Tensor) -> Tensor:
    error = (prediction.detach().clamp(0, 1) - target).square().mean((-3, -2, -1))
    return (-10 * error.clamp_min(1e-10).log10()).mean()
