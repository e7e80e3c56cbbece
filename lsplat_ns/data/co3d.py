"""CO3D v2: walks around objects, ``<root>/<category>/`` with annotations and ``<sequence>/images/`` of JPEGs.

Source: spec section 2.2. The network's near and far distances come from the context cameras, as for every dataset
(``geometry.rays``); the fixed planes of the original's configuration are overwritten there as well, and so have no
place here. Masks, depth maps and point clouds are not read; backgrounds stay in the images.

# Differs from upstream: frames exactly as large as the network's image are used; the original wants them larger. Frames
# of differing sizes within an example (CO3D v1; in v2 a sequence has one size) are cropped each by itself, where the
# original first squeezes them to the least width and height among them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from lsplat_ns.data.co3d_annotations import (
    FORMATS,
    FRAMES_FILE,
    UNKNOWN_FORMAT,
    FrameTable,
    read_frame_table,
    read_viewpoint_quality,
)
from lsplat_ns.data.co3d_splits import rows_of_split
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.re10k import IMAGE_FORMATS
from lsplat_ns.data.sources import OnBroken
from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.conventions import cameras_from_pytorch3d
from lsplat_ns.wording import counted

FEWEST_FRAMES = 3
"""Two context views and a target."""
LARGEST_DETERMINANT_ERROR = 1e-5
"""Of a rotation; the original skips examples beyond it."""


@dataclass(frozen=True)
class Co3dOptions:
    """Which part of a CO3D folder is read, and how."""

    categories: tuple[str, ...] = ()
    """Category folders; all that are there when empty."""
    split_lists: Path | None = None
    """Folder of the published split lists (see ``co3d_splits``)."""
    min_viewpoint_quality: float | None = None
    """Leave out sequences whose cameras CO3D scores lower or not at all; None keeps all, as the original does."""
    circular: bool = True
    """Whether frame 0 follows the last one."""


@dataclass(frozen=True)
class Sequence:
    """Frames of one scene: rows of its category's table, ordered by frame number."""

    category: str
    rows: np.ndarray


