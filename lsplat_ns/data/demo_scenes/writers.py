"""Writes rendered scenes in the layouts of RealEstate10k (pixelSplat's chunks) and CO3D v2."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from lsplat_ns.data.demo_scenes.renderer import Camera

CHUNK_BYTES = 100_000_000
MICROSECONDS_PER_FRAME = 33_367  # 29.97 frames per second
JPEG_QUALITY = 93
CATEGORY = "hydrant"
SUBSET = "demo"


@dataclass(frozen=True)
class Photographs:
    """All frames of one scene, compressed."""

    key: str
    size: tuple[int, int]  # (height, width)
    cameras: tuple[Camera, ...]
    jpegs: tuple[bytes, ...]


class SceneWriter(Protocol):
    """Receives scenes one by one."""

    def add(self, photographs: Photographs, splits: Sequence[str]) -> None:
        """Store a scene in the given splits (``"train"``, ``"test"``)."""

    def finish(self) -> None:
        """Write what is still held back and the index files."""


def encode_jpeg(image: np.ndarray) -> bytes:
    """A JPEG file of an image [height, width, 3] uint8, without chroma subsampling."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def write_json(path: Path, value: object) -> None:
    """Write compact JSON and make the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


class RealEstateWriter:
    """``{train,test}/NNNNNN.torch`` with an ``index.json`` each, and ``evaluation_index.json``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._pending: dict[str, list[dict]] = {"train": [], "test": []}
        self._chunks: dict[str, int] = {"train": 0, "test": 0}
        self._index: dict[str, dict[str, str]] = {"train": {}, "test": {}}
        self._evaluation: dict[str, list[dict]] = {}

    def add(self, photographs: Photographs, splits: Sequence[str]) -> None:
        """Store a scene; a chunk is written before it would grow beyond ``CHUNK_BYTES``."""
        example = realestate_example(photographs)
        for split in splits:
            held = sum(len(image) for other in self._pending[split] for image in other["images"])
            if held + sum(map(len, photographs.jpegs)) > CHUNK_BYTES:
                self._flush(split)
            self._pending[split].append(example)
        if "test" in splits:
            self._evaluation[photographs.key] = glide_entries(len(photographs.cameras))

    def finish(self) -> None:
        """Write the last chunks and the index files."""
        for split, index in self._index.items():
            self._flush(split)
            write_json(self._root / split / "index.json", index)
        write_json(self._root / "evaluation_index.json", self._evaluation)

    def _flush(self, split: str) -> None:
        if not self._pending[split]:
            return
        name = f"{self._chunks[split]:06d}.torch"
        path = self._root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self._pending[split], path)
        self._index[split].update({example["key"]: name for example in self._pending[split]})
        self._pending[split] = []
        self._chunks[split] += 1


def realestate_example(photographs: Photographs) -> dict:
    """One entry of a chunk: url, timestamps, 18-number camera rows (world to camera, OpenCV axes), JPEG bytes, key."""
    rows = []
    for camera in photographs.cameras:
        to_camera = np.linalg.inv(camera.world_from_camera)[:3]
        rows.append([*camera.focal_norm, 0.5, 0.5, 0.0, 0.0, *to_camera.flatten()])
    images = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in photographs.jpegs]
    return {
        "url": f"lsplat-demo:{photographs.key}",
        "timestamps": torch.arange(len(rows), dtype=torch.int64) * MICROSECONDS_PER_FRAME,
        "cameras": torch.tensor(rows, dtype=torch.float32),
        "images": images,
        "key": photographs.key,
    }


