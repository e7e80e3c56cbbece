"""Backbones against recordings, and the errors they raise."""

import sys
from fractions import Fraction

import pytest
import torch
from parity import load_exactly, recording

from lsplat_ns.encoder.backbones import (
    BackboneConfig,
    DinoBackbone,
    ResnetBackbone,
    VisionTransformer,
    VitBackbone,
    expand_blocks,
)
from lsplat_ns.errors import ConfigError, MissingExtra, ShapeMismatch

TINY = BackboneConfig(width=24, depth=1, heads=2, pretraining_grid=4)


@pytest.mark.parametrize(
    ("name", "kind", "config", "scale"),
    [
        (
            "ls_backbone_dino_interpolate_s8",
            DinoBackbone,
            BackboneConfig(depth=2, upscale="interpolate"),
            Fraction(1, 8),
        ),
        ("ls_backbone_vit", VitBackbone, BackboneConfig(kind="vit", depth=2), Fraction(1)),
        ("ls_backbone_vit_repeat", VitBackbone, BackboneConfig(kind="vit", depth=2, upscale="repeat"), Fraction(1, 2)),
    ],
)
def test_token_backbones_match_the_recording(name: str, kind: type, config: BackboneConfig, scale: Fraction):
    case = recording(name)
    backbone = load_exactly(kind(config, 512, scale), case.state("encoder.backbone", strip="encoder.backbone."))
    trace: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        features = backbone(case.images(), trace)
    if "tokens@val" in case.outputs:
        case.assert_close("tokens", trace["dino_tokens"], 1e-4)
    case.assert_close("features", expand_blocks(features, backbone.repeat), 1e-4)


def test_resnet_matches_the_recording_of_what_the_original_was_meant_to_be():
    pytest.importorskip("transformers")
    case = recording("ls_backbone_resnet_patched")
    config = BackboneConfig(kind="resnet", resnet_stem=16, resnet_widths=(32, 64, 96, 128), resnet_depths=(2, 2, 1, 1))
    backbone = load_exactly(
        ResnetBackbone(config, 64, Fraction(1)), case.state("encoder.backbone", "encoder.backbone.")
    )
    with torch.no_grad():
        case.assert_close("features", backbone(case.images()), 1e-4)


def test_position_embeddings_are_untouched_on_the_grid_of_the_pretraining():
    network = VisionTransformer(TINY)
    assert network._position_embedding(4, 4) is network.pos_embed
    assert network._position_embedding(3, 5).shape == (1, 16, 24)


def test_hugging_face_weights_of_transformers_4_and_5_load_alike():
    backbone = VitBackbone(BackboneConfig(kind="vit", width=24, depth=1, heads=2, pretraining_grid=4), 8, Fraction(1))
    ours = backbone.state_dict()
    new = {}
    for key, value in ours.items():
        renamed = key.replace("pos_embed", "embeddings.position_embeddings").replace(
            "cls_token", "embeddings.cls_token"
        )
        renamed = renamed.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        renamed = renamed.replace("model.norm.", "model.layernorm.").replace("blocks.", "layers.")
        renamed = renamed.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
        renamed = renamed.replace("attn.proj", "attention.o_proj")
        if "attn.qkv" in renamed:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                new[renamed.replace("attn.qkv", f"attention.{part}_proj")] = piece
        else:
            new[renamed] = value
    assert set(new) != set(ours)
    backbone.load_state_dict({key: torch.zeros_like(value) for key, value in ours.items()})
    backbone.load_state_dict(new, strict=True)
    assert all(torch.equal(value, ours[key]) for key, value in backbone.state_dict().items())
    backbone.load_state_dict(ours, strict=True)


def test_images_that_patches_do_not_tile_raise_one_line():
    with pytest.raises(ShapeMismatch, match="multiple of 8") as error:
        DinoBackbone(TINY, 8, Fraction(1))(torch.zeros(1, 3, 16, 20))
    assert "\n" not in str(error.value)


def test_patches_smaller_than_a_feature_pixel_are_refused():
    with pytest.raises(ConfigError, match="upscale=interpolate"):
        DinoBackbone(TINY, 8, Fraction(1, 16))


def test_a_resnet_without_transformers_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match="pip install transformers"):
        ResnetBackbone(BackboneConfig(kind="resnet"), 8, Fraction(1))


def test_width_must_be_a_multiple_of_the_heads():
    with pytest.raises(ConfigError, match="multiple"):
        BackboneConfig(width=100, heads=3)
