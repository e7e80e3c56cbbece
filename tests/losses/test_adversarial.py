"""Claims about the adversarial losses: recorded values, and one summed backward equals alternating steps."""

import copy

import pytest
import torch
from parity import load_exactly, recording
from torch import Tensor, nn
from torch.nn import functional

from lsplat_ns.autoencoder import DiscriminatorConfig, PatchDiscriminator
from lsplat_ns.errors import ConfigError
from lsplat_ns.losses import AdversarialConfig, LossInputs, LossTerm, adversarial_losses, evaluate_terms, total
from lsplat_ns.losses.adversarial import adaptive_weight, discriminator_losses, generator_loss

RECONSTRUCTION = (LossTerm("l1"), LossTerm("mse", 2.0))


class Scaled(nn.Module):
    """A discriminator whose logits are multiplied, as the recording of the adaptive weight does."""

    def __init__(self, discriminator: nn.Module, factor: float) -> None:
        super().__init__()
        self.discriminator, self.factor = discriminator, factor

    def forward(self, image: Tensor) -> Tensor:
        return self.factor * self.discriminator(image)


def test_generator_loss_equals_the_recorded_original() -> None:
    case = recording("ls_losses")
    case.assert_close("generator/unweighted", generator_loss(case.input("logits_fake")), 1e-6)


@pytest.mark.parametrize("loss", ["hinge", "vanilla"])
def test_discriminator_losses_equal_the_recorded_original(loss: str) -> None:
    case = recording("ls_losses")
    fake, real = discriminator_losses(case.input("logits_fake"), case.input("logits_real"), loss)
    case.assert_close(f"discriminator/{loss}/fake/unweighted", fake, 1e-6)
    case.assert_close(f"discriminator/{loss}/real/unweighted", real, 1e-6)
    weight = 0.7  # of the recorded case
    case.assert_close(f"discriminator/{loss}/group_total", weight / 2 * (fake + real), 1e-6)


@pytest.mark.parametrize("name", ["a", "b"])
def test_adaptive_weight_equals_the_recorded_original(name: str) -> None:
    case = recording("ls_losses")
    state = recording("ls_discriminator").state("discriminator", "discriminator.")
    factor = case.meta["adaptive_gscale"][name]
    discriminator = Scaled(load_exactly(PatchDiscriminator(), state), factor).eval()
    last_layer = case.input("adaptive/W").requires_grad_()
    target = case.input("adaptive/target")
    image = functional.conv2d(case.input("adaptive/feat"), last_layer, padding=1).view(target.shape)
    values = evaluate_terms(RECONSTRUCTION, LossInputs(image, target))
    losses = adversarial_losses(discriminator, image, target, total(values), last_layer, AdversarialConfig())

    prefix = f"adaptive/{name}"
    case.assert_close(f"{prefix}/nll_total", total(values), 1e-5)
    case.assert_close(f"{prefix}/weight", losses.balance, 1e-4)
    case.assert_close(f"{prefix}/target/combined/generator/unweighted", losses.generator.unweighted, 1e-4)
    case.assert_close(f"{prefix}/target/combined/generator/weighted", losses.generator.weighted, 1e-4)
    case.assert_close(f"{prefix}/total", total((*values, losses.generator)), 1e-4)


def test_adaptive_weight_is_the_ratio_of_gradient_norms_up_to_one() -> None:
    weight = torch.ones(2, requires_grad=True)
    ratio = adaptive_weight((3 * weight).sum(), (6 * weight).sum(), weight)
    torch.testing.assert_close(ratio, torch.tensor(3 * 2**0.5 / (6 * 2**0.5 + 1e-4)))
    assert not ratio.requires_grad
    assert adaptive_weight((7 * weight).sum(), (6 * weight).sum(), weight) == 1


def test_each_term_reaches_only_its_own_network() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(DiscriminatorConfig(width=4))
    generator = nn.Conv2d(3, 3, 3, padding=1)
    image, real = generator(torch.rand(2, 3, 32, 32)), torch.rand(2, 3, 32, 32)
    losses = adversarial_losses(
        discriminator, image, real, (image - real).abs().mean(), generator.weight, AdversarialConfig()
    )
    ours = list(generator.parameters())
    theirs = list(discriminator.parameters())
    for value, reached, untouched in (
        (losses.generator, ours, theirs),
        (losses.fake, theirs, ours),
        (losses.real, theirs, ours),
    ):
        gradients = torch.autograd.grad(value.weighted, reached + untouched, retain_graph=True, allow_unused=True)
        assert all(gradient is not None for gradient in gradients[: len(reached)])
        assert all(gradient is None for gradient in gradients[len(reached) :])


