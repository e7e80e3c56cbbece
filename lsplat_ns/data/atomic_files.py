"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lsplat_ns.errors import SceneDataError

LEFTOVER = re.compile(r"\..+\.partial-\d+")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``; it takes that name when the block ends well, else what was there stays.

    Raises:
        SceneDataError: If the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # a full disk may show only here
        os.replace(partial, path)
    except OSError as error:
        kept = "; the old file is unchanged" if path.is_file() else ""
        raise SceneDataError(f"cannot write {path}: {error.strerror or error}{kept}") from None
    finally:
        with suppress(OSError):  # where there can be no file, there is none; and it would hide the error above
            partial.unlink()


def is_leftover(path: Path) -> bool:
    """Whether a path is one of :func:`replacing`; where nobody writes, a process that was killed has left it."""
    return LEFTOVER.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left in a folder of :func:`replacing`. No other process may be writing there."""
    for path in folder.glob(".*"):
        if is_leftover(path) and path.is_file():
            with suppress(OSError):  # it is in nobody's way
                path.unlink()
