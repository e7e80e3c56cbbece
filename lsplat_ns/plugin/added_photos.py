"""Photos that a person adds to a run in the viewer: each pair becomes a scene of that run, in its folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from nerfstudio.data.dataparsers.base_dataparser import DataParser
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from lsplat_ns.data.photos import read_photo
from lsplat_ns.errors import LsplatError

FOLDER = "added_photos"
"""Folder of a run that holds the scenes made of added photos."""
MOST_SCENES = 999


def added_scenes(run_dir: Path | None) -> list[str]:
    """Names of the scenes made of photos added to a run, oldest first."""
    if run_dir is None:
        return []
    return sorted(file.parent.name for file in (Path(run_dir) / FOLDER).glob("photos-*/transforms.json"))


def added_capture(run_dir: Path, scene: str) -> DataParser:
    """What reads one of :func:`added_scenes`."""
    return NerfstudioDataParserConfig(data=Path(run_dir).resolve() / FOLDER / scene).setup()


def add_photos(
    run_dir: Path,
    contents: Sequence[bytes],
    image_size: tuple[int, int],
    say: Callable[[str], None],
    fov_degrees: float | None = None,
) -> str:
    """Make a scene of two photos without poses, and store it in the run's folder, whole or not at all.

    Args:
        run_dir: The run's folder.
        contents: The photos' files. Their names do not matter; they are decoded as pictures and nothing else.
        image_size: (height, width) that the network looks at; the photos must not be smaller.
        say: Takes the report on the poses.
        fov_degrees: Field of view across the photos' longer side; by default that of the EXIF data.

    Returns:
        The scene's name.

    Raises:
        SceneDataError: If a photo cannot be read, or no poses can be found; the message says why.
        ConfigError: If the field of view is impossible.
        LsplatError: If the folder cannot be written.
    """
    from lsplat_ns.plugin.reconstructing import check_size, pose_photos, write_capture

    folder = Path(run_dir) / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
            files = [Path(scratch) / f"photo {number}" for number in range(1, len(contents) + 1)]
            for file, content in zip(files, contents, strict=True):
                file.write_bytes(content)
            try:
                photos = tuple(check_size(read_photo(file, fov_degrees), image_size) for file in files)
                posed = pose_photos(photos)
            except LsplatError as error:  # say "photo 1", not where it lies for now
                raise type(error)(str(error).replace(f"{scratch}{os.sep}", "")) from None
            say(posed.report)
            write_capture(posed, Path(scratch) / "capture")
            taken = {path.name for path in folder.iterdir()}
            name = next(n for i in range(1, MOST_SCENES + 1) if (n := f"photos-{i:03d}") not in taken)
            os.replace(Path(scratch) / "capture", folder / name)
        return name
    except StopIteration:
        raise LsplatError(f"{folder} is full; delete scenes that are no longer wanted") from None
    except (OSError, shutil.Error) as error:
        raise LsplatError(f"could not write {folder}: {error}") from None
