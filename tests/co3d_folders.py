"""Small CO3D folders, written from scratch: cameras on a circle, one flat colour per frame."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (40, 48)  # height, width
RADIUS = 4.0


def color_of(frame: int) -> int:
    """The grey of a frame's picture."""
    return 10 * frame % 250


def viewpoint(angle: float, focal: float = 2.2) -> dict:
    """A camera that stands at ``angle`` on a circle about the origin and looks at it, in PyTorch3D's terms."""
    c, s = np.cos(angle), np.sin(angle)
    return {
        "R": [[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]],
        "T": [0.0, 0.0, RADIUS],
        "focal_length": [focal, focal],
        "principal_point": [0.05, -0.1],
        "intrinsics_format": "ndc_isotropic",
    }


def annotations(sequence: str, frames: int, category: str = "hydrant") -> list[dict]:
    """Frame annotations of a walk around the origin."""
    return [
        {
            "sequence_name": sequence,
            "frame_number": i,
            "frame_timestamp": i / 10,
            "image": {"path": f"{category}/{sequence}/images/frame{i + 1:06d}.jpg", "size": list(SIZE)},
            "depth": None,
            "mask": {"path": "unused.png", "mass": 3.5},
            "viewpoint": viewpoint(2 * np.pi * i / frames),
            "meta": {"frame_type": "train"},
        }
        for i in range(frames)
    ]


def write_annotations(category: Path, content: object, name: str = "frame_annotations.jgz") -> None:
    """Write any value as gzipped JSON."""
    category.mkdir(parents=True, exist_ok=True)
    (category / name).write_bytes(gzip.compress(json.dumps(content).encode()))


def write_images(root: Path, frames: list[dict]) -> None:
    """A picture for every annotation."""
    for i, frame in enumerate(frames):
        path = root / frame["image"]["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (color_of(i),) * 3).save(path, quality=95)


def write_category(
    root: Path,
    sequences: dict[str, int],
    category: str = "hydrant",
    edit: Callable[[dict], None] | None = None,
) -> Path:
    """A category of sequences (frames by name) with pictures; ``edit`` may change each annotation. Returns ``root``."""
    frames = []
    for name, count in sequences.items():
        made = annotations(name, count, category)
        write_images(root, made)
        frames += made
    for frame in frames:
        if edit is not None:
            edit(frame)
    write_annotations(root / category, frames[::-1])  # the dataset's files are in no particular order
    return root


def write_list(root: Path, which: str, sequences: dict[str, list[int]], category: str = "hydrant") -> Path:
    """A split list in the form of latentSplat's; its folder is returned."""
    folder = root / "dataset_splits"
    folder.mkdir(exist_ok=True)
    entries = [[name, frame, f"{category}/{name}/x.jpg"] for name, frames in sequences.items() for frame in frames]
    (folder / f"co3d_{category}_{which}.json").write_text(json.dumps(entries))
    return folder


def write_set_list(root: Path, name: str, subsets: dict[str, list[str]], category: str = "hydrant") -> None:
    """One of CO3D's own set lists: sequences by subset, with a frame each."""
    folder = root / category / "set_lists"
    folder.mkdir(exist_ok=True)
    content = {key: [[sequence, 0, "x.jpg"] for sequence in names] for key, names in subsets.items()}
    (folder / f"set_lists_{name}.json").write_text(json.dumps(content))
