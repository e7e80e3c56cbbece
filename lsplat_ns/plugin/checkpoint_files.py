"""The checkpoints in a run's folder: which there are, and which can be used."""

import zipfile
from pathlib import Path
from typing import Optional

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from lsplat_ns.errors import CheckpointMismatch


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a run's checkpoint folder, sorted."""
    names = (path.stem.removeprefix("step-") for path in folder.glob("step-*.ckpt"))
    return sorted(int(name) for name in names if name.isdecimal())


def checkpoint_path(folder: Path, step: int) -> Path:
    """A checkpoint in a run's checkpoint folder."""
    return folder / f"step-{step:09d}.ckpt"


def _is_whole(path: Path) -> bool:
    """Whether a file is neither cut short nor damaged. All of it is read: torch takes damaged numbers as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile reports damage by many types
        return False


def newest_whole_checkpoint(folder: Path) -> int:
    """Step of the newest checkpoint that is whole; says which newer ones are passed over. Reads all of it.

    Raises:
        CheckpointMismatch: If there is no checkpoint, or none is whole.
    """
    steps = checkpoint_steps(folder)
    for step in reversed(steps):
        path = checkpoint_path(folder, step)
        if _is_whole(path):
            return step
        CONSOLE.print(f"[yellow]{escape(str(path))} is cut short or damaged; taking the one before")
    raise CheckpointMismatch(f"{folder} holds no {'whole ' if steps else ''}checkpoint (step-*.ckpt)")


def checkpoint_in(folder: Path, step: Optional[int]) -> Path:
    """The checkpoint of a step in a run's checkpoint folder; without a step the newest whole one.

    Raises:
        CheckpointMismatch: If there is none.
    """
    if not folder.exists():
        raise CheckpointMismatch(f"no checkpoint at {folder}")
    steps = checkpoint_steps(folder)
    if not steps:
        raise CheckpointMismatch(f"{folder} holds no step-*.ckpt; pass a run's nerfstudio_models folder")
    if step is None:
        step = newest_whole_checkpoint(folder)
    elif step not in steps:
        known = ", ".join(map(str, steps))
        raise CheckpointMismatch(f"{folder} holds no checkpoint of step {step} (--load-step), but of {known}")
    return checkpoint_path(folder, step)


def check_checkpoint(path: Path) -> None:
    """Raise CheckpointMismatch unless a file is a whole checkpoint of a training. Its weights are not looked at."""
    if not path.exists():
        raise CheckpointMismatch(f"no checkpoint at {path}")
    if not path.is_file():
        raise CheckpointMismatch(f"{path} is no file; pass a step-*.ckpt, or its folder with --load-dir")
    if not _is_whole(path):
        raise CheckpointMismatch(f"{path} is cut short or damaged, or no checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch reports what it does not like by many types
        raise CheckpointMismatch(f"cannot read {path}: {first_line(error)}") from None
    if not isinstance(state, dict) or not {"step", "pipeline", "optimizers", "scalers"} <= state.keys():
        raise CheckpointMismatch(f"{path} is no checkpoint of a training (ns-train writes step-*.ckpt)")


def first_line(error: Exception) -> str:
    """What an exception of a library says, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
