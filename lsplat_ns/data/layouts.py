"""What kind of dataset a folder holds, told from its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lsplat_ns.errors import SceneDataError

Layout = Literal["re10k", "co3d", "capture"]


def layout_of(root: Path) -> Layout:
    """The layout of a dataset: RealEstate10k chunks, CO3D categories, or a capture with a transforms.json.

    Raises:
        SceneDataError: If the folder is absent, may not be read, or holds none of these.
    """
    try:
        if root.suffix == ".json" and root.is_file():
            return "capture"
        if not root.is_dir():
            raise SceneDataError(f"no data folder {root}; correct the path")
        if (root / "transforms.json").is_file():
            return "capture"
        if any(root.glob("frame_annotations.jgz")) or any(root.glob("*/frame_annotations.jgz")):
            return "co3d"
        if split_folders(root) or any(root.glob("*/index.json")):
            return "re10k"
    except OSError as error:
        where = error.filename or root
        raise SceneDataError(f"cannot read {where}: {error.strerror}; make it readable") from None
    raise SceneDataError(
        f"{root} holds no dataset: expected train/ or test/ with .torch chunks (RealEstate10k), "
        f"CATEGORY/frame_annotations.jgz (CO3D) or transforms.json (a capture)"
    )


def chunk_files(folder: Path) -> list[Path]:
    """The ``.torch`` chunks of a split folder, sorted; hidden files are none. Raises OSError without permission."""
    # Not by glob, which finds nothing where it may not look.
    files = (path for path in folder.iterdir() if path.suffix == ".torch" and not path.name.startswith("."))
    return sorted(path for path in files if path.is_file())


def lies_in(folder: Path, path: Path) -> bool:
    """Whether a path, with links followed, leads into a folder. False for one that no file can have."""
    try:
        return folder.resolve() in path.resolve().parents
    except (OSError, ValueError, RuntimeError):  # too long, with a zero byte, a link to itself
        return False


def split_folders(root: Path) -> list[Path]:
    """The folders of a RealEstate10k dataset that hold chunks, sorted; ``root`` itself where it holds some.

    Raises:
        OSError: If a folder may not be read.
    """
    if chunk_files(root):
        return [root]
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and chunk_files(folder))
