"""``lsplat import``: a checkpoint of the original code becomes a run.

Runs of latentSplat are opened by nerfstudio's commands; those of MV-LDM by ``load_mvldm``.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch

from lsplat_ns.checkpoints.architecture import Architecture, differences, infer_architecture
from lsplat_ns.checkpoints.mvldm_runs import write_mvldm
from lsplat_ns.checkpoints.mvldm_upstream import is_mvldm, read_upstream_diffusion
from lsplat_ns.checkpoints.state_dicts import LISTED
from lsplat_ns.checkpoints.upstream import UpstreamCheckpoint, sha256
from lsplat_ns.errors import CheckpointMismatch, ConfigError
from lsplat_ns.mvldm import MultiViewDiffusionConfig
from lsplat_ns.plugin.dataparsers import dataparser_for
from lsplat_ns.plugin.model import LatentSplatModelConfig
from lsplat_ns.plugin.runs import RunFolderConfig, free_folder, write_run
from lsplat_ns.plugin.trainer import LatentSplatTrainerConfig

FINISHED_STEPS = 200_001
"""Steps of a published training; taken for files that do not say."""
FINISHED_MVLDM_STEPS = 1_679_000
"""Steps of the published MV-LDM."""
MVLDM = "mvldm"
PREFERRED = "latentsplat"
"""Where several methods have the network of a file, this one is taken unless another is stated."""


@dataclass(frozen=True)
class ImportedRun:
    """What an import made."""

    folder: Path
    method: str
    also_fitting: Tuple[str, ...]  # other methods with the same network; shapes do not tell them apart
    steps_done: int

    @property
    def config(self) -> Path:
        """The file to pass to nerfstudio's ``--load-config``."""
        return self.folder / "config.yml"


def import_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    data: Optional[Path] = None,
    method: Optional[str] = None,
    steps_done: Optional[int] = None,
    autoencoder: Optional[Path] = None,
) -> ImportedRun:
    """Write a run folder for a Lightning checkpoint (or bare state dict) of latentSplat or MV-LDM; its keys tell which.

    The folder appears whole or not at all. It holds weights without optimizer state: training continues from it with
    fresh optimizers and a new warm-up.

    Args:
        checkpoint: The original's file. Nothing in it is executed.
        output: The run folder to make; must not exist, or be empty.
        data: Scenes to look at: RealEstate10k chunks, CO3D, or a capture with a transforms.json. By default the
            method's.
        method: Registered method that the weights belong to. By default one that has their network.
        steps_done: Training steps behind the weights, 0 or more. By default what the file says, if it says that many,
            else a finished training.
        autoencoder: MV-LDM only: file with the weights of Stable Diffusion 2.1's autoencoder, where the checkpoint has
            none or others are wanted.

    Raises:
        CheckpointMismatch: If the file is unsafe, damaged, or fits neither the stated method nor any network.
        ConfigError: If the method is unknown, an option is out of its range or belongs to the other system, or the
            output folder is in use.
        MissingWeights: If a checkpoint of MV-LDM has no autoencoder and none was stated.
        SceneDataError: If ``data`` is no dataset.
    """
    if steps_done is not None and steps_done < 0:
        raise ConfigError(f"--steps must be 0 or more, but is {steps_done}")
    folder = free_folder(output)
    source = UpstreamCheckpoint.read(checkpoint)
    if is_mvldm(source.state):
        if data is not None or method not in (None, MVLDM):
            raise ConfigError(f"{checkpoint} holds MV-LDM, which has no scenes and no variants; state neither")
        return _import_mvldm(source, folder, steps_done, autoencoder)
    if autoencoder is not None:
        raise ConfigError(f"{checkpoint} holds latentSplat, which has an autoencoder of its own; state none")
    name, architecture, also_fitting = _recognise(source, method)
    weights = source.weights_for(architecture)
    if steps_done is None:
        steps_done = _steps_of(source, FINISHED_STEPS)
    config = _run_config(folder, name, architecture, data)
    provenance = {**_provenance(source.path, name, steps_done, weights), "also_fitting": also_fitting}
    # A model's device marker is part of its state; the rest is what the network holds.
    pipeline = {"_model.device_indicator_param": torch.empty(0)}
    pipeline.update({f"_model.network.{key}": value for key, value in weights.items()})
    write_run(config, pipeline, steps_done, provenance)
    return ImportedRun(folder, name, tuple(also_fitting), steps_done)