class Training:
    """A tiny generator and discriminator with the published optimisers."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.generator = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
        self.discriminator = PatchDiscriminator(DiscriminatorConfig(width=4))
        self.optimizer_generator = torch.optim.Adam(self.generator.parameters(), 1e-3, betas=(0.5, 0.9))
        self.optimizer_discriminator = torch.optim.Adam(self.discriminator.parameters(), 1e-3, betas=(0.5, 0.9))
        self.config = AdversarialConfig(starts_at_step=0)

    @property
    def last_layer(self) -> Tensor:
        return self.generator[2].weight

    def step_summed(self, z: Tensor, real: Tensor) -> None:
        image = self.generator(z)
        values = evaluate_terms(RECONSTRUCTION, LossInputs(image, real))
        losses = adversarial_losses(self.discriminator, image, real, total(values), self.last_layer, self.config)
        self.optimizer_generator.zero_grad()
        self.optimizer_discriminator.zero_grad()
        (total(values) + total(losses.values)).backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), 0.5)
        self.optimizer_generator.step()
        self.optimizer_discriminator.step()

    def step_alternating(self, z: Tensor, real: Tensor) -> None:
        """The original's order: the generator's step with a frozen discriminator, then the discriminator's."""
        self.discriminator.requires_grad_(False)
        image = self.generator(z)
        values = evaluate_terms(RECONSTRUCTION, LossInputs(image, real))
        adversarial = -self.discriminator(image).mean()
        balance = adaptive_weight(total(values), adversarial, self.last_layer)
        self.optimizer_generator.zero_grad()
        (total(values) + balance * self.config.generator_weight * adversarial).backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), 0.5)
        self.optimizer_generator.step()

        self.discriminator.requires_grad_(True)
        on_fake = functional.relu(1 + self.discriminator(image.detach())).mean()
        on_real = functional.relu(1 - self.discriminator(real)).mean()
        self.optimizer_discriminator.zero_grad()
        (0.5 * on_fake + 0.5 * on_real).backward()
        self.optimizer_discriminator.step()

    def tensors(self) -> dict[str, Tensor]:
        return {**self.generator.state_dict(), **self.discriminator.state_dict()}


def test_one_summed_backward_equals_alternating_steps_exactly() -> None:
    summed, alternating = Training(), Training()
    start = copy.deepcopy(summed.tensors())
    noise = torch.Generator().manual_seed(0)
    for _ in range(4):
        z, real = torch.randn(2, 4, 32, 40, generator=noise), torch.rand(2, 3, 32, 40, generator=noise)
        summed.step_summed(z, real)
        alternating.step_alternating(z, real)
    expected = alternating.tensors()
    for name, tensor in summed.tensors().items():
        assert torch.equal(tensor, expected[name]), name
        # Both halves of the hinge loss are linear here, so the gradients of the last bias cancel.
        assert name == "main.11.bias" or not torch.equal(tensor, start[name]), f"{name} was never updated"


def test_batch_statistics_see_decoded_decoded_and_real_images_in_turn() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(DiscriminatorConfig(width=4))
    reference = copy.deepcopy(discriminator)
    last_layer = torch.ones((), requires_grad=True)
    decoded, real = torch.rand(2, 3, 32, 32) * last_layer, torch.rand(2, 3, 32, 32)
    adversarial_losses(discriminator, decoded, real, decoded.sum(), last_layer, AdversarialConfig())
    for images in (decoded, decoded, real):
        reference(images)
    buffers = dict(reference.named_buffers())
    assert int(buffers["main.3.num_batches_tracked"]) == 3
    for name, buffer in discriminator.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_asking_for_absent_adversarial_losses_is_refused() -> None:
    with pytest.raises(ConfigError):
        adversarial_losses(nn.Identity(), *(torch.zeros(()) for _ in range(4)), AdversarialConfig(loss="none"))
    with pytest.raises(ConfigError):
        AdversarialConfig(generator_weight=-1.0)
