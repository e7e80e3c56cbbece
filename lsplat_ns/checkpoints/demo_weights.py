"""The weights of the demo models that the wheel ships: float16 safetensors, with their provenance inside.

Read when they are wanted, never at import.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lsplat_ns.checkpoints.state_dicts import read_safetensors
from lsplat_ns.errors import CheckpointMismatch, LsplatError, MissingWeights
from lsplat_ns.wording import counted

FOLDER = Path(__file__).parents[1] / "assets"
PROVENANCE = "provenance"
"""Name of the metadata entry, a JSON object."""


def demo_weights_path(method: str) -> Path:
    """Where the wheel keeps the weights of a method.

    Raises:
        MissingWeights: If it ships none.
    """
    path = FOLDER / f"{method}.safetensors"
    if not path.is_file():
        raise MissingWeights(
            f"no {path}: this installation ships no {method}; reinstall it, or put there what lsplat train-demo writes"
        )
    return path


def read_demo_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in float32 on the CPU, and their provenance.

    Raises:
        CheckpointMismatch: If the file is damaged; it is named.
    """
    from safetensors import SafetensorError, safe_open

    weights = {key: value.float() for key, value in read_safetensors(path).items()}
    try:
        with safe_open(path, "pt") as file:
            provenance = json.loads((file.metadata() or {})[PROVENANCE])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointMismatch(f"{path} has no provenance ({error}); reinstall the package") from None
    return weights, provenance


def write_demo_weights(path: Path, weights: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
    """Write weights in half precision; the file appears whole or not at all.

    Raises:
        LsplatError: If a weight does not fit into float16, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    halved = {key: value.detach().cpu().to(torch.float16).contiguous() for key, value in weights.items()}
    lost = [key for key, value in halved.items() if not bool(torch.isfinite(value).all())]
    if lost:
        raise LsplatError(f"float16 cannot hold {counted(len(lost), 'weight')}, such as {lost[0]}")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(halved, partial, {PROVENANCE: json.dumps(dict(provenance))})
        partial.chmod(0o644)  # safetensors lets only the owner read
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise LsplatError(f"could not write {path}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
