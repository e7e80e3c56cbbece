"""What holds for an encoder of any size."""

from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from lsplat_ns.encoder.backbones import BackboneConfig, expand_blocks
from lsplat_ns.encoder.depth_head import DepthHeadConfig
from lsplat_ns.encoder.encoder import Encoder, EncoderConfig
from lsplat_ns.encoder.epipolar_transformer import (
    EpipolarTransformerConfig,
    ImageSelfAttentionConfig,
    sample_epipolar_lines,
)
from lsplat_ns.encoder.gaussian_head import GaussianHeadConfig
from lsplat_ns.errors import ConfigError, ShapeMismatch
from lsplat_ns.geometry.rays import bounds_from_baseline, project
from lsplat_ns.scene import Cameras, VariationalGaussians, Views

TINY = EncoderConfig(
    backbone=BackboneConfig(width=24, depth=1, heads=3, pretraining_grid=4),
    d_backbone=16,
    d_feature=12,
    epipolar_transformer=EpipolarTransformerConfig(
        ImageSelfAttentionConfig(octaves=2, layers=1, heads=2, d_token=8, d_dot=4, d_mlp=8),
        octaves=3,
        layers=1,
        heads=2,
        samples=4,
        d_dot=4,
        d_mlp=8,
    ),
    depth=DepthHeadConfig(num_depth_buckets=8),
)


