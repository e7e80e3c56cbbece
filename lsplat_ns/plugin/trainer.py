"""nerfstudio's trainer, made safe: it fails in one line, saves whole files only, and being stopped keeps the work."""

import math
import os
import re
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Iterator, Optional, Type

import torch
import torch.distributed
from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT, Trainer, TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from lsplat_ns.data.batches import SMALLEST_SIDE
from lsplat_ns.errors import CheckpointMismatch, ConfigError, LsplatError, SceneDataError
from lsplat_ns.plugin.captures import open_dataparser
from lsplat_ns.plugin.checkpoint_files import (
    check_checkpoint,
    checkpoint_in,
    checkpoint_path,
    checkpoint_steps,
    first_line,
    newest_whole_checkpoint,
)
from lsplat_ns.plugin.datamanager import training_stream
from lsplat_ns.plugin.dataparsers import SceneSetDataParser
from lsplat_ns.plugin.optimizers import GuardedOptimizers
from lsplat_ns.plugin.ranks import spread_from_first

MOST_SKIPPED_IN_A_ROW = 100
"""Steps without a finite gradient before training gives up."""
STEPS_TIMED = 100
"""Latest steps of which the share of time spent waiting for data is taken."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, where not all that was trained is saved."""
LOCAL_HOST = "127.0.0.1"
LONG_WAIT = 0.1
"""Share of time from which waiting for data is worth a line on the console."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with a user error's one line and exit code 1, instead of a stack trace."""
    try:
        yield
    except LsplatError as error:
        raise SystemExit(f"error: {error}") from None


@contextmanager
def _preparing() -> Iterator[None]:
    """One line also for Ctrl-C before the first step, and an exit code that does not call it success."""
    try:
        with one_line_errors():
            yield
    except KeyboardInterrupt:
        CONSOLE.print("Stopped; nothing was trained.")
        raise SystemExit(INTERRUPTED) from None


