"""Checkpoints of the original MV-LDM: recognised, and compared key by key with our network.

Our denoiser has the original's key names. The original also stores transformers on the way up that it never runs; they
are checked like everything else and left out. Source: spec section 4.7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lsplat_ns.checkpoints.architecture import infer_autoencoder
from lsplat_ns.checkpoints.key_maps import autoencoder_from_any
from lsplat_ns.checkpoints.state_dicts import Shapes, read_checkpoint, read_safetensors, require_fit, tensors_of
from lsplat_ns.checkpoints.upstream import UpstreamCheckpoint, own_tensor
from lsplat_ns.diffusion.multiview_unet import MultiViewUNetConfig
from lsplat_ns.errors import CheckpointMismatch, MissingWeights
from lsplat_ns.mvldm import MultiViewDiffusion, MultiViewDiffusionConfig

UNET = "denoiser.unet."
RAW_RAYS = 6
HEAD_CHANNELS = 64
"""Channels of a head in every published Stable Diffusion 2 network; shapes do not tell."""
TEXT_CHANNELS = 1024
FIRST_STAGE = "first_stage_model."
"""What latent diffusion puts before the autoencoder's keys in a checkpoint of the whole system."""

STANDARD_BLOCK = r"denoiser\.cross_attn_blocks_\w+\.(\d+)\.transformer\."
MULTIVIEW_LAYER = r"denoiser\.cross_attn_blocks_\w+\.0\.(?:transformer\.layers|transformer_blocks)\.(\d+)\."


@dataclass(frozen=True)
class UpstreamDiffusion:
    """A checkpoint of the original MV-LDM as our network's configuration and weights."""

    config: MultiViewDiffusionConfig
    weights: dict[str, Tensor]  # by key of MultiViewDiffusion, float32, mapped from the file where it is float32
    idle_left_out: int  # tensors of transformers that never run
    averages_left_out: int  # tensors of the exponential moving average, which the original does not sample with


def is_mvldm(state: Mapping[str, Tensor]) -> bool:
    """Whether these are weights of the original MV-LDM."""
    return any(key.startswith(UNET) for key in state)


def read_upstream_diffusion(
    source: UpstreamCheckpoint, autoencoder: Path | None = None, config: MultiViewDiffusionConfig | None = None
) -> UpstreamDiffusion:
    """Configuration and weights of a checkpoint of the original. Takes little memory: weights stay in the file.

    Args:
        source: The checkpoint.
        autoencoder: File with the weights of Stable Diffusion 2.1's autoencoder (safetensors or PyTorch, named as in
            diffusers or as in latent diffusion), instead of those in the checkpoint.
        config: The network, where it is known; by default as shapes tell it.

    Raises:
        CheckpointMismatch: If keys or shapes are not exactly those of the network (they are listed), or shapes do not
            tell the network.
        MissingWeights: If there is no autoencoder in the checkpoint, and no file was given.
    """
    averages = [key for key in source.state if key.startswith("ema.")]
    state = {key: value for key, value in source.state.items() if not key.startswith("ema.")}
    if autoencoder is not None:
        state = {key: value for key, value in state.items() if not key.startswith("autoencoder.")}
        state.update({f"autoencoder.{key}": value for key, value in _read_autoencoder(autoencoder).items()})
    if not any(key.startswith("autoencoder.") for key in state):
        raise MissingWeights(
            f"{source.path} holds no autoencoder; state a file with the weights of Stable Diffusion 2.1's (its "
            "vae/diffusion_pytorch_model.safetensors) by --autoencoder FILE"
        )
    state = {re.sub(r"^autoencoder\.", "autoencoder.model.", key): value for key, value in state.items()}
    config = config or infer_diffusion({key: value.shape for key, value in state.items()})

    stores_idle = not config.denoiser.up_attention and any(map(_is_up_attention, state))
    stored = replace(config, denoiser=replace(config.denoiser, up_attention=True)) if stores_idle else config
    require_fit({key: value.shape for key, value in _on_meta(stored).items()}, state, source.path)
    weights = {key: own_tensor(state[key], expected.dtype) for key, expected in _on_meta(config).items()}
    return UpstreamDiffusion(config, weights, len(state) - len(weights), len(averages))