def views(count: int = 2, size: tuple[int, int] = (32, 48), batch: int = 1) -> Views:
    """Cameras side by side that look the same way, and random images."""
    pose = torch.eye(4).repeat(batch, count, 1, 1)
    pose[:, :, 0, 3] = torch.arange(count)
    intrinsics = torch.tensor([[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]).expand(batch, count, 3, 3)
    cameras = Cameras(pose, intrinsics, torch.ones(batch, count), torch.ones(batch, count))
    near, far = bounds_from_baseline(cameras, size)
    images = torch.rand(batch, count, 3, *size, generator=torch.Generator().manual_seed(1))
    return Views(images, cameras.with_bounds(near[:, None], far[:, None]), torch.zeros(batch, count, dtype=torch.int64))


def encoder(config: EncoderConfig = TINY) -> Encoder:
    torch.manual_seed(0)
    return Encoder(config)


def encode(network: Encoder, context: Views, **options: object) -> VariationalGaussians:
    with torch.no_grad():
        return network(context, **options)


def test_the_same_seed_draws_the_same_gaussians_and_another_does_not():
    network, context = encoder(), views()
    first, again, other = (
        encode(network, context, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first.means, again.means)
    assert not torch.equal(first.means, other.means)


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_encoder_is_one_graph(deterministic: bool):
    network, context = encoder().eval(), views()
    noise = None if deterministic else network.draw_depth_noise(context)
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        found, wanted = (part(context, deterministic=deterministic, depth_noise=noise) for part in (compiled, network))
    assert torch.equal(found.means, wanted.means)


def test_mixed_precision_leaves_the_geometry_in_float32():
    features, cameras = torch.randn(1, 2, 4, 8, 12), views().cameras
    with torch.autocast("cpu", torch.bfloat16):
        mixed = sample_epipolar_lines(features, cameras, 4)
    exact = sample_epipolar_lines(features, cameras, 4)
    assert torch.equal(mixed.points_xy, exact.points_xy)
    assert torch.equal(mixed.relative_disparity, exact.relative_disparity)
    assert exact.relative_disparity.std() > 0.05


def test_a_deterministic_encoding_draws_no_random_number():
    network, context = encoder(), views()
    before = torch.get_rng_state()
    encode(network, context, deterministic=True)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("count", [2, 3])
def test_the_count_of_gaussians_is_known_beforehand(count: int, deterministic: bool):
    network = encoder(replace(TINY, depth=replace(TINY.depth, num_surfaces=2)))
    gaussians = encode(network, views(count), deterministic=deterministic)
    assert gaussians.count == network.gaussian_count(count, (32, 48), deterministic=deterministic)
    assert gaussians.means.isfinite().all() and gaussians.covariances.isfinite().all()


def test_every_view_counts_for_the_first_views_gaussians():
    network, context = encoder(), views(3)
    image = context.image.clone()
    image[:, 2] = 1 - image[:, 2]
    first = slice(0, 32 * 48)
    before = encode(network, context, deterministic=True)
    after = encode(network, replace(context, image=image), deterministic=True)
    assert (before.color_harmonics[:, first] - after.color_harmonics[:, first]).abs().max() > 1e-6


def test_order_of_the_other_views_does_not_matter():
    network, context = encoder(), views(3)
    before = encode(network, context, deterministic=True)
    after = encode(network, context.select([0, 2, 1]), deterministic=True)
    first = slice(0, 32 * 48)
    assert torch.allclose(before.color_harmonics[:, first], after.color_harmonics[:, first], atol=1e-5)


def test_scenes_of_a_batch_do_not_mix():
    network, context = encoder(), views(batch=2)
    both = encode(network, context, deterministic=True)
    cameras = Cameras(*(getattr(context.cameras, entry.name)[1:] for entry in fields(Cameras)))
    alone = encode(network, Views(context.image[1:], cameras, context.frame[1:]), deterministic=True)
    assert torch.allclose(both.means[1:], alone.means, atol=1e-5)
    assert torch.allclose(both.color_harmonics[1:], alone.color_harmonics, atol=1e-5)


def test_gaussians_lie_in_their_own_pixel_between_near_and_far():
    network, context = encoder(), views()
    gaussians = encode(network, context, deterministic=True)
    means = gaussians.means.unflatten(1, (2, 32, 48))
    cameras = context.cameras
    xy, in_front = project(
        means, *(part[:, :, None, None] for part in (cameras.world_from_camera, cameras.intrinsics_norm))
    )
    pixel = (xy * torch.tensor([48.0, 32.0])).floor()
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(48), indexing="ij")
    assert in_front.all()
    assert (pixel[..., 0] == columns).float().mean() > 0.999 and (pixel[..., 1] == rows).float().mean() > 0.999
    distance = (means - cameras.origins[:, :, None, None]).norm(dim=-1)
    assert (distance >= cameras.near[0, 0] * 0.999).all() and (distance <= cameras.far[0, 0] * 1.001).all()


def test_gradients_reach_every_parameter():
    network = encoder(replace(TINY, gaussians=replace(TINY.gaussians, predict_opacity=True)))
    gaussians = network(views(), generator=torch.Generator().manual_seed(0))
    values = (gaussians.means, gaussians.covariances, gaussians.opacities, gaussians.color_harmonics)
    loss = sum(value.square().mean() for value in (*values, gaussians.features.mean, gaussians.features.logvar))
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("variational", ["gaussians", "none", "latents"])
def test_feature_distributions_have_the_channels_of_their_mode(variational: str):
    network = encoder(replace(TINY, gaussians=replace(TINY.gaussians, variational=variational)))
    features = encode(network, views(), deterministic=True).features
    assert (features.logvar is not None) == (variational == "gaussians")
    assert features.mean.shape[-2:] == (8 if variational == "latents" else 4, 9)


@pytest.mark.parametrize(("supersampling", "grid"), [(8, (32, 64)), (4, (16, 32)), (2, (8, 16))])
def test_supersampling_sets_the_feature_grid(supersampling: int, grid: tuple[int, int]):
    config = replace(TINY, supersampling=supersampling)
    attention = replace(config.epipolar_transformer.self_attention, patch_size=2)
    config = replace(config, epipolar_transformer=replace(config.epipolar_transformer, self_attention=attention))
    network = encoder(config)
    assert hasattr(network, "high_resolution_skip") == (supersampling == 8)
    gaussians = encode(network, views(size=(32, 64)), deterministic=True)
    assert gaussians.count == 2 * grid[0] * grid[1]


def test_a_size_is_accepted_exactly_if_it_is_a_multiple_of_what_the_encoder_says():
    network = encoder()
    assert network.size_multiple == 16
    with pytest.raises(ShapeMismatch, match="multiples of 16") as error:
        network(views(size=(40, 48)))
    assert "\n" not in str(error.value)
    assert encoder(replace(TINY, supersampling=1)).size_multiple == 128
    assert encoder(replace(TINY, use_epipolar_transformer=False)).size_multiple == 8


def test_one_view_is_enough_only_without_the_epipolar_transformer():
    with pytest.raises(ShapeMismatch, match="2 or more views"):
        encoder()(views(1))
    network = encoder(replace(TINY, use_epipolar_transformer=False))
    assert encode(network, views(1), deterministic=True).count == 32 * 48


def test_an_ensemble_of_backbones_is_their_sum():
    second = replace(TINY.backbone, kind="vit", upscale="repeat")
    network = encoder(replace(TINY, more_backbones=(second,)))
    images = views().image[0]
    both = network.backbone(images)
    parts = [expand_blocks(part(images), part.repeat) for part in network.backbone.components]
    assert torch.allclose(both, parts[0] + parts[1])
    assert any(name.startswith("backbone.components.1.model.") for name in network.state_dict())
    encode(network, views())


def test_contradicting_options_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        replace(TINY, d_feature=0)
    with pytest.raises(ConfigError, match="scales"):
        GaussianHeadConfig(scale_min=3.0, scale_max=2.0)
    with pytest.raises(ConfigError, match="between 0 and 4"):
        GaussianHeadConfig(color_degree=5)
    with pytest.raises(ConfigError, match="epipolar transformer"):
        EpipolarTransformerConfig(samples=0)


def test_scales_grow_with_depth_and_stay_in_their_range():
    network, context = encoder(), views()
    trace: dict[str, torch.Tensor] = {}
    encode(network, context, deterministic=True, trace=trace)
    unit = 0.1 * (1 / (48 * 0.9) + 1 / (32 * 1.2))
    relative = trace["scales"] / trace["depth"][..., None] / unit
    assert relative.min() >= 0.5 * 0.999 and relative.max() <= 15.0 * 1.001


def test_a_single_head_as_wide_as_the_tokens_has_no_output_projection():
    attention = replace(TINY.epipolar_transformer.self_attention, heads=1, d_dot=8)
    config = replace(TINY.epipolar_transformer, self_attention=attention, heads=1, d_dot=12)
    network = encoder(replace(TINY, epipolar_transformer=config))
    assert not any("to_out" in name for name in network.state_dict())
    assert isinstance(network.epipolar_transformer.transformer.layers[0][0].fn.to_out, nn.Identity)
    encode(network, views())