def is_port_free(port: int) -> bool:
    """Whether a viewer could listen on a port of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCAL_HOST, port))
        except OSError:
            return False
    return True


def _names_a_host(words: Sequence[str]) -> bool:
    """Whether a command line says on which host a viewer listens."""
    return any(re.match(r"--viewer\.websocket[-_]host(=|$)", word) for word in words)


def _check_image_size(size: tuple[int, int], multiple: int) -> None:
    """Raise ConfigError, with the nearest sizes that work, unless both sides (height, width) are multiples."""
    if not any(side % multiple for side in size):
        return
    least = -(-SMALLEST_SIDE // multiple) * multiple
    below = " ".join(str(max(least, side // multiple * multiple)) for side in size)
    above = " ".join(str(max(least, -(-side // multiple) * multiple)) for side in size)
    raise ConfigError(
        f"--pipeline.datamanager.preparation.image-size is {size[0]} {size[1]}, but the networks take multiples of "
        f"{multiple} only; the nearest {f'is {above}' if above == below else f'are {below} and {above}'}"
    )


@dataclass
class LatentSplatTrainerConfig(TrainerConfig):
    """nerfstudio's trainer config with checks before anything is written."""

    _target: Type = field(default_factory=lambda: LatentSplatTrainer)
    """target class to instantiate"""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an option. A viewer listens on this machine only, unless the command line names a host.

        nerfstudio's default is every network, also in ns-viewer, which puts its own viewer options here.
        """
        if name == "viewer" and not _names_a_host(sys.argv):
            value = replace(value, websocket_host=LOCAL_HOST)
        super().__setattr__(name, value)

    def get_checkpoint_dir(self) -> Path:
        """The checkpoint folder.

        Every tool asks for it before it builds the pipeline, which learns here where the run is, and which of its
        checkpoints to open. (nerfstudio would take a torn one, or the step that the run itself was resumed from.)
        """
        self.pipeline.datamanager.run_dir = self.get_base_dir()
        folder = super().get_checkpoint_dir()
        if checkpoint_steps(folder):
            with one_line_errors():
                self.load_step = newest_whole_checkpoint(folder)
        return folder

    def set_experiment_name(self) -> None:
        """Name the experiment after the data, also where ``--data`` was given behind the dataparser's name."""
        datamanager = self.pipeline.datamanager
        if self.experiment_name is None and datamanager.data is None:
            self.experiment_name = Path(datamanager.dataparser.data).stem or "unnamed"
        super().set_experiment_name()

    def save_config(self) -> None:
        """Check data, checkpoint and port, then write config.yml. A failed check writes nothing."""
        with _preparing():
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
        with _preparing():
            return super().setup(**kwargs)

    def _check(self) -> None:
        if self.mixed_precision:
            raise ConfigError(
                "mixed-precision computes geometry in float16, too; leave it off, and take "
                "--pipeline.model.training-precision bfloat16"
            )
        if self.max_num_iterations < 1:
            raise ConfigError(f"--max-num-iterations is {self.max_num_iterations}; at least one step is needed")
        datamanager = self.pipeline.datamanager
        _check_image_size(datamanager.preparation.image_size, self.pipeline.model.size_multiple)
        if datamanager.data is not None:
            datamanager.dataparser.data = Path(datamanager.data)
        dataparser = open_dataparser(datamanager.dataparser)
        if isinstance(dataparser, SceneSetDataParser):
            dataparser.scene_ids()  # what the viewer shows
        # Two batches: data that cannot be used, be it only with the gaps of the last steps, stop here.
        stream = training_stream(datamanager, dataparser)
        for step in {0, self.max_num_iterations - 1}:
            stream[step]
        start = self.checkpoint_to_start_from()
        if start is not None:
            check_checkpoint(start)
        folder = super().get_checkpoint_dir()
        if checkpoint_steps(folder) and (start is None or start.parent.resolve() != folder.resolve()):
            raise ConfigError(
                f"{folder} holds checkpoints of another training, which this one would replace; go on from them with "
                f"--load-dir {folder}, or choose another --timestamp"
            )
        self.pipeline.model.check_weights(resuming=start is not None)
        port = self.viewer.websocket_port
        if self.is_viewer_enabled() and port is not None and not is_port_free(port):
            raise ConfigError(f"port {port} is in use; choose another with --viewer.websocket-port")

    def checkpoint_to_start_from(self) -> Optional[Path]:
        """The checkpoint that options name; None for a fresh start. Raises CheckpointMismatch if there is none."""
        return self.load_checkpoint if self.load_dir is None else checkpoint_in(self.load_dir, self.load_step)


