"""Run folders that training did not make: config.yml, weights and provenance, as every nerfstudio tool opens them."""

from __future__ import annotations

import json
import os
import shutil
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Dict, Optional

import torch
import yaml
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from torch import Tensor

from lsplat_ns.errors import CheckpointMismatch, ConfigError, LsplatError
from lsplat_ns.interrupts import raise_if_interrupted
from lsplat_ns.plugin.model import LatentSplatModelConfig
from lsplat_ns.plugin.trainer import LatentSplatTrainerConfig, checkpoint_steps, newest_whole_checkpoint

PROVENANCE = "provenance.json"
"""File beside config.yml that tells where the weights came from."""
SAVED_SCENES = "scenes"
"""Folder of a run's configs with one of its scenes chosen."""


@dataclass
class RunFolderConfig(LatentSplatTrainerConfig):
    """A run whose folder is any path, not output_dir/experiment_name/method_name/timestamp."""

    run_folder: Path = field(default_factory=Path)
    """The run's folder, absolute."""

    @staticmethod
    def of(base: LatentSplatTrainerConfig, folder: Path) -> RunFolderConfig:
        """A copy of a method's or a run's configuration, for another run in ``folder`` (absolute)."""
        values = {key: deepcopy(getattr(base, key)) for key in LatentSplatTrainerConfig.__dataclass_fields__}
        config = RunFolderConfig(**values, run_folder=folder)
        config.output_dir, config.experiment_name, config.timestamp = folder.parent, folder.name, "imported"
        config.load_dir = config.load_checkpoint = config.load_step = None
        config.pipeline.datamanager.run_dir = None  # else the base's checkpoint and scene would be looked for
        return config

    def get_base_dir(self) -> Path:
        """The run's folder."""
        return self.run_folder


def free_folder(output: Path) -> Path:
    """The absolute path of a folder to make. Raises ConfigError if it is in use."""
    folder = output.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{output} exists and is not an empty folder; choose another with --output")
    return folder


def write_run(
    config: RunFolderConfig,
    pipeline_state: Dict[str, Tensor],
    steps_done: int,
    provenance: dict,
    *,
    capture: Optional[Path] = None,
    dataparser_outputs: Optional[DataparserOutputs] = None,
) -> None:
    """Write a run without optimizer state. The folder appears whole or not at all.

    Args:
        config: What config.yml will hold; says where the folder is.
        pipeline_state: State dict of the pipeline (keys begin with ``_model.``).
        steps_done: Training steps behind the weights.
        provenance: Plain values to store as JSON beside the config.
        capture: A folder to copy into the run's own, under the same name; the caller's is left alone.
        dataparser_outputs: Of the run's scene, when it is a capture: the way from its original frame is stored as well.

    Raises:
        LsplatError: If the disk is full or the folder cannot be written.
    """
    raise_if_interrupted()
    folder = config.run_folder
    step = max(steps_done - 1, 0)  # nerfstudio names a checkpoint after the last step that was done
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    state = {"step": step, "pipeline": pipeline_state, "optimizers": {}, "schedulers": {}, "scalers": {}}
    try:
        checkpoints = partial / config.relative_model_dir
        checkpoints.mkdir(parents=True)
        if capture is not None:
            shutil.copytree(capture, partial / capture.name)
        torch.save(state, checkpoints / f"step-{step:09d}.ckpt")
        (partial / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")
        if dataparser_outputs is not None:
            dataparser_outputs.save_dataparser_transform(partial / "dataparser_transforms.json")
        (partial / "config.yml").write_text(yaml.dump(config))
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise LsplatError(f"could not write {folder}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_run_config(run: Path) -> tuple[Path, LatentSplatTrainerConfig]:
    """The config.yml of a run (trusted, as by every nerfstudio tool) and what it holds.

    Args:
        run: The run's folder, or its config.yml.

    Raises:
        ConfigError: If there is no run of a latentSplat method.
    """
    path = run / "config.yml" if run.is_dir() else run
    if not path.is_file():
        raise ConfigError(f"no run at {run}; pass a run's folder or its config.yml")
    try:
        config: Any = yaml.load(path.read_text(), Loader=yaml.Loader)
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, ImportError) as error:
        raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(config, LatentSplatTrainerConfig) or not isinstance(
        config.pipeline.model, LatentSplatModelConfig
    ):
        raise ConfigError(f"{path} is no run of a latentSplat method")
    return path, config


def where_it_lies(path: Path, config: LatentSplatTrainerConfig) -> LatentSplatTrainerConfig:
    """The configuration with which nerfstudio opens the checkpoints of the run that a config.yml lies in.

    A run that was moved or copied still names the folder it was made in, where another run may be by now. A copy of a
    config that lies elsewhere, with another scene in it, has no checkpoints beside it: the run that it names counts.

    Args:
        path: The config's file: config.yml, or scenes/ID.yml in a run's folder.
        config: What it holds.
    """
    beside = path.parent.resolve()
    for folder in (beside, beside.parent) if beside.name == SAVED_SCENES else (beside,):
        if checkpoint_steps(folder / config.relative_model_dir):
            found = RunFolderConfig.of(config, folder)
            datamanager = found.pipeline.datamanager
            if datamanager.layers is not None and (beside / Path(datamanager.layers).name).is_file():
                datamanager.layers = beside / Path(datamanager.layers).name  # noted beside a saved scene
            return found
    return config


@dataclass(frozen=True)
class StoredRun:
    """A run on disk: its configuration and the weights of its last checkpoint."""

    folder: Path
    config: LatentSplatTrainerConfig
    pipeline_state: Dict[str, Tensor]
    steps_done: int

    @staticmethod
    def open(run: Path) -> StoredRun:
        """Read a run's config.yml and its newest whole checkpoint.

        Args:
            run: The run's folder, or its config.yml.

        Raises:
            ConfigError: If there is no run of a latentSplat method.
            CheckpointMismatch: If it has no checkpoint, or one that cannot be read.
        """
        path, config = read_run_config(run)
        # Beside the config, and not where the run was made: it may have been moved or copied.
        folder = path.parent / config.relative_model_dir
        if not checkpoint_steps(folder):
            raise CheckpointMismatch(f"no checkpoint in {folder}; train first, or choose another run")
        step = newest_whole_checkpoint(folder)
        checkpoint = folder / f"step-{step:09d}.ckpt"
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
            weights = {key.replace("module.", "", 1): value for key, value in state["pipeline"].items()}
        except Exception as error:  # torch reports a broken archive by many types
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointMismatch(f"cannot read {checkpoint}: {reason}") from None
        return StoredRun(path.parent, config, weights, step + 1)

    def weights_sha256(self) -> str:
        """Digest of all weights with their names, as hexadecimal text."""
        digest = sha256()
        for name, value in sorted(self.pipeline_state.items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()
