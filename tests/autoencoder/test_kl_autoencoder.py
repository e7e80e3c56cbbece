"""Claims about the autoencoder: it equals the recorded original, and its two halves do what they promise."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from parity import Recording, load_exactly, recording

from lsplat_ns.autoencoder import (
    PRESETS,
    AutoencoderConfig,
    IdentityAutoencoder,
    KLAutoencoder,
    build_autoencoder,
    resize_antialiased,
)
from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.errors import ConfigError, ShapeMismatch

TINY = AutoencoderConfig(block_out_channels=(8, 16), norm_groups=4, layers_per_block=1, latent_channels=4)

CASES = {
    "ls_ae_kl_f8": replace(PRESETS["f8"], skip_connections=False),
    "ls_ae_kl_f8_skip": PRESETS["f8"],
    "ls_ae_kl_f8_skip_lowres": PRESETS["f8"],
    "ls_ae_kl_f8_skip_no_extra": replace(PRESETS["f8"], skip_extra=False),
    "ls_ae_kl_f8_skip_no_zero": replace(PRESETS["f8"], skip_zero=False),
    "ls_ae_kl_f16": PRESETS["f16"],
    "ls_ae_kl_f32": PRESETS["f32"],
}


def _uninitialised(config: AutoencoderConfig) -> KLAutoencoder:
    """Allocated only, because a recorded state dict fills every tensor."""
    with torch.device("meta"):
        model = KLAutoencoder(config)
    return model.to_empty(device="cpu")


def loaded(case: Recording, config: AutoencoderConfig) -> KLAutoencoder:
    return load_exactly(_uninitialised(config), case.state("autoencoder", "autoencoder."))


def randomised(config: AutoencoderConfig = TINY, seed: int = 0) -> KLAutoencoder:
    torch.manual_seed(seed)
    model = KLAutoencoder(config)
    for parameter in model.skip_convs.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("name", CASES)
def test_autoencoder_equals_the_recorded_original(name: str) -> None:
    case = recording(name)
    model = loaded(case, CASES[name])
    stages = {}
    decoder = model.model.decoder
    hooks = [
        decoder.conv_in.register_forward_hook(lambda _, __, output: stages.update({"stage/conv_in": output})),
        decoder.mid_block.register_forward_hook(lambda _, __, output: stages.update({"stage/mid_block": output})),
    ]
    for level, block in enumerate(decoder.up_blocks):
        key = f"stage/up_block_{level}_input"
        hooks.append(block.register_forward_pre_hook(lambda _, inputs, key=key: stages.update({key: inputs[0]})))
    skip = case.input("skip_z_f16").float() if "skip_z_f16" in case.inputs else None
    with torch.no_grad():
        posterior = model.encode(case.images())
        decoded = model.decode(case.input("z"), skip)
    for hook in hooks:
        hook.remove()

    case.assert_close("posterior_mean", posterior.mean, 1e-4)
    case.assert_close("posterior_logvar", posterior.clamped_logvar, 1e-4)
    case.assert_close("posterior_sample", posterior.sample(noise=case.input("posterior_noise")), 1e-4)
    assert len(stages) == 2 + len(decoder.up_blocks)
    for key, value in stages.items():
        case.assert_close(key, value, 1e-4)
    case.assert_close("decoded", decoded, 1e-4)
    assert model.downscale == case.meta["downscale_factor"]


def test_rendered_maps_become_the_recorded_images() -> None:
    case = recording("ls_compose")
    model = loaded(case, PRESETS["f8"])
    color, mask = case.images("color_u8"), case.input("mask").float()
    features = case.input("feature").float()
    posterior = DiagonalGaussian(features, (1 - mask).log()[:, :, None].expand_as(features))
    case.assert_close("posterior_logvar", posterior.clamped_logvar, 1e-5)
    for mode, latent in (("sample", posterior.sample(noise=case.input("noise_f32"))), ("mode", posterior.mode())):
        z = resize_antialiased(latent, Fraction(1, 8))
        with torch.no_grad():
            image = model.decode(z, torch.cat([color, latent], 2))
        case.assert_close(f"{mode}/latent", latent, 1e-4)
        case.assert_close(f"{mode}/z", z, 1e-4)
        case.assert_close(f"{mode}/image", image, 1e-4)


@pytest.mark.parametrize("factor", ["1/8", "1/4", "1/2", "1/1", "2/1", "3/4", "1/16"])
def test_resizing_equals_the_recorded_original(factor: str) -> None:
    case = recording("ls_rescale")
    case.assert_close(factor.replace("/", "_"), resize_antialiased(case.input("x"), Fraction(factor)), 1e-6)


def test_resizing_to_a_broken_number_of_pixels_is_refused() -> None:
    with pytest.raises(ShapeMismatch):
        resize_antialiased(torch.zeros(2, 4, 32, 48), Fraction(1, 5))


def test_every_config_of_a_recording_has_the_recorded_parameter_count() -> None:
    for name in ("ls_ae_kl_f8", "ls_ae_kl_f8_skip", "ls_ae_kl_f16", "ls_ae_kl_f32"):
        count = sum(parameter.numel() for parameter in _uninitialised(CASES[name]).parameters())
        assert count == recording(name).meta["num_parameters"]


def test_skips_start_as_zero_exactly_when_configured() -> None:
    zero, random = KLAutoencoder(TINY), KLAutoencoder(replace(TINY, skip_zero=False))
    assert not any(parameter.any() for parameter in zero.skip_convs.parameters())
    assert all(parameter.any() for parameter in random.skip_convs.parameters())


def test_zero_skips_leave_the_plain_autoencoder() -> None:
    torch.manual_seed(0)
    with_skips, plain = KLAutoencoder(TINY), KLAutoencoder(replace(TINY, skip_connections=False))
    plain.load_state_dict(with_skips.model.state_dict(prefix="model."))
    z = torch.randn(1, 2, 4, 4, 6)
    assert torch.equal(with_skips.decode(z, torch.randn(1, 2, 7, 16, 24)), plain.decode(z))


def test_a_missing_skip_input_means_zeros() -> None:
    model = randomised()
    z = torch.randn(1, 2, 4, 4, 6)
    torch.testing.assert_close(model.decode(z), model.decode(z, torch.zeros(1, 2, 7, 16, 24)))


def test_leading_axes_are_independent_images() -> None:
    model = randomised()
    z, skip = torch.randn(2, 3, 4, 4, 6), torch.randn(2, 3, 7, 8, 12)
    together = model.decode(z, skip)
    assert together.shape == (2, 3, 3, 8, 12)
    torch.testing.assert_close(together[1, 2], model.decode(z[1, 2:], skip[1, 2:])[0], rtol=1e-4, atol=1e-5)
    image = torch.rand(2, 3, 3, 8, 12)
    posterior = model.encode(image)
    assert posterior.mean.shape == posterior.logvar.shape == (2, 3, 4, 4, 6)
    torch.testing.assert_close(posterior.mean[1, 2], model.encode(image[1, 2:]).mean[0], rtol=1e-4, atol=1e-5)


def test_gradients_of_the_image_reach_decoder_skips_and_inputs_but_not_the_encoder() -> None:
    model = randomised()
    z = torch.randn(1, 1, 4, 4, 4, requires_grad=True)
    skip = torch.randn(1, 1, 7, 8, 8, requires_grad=True)
    model.decode(z, skip).square().sum().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    idle = {name for name, _ in model.named_parameters()} - touched
    assert idle and all(n.startswith(("model.encoder", "model.quant_conv", "skip_convs.2")) for n in idle)
    assert model.last_layer.grad.any() and z.grad.any() and skip.grad.any()


def test_decoding_needs_no_encoder_and_encoding_no_decoder() -> None:
    model = randomised()
    z, image = torch.randn(1, 4, 4, 4), torch.rand(1, 3, 8, 8)
    decoded, mean = model.decode(z), model.encode(image).mean
    encoder, decoder = model.model.encoder, model.model.decoder
    model.model.encoder = None
    assert torch.equal(model.decode(z), decoded)
    model.model.encoder, model.model.decoder = encoder, None
    assert torch.equal(model.encode(image).mean, mean)
    model.model.decoder = decoder


def test_decoded_images_are_not_clamped() -> None:
    model = randomised()
    with torch.no_grad():
        model.last_layer.mul_(100)
    image = model.decode(20 * torch.randn(1, 4, 4, 4), 20 * torch.randn(1, 7, 8, 8))
    assert image.min() < 0 and image.max() > 1


def test_the_identity_autoencoder_changes_nothing_and_has_no_weights() -> None:
    model = build_autoencoder(PRESETS["id"])
    image = torch.rand(1, 2, 3, 6, 8)
    assert isinstance(model, IdentityAutoencoder) and not model.state_dict()
    posterior = model.encode(image)
    assert torch.equal(model.decode(posterior.sample()), image)
    assert not posterior.std.any()
    assert (model.downscale, model.skip_channels, model.last_layer) == (1, 0, None)


def test_config_and_network_agree_about_sizes() -> None:
    model = build_autoencoder(TINY)
    assert model.downscale == TINY.downscale == 2
    assert model.skip_channels == TINY.skip_channels == 7 and TINY.color_in_skip
    latents_only = replace(TINY, skip_extra=False)
    assert latents_only.skip_channels == 4 and not latents_only.color_in_skip
    assert replace(TINY, skip_connections=False).skip_channels == 0
    assert [PRESETS[name].downscale for name in ("f8", "f16", "f32", "id")] == [8, 16, 32, 1]


def test_wrong_shapes_are_refused() -> None:
    model = KLAutoencoder(TINY)
    z = torch.zeros(1, 2, 4, 4, 4)
    with pytest.raises(ShapeMismatch):
        model.encode(torch.zeros(1, 2, 3, 8, 9))
    with pytest.raises(ShapeMismatch):
        model.decode(torch.zeros(1, 2, 3, 4, 4))
    with pytest.raises(ShapeMismatch):
        model.decode(z, torch.zeros(1, 2, 4, 8, 8))
    with pytest.raises(ShapeMismatch):
        model.decode(z, torch.zeros(1, 1, 7, 8, 8))
    with pytest.raises(ShapeMismatch):
        KLAutoencoder(replace(TINY, skip_connections=False)).decode(z, torch.zeros(1, 2, 7, 8, 8))
    with pytest.raises(ShapeMismatch):
        IdentityAutoencoder().decode(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))


def test_contradictory_configs_are_refused() -> None:
    for changes in ({"block_out_channels": (10, 16)}, {"block_out_channels": ()}, {"attention_levels": 3}):
        with pytest.raises(ConfigError):
            replace(TINY, **changes)
    with pytest.raises(ConfigError):
        AutoencoderConfig(kind="id")
    with pytest.raises(ConfigError):
        KLAutoencoder(PRESETS["id"])