class LatentSplatTrainer(Trainer):
    """Skips steps whose gradient is not finite, stops cleanly when asked to, and never leaves half a file.

    Ctrl-C and SIGTERM end the step, write a checkpoint and exit with code 0, on all ranks after the same step. Code 0
    says that all steps that were done are saved, and at least one was.
    """

    config: LatentSplatTrainerConfig
    optimizers: GuardedOptimizers
    interrupted = False
    stop_training = False

    def __init__(self, config: LatentSplatTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        resumed_from = config.load_step
        super().__init__(config, local_rank, world_size)
        config.load_step = resumed_from  # asking for the run's folder has set it, as tools need it
        if world_size > 1 and self.device != "cpu":
            torch.cuda.set_device(self.device)  # else every rank keeps a share of the first GPU's memory as well
        self._times: deque[tuple[float, float]] = deque(maxlen=STEPS_TIMED)  # of each step: waiting, all
        self._said_waiting = False
        self._said_unreadable: set[str] = set()
        self._last_step: Optional[int] = None  # that is done; nerfstudio's ``step`` may be one that is not
        self._saved_step: Optional[int] = None  # by this rank
        self._is_over = False

    def setup(self, test_mode: str = "val") -> None:
        """Build everything; user errors and Ctrl-C end the program with one line."""
        with _preparing():
            super().setup(test_mode)

    def setup_optimizers(self) -> GuardedOptimizers:
        """Optimizers that leave out steps whose gradient is not finite."""
        groups = self.pipeline.get_param_groups()
        return GuardedOptimizers(self.config.optimizers.copy(), groups, self.gradient_accumulation_steps)

    def _load_checkpoint(self) -> None:
        """Load the stated checkpoint, or the newest one of ``load_dir`` that is whole.

        Raises:
            CheckpointMismatch: If it cannot be found or does not fit.
        """
        config, stated = self.config, self.config.load_step
        path = config.checkpoint_to_start_from()
        if config.load_dir is not None:
            config.load_step = int(path.stem.removeprefix("step-"))
        try:
            super()._load_checkpoint()
        except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
            raise CheckpointMismatch(f"training cannot go on from {path}: {first_line(error)}") from None
        finally:
            config.load_step = stated

    def train(self) -> None:
        """Train up to step ``max_num_iterations``; that many steps more where a resumed run is there already.

        The first Ctrl-C asks the loop to stop after the step, a second one stops at once.

        Raises:
            SystemExit: With one line, after a user error, and after Ctrl-C unless the last step is saved.
        """
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        total = self.config.max_num_iterations
        try:
            with one_line_errors():
                # nerfstudio 1.1.5 counts from the step that it resumes at.
                if 0 < self._start_step < total:
                    self.config.max_num_iterations = total - self._start_step
                    CONSOLE.print(f"Resuming at step {self._start_step} of {total}")
                super().train()
        except KeyboardInterrupt:
            if self._last_step is None or self._last_step != self._saved_step:
                unsaved = "what was learned since the last checkpoint is lost"
                CONSOLE.print(f"Stopped; {'nothing was trained' if self._last_step is None else unsaved}.")
                raise SystemExit(INTERRUPTED) from None
            CONSOLE.print("Stopped.")
        finally:
            self.config.max_num_iterations = total
            for number, handler in previous.items():
                signal.signal(number, handler)

    def train_iteration(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """One step. A gradient that is not finite changes nothing; such steps are counted in the log.

        The log also gets ``data/waiting``: the share of the latest steps' time that went into waiting for data, between
        0 and 1, of this rank. From the second step on, as the first one starts the loader.

        Raises:
            LsplatError: If that happens many times in a row.
        """
        started, waited = time.perf_counter(), self.pipeline.datamanager.seconds_waited
        optimizers, before = self.optimizers, self.optimizers.skipped_steps
        spread_from_first(self.pipeline.model.buffers())  # running statistics are of each rank's own examples
        statistics = [buffer.clone() for buffer in self.pipeline.model.buffers()]
        loss, losses, metrics = super().train_iteration(step)
        skipped = optimizers.skipped_steps > before
        # Its forward pass has put bad numbers into the running statistics, be its gradient only accumulated so far.
        if skipped or not math.isfinite(float(loss.detach())):
            for buffer, value in zip(self.pipeline.model.buffers(), statistics, strict=True):
                buffer.copy_(value)
        if skipped:
            self._report_skipped_step(step, losses)
        self._last_step = step
        metrics["skipped_steps"] = torch.tensor(float(optimizers.skipped_steps))
        self._agree_on_stopping()
        if step > self._start_step:
            self._times.append((self.pipeline.datamanager.seconds_waited - waited, time.perf_counter() - started))
            metrics["data/waiting"] = self._waiting_share()
        return loss, losses, metrics

    def eval_iteration(self, step: int) -> None:
        """Evaluate held-out views. Ones that cannot be read are said, once; training goes on."""
        try:
            super().eval_iteration(step)
        except SceneDataError as error:
            self.pipeline.train()
            if str(error) not in self._said_unreadable and self.local_rank == 0:
                CONSOLE.print(f"[yellow]Held-out views cannot be evaluated: {escape(str(error))}")
            self._said_unreadable.add(str(error))

    def _waiting_share(self) -> float:
        """Share of the latest steps' time spent waiting for data; says it once where it is long."""
        waiting, whole = (sum(times) for times in zip(*self._times, strict=True))
        share = waiting / whole
        if share > LONG_WAIT and len(self._times) == STEPS_TIMED and not self._said_waiting:
            self._said_waiting = True
            where = f" (rank {self.local_rank})" if self.world_size > 1 else ""  # which holds the others up
            CONSOLE.print(
                f"[yellow]Training{where} waits for data {share:.0%} of its time; where cores are idle, more loader "
                "processes help (--pipeline.datamanager.num-workers)"
            )
        return share

    def _report_skipped_step(self, step: int, losses: dict[str, torch.Tensor]) -> None:
        """Say it the first time and whenever the count has doubled."""
        count, row = self.optimizers.skipped_steps, self.optimizers.skipped_in_a_row
        bad = ", ".join(name for name, loss in losses.items() if not bool(torch.isfinite(loss.detach()).all()))
        what = f"loss {bad} is not finite" if bad else "the gradient is not finite"
        if count.bit_count() == 1 and self.local_rank == 0:
            CONSOLE.print(f"[yellow]Skipped step {step}: {what} ({count} skipped so far)")
        if row >= MOST_SKIPPED_IN_A_ROW:
            raise LsplatError(
                f"{row} steps in a row had to be skipped, at step {step} because {what}; resume from the last "
                "checkpoint with a lower learning rate (--optimizers.generator.optimizer.lr)"
            )

    def _agree_on_stopping(self) -> None:
        """Stop after this step if any rank was asked to; one that goes on alone would wait for the others forever."""
        if self.world_size > 1:
            flag = torch.tensor([float(self.interrupted)], device=self.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            self.interrupted = bool(flag)
        if self.interrupted:
            self.stop_training = True

    def _on_signal(self, number: int, frame: Optional[Any]) -> None:
        # A launcher of several ranks answers Ctrl-C by SIGTERM to each of them: not a second wish to stop.
        if self.interrupted and number == signal.SIGTERM:
            return
        if self.interrupted or self._is_over:
            raise KeyboardInterrupt
        self.interrupted = True
        if self.training_state == "paused":  # by the viewer: no step will come
            if self.world_size == 1:
                self.stop_training = True
            else:
                self.training_state = "training"  # the other ranks wait in the next step, and stop after it
        if self.local_rank == 0:
            is_last = self.training_state == "completed"
            what = "Saving the last checkpoint" if is_last else "Stopping after this step and saving a checkpoint"
            CONSOLE.print(f"\n{what}; press Ctrl-C again to stop at once.")

    def _after_train(self) -> None:
        """Save the last step that was done, under its number, and end.

        Raises:
            KeyboardInterrupt: If training was stopped before the first step.
        """
        if self._last_step is None:
            raise KeyboardInterrupt
        self.step = self._last_step
        super()._after_train()

    def _train_complete_viewer(self) -> None:
        """Show the trained model until Ctrl-C, which may have come already."""
        self._is_over = True
        if not self.interrupted:
            super()._train_complete_viewer()

    def save_checkpoint(self, step: int) -> None:
        """Write the checkpoint under another name first, so that a full disk or a kill leaves the old one whole.

        To be called on all ranks; the first one writes.

        Raises:
            LsplatError: If the last checkpoint of a training cannot be written. After others, training goes on.
        """
        optimizers = self.optimizers.state_dicts(step + 1)
        if self.local_rank != 0 or self.config.machine.machine_rank != 0:
            return
        path = checkpoint_path(self.checkpoint_dir, step)
        # Not in the checkpoint folder: nerfstudio's loaders take every file there for a checkpoint.
        partial = self.base_dir / "checkpoint.partial"
        state = {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": optimizers,
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
        }
        try:
            self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
            torch.save(state, partial)
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            what = f"{path}: {error}. Earlier checkpoints are untouched."
            if self.training_state == "completed":
                raise LsplatError(f"could not save {what}") from None
            CONSOLE.print(f"[red]Could not save {escape(what)}")
            return
        finally:
            partial.unlink(missing_ok=True)
        self._saved_step = step
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("step-*.ckpt"):
                if other != path:
                    other.unlink()