@dataclass(frozen=True)
class Co3dSplit:
    """One split of one or more categories. Every sequence is a shard of its own; images are opened on demand."""

    root: Path
    split: str
    tables: dict[str, FrameTable]  # by category
    sequences: dict[str, Sequence]  # by scene id
    circular: bool = True
    notes: tuple[str, ...] = ()  # what a user should know about where the split comes from

    @staticmethod
    def open(root: Path, split: str, options: Co3dOptions | None = None) -> Co3dSplit:
        """Read annotations (from their cache, where there is one) and split lists.

        Args:
            root: Folder that holds the category folders.
            split: ``train``, or ``test`` (also called ``val``).
            options: Categories and the rest.

        Raises:
            SceneDataError: If the folder, a category, its annotations or its lists are absent, empty or broken.
        """
        options = options or Co3dOptions()
        tables: dict[str, FrameTable] = {}
        sequences: dict[str, Sequence] = {}
        notes: list[str] = []
        for name in _categories(root, options.categories):
            category = root / name
            table = tables[name] = read_frame_table(category)
            present = _sequences_on_disk(root, table)
            rows, said = rows_of_split(category, split, table, present, options.split_lists)
            if options.min_viewpoint_quality is not None:
                rows, dropped = _good_enough(rows, read_viewpoint_quality(category), options.min_viewpoint_quality)
                few = counted(dropped, "sequence has", "sequences have")
                said.append(f"{name}: {few} a viewpoint quality below the asked one")
            notes += said
            twice = sequences.keys() & rows.keys()
            if twice:
                raise SceneDataError(f"sequence {min(twice)} of {category} is in another category too; choose one")
            sequences.update({scene: Sequence(name, kept) for scene, kept in rows.items()})
        if not sequences:
            raise SceneDataError(f"no sequence of {root} is left; lower min-viewpoint-quality")
        return Co3dSplit(root, split, tables, sequences, options.circular, tuple(notes))

    @property
    def scenes(self) -> list[str]:
        """Sequence names, in the order of the split lists."""
        return list(self.sequences)

    @property
    def shards(self) -> list[str]:
        """Sequence names, sorted."""
        return sorted(self.sequences)

    def scenes_of(self, shard: str) -> list[str]:
        """The sequence itself."""
        return [shard]

    def read_shard(self, shard: str, on_broken: OnBroken | None = None) -> Iterator[PosedVideo]:
        """The sequence itself. If it is broken, it is handed to ``on_broken``, or raises where that is None."""
        try:
            video = self.read_scene(shard)
        except SceneDataError as error:
            if on_broken is None:
                raise
            on_broken(error)
            return
        yield video

    def read_scene(self, scene: str) -> PosedVideo:
        """One sequence. Its frames may differ in size; each has its own intrinsics.

        Raises:
            SceneDataError: If there is no such sequence, if it is too short, or has a broken camera or image path.
        """
        if scene not in self.sequences:
            near = [s for s in self.scenes if s.startswith(scene[:4])][:3] or self.scenes[:3]
            raise SceneDataError(f"no scene {scene} in the {self.split} split of {self.root}; there are {near}")
        sequence = self.sequences[scene]
        table, rows = self.tables[sequence.category], sequence.rows
        where = f"scene {scene} of {self.root / sequence.category}"
        if len(rows) < FEWEST_FRAMES:
            raise SceneDataError(
                f"{where} has only {len(rows)} of the {FEWEST_FRAMES} frames that an example needs", reason="too short"
            )
        _check_cameras(table, rows, where)
        paths = [table.path(row) for row in rows]
        outside = next((path for path in paths if not _stays_inside(path)), None)
        if outside is not None:
            raise SceneDataError(f"{where} has an image at {outside!r}, outside the dataset; correct the annotations")
        camera = torch.from_numpy(table.camera[rows])
        world_from_camera, intrinsics_norm = cameras_from_pytorch3d(
            camera[:, :9].reshape(-1, 3, 3),
            camera[:, 9:12],
            camera[:, 12:14],
            camera[:, 14:16],
            torch.from_numpy(table.size_px[rows]),
            torch.from_numpy(table.intrinsics_format[rows] == FORMATS.index("ndc_isotropic")),
        )
        images = _FrameFiles(scene, [self.root / path for path in paths], table.size_px[rows])
        return PosedVideo(
            scene,
            world_from_camera,
            intrinsics_norm,
            images.read_image,
            images.read_size,
            circular=self.circular,
            read_picture=images.read_picture,
        )


