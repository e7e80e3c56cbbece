"""Cameras and ways to break chunks, for tests of what must not trip over them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def camera_rows(positions: torch.Tensor, yaw: torch.Tensor | None = None, focal: float = 0.9) -> torch.Tensor:
    """Camera rows [n, 18] of cameras at ``positions`` [n, 3], turned about the vertical axis by ``yaw`` [n] radians."""
    yaw = torch.zeros(len(positions)) if yaw is None else yaw
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    turn = torch.stack([yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos()], -1).reshape(-1, 3, 3)
    camera_from_world = turn.transpose(1, 2)
    moved = -(camera_from_world @ positions[..., None])
    rows = torch.zeros(len(positions), 18)
    rows[:, :4] = torch.tensor([focal, focal * 16 / 9, 0.5, 0.5])
    rows[:, 6:] = torch.cat([camera_from_world, moved], -1).reshape(-1, 12)
    return rows


def cut_in_half(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def plant_code(path: Path, marker: Path) -> None:
    """Replace a chunk by one that creates ``marker`` when it is unpickled without care."""

    class Attack:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    torch.save([Attack()], path, pickle_module=pickle)


@contextmanager
def without_permission(folder: Path) -> Iterator[None]:
    """A folder that may not be read: by its mode, or, where tests run as root, as another user."""
    mode = folder.stat().st_mode
    folder.chmod(0o000)
    root = os.geteuid() == 0
    if root:
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(mode)
