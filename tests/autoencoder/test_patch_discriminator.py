"""Claims about the discriminator: it equals the recorded original in both modes, with its gradients."""

import pytest
import torch
from parity import load_exactly, recording

from lsplat_ns.autoencoder import DiscriminatorConfig, PatchDiscriminator
from lsplat_ns.errors import ConfigError, ShapeMismatch


def test_discriminator_equals_the_recorded_original() -> None:
    case = recording("ls_discriminator")
    model = load_exactly(PatchDiscriminator(), case.state("discriminator", "discriminator."))
    image = case.images().requires_grad_()
    with torch.no_grad():
        case.assert_close("eval/logits", model(image), 1e-4)
    model.train()
    logits = model(image)
    case.assert_close("train/logits", logits, 1e-4)
    for name, buffer in model.named_buffers():
        case.assert_close(f"train/after/{name}", buffer, 1e-5)
    with torch.no_grad():
        case.assert_close("odd/logits", model.eval()(image[:1, :, :40, :56]), 1e-4)

    logits.mean().backward()
    for name, parameter in model.named_parameters():
        if f"train/grad_norm/{name}" in case.outputs:
            case.assert_close(f"train/grad_norm/{name}", parameter.grad.norm(), 1e-4)
    # A leaky ReLU near its kink may go either way, hence a quantile instead of the largest error.
    assert case.error("train/grad_input", image.grad)["rel_p999"] < 5e-2


def test_released_size_gives_30_by_30_logits_for_256_pixels() -> None:
    with torch.device("meta"):
        logits = PatchDiscriminator()(torch.zeros(1, 2, 3, 256, 256))
    assert logits.shape == (1, 2, 1, 30, 30)


def test_views_share_one_batch() -> None:
    torch.manual_seed(0)
    model, again = PatchDiscriminator(DiscriminatorConfig(width=4)), PatchDiscriminator(DiscriminatorConfig(width=4))
    again.load_state_dict(model.state_dict())
    image = torch.rand(2, 3, 3, 32, 40)
    assert torch.equal(model(image).flatten(0, 1), again(image.flatten(0, 1)))
    assert torch.equal(model.main[3].running_mean, again.main[3].running_mean)


def test_channels_double_up_to_the_configured_widening() -> None:
    model = PatchDiscriminator(DiscriminatorConfig(width=4, max_widening=4, halvings=4))
    widths = [layer.out_channels for layer in model.main if isinstance(layer, torch.nn.Conv2d)]
    assert widths == [4, 8, 16, 16, 16, 1]


def test_smallest_image_leaves_one_logit_and_smaller_ones_are_refused() -> None:
    model = PatchDiscriminator(DiscriminatorConfig(width=4, halvings=2)).eval()
    least = model.smallest_image
    assert model(torch.zeros(1, 3, least, least)).shape == (1, 1, 1, 1)
    with pytest.raises(ShapeMismatch):
        model(torch.zeros(1, 3, least, least - 1))
    with pytest.raises(ShapeMismatch):
        model(torch.zeros(1, 4, least, least))


def test_a_discriminator_without_channels_is_refused() -> None:
    with pytest.raises(ConfigError):
        DiscriminatorConfig(width=0)
