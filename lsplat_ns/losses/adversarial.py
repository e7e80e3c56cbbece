"""The adversarial loss: generator and discriminator trained by one backward pass.

Source: latent diffusion's autoencoder loss as latentSplat uses it (section 3.4; Esser et al. 2021, equation 7).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from lsplat_ns.errors import ConfigError
from lsplat_ns.losses.terms import TermValue

BALANCE_EPSILON = 1e-4


@dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial part of the loss on decoded images."""

    loss: Literal["hinge", "vanilla", "none"] = "hinge"
    """How the discriminator is trained; "none" trains without one."""
    generator_weight: float = 0.5
    """Factor of the generator's loss, on top of its adaptive weight."""
    discriminator_weight: float = 1.0
    """Factor of the discriminator's loss."""
    starts_at_step: int = 125_000
    """First step with adversarial losses."""

    def __post_init__(self) -> None:
        if min(self.generator_weight, self.discriminator_weight, self.starts_at_step) < 0:
            raise ConfigError(f"adversarial weights and starts_at_step must not be negative: {self}")

    def is_active(self, step: int) -> bool:
        """Whether generator and discriminator losses count at a step."""
        return self.loss != "none" and step >= self.starts_at_step


@dataclass(frozen=True)
class AdversarialLosses:
    """The three adversarial terms of one step. Sum ``weighted`` into the loss of that step."""

    generator: TermValue  # reaches the images only
    fake: TermValue  # reaches the discriminator only
    real: TermValue  # reaches the discriminator only
    balance: Tensor  # [], the adaptive weight inside generator.weighted; in [0, 1], detached

    @property
    def values(self) -> tuple[TermValue, TermValue, TermValue]:
        """All three terms."""
        return self.generator, self.fake, self.real


def generator_loss(logits_fake: Tensor) -> Tensor:
    """Mean of the negated logits []."""
    return -logits_fake.mean()


def discriminator_losses(
    logits_fake: Tensor, logits_real: Tensor, loss: Literal["hinge", "vanilla"]
) -> tuple[Tensor, Tensor]:
    """The discriminator's unweighted losses ([], []) on fake and on real images."""
    if loss == "hinge":
        return functional.relu(1 + logits_fake).mean(), functional.relu(1 - logits_real).mean()
    return functional.softplus(logits_fake).mean(), functional.softplus(-logits_real).mean()


def adaptive_weight(reconstruction: Tensor, generator: Tensor, last_layer: Tensor) -> Tensor:
    """Factor [] that keeps the generator's gradient no larger than that of the reconstruction loss.

    The ratio of both gradients' norms at ``last_layer``, clamped to [0, 1] and detached. Keeps the graph.

    Args:
        reconstruction: Weighted sum [] of the other losses on the same images.
        generator: Unweighted generator loss [].
        last_layer: A weight that both depend on, ``autoencoder.last_layer``.
    """
    (along_reconstruction,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (along_generator,) = torch.autograd.grad(generator, last_layer, retain_graph=True)
    ratio = along_reconstruction.norm() / (along_generator.norm() + BALANCE_EPSILON)
    return ratio.clamp(0, 1).detach()


def logits_with_frozen_weights(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Logits that are differentiable to the images but not to the discriminator.

    Running statistics of batch normalisation are updated as by an ordinary call.
    """
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return functional_call(discriminator, frozen, (images,))


def adversarial_losses(
    discriminator: nn.Module,
    decoded: Tensor,
    real: Tensor,
    reconstruction: Tensor,
    last_layer: Tensor,
    config: AdversarialConfig,
) -> AdversarialLosses:
    """All adversarial terms of one step, for one summed backward pass and one step of each optimiser.

    Gives exactly the updates of alternating generator and discriminator steps: the generator's term sees detached
    discriminator weights, and the discriminator's terms see detached images of the same, not yet updated generator.
    The discriminator runs three times (decoded, decoded, real). In training mode each run normalises with its own
    batch and updates the running statistics, as in the original.

    Args:
        discriminator: Maps images to logits; left in the mode it is in.
        decoded: Predicted images [..., 3, height, width], attached to the generator.
        real: True images [..., 3, height, width].
        reconstruction: Weighted sum [] of the group's other losses on ``decoded``.
        last_layer: A generator weight that ``decoded`` depends on.
        config: Weights and kind; must not be "none".

    Raises:
        ConfigError: ``config.loss`` is "none".
    """
    if config.loss == "none":
        raise ConfigError('adversarial losses were asked for with loss "none": use "hinge" or "vanilla"')
    generator = generator_loss(logits_with_frozen_weights(discriminator, decoded))
    balance = adaptive_weight(reconstruction, generator, last_layer)
    fake, true = discriminator_losses(discriminator(decoded.detach()), discriminator(real), config.loss)
    half = config.discriminator_weight / 2
    return AdversarialLosses(
        generator=TermValue("generator", generator, balance * config.generator_weight * generator),
        fake=TermValue("discriminator_fake", fake, half * fake),
        real=TermValue("discriminator_real", true, half * true),
        balance=balance,
    )
