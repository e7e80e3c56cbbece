"""CO3D's annotation files as compact tables: read record by record, cached, a few dozen bytes per frame.

``frame_annotations.jgz`` is a gzipped JSON list of one object per frame, hundreds of megabytes for a large category. It
is never held in memory as a whole. The table made of it is kept beside it (or in the user's cache folder where that
cannot be written) and made anew when the file's size or time of change differ.

Source: spec section 2.2.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np

from lsplat_ns.data.atomic_files import replacing
from lsplat_ns.errors import SceneDataError
from lsplat_ns.wording import counted

FRAMES_FILE = "frame_annotations.jgz"
SEQUENCES_FILE = "sequence_annotations.jgz"
TABLE_FILE = "frame_annotations.lsplat.npz"
TABLE_VERSION = 1
TABLES_KEPT = 4
"""In memory; some 14 MB per 100 000 frames."""
FORMATS = ("ndc_norm_image_bounds", "ndc_isotropic")
"""Units of focal length and principal point; the first one holds where none is stated."""
UNKNOWN_FORMAT = -1
PIECE = 1 << 20
"""Characters that are decompressed at a time; no record of the dataset is nearly as long."""
SEPARATORS = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class FrameTable:
    """All annotated frames of a category, one row each, ordered by sequence name and frame number.

    Rows of broken cameras hold NaN. ``names`` and ``paths`` are UTF-8, one after the other; ``*_ends`` say where each
    of them ends.
    """

    names: np.ndarray  # uint8, the sequences' names
    name_ends: np.ndarray  # int64 [sequences]
    row_ends: np.ndarray  # int64 [sequences], where each sequence's rows end
    frame_number: np.ndarray  # int64 [n]
    camera: np.ndarray  # float32 [n, 16]: rotation 3x3, translation 3, focal length 2, principal point 2
    size_px: np.ndarray  # int32 [n, 2], (height, width)
    intrinsics_format: np.ndarray  # int8 [n], index into FORMATS, or UNKNOWN_FORMAT
    paths: np.ndarray  # uint8, image paths as annotated
    path_ends: np.ndarray  # int64 [n]

    def __post_init__(self) -> None:
        frames, sequences = len(self.frame_number), len(self.name_ends)
        shapes = {
            "row_ends": (sequences,), "camera": (frames, 16), "size_px": (frames, 2),
            "intrinsics_format": (frames,), "path_ends": (frames,),
        }  # fmt: skip
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has the shape {getattr(self, name).shape}, not {shape}")

    def rows_of_sequences(self) -> dict[str, slice]:
        """Rows by sequence name, in the table's order."""
        starts = [0, *self.row_ends[:-1].tolist()]
        return {
            _text(self.names, self.name_ends, i): slice(start, end)
            for i, (start, end) in enumerate(zip(starts, self.row_ends.tolist(), strict=True))
        }

    def path(self, row: int) -> str:
        """Image path of a row, as annotated."""
        return _text(self.paths, self.path_ends, row)


def _text(blob: np.ndarray, ends: np.ndarray, index: int) -> str:
    return blob[ends[index - 1] if index else 0 : ends[index]].tobytes().decode()


