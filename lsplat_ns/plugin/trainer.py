"""nerfstudio's trainer, made safe: it fails in one line, saves whole files only, and Ctrl-C keeps the work."""

import os
import signal
import socket
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Optional, Type

import torch
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE

from lsplat_ns.checkpoints.pretrained import check_pretrained
from lsplat_ns.data.streams import SharedStep
from lsplat_ns.errors import CheckpointMismatch, ConfigError, LsplatError
from lsplat_ns.losses.perceptual import locate_backbone
from lsplat_ns.plugin.datamanager import training_stream
from lsplat_ns.plugin.dataparsers import SceneSetDataParser


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with a user error's one line and exit code 1, instead of a stack trace."""
    try:
        yield
    except LsplatError as error:
        raise SystemExit(f"error: {error}") from None


def is_port_free(port: int) -> bool:
    """Whether a viewer could listen on a port of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a run's checkpoint folder, sorted."""
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.ckpt"))


@dataclass
class LatentSplatTrainerConfig(TrainerConfig):
    """nerfstudio's trainer config with checks before anything is written."""

    _target: Type = field(default_factory=lambda: LatentSplatTrainer)
    """target class to instantiate"""

    def get_checkpoint_dir(self) -> Path:
        """The checkpoint folder.

        Every tool asks for it before it builds the pipeline, which learns the run's folder here.
        """
        self.pipeline.datamanager.run_dir = self.get_base_dir()
        return super().get_checkpoint_dir()

    def set_experiment_name(self) -> None:
        """Name the experiment after the data, also where ``--data`` was given behind the dataparser's name."""
        datamanager = self.pipeline.datamanager
        if self.experiment_name is None and datamanager.data is None:
            self.experiment_name = Path(datamanager.dataparser.data).stem or "unnamed"
        super().set_experiment_name()

    def save_config(self) -> None:
        """Check data, checkpoint and port, then write config.yml. A failed check writes nothing."""
        with one_line_errors():
            self._check()
        super().save_config()

    def setup(self, **kwargs: Any) -> "LatentSplatTrainer":
        """Build the trainer, on the CPU where CUDA was asked for (the default) and is absent."""
        if self.machine.device_type == "cuda" and not torch.cuda.is_available():
            CONSOLE.print(
                "No CUDA device: training on the CPU. The published model needs a GPU; latentsplat-tiny does not."
            )
            if "OMP_WAIT_POLICY" not in os.environ:
                CONSOLE.print("Where other programs are busy, OMP_WAIT_POLICY=PASSIVE makes it many times faster.")
            self.machine.device_type = "cpu"
        if self.load_dir is not None or self.load_checkpoint is not None:
            self.pipeline.model.pretrained = "none"  # all weights come from the checkpoint
        with one_line_errors():
            return super().setup(**kwargs)

    def _check(self) -> None:
        datamanager = self.pipeline.datamanager
        if datamanager.data is not None:
            datamanager.dataparser.data = Path(datamanager.data)
        dataparser = datamanager.dataparser.setup()
        if isinstance(dataparser, SceneSetDataParser):
            dataparser.scene_ids()  # what the viewer shows
        # One example, so that unusable data stops here and not inside a loader process with two stack traces.
        next(iter(training_stream(datamanager, dataparser, SharedStep())))
        for path in (self.load_dir, self.load_checkpoint):
            if path is not None and not path.exists():
                raise CheckpointMismatch(f"no checkpoint at {path}")
        if self.load_dir is not None and not checkpoint_steps(self.load_dir):
            raise CheckpointMismatch(f"{self.load_dir} holds no step-*.ckpt; pass a run's nerfstudio_models folder")
        model = self.pipeline.model
        if model.pretrained == "require" and self.load_dir is None and self.load_checkpoint is None:
            check_pretrained(model.network, model.schedule.uses_discriminator)
        if model.perceptual == "lpips" and model.schedule.uses("lpips"):
            locate_backbone()
        port = self.viewer.websocket_port
        if self.is_viewer_enabled() and port is not None and not is_port_free(port):
            raise ConfigError(f"port {port} is in use; choose another with --viewer.websocket-port")


class LatentSplatTrainer(Trainer):
    """Stops cleanly at Ctrl-C (the step ends, a checkpoint is written, exit code 0) and never leaves half a file."""

    config: LatentSplatTrainerConfig
    interrupted = False

    def setup(self, test_mode: str = "val") -> None:
        """Build everything; user errors end the program with one line."""
        with one_line_errors():
            super().setup(test_mode)

    def train(self) -> None:
        """Train; the first Ctrl-C asks the loop to stop after the step, a second one stops at once."""
        previous = signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            with one_line_errors():
                super().train()
        except KeyboardInterrupt:
            CONSOLE.print("Stopped.")
        finally:
            signal.signal(signal.SIGINT, previous)

    def _on_interrupt(self, signum: int, frame: Optional[Any]) -> None:
        if self.interrupted or self.training_state == "completed":
            raise KeyboardInterrupt
        self.interrupted = True
        self.stop_training = True
        CONSOLE.print("\nStopping after this step and saving a checkpoint; press Ctrl-C again to stop at once.")

    def _after_train(self) -> None:
        if self.interrupted:
            # The loop announced a step that it did not run any more; training resumes with that one.
            self.step = max(self.step - 1, self._start_step)
            self.config.viewer.quit_on_train_completion = True
        super()._after_train()

    def save_checkpoint(self, step: int) -> None:
        """Write the checkpoint under another name first, so that a full disk or a kill leaves the old one whole."""
        if self.local_rank != 0 or self.config.machine.machine_rank != 0:
            return
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        # Not in the checkpoint folder: nerfstudio's loaders take every file there for a checkpoint.
        partial = self.base_dir / "checkpoint.partial"
        state = {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
        }
        try:
            torch.save(state, partial)
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            partial.unlink(missing_ok=True)
            CONSOLE.print(f"[red]Could not save {path}: {error}. Earlier checkpoints are untouched.")
            return
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("step-*.ckpt"):
                if other != path:
                    other.unlink()
