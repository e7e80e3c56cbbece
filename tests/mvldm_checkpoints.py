"""Small checkpoints of MV-LDM in the layout of the original's."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lsplat_ns.autoencoder import AutoencoderConfig
from lsplat_ns.diffusion.multiview_unet import MultiViewUNetConfig
from lsplat_ns.mvldm import MultiViewDiffusion, MultiViewDiffusionConfig

SMALL = MultiViewDiffusionConfig(
    denoiser=MultiViewUNetConfig(
        block_out_channels=(32, 64),
        layers_per_block=1,
        image_attention=(True, False),
        attention_heads=(1, 1),
        text_channels=(16, 16),
    ),
    autoencoder=AutoencoderConfig(block_out_channels=(32, 32), layers_per_block=1, skip_connections=False),
)


def original_state(config: MultiViewDiffusionConfig = SMALL) -> dict[str, Tensor]:
    """A state dict as the original stores it: with transformers that never run, and its autoencoder's names."""
    torch.manual_seed(0)
    stored = replace(config, denoiser=replace(config.denoiser, up_attention=True))
    state = MultiViewDiffusion(stored).state_dict()
    return {key.replace("autoencoder.model.", "autoencoder."): value for key, value in state.items()}


def our_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of it is ours."""
    return {
        key.replace("autoencoder.", "autoencoder.model."): value
        for key, value in state.items()
        if not ("up_blocks" in key and "attentions" in key and key.startswith("denoiser."))
    }