def _blob(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return np.frombuffer(b"".join(texts), np.uint8), ends


def read_frame_table(category: Path) -> FrameTable:
    """The frames of a category folder, from the cached table or, with a progress bar, from the annotations.

    Raises:
        SceneDataError: If the annotations are missing, empty, cut short, or no list of frames.
    """
    source = category / FRAMES_FILE
    try:
        status = source.stat()
    except OSError as error:
        raise SceneDataError(f"cannot read {source}: {error.strerror}; make it readable") from None
    return _table_of(source, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=TABLES_KEPT)
def _table_of(source: Path, size: int, modified_ns: int) -> FrameTable:
    """The table of an annotation file in a given state; remembered, as the splits of a category share it."""
    category, stamp = source.parent, np.array([TABLE_VERSION, size, modified_ns])
    places = [category / TABLE_FILE, _place_in_user_cache(category)]
    for place in places:
        table = _load_table(place, stamp)
        if table is not None:
            return table
    table = _parse_frames(source)
    if not category.stat().st_mode & 0o222:  # marked read-only, which does not keep root from writing
        places.pop(0)
    for place in places:
        if _save_table(place, stamp, table):
            break
    return table


def read_viewpoint_quality(category: Path) -> dict[str, float]:
    """CO3D's own score of the cameras by sequence; sequences without one are left out.

    Raises:
        SceneDataError: If the sequence annotations are missing, empty, cut short, or no list of sequences.
    """
    scores = {}
    for record in _records(category / SEQUENCES_FILE):
        score = record.get("viewpoint_quality_score")
        if isinstance(score, (int, float)):
            scores[str(record.get("sequence_name"))] = float(score)
    return scores


def _records(source: Path) -> Iterator[dict]:
    """The objects of a gzipped JSON list, one at a time, with a progress bar."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    try:
        with (
            source.open("rb") as packed,
            gzip.open(packed, "rt", encoding="utf-8") as text,
            Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
        ):
            size = os.fstat(packed.fileno()).st_size
            task = progress.add_task(f"Reading {source.parent.name}/{source.name}", total=size)
            pieces = iter(lambda: text.read(PIECE), "")
            for count, record in enumerate(_objects_of_list(pieces, source)):
                if count % 1000 == 0:
                    progress.update(task, completed=packed.tell())
                yield record
    except (EOFError, zlib.error):
        raise SceneDataError(f"{source} is cut short or damaged; download it again") from None
    except gzip.BadGzipFile as error:
        raise SceneDataError(f"{source} is not a gzip file ({error}); download it again") from None
    except UnicodeDecodeError:
        raise SceneDataError(f"{source} does not hold text; download it again") from None
    except OSError as error:
        raise SceneDataError(f"cannot read {source}: {error.strerror}; make it readable") from None


def _objects_of_list(pieces: Iterator[str], source: Path) -> Iterator[dict]:
    decode = json.JSONDecoder().raw_decode
    buffer = next(pieces, "").lstrip()
    if not buffer:
        raise SceneDataError(f"{source} is empty; download it again")
    if buffer[0] != "[":
        raise SceneDataError(f"{source} does not hold a JSON list of annotations; download it again")
    position, count = 1, 0
    while True:
        position = SEPARATORS.match(buffer, position).end()
        if buffer.startswith("]", position):
            return
        try:
            record, position = decode(buffer, position)
        except (ValueError, RecursionError):
            piece = next(pieces, "") if len(buffer) - position < PIECE else ""
            if not piece:
                raise SceneDataError(
                    f"{source} is cut short or no JSON after {counted(count, 'annotation')}; download it again"
                ) from None
            buffer, position = buffer[position:] + piece, 0  # the record goes on in the next piece
            continue
        if not isinstance(record, dict):
            raise SceneDataError(f"{source} lists a {type(record).__name__} where an annotation should be")
        yield record
        count += 1


def _parse_frames(source: Path) -> FrameTable:
    ids: dict[bytes, int] = {}
    sequence, frame_number, camera = array("q"), array("q"), array("f")
    size_px, intrinsics_format, paths = array("i"), array("b"), []
    for count, record in enumerate(_records(source)):
        try:
            image = record["image"]
            height, width = map(int, image["size"])
            sequence.append(ids.setdefault(str(record["sequence_name"]).encode(), len(ids)))
            frame_number.append(record["frame_number"])
            size_px.extend((height, width))
            paths.append(str(image["path"]).encode())
        except (KeyError, TypeError, ValueError, OverflowError):
            raise SceneDataError(
                f"annotation {count} of {source} lacks sequence_name, frame_number, image.path or image.size"
            ) from None
        numbers, unit = _viewpoint(record.get("viewpoint"))
        camera.extend(numbers)
        intrinsics_format.append(unit)
    if not paths:
        raise SceneDataError(f"{source} lists no frame; download it again")
    names = sorted(ids)
    rank = np.empty(len(names), np.int64)
    rank[[ids[name] for name in names]] = np.arange(len(names))
    sequence_rank, numbers = rank[np.asarray(sequence)], np.asarray(frame_number)
    order = np.lexsort((numbers, sequence_rank))  # by sequence, then by number
    return FrameTable(
        *_blob(names),
        np.cumsum(np.bincount(sequence_rank, minlength=len(names))),
        numbers[order],
        np.asarray(camera).reshape(-1, 16)[order],
        np.asarray(size_px).reshape(-1, 2)[order],
        np.asarray(intrinsics_format)[order],
        *_blob([paths[i] for i in order]),
    )


def _viewpoint(viewpoint: object) -> tuple[list[float], int]:
    """The camera's 16 numbers, NaN where they are incomplete, and the unit of its intrinsics."""
    try:
        values = [n for key in ("R", "T", "focal_length", "principal_point") for n in np.ravel(viewpoint[key]).tolist()]
        numbers = [float(n) for n in values]
        unit = viewpoint.get("intrinsics_format") or FORMATS[0]
    except (KeyError, TypeError, ValueError, AttributeError):
        return [np.nan] * 16, 0
    if len(numbers) != 16:
        numbers = [np.nan] * 16
    return numbers, FORMATS.index(unit) if unit in FORMATS else UNKNOWN_FORMAT


def _place_in_user_cache(category: Path) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(str(category.resolve()).encode()).hexdigest()[:16]
    return root / "lsplat_ns" / f"co3d-{category.name}-{digest}.npz"


def _load_table(place: Path, stamp: np.ndarray) -> FrameTable | None:
    """A cached table, or None where there is none that belongs to the annotations as they are now."""
    try:
        with np.load(place, allow_pickle=False) as archive:
            if not np.array_equal(archive["stamp"], stamp):
                return None
            return FrameTable(**{field.name: archive[field.name] for field in fields(FrameTable)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _save_table(place: Path, stamp: np.ndarray, table: FrameTable) -> bool:
    """Cache a table; False where the folder is read-only or the disk is full."""
    try:
        with replacing(place) as unfinished, unfinished.open("wb") as file:
            np.savez(file, stamp=stamp, **{field.name: getattr(table, field.name) for field in fields(FrameTable)})
    except SceneDataError:
        return False
    return True
