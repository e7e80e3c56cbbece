"""Small datasets in RealEstate10k's layout, for tests."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def jpeg(seed: int, size: tuple[int, int]) -> torch.Tensor:
    """A JPEG file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return torch.from_numpy(np.frombuffer(buffer.getvalue(), np.uint8).copy())


def scene(key: str, frames: int = 6, size: tuple[int, int] = (36, 64), step: float = 0.1) -> dict:
    """A scene whose camera moves along -x by ``step`` per frame."""
    rows = torch.zeros(frames, 18)
    rows[:, :4] = torch.tensor([0.8, 1.4, 0.5, 0.5])
    rows[:, 6:] = torch.eye(4)[:3].flatten()
    rows[:, 9] = torch.arange(frames) * step  # x of the camera-from-world translation
    return {
        "url": "none", "timestamps": torch.arange(frames), "cameras": rows,
        "images": [jpeg(i, size) for i in range(frames)], "key": key,
    }  # fmt: skip


def write(root: Path, chunks: dict[str, list[dict]], split: str = "train") -> Path:
    """Write chunk files and their index; returns ``root``."""
    folder = root / split
    folder.mkdir(parents=True)
    for name, scenes in chunks.items():
        torch.save(scenes, folder / name)
    index = {s["key"]: name for name, scenes in chunks.items() for s in scenes}
    (folder / "index.json").write_text(json.dumps(index))
    return root
