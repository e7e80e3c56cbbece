"""RealEstate10k in pixelSplat's layout: folders of ``.torch`` chunks with an ``index.json`` each.

Source: spec section 2.1. A chunk is a pickled list of scenes (dicts of tensors and strings); it is read with
``weights_only=True``, so a chunk that carries code is refused.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.sources import OnBroken
from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.conventions import cameras_from_re10k_rows


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
            SceneDataError: If folder or index are absent or empty, or the index names a chunk that is not there.
        """
        if not root.is_dir():
            raise SceneDataError(f"no data folder {root}; pass the folder that holds train/ and test/ with --data")
        folder = root / split
        index_path = folder / "index.json"
        if not index_path.is_file():
            raise SceneDataError(
                f"{root} is not a RealEstate10k folder: {split}/index.json is missing "
                f"(make demo scenes with `lsplat make-scenes {root}`, or name a dataparser such as nerfstudio-data)"
            )
        try:
            index = json.loads(index_path.read_text())
            chunks = {str(scene): str(chunk) for scene, chunk in index.items()}
        except (ValueError, AttributeError) as error:
            raise SceneDataError(f"{index_path} is not a JSON object of scene -> chunk file: {error}") from None
        if not chunks:
            raise SceneDataError(f"{index_path} lists no scene; regenerate the index or choose another folder")
        for chunk in sorted(set(chunks.values())):
            path = (folder / chunk).resolve()
            if folder.resolve() not in path.parents:
                raise SceneDataError(f"{index_path} names {chunk}, which lies outside {folder}; correct the index")
            if not path.is_file():
                raise SceneDataError(f"{index_path} names chunk {chunk}, which is not in {folder}; download it again")
        return Re10kSplit(root, split, chunks)

    @property
    def scenes(self) -> list[str]:
        """Scene ids in the index's order."""
        return list(self.chunk_of_scene)

    @property
    def shards(self) -> list[str]:
        """Chunk file names, sorted."""
        return sorted(set(self.chunk_of_scene.values()))

    def read_shard(self, shard: str, on_broken: OnBroken | None = None) -> Iterator[PosedVideo]:
        """The scenes of one chunk. Broken ones are handed to ``on_broken``, or raise where it is None.

        Raises:
            SceneDataError: If the file is cut short, holds code, or is no list of scenes.
        """
        path = self.root / self.split / shard
        try:
            scenes = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch reports a broken archive by many types
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SceneDataError(f"cannot read chunk {path}: {reason}; download it again") from None
        if not isinstance(scenes, list):
            raise SceneDataError(f"chunk {path} holds a {type(scenes).__name__}, not a list of scenes")
        for scene in scenes:
            try:
                video = _posed_video(scene, path)
            except SceneDataError as error:
                if on_broken is None:
                    raise
                on_broken(error)
                continue
            yield video

    def read_scene(self, scene: str) -> PosedVideo:
        """One scene by id.

        Raises:
            SceneDataError: If the split has no such scene.
        """
        if scene not in self.chunk_of_scene:
            near = [s for s in self.scenes if s.startswith(scene[:4])][:3] or self.scenes[:3]
            raise SceneDataError(f"no scene {scene} in {self.root / self.split}; there are {', '.join(near)}, ...")
        chunk = self.chunk_of_scene[scene]
        for video in self.read_shard(chunk):
            if video.scene == scene:
                return video
        raise SceneDataError(
            f"the index of {self.root / self.split} puts scene {scene} in {chunk}, but it is not there"
        )


def _posed_video(scene: dict, path: Path) -> PosedVideo:
    try:
        key, rows, images = scene["key"], scene["cameras"], scene["images"]
    except (KeyError, TypeError):
        raise SceneDataError(f"a scene of {path} lacks key, cameras or images") from None
    if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != 18 or len(rows) != len(images):
        raise SceneDataError(
            f"scene {key} of {path} needs one row of 18 camera numbers for each of its {len(images)} images"
        )
    try:
        world_from_camera, intrinsics_norm = cameras_from_re10k_rows(rows)
    except torch.linalg.LinAlgError:
        raise SceneDataError(f"scene {key} of {path} has a camera pose that cannot be inverted") from None

    def open_image(frame: int) -> Image.Image:
        try:
            return Image.open(io.BytesIO(images[frame].numpy().tobytes()))
        except (UnidentifiedImageError, OSError):
            raise SceneDataError(f"frame {frame} of scene {key} in {path.name} is not a readable image") from None

    def read_image(frame: int) -> np.ndarray:
        try:
            return np.asarray(open_image(frame).convert("RGB"))
        except OSError:  # a JPEG cut short is found out while decoding
            raise SceneDataError(f"frame {frame} of scene {key} in {path.name} is cut short") from None

    def read_size(frame: int) -> tuple[int, int]:
        width, height = open_image(frame).size
        return height, width

    return PosedVideo(str(key), world_from_camera, intrinsics_norm, read_image, read_size)
