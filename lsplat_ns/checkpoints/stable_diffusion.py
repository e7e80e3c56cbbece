"""The weights of Stable Diffusion 2.1 that a training of MV-LDM starts from. Nothing is downloaded.

Source: MV-LDM section 4.1. The denoiser's first and last layers have other channels and start at random, and so do the
blocks that join the views (their last layers at zero, so that they change nothing at first).
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn

from lsplat_ns.checkpoints.key_maps import autoencoder_from_any
from lsplat_ns.checkpoints.pretrained import WEIGHTS_FOLDER_VARIABLE, weight_folders
from lsplat_ns.checkpoints.state_dicts import read_safetensors, require_fit
from lsplat_ns.errors import MissingWeights
from lsplat_ns.mvldm import MultiViewDiffusion

FOLDER = "stable-diffusion-2-1"
UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
NOT_TAKEN = re.compile(r"conv_in\.|conv_out\.|up_blocks\.\d+\.attentions\.")
"""The UNet's layers that the denoiser lacks, or has with other channels."""


def locate_stable_diffusion(flag: str = "--pipeline.model.pretrained none") -> Path:
    """The folder with both files.

    Raises:
        MissingWeights: With one line that says what to put where.
    """
    folders = [folder / FOLDER for folder in weight_folders()]
    for folder in folders:
        if all((folder / file).is_file() for file in (UNET, VAE)):
            return folder
    raise MissingWeights(
        f"training MV-LDM starts from Stable Diffusion 2.1: put its {UNET} and {VAE} below {folders[0]} (or name the "
        f"folder that holds {FOLDER}/ in ${WEIGHTS_FOLDER_VARIABLE}; the model is no longer on its publisher's page, "
        f"copies are on the hub), or start from random weights by {flag}"
    )


def load_stable_diffusion(network: MultiViewDiffusion) -> Path:
    """Fill the autoencoder and all layers of the denoiser that Stable Diffusion has. Returns the folder.

    Raises:
        MissingWeights: If the files are not on this machine.
        CheckpointMismatch: If they are damaged or of another model.
    """
    folder = locate_stable_diffusion()
    _fill(network.autoencoder.model, autoencoder_from_any(read_safetensors(folder / VAE)), folder / VAE)
    found = {key: value for key, value in read_safetensors(folder / UNET).items() if not NOT_TAKEN.match(key)}
    _fill(network.denoiser.unet, found, folder / UNET, re.compile(r"conv_in\.|conv_out\."))
    return folder


def _fill(module: nn.Module, weights: dict[str, Tensor], path: Path, kept: re.Pattern[str] | None = None) -> None:
    own = module.state_dict()
    expected = {key: value.shape for key, value in own.items() if kept is None or not kept.match(key)}
    require_fit(expected, weights, path)
    module.load_state_dict({**own, **weights})
