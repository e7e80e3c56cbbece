"""The published weights that training starts from: autoencoder, discriminator, and the ViT of DINO.

Source: spec section 9.1. Files are looked up on this machine; nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lsplat_ns.checkpoints.key_maps import (
    autoencoder_from_any,
    discriminator_from_ldm,
)
from lsplat_ns.checkpoints.state_dicts import read_checkpoint, require_fit, tensors_of
from lsplat_ns.encoder.backbones import DinoBackbone
from lsplat_ns.errors import MissingWeights
from lsplat_ns.latentsplat import LatentSplat, LatentSplatConfig

WEIGHTS_FOLDER_VARIABLE = "LSPLAT_WEIGHTS"
LATENTSPLAT_URL = "pretrained.zip, linked from https://github.com/Chrixtar/latentsplat"
DINO_URL = "https://dl.fbaipublicfiles.com/dino/"
DINO_FILES = {  # by width and patch size
    (768, 8): "dino_vitbase8_pretrain.pth",
    (768, 16): "dino_vitbase16_pretrain.pth",
    (384, 8): "dino_deitsmall8_pretrain.pth",
    (384, 16): "dino_deitsmall16_pretrain.pth",
}
PartName = Literal["backbone", "autoencoder", "discriminator"]


@dataclass(frozen=True)
class PretrainedPart:
    """A part of a network that has published weights."""

    name: PartName
    module: nn.Module  # takes the weights strictly
    files: tuple[str, ...]  # accepted paths below a folder of weights, best first
    published: str  # where the weights come from
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  # from a file's names to the module's


def pretrained_parts(network: LatentSplat) -> list[PretrainedPart]:
    """The parts of a network that published weights exist for, judged by kind and size."""
    parts = []
    backbone = network.encoder.backbone
    if isinstance(backbone, DinoBackbone):
        file = DINO_FILES.get((backbone.config.width, backbone.config.patch_size))
        if file is not None:
            url = f"{DINO_URL}{file.removesuffix('.pth')}/{file}"
            parts.append(PretrainedPart("backbone", backbone.dino, (file,), url, dict))
    config = network.config.autoencoder
    if config.kind == "kl":
        name = f"kl_f{config.downscale}"
        ldm = (f"kl-f{config.downscale}/model.ckpt", f"kl-f{config.downscale}.ckpt")
        module, published = (
            network.autoencoder.model,
            f"{LATENTSPLAT_URL}, or latent diffusion's kl-f{config.downscale}",
        )
        parts.append(
            PretrainedPart("autoencoder", module, _paths("autoencoder", name, ldm), published, autoencoder_from_any)
        )
        if network.discriminator is not None:
            files = _paths("discriminator", name, ldm)
            parts.append(PretrainedPart("discriminator", network.discriminator, files, published, _discriminator_names))
    return parts


def load_pretrained(
    network: LatentSplat, mode: Literal["auto", "require", "none"], flag: str = "--pipeline.model.pretrained none"
) -> dict[PartName, Path]:
    """Fill a network with the published weights that are on this machine.

    Args:
        network: Left as it is where a file does not fit.
        mode: auto takes what is there; require wants every part; none takes nothing.
        flag: How to start without, for the message.

    Returns:
        The files that were loaded, by part.

    Raises:
        MissingWeights: In mode require, one message about every file that is absent.
        CheckpointMismatch: If a file does not fit or cannot be read.
    """
    if mode == "none":
        return {}
    found, absent = {}, []
    for part in pretrained_parts(network):
        path = locate(part)
        if path is None:
            absent.append(part)
        else:
            found[part.name] = (part, path)
    if absent and mode == "require":
        raise MissingWeights(missing_message(absent, flag))
    loaded = [(part, _weights(part, path)) for part, path in found.values()]
    for part, state in loaded:
        part.module.load_state_dict(state)
    return {name: path for name, (_, path) in found.items()}


def check_pretrained(
    config: LatentSplatConfig, discriminator: bool, flag: str = "--pipeline.model.pretrained none"
) -> None:
    """Check, before anything is built or written, that every published weight of a network is on this machine.

    Raises:
        MissingWeights: One message about every file that is absent.
    """
    with torch.device("meta"):
        network = LatentSplat(config, discriminator=discriminator)
    absent = [part for part in pretrained_parts(network) if locate(part) is None]
    if absent:
        raise MissingWeights(missing_message(absent, flag))


def weight_folders() -> list[Path]:
    """Where weights are looked for: the folder named by LSPLAT_WEIGHTS, then torch.hub's checkpoints."""
    named = os.environ.get(WEIGHTS_FOLDER_VARIABLE)
    return [*([Path(named).expanduser()] if named else []), Path(torch.hub.get_dir()) / "checkpoints"]


def locate(part: PretrainedPart) -> Path | None:
    """The first file of a part that exists."""
    candidates = (folder / file for folder in weight_folders() for file in part.files)
    return next((path for path in candidates if path.is_file()), None)


def missing_message(absent: list[PretrainedPart], flag: str) -> str:
    """One line: what is missing, where it is published, where to put it, and how to start without."""
    wanted = "; ".join(f"{part.files[0]} ({part.published})" for part in absent)
    return (
        f"training starts from published weights that are not on this machine: {wanted}. Put them below "
        f"{weight_folders()[0]}, or name their folder in ${WEIGHTS_FOLDER_VARIABLE}, "
        f"or start from random weights by {flag}"
    )


def _paths(folder: str, name: str, others: tuple[str, ...]) -> tuple[str, ...]:
    return (f"pretrained/{folder}/{name}.pt", f"{folder}/{name}.pt", *others)


def _weights(part: PretrainedPart, path: Path) -> dict[str, Tensor]:
    state = part.convert(tensors_of(read_checkpoint(path), path))
    require_fit({key: value.shape for key, value in part.module.state_dict().items()}, state, path)
    return state


def _discriminator_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return discriminator_from_ldm(state) or dict(state)
