"""Which network a state dict belongs to, read off its shapes.

The original's files hold no configuration. Most of it can be read off keys and shapes; what cannot (how channels divide
into heads, samples along a line, how skips were initialised) is taken from a configuration that is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import product
from math import isqrt
from typing import Any

import torch

from lsplat_ns.autoencoder import AutoencoderConfig, DiscriminatorConfig
from lsplat_ns.checkpoints.state_dicts import Shapes
from lsplat_ns.encoder.backbones import BackboneConfig
from lsplat_ns.encoder.encoder import EncoderConfig
from lsplat_ns.encoder.epipolar_transformer import EpipolarTransformerConfig, ImageSelfAttentionConfig
from lsplat_ns.encoder.gaussian_head import COLOR_CHANNELS, GaussianHeadConfig
from lsplat_ns.errors import CheckpointMismatch
from lsplat_ns.geometry.harmonics import MAX_DEGREE, coefficient_count
from lsplat_ns.latentsplat import LatentSplatConfig

GEOMETRY_NUMBERS = 2 + 3 + 4
"""Offset, scale and quaternion of a Gaussian."""
FIRST_LAYER = "encoder.epipolar_transformer.transformer.layers.0."


@dataclass(frozen=True)
class Architecture:
    """A network, and whether a discriminator belongs to it."""

    network: LatentSplatConfig
    has_discriminator: bool


def infer_architecture(shapes: Mapping[str, torch.Size], base: LatentSplatConfig) -> Architecture:
    """The network that weights of these shapes belong to.

    Args:
        shapes: Keys of the original's network (``encoder.``, ``autoencoder.``, ``discriminator.``) and their shapes.
        base: Supplies what shapes do not tell. Equal to the result's network if it fits the shapes.

    Raises:
        CheckpointMismatch: If this is no latentSplat network, or one that shapes alone do not describe.
    """
    known = Shapes(shapes, "latentSplat")
    known.size("encoder.to_gaussians.1.weight")  # says first what other networks lack
    autoencoder = infer_autoencoder(known, base.autoencoder)
    encoder = _encoder(known, base, autoencoder)
    has_discriminator = known.has("discriminator.")
    discriminator = _discriminator(known, base.discriminator) if has_discriminator else base.discriminator
    network = LatentSplatConfig(encoder, autoencoder, discriminator, base.splatting)
    return Architecture(network, has_discriminator)


def differences(stated: Any, found: Any, name: str = "") -> list[str]:
    """Options in which two configurations differ, as ``name: stated, but the file has found``."""
    if is_dataclass(stated) and type(stated) is type(found):
        return [
            line
            for f in fields(stated)
            for line in differences(getattr(stated, f.name), getattr(found, f.name), f"{name}.{f.name}".lstrip("."))
        ]
    return [] if stated == found else [f"{name}: {stated}, but the file has {found}"]


def _per_head(inner: int, heads: int, where: str) -> int:
    if inner % heads:
        raise CheckpointMismatch(f"{inner} channels of the {where} do not divide into {heads} heads; state the variant")
    return inner // heads


def _encoder(known: Shapes, base: LatentSplatConfig, autoencoder: AutoencoderConfig) -> EncoderConfig:
    stated = base.encoder
    downscale = autoencoder.downscale
    supersampling = stated.supersampling
    if known.has("encoder.high_resolution_skip."):
        supersampling = downscale
    elif stated.scale == 1:
        raise CheckpointMismatch(
            "no high_resolution_skip: the network was trained with a supersampling that shapes do not tell; "
            "state a variant that has it"
        )
    rows = known.size("encoder.depth_predictor.projection.1.weight")
    buckets = stated.depth.num_depth_buckets
    surfaces = rows // (2 * buckets)
    if surfaces < 1 or surfaces * 2 * buckets != rows:
        surfaces, buckets = stated.depth.num_surfaces, rows // (2 * stated.depth.num_surfaces)
    has_transformer = known.has("encoder.epipolar_transformer.")
    return replace(
        stated,
        backbone=_backbone(known, stated.backbone),
        d_backbone=known.size("encoder.backbone_projection.1.weight", 1),
        d_feature=known.size("encoder.backbone_projection.1.weight"),
        use_epipolar_transformer=has_transformer,
        epipolar_transformer=_epipolar(known, stated.epipolar_transformer) if has_transformer
        else stated.epipolar_transformer,
        depth=replace(stated.depth, num_surfaces=surfaces, num_depth_buckets=buckets),
        gaussians=_gaussians(known, stated.gaussians, surfaces, autoencoder.latent_channels),
        autoencoder_downscale=downscale,
        supersampling=supersampling,
    )  # fmt: skip


def _backbone(known: Shapes, stated: BackboneConfig) -> BackboneConfig:
    """The ViT of DINO; of other backbones only the kind is read, and the strict comparison decides."""
    prefix = "encoder.backbone.dino."
    if known.has("encoder.backbone.model.embeddings."):
        return replace(stated, kind="vit")
    if not known.has(prefix):
        return stated
    width = known.size(f"{prefix}cls_token", -1)
    return replace(
        stated,
        kind="dino",
        width=width,
        depth=known.count(re.escape(prefix) + r"blocks\.(\d+)\."),
        # Every published ViT has heads of 64 channels.
        heads=stated.heads if width == stated.width else max(1, width // 64),
        mlp_ratio=known.size(f"{prefix}blocks.0.mlp.fc1.weight") // width,
        patch_size=known.size(f"{prefix}patch_embed.proj.weight", -1),
        pretraining_grid=isqrt(known.size(f"{prefix}pos_embed", 1) - 1),
    )


def _epipolar(known: Shapes, stated: EpipolarTransformerConfig) -> EpipolarTransformerConfig:
    prefix = "encoder.epipolar_transformer."
    has_depth = known.has(f"{prefix}depth_encoding.")
    has_downscaler = known.has(f"{prefix}downscaler.")
    inner = known.size(f"{FIRST_LAYER}0.fn.to_q.weight")
    return replace(
        stated,
        self_attention=_image_attention(known, stated.self_attention),
        octaves=known.size(f"{prefix}depth_encoding.1.weight", 1) // 2 if has_depth else 0,
        layers=known.count(re.escape(prefix) + r"transformer\.layers\.(\d+)\."),
        d_dot=_per_head(inner, stated.heads, "epipolar transformer"),
        d_mlp=known.size(f"{FIRST_LAYER}1.fn.layers.0.weight"),
        downscale=known.size(f"{prefix}downscaler.weight", -1) if has_downscaler else 1,
    )


def _image_attention(known: Shapes, stated: ImageSelfAttentionConfig) -> ImageSelfAttentionConfig:
    prefix = f"{FIRST_LAYER}1.fn.self_attention."
    inner = known.size(f"{prefix}transformer.layers.0.0.fn.to_qkv.weight") // 3
    return replace(
        stated,
        patch_size=known.size(f"{prefix}patch_embedder.0.weight", -1),
        octaves=known.size(f"{prefix}positional_encoding.1.weight", 1) // 4,
        layers=known.count(re.escape(prefix) + r"transformer\.layers\.(\d+)\."),
        d_token=known.size(f"{prefix}patch_embedder.0.weight"),
        d_dot=_per_head(inner, stated.heads, "image self-attention"),
        d_mlp=known.size(f"{prefix}transformer.layers.0.1.fn.net.0.weight"),
    )


def _gaussians(known: Shapes, stated: GaussianHeadConfig, surfaces: int, latents: int) -> GaussianHeadConfig:
    """Degrees and variational treatment from the rows of the Gaussian head; those that are stated come first."""
    rows = known.size("encoder.to_gaussians.1.weight")
    # "gaussians" and "latents" have the same rows; only a statement tells them apart.
    treatments = dict.fromkeys((stated.variational, "gaussians", "none"))
    degrees = range(MAX_DEGREE, -1, -1)
    for treatment, color, feature in sorted(
        product(treatments, degrees, degrees),
        key=lambda c: (c[1] != stated.color_degree, c[2] != stated.feature_degree),
    ):
        config = replace(
            stated,
            variational=treatment,
            color_degree=color,
            feature_degree=feature,
            feature_channels=latents,
            predict_opacity=known.has("encoder.to_opacity."),
        )
        features = config.predicted_feature_channels * coefficient_count(feature)
        if rows == surfaces * (GEOMETRY_NUMBERS + COLOR_CHANNELS * coefficient_count(color) + features):
            return config
    raise CheckpointMismatch(
        f"the Gaussian head has {rows} outputs, which no harmonic degrees give with {surfaces} surface(s) "
        f"and {latents} latent channels"
    )


def infer_autoencoder(known: Shapes, stated: AutoencoderConfig) -> AutoencoderConfig:
    """The autoencoder in keys of a network (``autoencoder.model.``); ``stated`` supplies what shapes do not tell."""
    prefix = "autoencoder.model."
    if not known.has(prefix):
        return replace(stated, kind="id", latent_channels=3, skip_connections=False)
    down = re.escape(f"{prefix}encoder.") + r"down_blocks\.(\d+)\."
    levels = known.count(down)
    widths = tuple(known.size(f"{prefix}encoder.down_blocks.{i}.resnets.0.conv1.weight") for i in range(levels))
    latents = known.size(f"{prefix}decoder.conv_in.weight", 1)
    has_skips = known.has("autoencoder.skip_convs.")
    return replace(
        stated,
        kind="kl",
        block_out_channels=widths,
        attention_levels=known.count(down + r"attentions\."),
        layers_per_block=known.count(re.escape(f"{prefix}encoder.down_blocks.0.resnets.") + r"(\d+)\."),
        latent_channels=latents,
        skip_connections=has_skips,
        skip_extra=known.size("autoencoder.skip_convs.0.weight", 1) == latents + 3 if has_skips else stated.skip_extra,
    )


def _discriminator(known: Shapes, stated: DiscriminatorConfig) -> DiscriminatorConfig:
    return replace(
        stated,
        width=known.size("discriminator.main.0.weight"),
        halvings=known.count(r"discriminator\.main\.(\d+)\.running_mean"),
    )
