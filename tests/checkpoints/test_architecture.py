"""Networks are recognised by their shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from parity import recording

from lsplat_ns.autoencoder import PRESETS, AutoencoderConfig, DiscriminatorConfig
from lsplat_ns.checkpoints.architecture import Architecture, differences, infer_architecture
from lsplat_ns.encoder.encoder import EncoderConfig
from lsplat_ns.encoder.epipolar_transformer import EpipolarTransformerConfig, ImageSelfAttentionConfig
from lsplat_ns.encoder.gaussian_head import GaussianHeadConfig
from lsplat_ns.errors import CheckpointMismatch
from lsplat_ns.latentsplat import LatentSplat, LatentSplatConfig

PUBLISHED = LatentSplatConfig()


def shapes_of(config: LatentSplatConfig, discriminator: bool = True) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = LatentSplat(config, discriminator=discriminator)
    return {key: value.shape for key, value in network.state_dict().items()}


def preset(name: str) -> LatentSplatConfig:
    autoencoder = PRESETS[name]
    encoder = replace(
        EncoderConfig(),
        autoencoder_downscale=autoencoder.downscale,
        supersampling=autoencoder.downscale,
        gaussians=GaussianHeadConfig(feature_channels=autoencoder.latent_channels),
    )
    return LatentSplatConfig(encoder, autoencoder)


CASES = {
    "published": PUBLISHED,
    "no skips": LatentSplatConfig(autoencoder=AutoencoderConfig(skip_connections=False)),
    "skips without colour": LatentSplatConfig(autoencoder=AutoencoderConfig(skip_extra=False)),
    "f16": preset("f16"),
    "f32": preset("f32"),
    "deterministic": LatentSplatConfig(replace(EncoderConfig(), gaussians=GaussianHeadConfig(variational="none"))),
    "degrees": LatentSplatConfig(replace(EncoderConfig(), gaussians=GaussianHeadConfig(color_degree=2))),
    "opacity": LatentSplatConfig(replace(EncoderConfig(), gaussians=GaussianHeadConfig(predict_opacity=True))),
    "two surfaces": LatentSplatConfig(replace(EncoderConfig(), depth=replace(EncoderConfig().depth, num_surfaces=2))),
    "no transformer": LatentSplatConfig(replace(EncoderConfig(), use_epipolar_transformer=False)),
    "other transformer": LatentSplatConfig(
        replace(
            EncoderConfig(),
            d_backbone=64,
            d_feature=48,
            epipolar_transformer=EpipolarTransformerConfig(
                ImageSelfAttentionConfig(patch_size=2, octaves=4, layers=1, d_token=24, d_dot=16, d_mlp=40),
                octaves=0, layers=1, d_dot=16, d_mlp=40, downscale=1,
            ),
        ),
        discriminator=DiscriminatorConfig(width=16, halvings=2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("discriminator", [True, False])
def test_shapes_tell_the_network(name: str, discriminator: bool) -> None:
    config = CASES[name]
    found = infer_architecture(shapes_of(config, discriminator), PUBLISHED)
    expected = config if discriminator else replace(config, discriminator=PUBLISHED.discriminator)
    assert differences(expected, found.network) == []
    assert found == Architecture(expected, discriminator)


def test_the_original_s_key_list_is_the_published_network_s() -> None:
    entries = recording("ls_checkpoint").meta["state_dict"]
    shapes = {key: torch.Size(shape) for part in entries.values() for key, shape, _ in part}
    assert infer_architecture(shapes, PUBLISHED) == Architecture(PUBLISHED, True)
    assert shapes == shapes_of(PUBLISHED)


def test_the_original_s_shrunken_model_is_recognised_up_to_its_shapes() -> None:
    entries = recording("ls_training_step").meta["state_dict"]
    shapes = {key: torch.Size(shape) for part in entries.values() for key, shape, _ in part}
    found = infer_architecture(shapes, PUBLISHED)
    assert found.network.encoder.backbone.depth < 12 and found.network.autoencoder.block_out_channels == (
        32,
        32,
        64,
        64,
    )
    assert shapes_of(found.network) == shapes


def test_what_shapes_do_not_tell_comes_from_the_base() -> None:
    base = LatentSplatConfig(
        replace(EncoderConfig(), gaussians=GaussianHeadConfig(gaussians_per_pixel=5)),
        AutoencoderConfig(skip_zero=False),
    )
    assert infer_architecture(shapes_of(PUBLISHED), base).network == base


def test_differences_name_option_statement_and_finding() -> None:
    other = CASES["deterministic"]
    assert differences(PUBLISHED, other) == ["encoder.gaussians.variational: gaussians, but the file has none"]


def test_other_networks_are_refused() -> None:
    with pytest.raises(CheckpointMismatch, match="no latentSplat network"):
        infer_architecture({"conv1.weight": torch.Size([64, 3, 7, 7])}, PUBLISHED)


def test_a_gaussian_head_of_no_known_size_is_refused() -> None:
    shapes = {**shapes_of(PUBLISHED), "encoder.to_gaussians.1.weight": torch.Size([158, 128])}
    with pytest.raises(CheckpointMismatch, match="158 outputs"):
        infer_architecture(shapes, PUBLISHED)


def test_an_unknown_supersampling_is_asked_for() -> None:
    shapes = shapes_of(LatentSplatConfig(replace(EncoderConfig(), supersampling=4)))
    with pytest.raises(CheckpointMismatch, match="supersampling"):
        infer_architecture(shapes, PUBLISHED)
