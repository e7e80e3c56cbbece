"""Claims about the whole model: what the stages hand to each other is what the original hands over."""

from dataclasses import dataclass, field
from functools import cache
from unittest import mock

import pytest
import torch
from encoder.test_encoder_parity import configuration, context_views
from parity import Recording, load_exactly, normal, recording, uniform
from torch import Tensor, nn

from lsplat_ns import latentsplat
from lsplat_ns.autoencoder import AutoencoderConfig, resize_antialiased
from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.errors import ConfigError, ShapeMismatch
from lsplat_ns.geometry.harmonics import evaluate_harmonics
from lsplat_ns.latentsplat import LatentSplat, LatentSplatConfig
from lsplat_ns.rendering import splatting
from lsplat_ns.rendering.rasterization import Ellipsoids, Maps, PixelCameras
from lsplat_ns.rendering.splatting import splat
from lsplat_ns.scene import Cameras, Gaussians, Rendering, VariationalGaussians, Views

SMALL_AUTOENCODER = AutoencoderConfig(block_out_channels=(32, 32, 64, 64))
"""Of the recorded training step."""


def unweighted(config: LatentSplatConfig | None = None) -> LatentSplat:
    """A network of which only the shapes exist."""
    with torch.device("meta"):
        return LatentSplat(config)


# ------------------------------------------------------------------------------- around the rasteriser, ls_decoder


@dataclass
class StandInRasterizer:
    """Keeps what the rasteriser is handed, one entry per scene, and returns the recorded maps."""

    maps: list[Maps]
    calls: list[tuple[Ellipsoids, Tensor, PixelCameras, tuple[int, int]]] = field(default_factory=list)

    def __call__(self, ellipsoids: Ellipsoids, values: Tensor, cameras: PixelCameras, size, **_: object) -> Maps:
        self.calls.append((ellipsoids, values, cameras, size))
        return self.maps[len(self.calls) - 1]

    def in_recorded_terms(self, near: Tensor) -> dict[str, Tensor]:
        """Arguments by the names of the recording: lengths in units of ``near`` [b, t], one call per view."""
        named = {}
        for scene, (ellipsoids, values, cameras, (height, width)) in enumerate(self.calls):
            for view, unit in enumerate(near[scene]):
                prefix = f"call{scene * near.shape[1] + view}"
                pose = cameras.camera_from_world[view].clone()
                pose[:3, 3] /= unit
                first, second = torch.triu_indices(3, 3)
                focal = cameras.intrinsics_px[view].diagonal()[:2]
                named |= {
                    f"{prefix}/means3D": ellipsoids.means / unit,
                    f"{prefix}/cov3D_precomp": ellipsoids.covariances[:, first, second] / unit**2,
                    f"{prefix}/opacities": ellipsoids.opacities[:, None],
                    f"{prefix}/features": values[view, :, -8:],
                    f"{prefix}/settings/viewmatrix": pose.mT,
                    f"{prefix}/settings/campos": torch.linalg.inv(pose)[:3, 3],
                    f"{prefix}/settings/tanfovx": width / (2 * focal[0]),
                    f"{prefix}/settings/tanfovy": height / (2 * focal[1]),
                }
        return named


def splatted_inputs(case: Recording) -> tuple[Gaussians, Cameras]:
    names = ("means", "covariances", "opacities", "color_sh", "feature_sh")
    return (
        Gaussians(*(case.input(name) for name in names)),
        Cameras(*(case.input(name) for name in ("extrinsics", "intrinsics", "near", "far"))),
    )


def recorded_maps(case: Recording, variant: str) -> list[Maps]:
    """What the recording's stand-in for the rasteriser returned, per scene; its features follow a rule."""
    features = torch.stack([normal(f"ls_decoder:{variant}:{call}:feature", (8, 12, 16)) for call in range(4)])
    color, alpha, depth = (
        torch.from_numpy(case.outputs[f"{variant}/out/{name}"]) for name in ("color", "mask", "depth")
    )
    values = torch.cat([color, features.unflatten(0, (2, 2))], 2)
    return [Maps(values[scene], depth[scene], alpha[scene]) for scene in range(2)]


