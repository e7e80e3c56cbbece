"""RealEstate10k in pixelSplat's layout: folders of ``.torch`` chunks with an ``index.json`` each.

Source: spec section 2.1. A chunk is a pickled list of scenes (dicts of tensors and strings); it is read with
``weights_only=True``, so a chunk that carries code is refused.
"""

from __future__ import annotations

import gc
import io
import json
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lsplat_ns.data.layouts import lies_in
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.sources import OnBroken
from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.conventions import cameras_from_re10k_rows

CHUNKS_KEPT_OPEN = 2
"""Per process. Chunks are mapped files of some 100 MB, of which only the frames that were read occupy memory."""
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
"""Others, some of which start foreign programs to be read, are refused."""


@dataclass(frozen=True)
class Re10kSplit:
    """One split (``train`` or ``test``) of a dataset folder. Construction checks that every named chunk exists."""

    root: Path
    split: str
    chunk_of_scene: dict[str, str]  # scene id -> chunk file name, in the index's order

    @staticmethod
    def open(root: Path, split: str) -> Re10kSplit:
        """Read and check the split's index.

        Raises:
            SceneDataError: If folder or index are absent, empty or not readable, or the index names a chunk that is
                not there.
        """
        try:
            return Re10kSplit(root, split, _read_index(root, split))
        except OSError as error:
            raise SceneDataError(f"cannot read {error.filename or root}: {error.strerror}; make it readable") from None

    @cached_property
    def _scenes_of_chunk(self) -> dict[str, list[str]]:
        scenes: dict[str, list[str]] = {}
        for scene, chunk in self.chunk_of_scene.items():
            scenes.setdefault(chunk, []).append(scene)
        return scenes

    @property
    def scenes(self) -> list[str]:
        """Scene ids in the index's order."""
        return list(self.chunk_of_scene)

    @property
    def shards(self) -> list[str]:
        """Chunk file names, sorted."""
        return sorted(self._scenes_of_chunk)

    def scenes_of(self, shard: str) -> list[str]:
        """Scene ids of a chunk, by the index."""
        return self._scenes_of_chunk[shard]

    def read_shard(self, shard: str, on_broken: OnBroken | None = None) -> Iterator[PosedVideo]:
        """The scenes of one chunk. Broken ones are handed to ``on_broken``, or raise where it is None.

        Raises:
            SceneDataError: If the file is cut short, holds code, or is no list of scenes.
        """
        path = self.root / self.split / shard
        for scene in self._stored(path):
            try:
                video = scene_video(scene, path)
            except SceneDataError as error:
                if on_broken is None:
                    raise
                on_broken(error)
                continue
            yield video

    def read_scene(self, scene: str) -> PosedVideo:
        """One scene by id. The other scenes of its chunk may be broken.

        Raises:
            SceneDataError: If the split has no such scene, or it is broken.
        """
        if scene not in self.chunk_of_scene:
            near = [s for s in self.scenes if s.startswith(scene[:4])][:3] or self.scenes[:3]
            raise SceneDataError(f"no scene {scene} in {self.root / self.split}; there are {', '.join(near)}, ...")
        path = self.root / self.split / self.chunk_of_scene[scene]
        for stored in self._stored(path):
            if isinstance(stored, dict) and str(stored.get("key")) == scene:
                return scene_video(stored, path)
        raise SceneDataError(
            f"the index of {path.parent} puts scene {scene} in {path.name}, but it is not there; "
            f"write it anew with `lsplat index {self.root}`"
        )

    def _stored(self, path: Path) -> list[dict]:
        try:
            state = path.stat()
        except OSError as error:
            raise SceneDataError(f"cannot read chunk {path}: {error.strerror}; make it readable") from None
        return _open_chunk(path, state.st_size, state.st_mtime_ns)


def _read_index(root: Path, split: str) -> dict[str, str]:
    """Chunk file names by scene id, all of them present. Raises SceneDataError, or OSError without permission."""
    if not root.is_dir():
        raise SceneDataError(f"no data folder {root}; pass the folder that holds train/ and test/ with --data")
    folder = root / split
    index_path, rewrite = folder / "index.json", f"`lsplat index {root}`"
    if not index_path.is_file():
        raise SceneDataError(
            f"{root} is not a RealEstate10k folder: {split}/index.json is missing (write it from the chunks with "
            f"{rewrite}, make demo scenes with `lsplat make-scenes {root}`, or name a dataparser such as "
            f"nerfstudio-data)"
        )
    try:
        index = json.loads(index_path.read_text())
        chunks = {str(scene): str(chunk) for scene, chunk in index.items()}
    except (ValueError, AttributeError) as error:
        raise SceneDataError(
            f"{index_path} is not a JSON object of scene -> chunk file: {error}; write it anew with {rewrite}"
        ) from None
    if not chunks:
        raise SceneDataError(f"{index_path} lists no scene; write it anew with {rewrite}")
    for chunk in sorted(set(chunks.values())):
        path = folder / chunk
        if not lies_in(folder, path):
            linked = (folder / Path(chunk).name).is_symlink()
            mend = "link the whole folder, or copy the file" if linked else f"write it anew with {rewrite}"
            raise SceneDataError(f"{index_path} names {chunk!r}, which lies outside {folder}; {mend}")
        if not path.is_file():
            raise SceneDataError(
                f"{index_path} names chunk {chunk}, which is not in {folder}; download it again, "
                f"or leave its scenes out with {rewrite}"
            )
    return chunks


