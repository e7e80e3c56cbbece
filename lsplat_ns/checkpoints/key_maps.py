"""Names of weights in files of other origin, and ours. Source: spec sections 9.1 and 9.3."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
"""Attention of diffusers before 0.18, and since."""
LDM_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
"""Attention of latent diffusion, and of diffusers."""
LDM_DISCRIMINATOR = "loss.discriminator."


def with_current_attention_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with the autoencoder's attention named and shaped as in current diffusers.

    Old names are replaced, and 1x1 convolutions [C, C, 1, 1] become matrices [C, C].
    """
    renamed = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.*attentions\.\d+\.)(query|key|value|proj_attn)\.(weight|bias)", key)
        if match is not None:
            start, name, kind = match.groups()
            key = f"{start}{ATTENTION[name]}.{kind}"  # noqa: PLW2901
        renamed[key] = _as_matrix(value) if re.search(r"attentions\.\d+\.to_(q|k|v|out\.0)\.weight$", key) else value
    return renamed


def _as_matrix(weight: Tensor) -> Tensor:
    return weight[:, :, 0, 0] if weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight


def is_ldm_first_stage(state: Mapping[str, Tensor]) -> bool:
    """Whether these are weights of a latent-diffusion autoencoder in its own names."""
    return any(key.startswith(("encoder.down.", "decoder.up.", "encoder.mid.")) for key in state)


def autoencoder_from_any(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's weights, of latent diffusion or of any diffusers, in current diffusers' names."""
    return autoencoder_from_ldm(state) if is_ldm_first_stage(state) else with_current_attention_names(state)


def autoencoder_from_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A latent-diffusion autoencoder's weights in diffusers' names; its losses and anything else are left out."""
    levels = 1 + max((int(m[1]) for m in (re.match(r"decoder\.up\.(\d+)\.", key) for key in state) if m), default=-1)
    renamed = {}
    for key, value in state.items():
        if key.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
            name = _diffusers_name(key, levels)
            renamed[name] = _as_matrix(value) if ".attentions." in name else value
    return renamed


def _diffusers_name(key: str, levels: int) -> str:
    """One key; level i of the decoder, counted from the finest, is up-block levels - 1 - i."""
    key = re.sub(r"\.down\.(\d+)\.", r".down_blocks.\1.", key)
    key = re.sub(r"\.up\.(\d+)\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.", key)
    key = re.sub(r"\.block\.(\d+)\.", r".resnets.\1.", key)
    key = re.sub(r"\.(down|up)sample\.conv\.", r".\1samplers.0.conv.", key)
    key = re.sub(r"\.mid\.block_([12])\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", key)
    key = key.replace(".mid.attn_1.", ".mid_block.attentions.0.").replace(".nin_shortcut.", ".conv_shortcut.")
    key = re.sub(r"\.attn\.(\d+)\.", r".attentions.\1.", key)
    key = re.sub(r"(\.attentions\.\d+)\.(norm|q|k|v|proj_out)\.", lambda m: f"{m[1]}.{LDM_ATTENTION[m[2]]}.", key)
    return key.replace(".norm_out.", ".conv_norm_out.")


def discriminator_from_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The discriminator in a latent-diffusion autoencoder's checkpoint; empty where there is none."""
    return {k.removeprefix(LDM_DISCRIMINATOR): v for k, v in state.items() if k.startswith(LDM_DISCRIMINATOR)}
