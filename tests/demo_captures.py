"""Demo rooms as captures for nerfstudio: a transforms.json, or a COLMAP model, and images beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lsplat_ns.data.demo_scenes.demo_scene import DemoScene, build_demo_scene
from lsplat_ns.geometry.covariance import quaternions_from_rotation


@dataclass(frozen=True)
class World:
    """How a capture's world relates to the room's: x_capture = scale * rotation @ x_room + translation."""

    scale: float = 1.0
    rotation: np.ndarray | None = None  # [3, 3]
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def pose(self, world_from_camera: np.ndarray) -> np.ndarray:
        rotation = np.eye(3) if self.rotation is None else self.rotation
        pose = np.eye(4)
        pose[:3, :3] = rotation @ world_from_camera[:3, :3]
        pose[:3, 3] = self.scale * rotation @ world_from_camera[:3, 3] + self.translation
        return pose


@cache
def room(size: tuple[int, int] = (64, 96), frames: int = 14, seed: int = 3) -> DemoScene:
    return build_demo_scene("rooms", seed, 0, frames, size)


@cache
def photo(frame: int, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    return room(size).frame(frame).image


def write_capture(
    folder: Path,
    frames: Sequence[int] = range(14),
    world: World | None = None,
    size: tuple[int, int] = (64, 96),
    **extra,
) -> Path:
    """A capture of the demo room; ``extra`` goes into transforms.json."""
    scene, world = room(size), world or World()
    (folder / "images").mkdir(parents=True)
    entries = []
    for frame in frames:
        name = f"images/frame_{frame:05d}.png"
        Image.fromarray(photo(frame, size)).save(folder / name)
        opengl = world.pose(scene.cameras[frame].world_from_camera) * np.array([1, -1, -1, 1])
        entries.append({"file_path": name, "transform_matrix": opengl.tolist()})
    height, width = size
    intrinsics = scene.cameras[0].intrinsics_norm * np.array([[width], [height], [1.0]])
    content = {
        "camera_model": "OPENCV", "w": width, "h": height, "fl_x": intrinsics[0, 0], "fl_y": intrinsics[1, 1],
        "cx": intrinsics[0, 2], "cy": intrinsics[1, 2], **extra, "frames": entries,
    }  # fmt: skip
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def write_colmap_capture(folder: Path, frames: Sequence[int] = range(14), size: tuple[int, int] = (64, 96)) -> Path:
    """The same as :func:`write_capture` writes, with cameras as COLMAP's text model instead of a transforms.json."""
    write_capture(folder, frames, size=size)
    (folder / "transforms.json").unlink()
    sparse = folder / "colmap" / "sparse" / "0"
    sparse.mkdir(parents=True)
    height, width = size
    cameras = room(size).cameras
    fx, _, cx, _, fy, cy, *_ = (cameras[0].intrinsics_norm * np.array([[width], [height], [1.0]])).flatten()
    (sparse / "cameras.txt").write_text(f"1 PINHOLE {width} {height} {fx} {fy} {cx} {cy}\n")
    lines = []
    for number, frame in enumerate(frames, start=1):
        camera_from_world = np.linalg.inv(cameras[frame].world_from_camera)
        quaternion_wxyz = quaternions_from_rotation(torch.from_numpy(camera_from_world[None, :3, :3]))[0].tolist()
        numbers = [number, *quaternion_wxyz, *camera_from_world[:3, 3], 1]
        lines += [f"{' '.join(map(str, numbers))} frame_{frame:05d}.png", "0 0 -1"]
    (sparse / "images.txt").write_text("\n".join(lines) + "\n")
    (sparse / "points3D.txt").write_text("1 0.0 0.0 1.0 200 100 50 0.5 1 0\n")
    return folder