@cache
def around_the_rasterizer() -> tuple[Recording, StandInRasterizer, dict[str, Tensor]]:
    """The recording, our rasteriser's arguments, and everything comparable by its recorded name."""
    case = recording("ls_decoder")
    gaussians, cameras = splatted_inputs(case)
    network = unweighted()
    stand_in = StandInRasterizer(recorded_maps(case, "default"))
    with mock.patch.object(splatting, "rasterize_in_pytorch", stand_in):
        rendering = network.render(gaussians, cameras, (12, 16))
    distribution = network.latent_distribution(rendering)
    noise = normal("ls_decoder:default:sample:randn:0", tuple(distribution.mean.shape))
    named = {
        **stand_in.in_recorded_terms(cameras.near),
        "out/color": rendering.color,
        "out/mask": rendering.alpha,
        "out/depth": rendering.depth_z,
        "out/posterior_mean": distribution.mean,
        "out/posterior_logvar": distribution.clamped_logvar,
        "out/posterior_sample": distribution.sample(noise=noise),
    }
    return case, stand_in, {f"default/{name}": value for name, value in named.items()}


def test_the_rasterizer_is_handed_what_the_original_hands_it_and_its_maps_become_the_recorded_latents():
    case, stand_in, named = around_the_rasterizer()
    assert len(named) == 4 * 8 + 6
    for name, value in named.items():
        case.assert_close(name, value, 2e-6)
    assert {call[-1] for call in stand_in.calls} == {(12, 16)}


