"""Names of weights from other code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lsplat_ns.autoencoder import AutoencoderConfig, KLAutoencoder
from lsplat_ns.checkpoints.key_maps import (
    autoencoder_from_ldm,
    discriminator_from_ldm,
    is_ldm_first_stage,
    with_current_attention_names,
)

CONFIG = AutoencoderConfig(
    block_out_channels=(32, 32, 64), attention_levels=1, layers_per_block=2, skip_connections=False
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return KLAutoencoder(CONFIG).model.state_dict()


LDM_PARTS = (  # of diffusers, of latent diffusion; in an order in which no replacement hits another's result
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
    ("mid_block.attentions.0.", "mid.attn_1."),
    (".resnets.", ".block."),
    (".attentions.", ".attn."),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
    ("downsamplers.0.conv", "downsample.conv"),
    ("upsamplers.0.conv", "upsample.conv"),
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
    ("down_blocks.", "down."),
    ("up_blocks.0.", "up.2."),
    ("up_blocks.1.", "up.1."),
    ("up_blocks.2.", "up.0."),
)


def as_ldm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        is_attention = "attentions" in key and key.endswith("weight") and value.ndim == 2
        for ours, theirs in LDM_PARTS:
            key = key.replace(ours, theirs)  # noqa: PLW2901
        renamed[key] = value[:, :, None, None] if is_attention else value
    return renamed


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return set(left) == set(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_a_latent_diffusion_autoencoder_becomes_diffusers_own(weights: dict[str, Tensor]) -> None:
    theirs = as_ldm(weights)
    assert "decoder.up.2.attn.0.q.weight" in theirs and theirs["decoder.mid.attn_1.q.weight"].ndim == 4
    assert is_ldm_first_stage(theirs) and not is_ldm_first_stage(weights)
    extras = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.ones(1)}
    assert same(autoencoder_from_ldm({**theirs, **extras}), weights)
    assert same(discriminator_from_ldm({**theirs, **extras}), {"main.0.weight": torch.ones(1)})


def test_a_decoder_level_counts_from_the_other_end() -> None:
    state = {f"decoder.up.{i}.block.0.conv1.weight": torch.tensor(float(i)) for i in range(4)}
    renamed = autoencoder_from_ldm(state)
    assert float(renamed["decoder.up_blocks.0.resnets.0.conv1.weight"]) == 3
    assert float(renamed["decoder.up_blocks.3.resnets.0.conv1.weight"]) == 0


def test_attention_of_old_diffusers_gets_current_names_and_shapes(weights: dict[str, Tensor]) -> None:
    old = {}
    for key, value in weights.items():
        name = key
        for ours, theirs in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(ours, theirs)
        old[name] = value[:, :, None, None] if name != key and value.ndim == 2 else value
    assert any("proj_attn" in key for key in old)
    assert same(with_current_attention_names(old), weights)
    assert same(with_current_attention_names(weights), weights)


def test_attention_elsewhere_in_a_network_keeps_its_names() -> None:
    state = {"encoder.layers.0.attention.query.weight": torch.ones(2, 2)}
    assert list(with_current_attention_names(state)) == list(state)
