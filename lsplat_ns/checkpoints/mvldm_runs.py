"""Run folders of MV-LDM: ``mvldm.json`` (the network's sizes), ``mvldm.safetensors`` (weights), ``provenance.json``."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor

from lsplat_ns.checkpoints.state_dicts import read_safetensors, require_fit
from lsplat_ns.errors import CheckpointMismatch, ConfigError, LsplatError
from lsplat_ns.mvldm import MultiViewDiffusion, MultiViewDiffusionConfig

CONFIG, WEIGHTS, PROVENANCE = "mvldm.json", "mvldm.safetensors", "provenance.json"
IMAGE_SIZE, GUIDANCE = "image_size", "guidance"
"""What provenance.json notes of a run that nerfstudio did not train: the [height, width] that it was trained at, and
the strength of guidance that suits it."""
FORMAT = 1

T = TypeVar("T")


def write_mvldm(
    folder: Path, config: MultiViewDiffusionConfig, weights: Mapping[str, Tensor], provenance: Mapping[str, Any]
) -> None:
    """Write a run. The folder appears whole or not at all; tensors are written from where they are, without a copy.

    Args:
        folder: The run's folder; absent, or empty.
        config: The network.
        weights: Its state dict.
        provenance: Plain values that tell where the weights come from.

    Raises:
        LsplatError: If the disk is full or the folder cannot be written.
    """
    from safetensors import SafetensorError

    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _write_files(partial, config, weights, provenance)
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        raise LsplatError(f"could not write {folder}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def update_mvldm(
    folder: Path, config: MultiViewDiffusionConfig, weights: Mapping[str, Tensor], provenance: Mapping[str, Any]
) -> None:
    """Write, or replace, the network in a folder that holds other files as well. Each file changes as a whole.

    Weights never stand beside the sizes of another network, such as another scale of latents: where these change, a
    process that is killed in between leaves none. Only one process at a time may write: what killed ones have left is
    removed.

    Raises:
        LsplatError: If the disk is full or the folder cannot be written; the files before stay.
    """
    from safetensors import SafetensorError

    for leftover in folder.glob(".mvldm.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = folder / f".mvldm.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        _write_files(partial, config, weights, provenance)
        if (folder / CONFIG).is_file() and (folder / CONFIG).read_bytes() != (partial / CONFIG).read_bytes():
            (folder / CONFIG).unlink()
        for name in (WEIGHTS, CONFIG, PROVENANCE):
            os.replace(partial / name, folder / name)
    except (OSError, SafetensorError) as error:
        raise LsplatError(f"could not write {folder / WEIGHTS}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_files(
    folder: Path, config: MultiViewDiffusionConfig, weights: Mapping[str, Tensor], provenance: Mapping[str, Any]
) -> None:
    from safetensors.torch import save_file

    save_file(dict(weights), folder / WEIGHTS)
    document = {"format": FORMAT, "network": asdict(config)}
    (folder / CONFIG).write_text(json.dumps(document, indent=2) + "\n")
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets only the owner read
    (folder / PROVENANCE).write_text(json.dumps(dict(provenance), indent=2) + "\n")


def load_mvldm(run: Path, device: torch.device | str = "cpu") -> MultiViewDiffusion:
    """The model of a run, in eval mode on a device. Weights are read once, straight to where they are used.

    Args:
        run: The run's folder.
        device: Where to put it.

    Raises:
        ConfigError: If there is no run of MV-LDM.
        CheckpointMismatch: If it is damaged, or its weights are not those of its network.
    """
    config = read_mvldm_config(run)
    path = run / WEIGHTS
    try:
        with torch.device("meta"):
            model = MultiViewDiffusion(config)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointMismatch(f"{run / CONFIG} states no network that can be built: {error}") from None
    weights = read_safetensors(path, device)
    require_fit({key: value.shape for key, value in model.state_dict().items()}, weights, path)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def is_mvldm_run(run: Path) -> bool:
    """Whether a folder, or that of a file in it, is a run of MV-LDM."""
    return ((run.parent if run.is_file() else run) / CONFIG).is_file()


def read_mvldm_config(run: Path) -> MultiViewDiffusionConfig:
    """The network of a run. Raises as :func:`load_mvldm`."""
    path = run / CONFIG
    if not path.is_file():
        raise ConfigError(f"no MV-LDM at {run}; pass a folder that lsplat import or ns-train made ({CONFIG} is in it)")
    try:
        document = json.loads(path.read_text())
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, but this version reads {FORMAT}")
        return network_from_plain(document["network"])
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointMismatch(f"{path} cannot be read: {reason}") from None


def noted_image_size(run: Path) -> tuple[int, int] | None:
    """The (height, width) that the provenance of a run notes; None where it notes none."""
    try:
        height, width = (int(side) for side in json.loads((run / PROVENANCE).read_text())[IMAGE_SIZE])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return height, width


def noted_guidance(run: Path) -> float | None:
    """The strength of guidance that the provenance of a run recommends; None where it notes none that can be."""
    try:
        guidance = float(json.loads((run / PROVENANCE).read_text())[GUIDANCE])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return guidance if 0 <= guidance < math.inf else None


def network_from_plain(values: Mapping[str, Any]) -> MultiViewDiffusionConfig:
    """A network's sizes from what ``asdict`` and JSON made of them. Raises ValueError or TypeError for others."""
    return _from_plain(MultiViewDiffusionConfig, values)


def _from_plain(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from what ``asdict`` and JSON made of it. Absent options keep their defaults, unknown ones fail."""
    types = get_type_hints(kind)
    unknown = set(values) - {f.name for f in fields(kind)}
    if unknown:
        raise ValueError(f"unknown option {', '.join(sorted(unknown))}")
    restored = {}
    for name, value in values.items():
        if is_dataclass(types[name]):
            value = _from_plain(types[name], value)  # noqa: PLW2901
        restored[name] = tuple(value) if isinstance(value, list) else value
    return kind(**restored)
