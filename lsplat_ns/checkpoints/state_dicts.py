"""State dicts out of files of others: read without trusting them, fitted without leaving anything over."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lsplat_ns.checkpoints.inert_pickle import read_state_without_objects
from lsplat_ns.errors import CheckpointMismatch

LISTED = 8
"""Keys that an error names of each kind."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dictionary in a PyTorch file, on the CPU, mapped from disk where the format allows.

    Nothing in the file is executed: it is read with ``weights_only``, or, where other libraries' objects stand beside
    the weights, without those objects.

    Raises:
        CheckpointMismatch: If the file is absent, damaged, no dictionary, or asks for code to be run.
    """
    if not path.is_file():
        raise CheckpointMismatch(f"no checkpoint file {path}")
    try:
        content = _read_weights_only(path)
    except pickle.UnpicklingError:
        content = read_state_without_objects(path)
    except Exception as error:  # a damaged archive can fail in any way
        reason = " ".join(str(error).split())[:200]
        raise CheckpointMismatch(f"{path} cannot be read as a PyTorch checkpoint: {reason}") from None
    if not isinstance(content, Mapping):
        raise CheckpointMismatch(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return dict(content)


def _read_weights_only(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise
    except RuntimeError:  # files from before torch 1.6 are no zip archives and cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def read_safetensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The tensors in a safetensors file, on a device; on the CPU they are mapped from disk.

    Raises:
        CheckpointMismatch: If the file is absent or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointMismatch(f"no weights file {path}")
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointMismatch(f"{path} cannot be read as safetensors: {reason}") from None


def tensors_of(content: Mapping[str, Any], source: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint, or the mapping itself where it is one; a leading ``module.`` is dropped.

    Raises:
        CheckpointMismatch: If there are no tensors.
    """
    state = content.get("state_dict", content)
    tensors = {}
    if isinstance(state, Mapping):
        tensors = {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointMismatch(f"{source} holds no weights")
    return tensors


class Shapes:
    """Keys and shapes of a state dict, of which a configuration is read off.

    Args:
        shapes: By key.
        system: What the network is called in messages.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], system: str) -> None:
        self.shapes, self.system = shapes, system

    def has(self, prefix: str) -> bool:
        """Whether a key starts so."""
        return any(key.startswith(prefix) for key in self.shapes)

    def size(self, key: str, axis: int = 0) -> int:
        """One side of a tensor. Raises CheckpointMismatch where it is absent."""
        if key not in self.shapes or not -len(self.shapes[key]) <= axis < len(self.shapes[key]):
            raise CheckpointMismatch(f"no {self.system} network: the weights lack {key}, or it has an unknown shape")
        return self.shapes[key][axis]

    def count(self, pattern: str) -> int:
        """How many different numbers the group of a pattern takes at the start of keys."""
        matches = (re.match(pattern, key) for key in self.shapes)
        return len({match[1] for match in matches if match})


def require_fit(expected: Mapping[str, torch.Size], found: Mapping[str, Tensor], source: Path) -> None:
    """Check that two state dicts have the same keys and shapes.

    Raises:
        CheckpointMismatch: With the missing, unused and differently shaped keys (a few of each, and their numbers).
    """
    missing = [f"{key} {list(shape)}" for key, shape in expected.items() if key not in found]
    unused = [key for key in found if key not in expected]
    differing = [
        f"{key} {list(found[key].shape)} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in found and found[key].shape != shape
    ]
    parts = []
    for name, keys in (("missing", missing), ("not used", unused), ("differently shaped", differing)):
        if keys:
            more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
            parts.append(f"{len(keys)} {name}: {', '.join(keys[:LISTED])}{more}")
    if parts:
        raise CheckpointMismatch(f"{source} does not fit the network. {'; '.join(parts)}")