def read_chunk(path: Path) -> list[dict]:
    """The scenes of a chunk file as they are stored. Tensors are mapped from the file and read when they are touched.

    Raises:
        SceneDataError: If the file is cut short, holds code, or is no list of scenes.
    """
    try:
        with path.open("rb") as file:
            archive = file.read(4) == b"PK\x03\x04"  # files of torch before 1.6 cannot be mapped
    except OSError as error:
        raise SceneDataError(f"cannot read chunk {path}: {error.strerror}; make it readable") from None
    try:
        with _no_garbage_collection():
            scenes = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # torch reports a broken archive by many types
        code = isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower()
        reason = (
            "it carries pickled code, which is never run" if code else "it is cut short, or was not made by torch.save"
        )
        raise SceneDataError(f"cannot read chunk {path}: {reason}; download it again") from None
    if not isinstance(scenes, (list, tuple)):
        raise SceneDataError(f"chunk {path} holds a {type(scenes).__name__}, not a list of scenes")
    return list(scenes)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """The thousands of tensors of a chunk are not garbage; searching them while they are made costs a tenth more."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@lru_cache(maxsize=CHUNKS_KEPT_OPEN)
def _open_chunk(path: Path, size: int, modified_ns: int) -> list[dict]:
    """:func:`read_chunk`, remembered: listing the 3000 frames of a chunk takes a quarter of a second."""
    return read_chunk(path)


def scene_video(scene: dict, path: Path) -> PosedVideo:
    """A scene of :func:`read_chunk` (of the file at ``path``) as a video. Raises SceneDataError where it is broken."""
    try:
        key, rows, images = str(scene["key"]), scene["cameras"], scene["images"]
    except (KeyError, TypeError):
        raise SceneDataError(f"a scene of {path} lacks key, cameras or images") from None
    if not isinstance(images, (list, tuple)):
        raise SceneDataError(f"the images of scene {key} of {path} are a {type(images).__name__}, not a list")
    numbers = isinstance(rows, Tensor) and rows.is_floating_point() and rows.layout == torch.strided
    if not numbers or rows.is_meta or rows.ndim != 2 or rows.shape[1] != 18 or len(rows) != len(images):
        found = f"a {type(rows).__name__}"
        if isinstance(rows, Tensor):
            found = f"{'x'.join(map(str, rows.shape))} of {rows.dtype}".replace("torch.", "")
        raise SceneDataError(
            f"scene {key} of {path} needs one row of 18 camera numbers for each of its {len(images)} images, but has "
            f"{found}; download it again"
        )
    try:
        world_from_camera, intrinsics_norm = cameras_from_re10k_rows(rows.detach())
    except torch.linalg.LinAlgError:
        raise SceneDataError(f"scene {key} of {path} has a camera pose that cannot be inverted") from None
    frames = _Frames(f"scene {key} in {path.name}", images)
    return PosedVideo(
        key,
        world_from_camera,
        intrinsics_norm,
        frames.read_image,
        frames.read_size,
        read_picture=frames.read_picture,
    )


@dataclass(frozen=True)
class _Frames:
    """The compressed images of a scene: uint8 tensors, one file each."""

    where: str
    files: Sequence[Tensor]
    _sizes: dict[int, tuple[int, int]] = field(default_factory=dict)  # of headers read so far

    def read_image(self, frame: int) -> np.ndarray:
        """The image uint8 [height, width, 3]. Raises SceneDataError where it is broken."""
        return np.asarray(self.read_picture(frame))

    def read_picture(self, frame: int) -> Image.Image:
        """The image in mode RGB, decoded. Raises SceneDataError where it is broken."""
        image = self._open(frame)
        try:
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
        except (OSError, SyntaxError, ValueError):  # what is wrong inside a file is found out while decoding
            raise SceneDataError(f"frame {frame} of {self.where} is cut short or damaged; download it again") from None

    def read_size(self, frame: int) -> tuple[int, int]:
        """(height, width) from the header, which is read once."""
        if frame not in self._sizes:
            image = self._open(frame)
            self._sizes[frame] = image.height, image.width
        return self._sizes[frame]

    def _open(self, frame: int) -> Image.Image:
        try:
            file = self.files[frame]
            if file.nbytes > file.untyped_storage().nbytes():  # pretends to be longer than what is stored
                raise TypeError
            return Image.open(io.BytesIO(file.numpy().tobytes()), formats=IMAGE_FORMATS)
        except (OSError, AttributeError, TypeError, RuntimeError, SyntaxError, Image.DecompressionBombError):
            raise SceneDataError(f"frame {frame} of {self.where} is not a readable image; download it again") from None