def infer_diffusion(shapes: Mapping[str, torch.Size]) -> MultiViewDiffusionConfig:
    """The network that weights of these shapes belong to; what they do not tell is as in the published model.

    Args:
        shapes: By key of ``MultiViewDiffusion``, with or without the transformers that never run.

    Raises:
        CheckpointMismatch: If this is no MV-LDM, or one whose rays are encoded in a way that shapes do not tell.
    """
    known = Shapes(shapes, "MV-LDM")
    published = MultiViewDiffusionConfig()
    autoencoder = infer_autoencoder(known, published.autoencoder)
    rays = known.size(f"{UNET}conv_in.weight", 1) - autoencoder.latent_channels - 1
    if rays != RAW_RAYS:
        raise CheckpointMismatch(
            f"the weights take {rays} ray channels; only networks of raw rays ({RAW_RAYS}) can be imported, because "
            "shapes do not tell how others were encoded"
        )
    return replace(published, denoiser=_denoiser(known, published.denoiser), autoencoder=autoencoder)


def _denoiser(known: Shapes, published: MultiViewUNetConfig) -> MultiViewUNetConfig:
    levels = known.count(re.escape(UNET) + r"down_blocks\.(\d+)\.")
    channels = tuple(known.size(f"{UNET}down_blocks.{i}.resnets.0.conv1.weight") for i in range(levels))
    attends = tuple(known.has(f"{UNET}down_blocks.{i}.attentions.") for i in range(levels))
    projections = [shape for key, shape in known.shapes.items() if key.endswith("attentions.0.proj_in.weight")]
    from_stable_diffusion = all(len(shape) == 2 for shape in projections)
    return replace(
        published,
        block_out_channels=channels,
        layers_per_block=known.count(re.escape(f"{UNET}down_blocks.0.resnets.") + r"(\d+)\."),
        image_attention=attends,
        mid_attention=known.has(f"{UNET}mid_block.attentions."),
        # A network that did not start from Stable Diffusion has other projections and 8 heads, and runs these.
        up_attention=any(map(_is_up_attention, known.shapes)) and not from_stable_diffusion,
        attention_heads=tuple(max(1, width // HEAD_CHANNELS) if from_stable_diffusion else 8 for width in channels),
        linear_projections=from_stable_diffusion,
        text_channels=tuple(_text_channels(known, i) for i in range(levels)),
        multiview="standard" if known.count(STANDARD_BLOCK) else "spatial",
        multiview_layers=max(1, known.count(MULTIVIEW_LAYER)),
        multiview_places=tuple(
            place for place in ("encoder", "mid", "decoder") if known.has(f"denoiser.cross_attn_blocks_{place}.")
        ),
    )


def _text_channels(known: Shapes, level: int) -> int:
    """Width of the text at a level; where it attends to none, at the middle, else the published one."""
    ends = "attentions.0.transformer_blocks.0.attn2.to_k.weight"
    keys = (f"{UNET}down_blocks.{level}.{ends}", f"{UNET}mid_block.{ends}")
    return next((known.size(key, 1) for key in keys if key in known.shapes), TEXT_CHANNELS)


def _is_up_attention(key: str) -> bool:
    return re.match(re.escape(UNET) + r"up_blocks\.\d+\.attentions\.", key) is not None


def _on_meta(config: MultiViewDiffusionConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return MultiViewDiffusion(config).state_dict()


def _read_autoencoder(path: Path) -> dict[str, Tensor]:
    """Weights of an autoencoder in current diffusers' names."""
    if path.suffix == ".safetensors":
        state = read_safetensors(path)
    else:
        state = tensors_of(read_checkpoint(path), path)
    if any(key.startswith(FIRST_STAGE) for key in state):
        state = {k.removeprefix(FIRST_STAGE): v for k, v in state.items() if k.startswith(FIRST_STAGE)}
    return autoencoder_from_any(state)
