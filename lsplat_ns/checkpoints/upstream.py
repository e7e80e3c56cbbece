"""Checkpoints of the original code: read, recognised, and compared key by key with our network.

Source: spec section 9. Our networks have the original's key names, so nothing is converted but old spellings.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lsplat_ns.checkpoints.architecture import Architecture
from lsplat_ns.checkpoints.key_maps import with_current_attention_names
from lsplat_ns.checkpoints.state_dicts import read_checkpoint, require_fit, tensors_of
from lsplat_ns.errors import CheckpointMismatch
from lsplat_ns.latentsplat import LatentSplat

BLOCK = 1 << 22


@dataclass(frozen=True)
class UpstreamCheckpoint:
    """Weights of the original, not yet compared with a network."""

    path: Path
    state: dict[str, Tensor]  # on the CPU, usually mapped from the file
    steps_done: int | None  # generator steps; None in a bare state dict

    @classmethod
    def read(cls, path: Path) -> UpstreamCheckpoint:
        """Read a Lightning checkpoint or a bare state dict; nothing in it is executed.

        Raises:
            CheckpointMismatch: If the file is absent, damaged, unsafe, or no checkpoint of the original.
        """
        content = read_checkpoint(path)
        if "pipeline" in content:
            raise CheckpointMismatch(f"{path} is a checkpoint of a nerfstudio run already; open that run's config.yml")
        state = with_current_attention_names(tensors_of(content, path))
        steps = content.get("global_step") if "state_dict" in content else None
        return cls(path, state, steps if isinstance(steps, int) else None)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Keys and shapes."""
        return {key: value.shape for key, value in self.state.items()}

    def weights_for(self, architecture: Architecture) -> dict[str, Tensor]:
        """The weights under the keys of our network, in its order and its types, each with a storage of its own.

        Raises:
            CheckpointMismatch: If keys or shapes differ, with all of them listed (a bounded number of each kind).
        """
        with torch.device("meta"):
            network = LatentSplat(architecture.network, discriminator=architecture.has_discriminator)
        expected = network.state_dict()
        try:
            # Assigning takes no memory, and lets modules accept the spellings that they know (Hugging Face's ViT).
            misfit = any(network.load_state_dict(self.state, strict=False, assign=True))
        except RuntimeError:
            misfit = True
        if misfit:
            require_fit({key: value.shape for key, value in expected.items()}, self.state, self.path)
        return {key: own_tensor(value, expected[key].dtype) for key, value in network.state_dict().items()}


def own_tensor(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A plain tensor of a type, which drags no larger storage into the file it is saved to."""
    value = value.detach().to(dtype).contiguous()
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return value if whole else value.clone()


def sha256(path: Path) -> str:
    """Digest of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
