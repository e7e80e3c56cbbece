"""Pictures on disk in the originals' layout, ``<scene>/<left>_<right>/<kind>/<frame>.png``, as their scripts read it.

Source: spec section 8.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
from torch import Tensor

from lsplat_ns.errors import SceneDataError

COLOR, CONTEXT = "color", "context"


def scene_folder_name(scene: str) -> str:
    """A scene id as the name of one folder. Ids come from data files: what could leave the folder is escaped."""
    name = scene if re.fullmatch(r"[\w.+ -]+", scene) else quote(scene, safe="")
    return name.replace(".", "%2E") if set(name) <= {"."} else name


def pair_name(context: Sequence[int]) -> str:
    """The context frames in ascending order, joined by underscores."""
    return "_".join(str(frame) for frame in sorted(context))


def entry_name(context: Sequence[int], target: Sequence[int]) -> str:
    """A short name of an entry's frames, for files; several entries of a scene may have the same context views."""
    return f"{pair_name(context)}_targets-{min(target)}-{max(target)}-{len(target)}"


def entry_folder(root: Path, scene: str, context: Sequence[int]) -> Path:
    """The folder of one entry's pictures."""
    return root / scene_folder_name(scene) / pair_name(context)


def image_file(root: Path, scene: str, context: Sequence[int], frame: int, kind: str = COLOR) -> Path:
    """The file of one picture."""
    return entry_folder(root, scene, context) / kind / f"{frame:06d}.png"


def write_images(
    root: Path,
    scene: str,
    context: Sequence[int],
    frames: Sequence[int],
    images: Tensor,
    kind: str = COLOR,
) -> None:
    """Write images [n, 3, height, width] in multiples of 1/255 (``protocol.quantised``), each whole or not at all.

    Raises:
        SceneDataError: If the disk is full or the folder cannot be written.
    """
    for frame, image in zip(frames, images, strict=True):
        path = image_file(root, scene, context, frame, kind)
        write_image(path, (255 * image).round().byte().permute(1, 2, 0).cpu().numpy())


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 [height, width, 3] as the kind of file that the name says. Raises SceneDataError where that fails."""
    from PIL import Image

    encoded = BytesIO()
    kind = "JPEG" if path.suffix == ".jpg" else "PNG"
    Image.fromarray(image).save(encoded, kind, **({"quality": 90} if kind == "JPEG" else {"compress_level": 3}))
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(encoded.getvalue())
        os.replace(partial, path)
    except OSError as error:
        raise SceneDataError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