def glide_entries(frames: int) -> list[dict]:
    """Evaluation entries of an open path: targets between two context views, then targets outside them."""
    gap = max(2, round(0.75 * min(45, frames - 1)))
    left = (frames - 1 - gap) // 2
    right = left + gap
    inner = sorted({left + round(gap * share) for share in (0.25, 0.5, 0.75)} - {left, right})
    entries = [{"context": [left, right], "target": inner}]
    reach = min(10, max(left, frames - 1 - right))
    outer = {f for step in (reach, (reach + 1) // 2) for f in (left - step, right + step) if step and 0 <= f < frames}
    if outer:
        entries.append({"context": [left, right], "target": sorted(outer)})
    return entries


class CO3DWriter:
    """``hydrant/`` with annotations, set lists and images; split lists and ``evaluation_index.json`` beside it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._frames: list[dict] = []
        self._sequences: list[dict] = []
        self._lists: dict[str, list[list]] = {"train": [], "test": []}
        self._evaluation: dict[str, list[dict]] = {}

    def add(self, photographs: Photographs, splits: Sequence[str]) -> None:
        """Write a sequence's images and keep its annotations."""
        folder = Path(CATEGORY) / photographs.key / "images"
        (self._root / folder).mkdir(parents=True)
        listed = []
        for i, (camera, jpeg) in enumerate(zip(photographs.cameras, photographs.jpegs, strict=True)):
            path = folder / f"frame{i + 1:06d}.jpg"
            (self._root / path).write_bytes(jpeg)
            annotation = {
                "sequence_name": photographs.key,
                "frame_number": i,
                "frame_timestamp": i * MICROSECONDS_PER_FRAME / 1e6,
                "image": {"path": path.as_posix(), "size": list(photographs.size)},
                "depth": None,
                "mask": None,
                "viewpoint": pytorch3d_viewpoint(camera, photographs.size),
                "meta": {"frame_type": "_".join(splits)},
            }
            self._frames.append(annotation)
            listed.append([photographs.key, i, path.as_posix()])
        self._sequences.append({"sequence_name": photographs.key, "category": CATEGORY, "viewpoint_quality_score": 1.0})
        for split in splits:
            self._lists[split] += listed
        if "test" in splits:
            self._evaluation[photographs.key] = orbit_entries(len(photographs.cameras))

    def finish(self) -> None:
        """Write annotations, split lists and the evaluation index."""
        category = self._root / CATEGORY
        for name, value in (("frame_annotations", self._frames), ("sequence_annotations", self._sequences)):
            (category / f"{name}.jgz").write_bytes(gzip.compress(json.dumps(value).encode(), mtime=0))
        lists = {"train": self._lists["train"], "val": self._lists["test"], "test": self._lists["test"]}
        write_json(category / "set_lists" / f"set_lists_{SUBSET}.json", lists)
        for name, split in (("train", "train"), ("eval", "test")):
            write_json(self._root / "dataset_splits" / f"co3d_{CATEGORY}_{name}.json", self._lists[split])
        write_json(self._root / "evaluation_index.json", self._evaluation)


def pytorch3d_viewpoint(camera: Camera, size: tuple[int, int]) -> dict:
    """A camera in CO3D's terms: row vectors, x left and y up, focal length and principal point in isotropic NDC."""
    height, width = size
    half = min(height, width) / 2
    to_camera = np.linalg.inv(camera.world_from_camera)
    rotation, translation = to_camera[:3, :3].T.copy(), to_camera[:3, 3].copy()
    rotation[:, :2] *= -1
    translation[:2] *= -1
    return {
        "R": rotation.tolist(),
        "T": translation.tolist(),
        "focal_length": [camera.focal_norm[0] * width / half, camera.focal_norm[1] * height / half],
        "principal_point": [0.0, 0.0],
        "intrinsics_format": "ndc_isotropic",
    }


def orbit_entries(frames: int) -> list[dict]:
    """Evaluation entries on a circle of frames: for four arcs of about 70 degrees, targets within, then outside."""
    gap = max(2, min(frames - 2, round(frames * 20 / 102)))
    entries = []
    for start in sorted({round(frames * share) % frames for share in (0, 0.25, 0.5, 0.75)}):
        context = [start, (start + gap) % frames]
        inner = sorted({round(gap * share) for share in (0.25, 0.5, 0.75)} - {0, gap})
        outer = sorted({gap + max(1, round((frames - gap) * share)) for share in (0.1, 0.5, 0.9)} - {gap, frames})
        for steps in (inner, outer):
            entries.append({"context": context, "target": [(start + step) % frames for step in steps]})
    return entries
