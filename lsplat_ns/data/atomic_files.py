"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsplat_ns.errors import SceneDataError


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
        partial.unlink(missing_ok=True)