def test_colours_come_from_the_recorded_harmonics_up_to_degree_three():
    case, stand_in, _ = around_the_rasterizer()
    for call in range(4):
        means, origin, harmonics = (
            torch.from_numpy(case.outputs[f"default/call{call}/{name}"])
            for name in ("means3D", "settings/campos", "shs")
        )
        directions = nn.functional.normalize(means - origin, dim=-1)[:, None]
        expected = evaluate_harmonics(harmonics.mT[..., :16], directions, 3) + 0.5
        actual = stand_in.calls[call // 2][1][call % 2, :, :3]
        torch.testing.assert_close(actual, expected.clamp_min(0), atol=2e-6, rtol=0)


def test_maps_that_are_not_asked_for_are_not_handed_to_the_rasterizer():
    case = recording("ls_decoder")
    gaussians, cameras = splatted_inputs(case)
    for what, channels in (({"features": False}, 3), ({"color": False}, 8)):
        empty = Maps(torch.zeros(2, channels, 12, 16), torch.zeros(2, 12, 16), torch.zeros(2, 12, 16))
        stand_in = StandInRasterizer([empty, empty])
        with mock.patch.object(splatting, "rasterize_in_pytorch", stand_in):
            rendering = unweighted().render(gaussians, cameras, (12, 16), **what)
        assert [call[1].shape[-1] for call in stand_in.calls] == [channels, channels]
        assert (rendering.color is None, rendering.features is None) == (channels == 8, channels == 3)


# --------------------------------------------------------------------------- from rendered maps to images, ls_compose


@cache
def composed() -> tuple[Recording, dict[str, Tensor]]:
    """Views of recorded maps by the published autoencoder, by their recorded names."""
    case = recording("ls_compose")
    network = unweighted()
    state = case.state("autoencoder", "autoencoder.")
    load_exactly(network.autoencoder.to_empty(device="cpu"), state)
    alpha = case.input("mask").float()
    rendering = Rendering(alpha, torch.zeros_like(alpha), case.images("color_u8"), case.input("feature").float())
    named = {"posterior_logvar": network.latent_distribution(rendering).clamped_logvar}
    with mock.patch.object(latentsplat, "splat", lambda *_, **__: rendering), torch.no_grad():
        for mode in ("sample", "mode"):
            view = network.view(
                None, None, (64, 64), deterministic=mode == "mode", latent_noise=case.input("noise_f32")
            )
            z = resize_antialiased(view.latent, network.config.render_scale / 8)
            named |= {f"{mode}/latent": view.latent, f"{mode}/z": z, f"{mode}/image": view.image}
    return case, named


def test_rendered_maps_become_the_recorded_views():
    case, named = composed()
    for name, value in named.items():
        case.assert_close(name, value, 1e-5 if name == "posterior_logvar" else 1e-4)


# -------------------------------------------------------------------------------------------------- from end to end


@cache
def small() -> tuple[Recording, LatentSplat, Views]:
    """The small recorded encoder with its two context views, and the small recorded autoencoder."""
    case = recording("ls_encoder_small")
    network = LatentSplat(LatentSplatConfig(configuration(case.meta), SMALL_AUTOENCODER), discriminator=False)
    load_exactly(network.encoder, case.state("encoder", "encoder."))
    state = recording("ls_training_step").state("ModelWrapper")
    prefix = "autoencoder."
    load_exactly(network.autoencoder, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return case, network.eval(), context_views(case)


def depth_noise() -> Tensor:
    rule, shape = small()[0].meta["uniform_rule"]
    return uniform(rule.split("'")[1], tuple(shape))


@cache
def predicted() -> VariationalGaussians:
    """What the small network predicts with the recorded noise."""
    _, network, context = small()
    with torch.no_grad():
        return network.encode(context, depth_noise=depth_noise())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_encoding_and_sampling_give_the_recorded_gaussians():
    case, *_ = small()
    noise = normal("ls_encoder_small:sampling:features:randn:0", tuple(predicted().features.mean.shape))
    gaussians = predicted().sample(noise=noise)
    for name in ("means", "covariances", "opacities", "color_harmonics"):
        assert case.error(f"sampling/{name}", getattr(gaussians, name))["rel_p999"] <= 5e-3, name
    assert case.error("sampling/feature_sample", gaussians.feature_harmonics)["rel_p999"] <= 5e-3


def test_a_view_is_encode_sample_splat_and_decode_one_by_one():
    _, network, context = small()
    size = context.size
    feature_noise = normal("end:features", tuple(predicted().features.mean.shape))
    latent_noise = normal("end:latent", (2, 2, 4, *size))
    with torch.no_grad():
        view = network.view(predicted().sample(noise=feature_noise), context.cameras, size, latent_noise=latent_noise)

        encoded = network.encoder(context, depth_noise=depth_noise())
        features = encoded.features.mean + encoded.features.std * feature_noise
        gaussians = Gaussians(encoded.means, encoded.covariances, encoded.opacities, encoded.color_harmonics, features)
        maps = splat(gaussians, context.cameras, size)
        spread = (1 - maps.alpha[:, :, None]).sqrt()
        latent = maps.features + spread.clamp_min(torch.tensor(-15.0).exp()) * latent_noise
        small_latent = nn.functional.interpolate(
            latent.flatten(0, 1), scale_factor=1 / 8, mode="bilinear", antialias=True
        ).unflatten(0, (2, 2))
        image = network.autoencoder.decode(small_latent, torch.cat([maps.color, latent], 2))
    assert maps.alpha.mean() > 0.5
    torch.testing.assert_close(view.rendering.color, maps.color)
    torch.testing.assert_close(view.latent, latent, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(view.image, image, atol=1e-4, rtol=1e-4)
    assert view.image.shape == (2, 2, 3, *size)


def drawn(seed: int) -> Tensor:
    """Images of one seed, from the context views on."""
    _, network, context = small()
    generator = seeded(seed)
    with torch.no_grad():
        gaussians = network.encode(context, generator=generator).sample(generator)
        return network.view(gaussians, context.cameras, context.size, generator=generator).image


def test_opacities_follow_the_step():
    case = recording("ls_encoder_small_novar")
    encoder = configuration(case.meta)
    network = LatentSplat(LatentSplatConfig(encoder, SMALL_AUTOENCODER), discriminator=False)
    load_exactly(network.encoder, case.state("encoder", "encoder."))
    with torch.no_grad():
        first, recorded = (network.encode(context_views(case), step=step, deterministic=True) for step in (0, 5))
    theirs = torch.from_numpy(case.outputs["deterministic/opacities@val"])
    known = theirs.isfinite()  # rounding makes a few of them NaN
    index = case.outputs["deterministic/opacities@idx"].astype(int)
    torch.testing.assert_close(recorded.opacities.flatten()[index][known], theirs[known], atol=1e-6, rtol=0)
    assert (first.opacities - recorded.opacities).abs().max() > 1e-3


def test_the_same_seed_gives_the_same_picture_and_another_seed_another_one():
    first = drawn(0)
    torch.manual_seed(99)
    assert torch.equal(drawn(0), first)
    assert (drawn(1) - first).abs().mean() > 1e-3


def test_each_random_stage_draws_from_the_generator():
    _, network, context = small()
    gaussians = predicted().mode()
    with torch.no_grad():
        depths = [network.encode(context, generator=seeded(seed)).means for seed in (0, 0, 1)]
        features = [predicted().sample(seeded(seed)).feature_harmonics for seed in (0, 0, 1)]
        latents = [
            network.view(gaussians, context.cameras, context.size, generator=seeded(seed)).latent for seed in (0, 0, 1)
        ]
    for first, again, other in (depths, features, latents):
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_deterministic_path_draws_no_random_number():
    _, network, context = small()
    generator = seeded(5)
    states = torch.get_rng_state(), generator.get_state()
    with torch.no_grad():
        gaussians = network.encode(context, deterministic=True, generator=generator).mode()
        network.view(gaussians, context.cameras, context.size, deterministic=True, generator=generator)
    assert torch.equal(torch.get_rng_state(), states[0]) and torch.equal(generator.get_state(), states[1])


def test_a_size_that_cannot_be_decoded_is_refused_in_one_line_before_anything_is_drawn():
    _, network, context = small()
    with mock.patch.object(latentsplat, "splat", side_effect=AssertionError("was drawn")):
        for size in ((60, 96), (64, 97)):
            with pytest.raises(ShapeMismatch, match=r"multiples of 8.* but has \(6[04], 9[67]\)") as caught:
                network.view(predicted().mode(), context.cameras, size)
            assert "\n" not in str(caught.value)


def test_pixels_that_no_gaussian_covers_get_unit_noise_and_covered_ones_none():
    _, network, context = small()
    noise = torch.randn(2, 2, 4, 16, 24, generator=seeded(1))
    nothing = predicted().mode().select(torch.zeros(predicted().count, dtype=torch.bool))
    with torch.no_grad():
        view = network.view(nothing, context.cameras, (16, 24), latent_noise=noise)
    assert torch.equal(view.latent, noise)
    assert view.image.isfinite().all()
    features = torch.randn(1, 1, 4, 2, 2, generator=seeded(2))
    opaque = Rendering(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), None, features)
    covered = network.latent_distribution(opaque)
    torch.testing.assert_close(covered.sample(noise=torch.ones_like(features)), features, atol=1e-6, rtol=0)


def test_half_covered_pixels_mix_features_and_noise_by_variance():
    features = torch.full((1, 1, 4, 1, 3), 2.0)
    alpha = torch.tensor([[[[0.0, 0.36, 0.96]]]])
    distribution = unweighted().latent_distribution(Rendering(alpha, alpha, None, features))
    expected = torch.tensor([1.0, 0.8, 0.2]).expand(features.shape)
    torch.testing.assert_close(distribution.std, expected)


def test_the_latent_variance_and_the_skipped_colour_pass_no_gradient():
    _, network, _ = small()
    maps = [
        torch.rand(1, 1, *shape, generator=seeded(3)).requires_grad_() for shape in ((16, 16), (3, 16, 16), (4, 16, 16))
    ]
    alpha, color, features = maps
    rendering = Rendering(alpha, torch.zeros(1, 1, 16, 16), color, features)
    latent = network.latent_distribution(rendering).sample(seeded(4))
    of_alpha, of_color, of_features = torch.autograd.grad(
        network.decode(rendering, latent).sum(), maps, allow_unused=True
    )
    assert of_alpha is None and of_color is None
    assert of_features.abs().max() > 0


# -------------------------------------------------------------------------------------------------------- structure


def test_state_dict_is_that_of_the_released_checkpoints():
    (recorded,) = recording("ls_checkpoint").meta["state_dict"].values()
    network = unweighted()
    ours = {name: (list(value.shape), str(value.dtype)) for name, value in network.state_dict().items()}
    assert ours == {name: (shape, f"torch.{dtype}") for name, shape, dtype in recorded}
    assert len(ours) == 536
    state = {name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, shape, dtype in recorded}
    network.load_state_dict(state, strict=True, assign=True)
    without = [name for name in state if not name.startswith("discriminator.")]
    with torch.device("meta"):
        assert set(LatentSplat(discriminator=False).state_dict()) == set(without)


def test_render_size_follows_supersampling():
    published = unweighted()
    assert (published.render_size((256, 192)), published.size_multiple) == ((256, 192), 8)
    case = recording("ls_encoder_small_nodown")
    low = unweighted(LatentSplatConfig(configuration(case.meta), SMALL_AUTOENCODER))
    assert low.render_size((64, 96)) == (8, 12)
    maps = torch.arange(4.0).reshape(1, 1, 1, 2, 2)
    assert low.splat_to_image_size(maps, (16, 16)).shape == (1, 1, 1, 16, 16)
    assert low.splat_to_image_size(maps, (2, 2)) is maps


def test_encoder_and_autoencoder_must_agree_about_the_scale():
    with pytest.raises(ConfigError, match="make them equal"):
        LatentSplatConfig(autoencoder=AutoencoderConfig(block_out_channels=(32, 64)))


def test_a_distribution_without_variance_is_drawn_as_its_mean():
    mean = torch.randn(3, generator=seeded(0))
    state = torch.get_rng_state()
    assert DiagonalGaussian(mean).sample() is mean
    assert torch.equal(torch.get_rng_state(), state)