def _import_mvldm(
    source: UpstreamCheckpoint, folder: Path, steps_done: Optional[int], autoencoder: Optional[Path]
) -> ImportedRun:
    found = read_upstream_diffusion(source, autoencoder)
    if steps_done is None:
        steps_done = _steps_of(source, FINISHED_MVLDM_STEPS)
    provenance = _provenance(source.path, MVLDM, steps_done, found.weights)
    provenance["left_out"] = {
        "tensors of transformers that never run": found.idle_left_out,
        "tensors of the moving average": found.averages_left_out,
    }
    if found.config != MultiViewDiffusionConfig():
        provenance["assumed"] = "attention heads of 64 channels, as in Stable Diffusion 2.1; shapes do not tell"
    provenance["autoencoder"] = "of the checkpoint"
    if autoencoder is not None:
        provenance["autoencoder"] = {"source": autoencoder.name, "sha256": sha256(autoencoder)}
    write_mvldm(folder, found.config, found.weights, provenance)
    return ImportedRun(folder, MVLDM, (), steps_done)


def _steps_of(source: UpstreamCheckpoint, finished: int) -> int:
    """The training steps that a file states; those of a finished training where it states no possible number."""
    stated = source.steps_done
    return finished if stated is None or stated < 0 else stated


def _provenance(source: Path, method: str, steps_done: int, weights: Dict[str, torch.Tensor]) -> Dict[str, Any]:
    return {
        "source": source.name,
        "sha256": sha256(source),
        "method": method,
        "steps_done": steps_done,
        "parameters": sum(value.numel() for value in weights.values()),
        "optimizer_state": "not imported",
        "converter": f"lsplat-ns {version('lsplat-ns')}",
        "imported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _methods() -> Dict[str, LatentSplatTrainerConfig]:
    """Registered latentSplat methods, the preferred one first."""
    from nerfstudio.configs.method_configs import all_methods

    found = {
        name: config
        for name, config in all_methods.items()
        # MV-LDM's methods share the trainer, not the model.
        if isinstance(config, LatentSplatTrainerConfig) and isinstance(config.pipeline.model, LatentSplatModelConfig)
    }
    return dict(sorted(found.items(), key=lambda item: (item[0] != PREFERRED, item[0])))


def _recognise(source: UpstreamCheckpoint, stated: Optional[str]) -> Tuple[str, Architecture, List[str]]:
    """The method, its network as the file has it, and other methods with the same network."""
    methods = _methods()
    if stated is not None:
        if stated not in methods:
            raise ConfigError(f"no method {stated!r}; --variant takes one of {', '.join(methods)}")
        wanted = _architecture_of(methods[stated])
        try:
            found = infer_architecture(source.shapes, wanted.network)
        except CheckpointMismatch as error:
            raise CheckpointMismatch(f"{source.path} is no {stated}: {error}") from None
        contradictions = differences(wanted, found)
        if contradictions:
            more = f"; and {len(contradictions) - LISTED} more" if len(contradictions) > LISTED else ""
            raise CheckpointMismatch(f"{source.path} is no {stated}. {'; '.join(contradictions[:LISTED])}{more}")
        return stated, found, []
    fitting = [name for name, config in methods.items() if _fits(source, _architecture_of(config))]
    if fitting:
        return fitting[0], _architecture_of(methods[fitting[0]]), fitting[1:]
    return PREFERRED, infer_architecture(source.shapes, methods[PREFERRED].pipeline.model.network), []


def _architecture_of(config: LatentSplatTrainerConfig) -> Architecture:
    model = config.pipeline.model
    return Architecture(model.network, model.schedule.uses_discriminator)


def _fits(source: UpstreamCheckpoint, candidate: Architecture) -> bool:
    try:
        return infer_architecture(source.shapes, candidate.network) == candidate
    except CheckpointMismatch:
        return False


def _run_config(folder: Path, name: str, architecture: Architecture, data: Optional[Path]) -> RunFolderConfig:
    """The method's configuration with the network of the file, for a run in ``folder``."""
    config = RunFolderConfig.of(_methods()[name], folder)
    model = config.pipeline.model
    model.network = architecture.network
    if model.schedule.uses_discriminator and not architecture.has_discriminator:
        model.schedule = replace(model.schedule, adversarial=replace(model.schedule.adversarial, loss="none"))
    datamanager = config.pipeline.datamanager
    if data is not None:
        datamanager.dataparser = dataparser_for(data.expanduser().resolve(), datamanager.dataparser)
    config.data = datamanager.data = datamanager.dataparser.data.absolute()
    datamanager.dataparser.data = config.data
    return config
