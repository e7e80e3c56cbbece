"""``lsplat train-demo``: trains a demo model and writes the weights as the wheel ships them."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from lsplat_ns.checkpoints.demo_weights import read_demo_weights, write_demo_weights
from lsplat_ns.checkpoints.mvldm_runs import network_from_plain
from lsplat_ns.data.demo_scenes import MakeScenesConfig, make_scenes
from lsplat_ns.errors import CheckpointMismatch
from lsplat_ns.plugin.demo_recipes import METHODS, TRAINING_SCENES, System, demo_mvldm_trainer, demo_trainer
from lsplat_ns.plugin.loading import load_strictly
from lsplat_ns.plugin.mvldm_model import MvldmModel
from lsplat_ns.plugin.trainer import LatentSplatTrainer, LatentSplatTrainerConfig, checkpoint_steps


def train_demo(system: System, folder: Path, steps: int, initial: Optional[Path] = None) -> Path:
    """Make the training scenes where they are missing, train, and write the weights. A second call goes on.

    Args:
        system: Which model.
        folder: Where scenes, run and weights are kept.
        steps: Training steps in all; learning rates fall towards that number.
        initial: Weights to start from, as this function writes them.

    Returns:
        The file of weights.

    Raises:
        LsplatError: With one line, if something cannot be used or written.
        SystemExit: After Ctrl-C; what is learned so far is saved, also as weights to start another training from.
    """
    method = METHODS[system]
    begun = None if initial is None else _read_initial(initial, method)
    config = _recipe(system, steps, begun)
    scenes = scenes_in(folder / "training-scenes", TRAINING_SCENES)
    config.output_dir, config.experiment_name, config.timestamp = folder / "runs", "demo", "training"
    config.data = config.pipeline.datamanager.data = scenes.resolve()
    trainer = train(config, None if begun is None else begun.weights)
    weights, network = _weights(trainer)
    provenance = {
        "method": method,
        "network": network,
        "command": f"lsplat train-demo {system} --steps {steps}"
        + ("" if initial is None else f" --initial-weights {initial.name}"),
        "initial_weights": None if begun is None else begun.provenance,
        "steps_done": trainer.step + 1,
        "batch_size": config.pipeline.datamanager.batch_size,
        "training_scenes": {name: str(value) for name, value in asdict(TRAINING_SCENES).items() if name != "output"},
        "seed": config.machine.seed,
        "data_seed": config.pipeline.datamanager.seed,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "lsplat_ns": version("lsplat-ns"),
        "torch": torch.__version__,
        "parameters": sum(value.numel() for value in weights.values()),
    }
    if trainer.interrupted:
        if _is_whole(trainer):
            path = folder / f"{method}-{trainer.step + 1}-steps.safetensors"
            write_demo_weights(path, weights, provenance)
            CONSOLE.print(f"The same command goes on. What is learned so far is in {path}")
        raise SystemExit(0)
    path = folder / f"{method}.safetensors"
    write_demo_weights(path, weights, provenance)
    return path


def _is_whole(trainer: LatentSplatTrainer) -> bool:
    """Whether an interrupted training ended with a whole step, and has weights of all networks to show."""
    model = trainer.pipeline.model
    trained = not isinstance(model, MvldmModel) or bool(model.latent_scale.isfinite())
    return trained and trainer.step in checkpoint_steps(trainer.config.get_checkpoint_dir())


class _Begun(NamedTuple):
    """Weights that a training starts from, and where they come from."""

    weights: Dict[str, Tensor]
    provenance: Dict[str, Any]


def _read_initial(path: Path, method: str) -> _Begun:
    weights, provenance = read_demo_weights(path)
    if provenance.get("method") != method:
        raise CheckpointMismatch(f"{path} holds weights of {provenance.get('method')}, not of {method}")
    if method == METHODS["mvldm"]:
        try:
            network_from_plain(provenance["network"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointMismatch(
                f"{path} states no network that can be built ({error}); give a file that lsplat train-demo wrote"
            ) from None
    return _Begun(weights, provenance)


def _recipe(system: System, steps: int, begun: Optional[_Begun]) -> LatentSplatTrainerConfig:
    if system == "latentsplat":
        return demo_trainer(steps, continued=begun is not None)
    return demo_mvldm_trainer(steps, None if begun is None else network_from_plain(begun.provenance["network"]))


def scenes_in(folder: Path, config: MakeScenesConfig) -> Path:
    """A folder of demo scenes, made where it is missing."""
    if (folder / "test" / "index.json").is_file():
        CONSOLE.print(f"Using the scenes in {folder}")
        return folder
    with _progress() as progress:
        task = progress.add_task("Making scenes", total=config.scenes)
        make_scenes(replace(config, output=folder), on_scene=lambda _: progress.advance(task))
    return folder


def train(config: LatentSplatTrainerConfig, initial: Optional[Dict[str, Tensor]] = None) -> LatentSplatTrainer:
    """Train up to ``max_num_iterations``, from the last checkpoint of the run if there is one, with a progress bar.

    Args:
        config: The training.
        initial: Weights of the network, all but the discriminator's, that a run without checkpoints starts from.

    Returns:
        The trainer, whose ``interrupted`` tells whether Ctrl-C ended it early.
    """
    torch.backends.cudnn.benchmark = True  # as ns-train has it
    folder, steps = config.get_checkpoint_dir(), config.max_num_iterations
    if checkpoint_steps(folder):
        config.load_dir = folder
    config.load_step = None
    torch.manual_seed(config.machine.seed)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    if initial is not None and config.load_dir is None:
        network = trainer.pipeline.model.network
        own = {key: value for key, value in network.state_dict().items() if key.startswith("discriminator.")}
        load_strictly(network, {**own, **initial})
    if trainer._start_step >= steps:
        CONSOLE.print(f"Using the model in {config.get_base_dir()} ({trainer._start_step} steps)")
        trainer.step = trainer._start_step - 1
        return trainer
    with _progress() as progress:
        task = progress.add_task(f"Training {config.method_name}", total=steps, completed=trainer._start_step)
        trainer.callbacks.append(
            TrainingCallback(
                [TrainingCallbackLocation.AFTER_TRAIN_ITERATION],
                func=lambda step: progress.update(task, completed=step + 1),
            )
        )
        trainer.train()
    return trainer


def _weights(trainer: LatentSplatTrainer) -> Tuple[Dict[str, Tensor], Dict[str, Any]]:
    """What is shipped of a trained model, and the sizes of a network that no method fixes."""
    model = trainer.pipeline.model
    if isinstance(model, MvldmModel):
        network = model.generating_network()
        return dict(network.state_dict()), asdict(network.config)
    state = model.network.state_dict()
    return {key: value for key, value in state.items() if not key.startswith("discriminator.")}, {}


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=CONSOLE
    )