def _categories(root: Path, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The category folders to read. Raises SceneDataError where one is absent, naming those that are there."""
    try:
        there = sorted(folder.name for folder in root.iterdir() if (folder / FRAMES_FILE).is_file())
    except (FileNotFoundError, NotADirectoryError):
        raise SceneDataError(
            f"no data folder {root}; pass the folder that holds CO3D's categories with --data"
        ) from None
    except OSError as error:
        raise SceneDataError(f"cannot read {error.filename or root}: {error.strerror}; make it readable") from None
    if not there and (root / FRAMES_FILE).is_file():
        raise SceneDataError(f"{root} is the folder of one category; pass {root.absolute().parent} with --data")
    if not there:
        raise SceneDataError(
            f"{root} is not a CO3D folder: no folder in it has a {FRAMES_FILE} (make demo objects with "
            f"`lsplat make-scenes FOLDER --kind objects`, or name another dataparser such as re10k-data)"
        )
    missing = [name for name in wanted if name not in there]
    if missing:
        raise SceneDataError(
            f"no category {missing[0]} in {root}; choose with `co3d-data --category` among {', '.join(there)}"
        )
    return wanted or tuple(there)


def _sequences_on_disk(root: Path, table: FrameTable) -> set[str]:
    """Sequences whose first image lies in a folder that exists: CO3D is often downloaded in part."""
    return {
        name
        for name, rows in table.rows_of_sequences().items()
        if not _stays_inside(path := table.path(rows.start)) or os.path.isdir((root / path).parent)
    }


def _good_enough(
    rows: dict[str, np.ndarray], scores: dict[str, float], least: float
) -> tuple[dict[str, np.ndarray], int]:
    kept = {name: listed for name, listed in rows.items() if scores.get(name, -np.inf) >= least}
    return kept, len(rows) - len(kept)


def _stays_inside(path: str) -> bool:
    """Whether an annotated path cannot lead out of the dataset. Links are followed: categories often are links."""
    pure = PureWindowsPath(path)  # knows both kinds of separators
    return bool(pure.parts) and not pure.anchor and ".." not in pure.parts and "\0" not in path


def _check_cameras(table: FrameTable, rows: np.ndarray, where: str) -> None:
    """Raise SceneDataError where cameras cannot be converted. PosedVideo checks what they are converted to.

    # Differs from upstream: one bad frame spoils its sequence, not only the examples that use the frame.
    """
    determinant = np.linalg.det(table.camera[rows, :9].reshape(-1, 3, 3).astype(np.float64))
    unknown = table.intrinsics_format[rows] == UNKNOWN_FORMAT
    without_size = (table.size_px[rows] <= 0).any(1)
    improper = np.abs(determinant - 1) > LARGEST_DETERMINANT_ERROR
    for wrong, what in (
        (unknown, f"intrinsics in a format other than {' and '.join(FORMATS)}"),
        (without_size, "an image size that is not positive"),
        (improper, "a pose that is no rotation: its determinant is {:.6g}"),
    ):
        if wrong.any():
            frame = int(wrong.argmax())
            raise SceneDataError(f"{where}, frame {frame}, has {what.format(determinant[frame])}")


@dataclass(frozen=True)
class _FrameFiles:
    """The image files of a sequence."""

    scene: str
    paths: list[Path]
    annotated_size: np.ndarray  # [n, 2], (height, width)

    def read_image(self, frame: int) -> np.ndarray:
        """The image uint8 [height, width, 3]. Raises SceneDataError where it is missing or broken."""
        return np.asarray(self.read_picture(frame))

    def read_picture(self, frame: int) -> Image.Image:
        """The image in mode RGB, decoded. Raises SceneDataError where it is missing or broken."""
        image = self._open(frame)
        try:
            image.load()  # closes the file
            return image if image.mode == "RGB" else image.convert("RGB")
        except (OSError, SyntaxError, ValueError):  # what is wrong inside a file is found out while decoding
            image.close()
            raise SceneDataError(f"{self._name(frame)} is cut short or damaged; download it again") from None

    def read_size(self, frame: int) -> tuple[int, int]:
        """(height, width) of the file, which may be a scaled copy of what was annotated."""
        with self._open(frame) as image:
            return image.height, image.width

    def _name(self, frame: int) -> str:
        return f"frame {frame} of scene {self.scene} ({self.paths[frame]})"

    def _open(self, frame: int) -> Image.Image:
        try:
            image = Image.open(self.paths[frame], formats=IMAGE_FORMATS)
        except FileNotFoundError:
            raise SceneDataError(f"{self._name(frame)} is missing; download it again") from None
        except UnidentifiedImageError:
            raise SceneDataError(f"{self._name(frame)} is not a readable image; download it again") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise SceneDataError(f"{self._name(frame)} cannot be read: {error}") from None
        height, width = map(int, self.annotated_size[frame])
        if abs(image.width * height - image.height * width) > max(height, width):  # more than a rounded pixel
            image.close()
            raise SceneDataError(
                f"{self._name(frame)} has {image.width}x{image.height} pixels, another shape than the annotated "
                f"{width}x{height}; its camera does not hold for a cropped or turned image",
                reason="image size",
            )
        return image
