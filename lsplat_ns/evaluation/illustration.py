"""What a report shows of an entry beside its pictures: depth, uncertainty, splats, cameras and epipolar lines.

Source: spec sections 8.2 (depth colours) and 8.5 (uncertainty).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsplat_ns.data.atomic_files import replacing
from lsplat_ns.evaluation.entries import LoadedEntry, spread_out
from lsplat_ns.evaluation.image_folders import entry_folder, entry_name, write_image
from lsplat_ns.geometry.epipolar import project_rays
from lsplat_ns.geometry.rays import world_rays
from lsplat_ns.scene import Cameras

ILLUSTRATIONS = "illustrations"
MAPS = ("splat", "depth", "uncertainty")
MOST_TARGETS = 6
"""Targets of an entry that are illustrated; entries of 360 degrees have 20."""
MOST_PATH_POINTS = 200
EPIPOLAR_POINTS = ((0.22, 0.3), (0.5, 0.22), (0.78, 0.3), (0.22, 0.72), (0.5, 0.6), (0.78, 0.72))
"""Image points of the first context view whose rays are drawn in the second."""


@dataclass(frozen=True)
class TargetMaps:
    """What was rendered for one target. Arrays [height, width] or [height, width, 3] in [0, 1]; depth_z is positive."""

    frame: int
    splat: np.ndarray
    depth_z: np.ndarray
    uncertainty: np.ndarray


def shown_targets(count: int) -> list[int]:
    """Positions of the targets that are illustrated."""
    return spread_out(count, MOST_TARGETS)


def write_illustration(root: Path, loaded: LoadedEntry, maps: Sequence[TargetMaps]) -> None:
    """Write maps as pictures, and cameras as JSON, below ``root``; the JSON last, so that its presence means all.

    Raises:
        SceneDataError: If the disk is full or the folder cannot be written.
    """
    example = loaded.example
    folder = entry_folder(root / ILLUSTRATIONS, example.scene[0], _frames(loaded)[0])
    depth_range = np.quantile(np.log(np.stack([one.depth_z for one in maps])), (0.01, 0.99))
    uncertainty_range = np.quantile(np.stack([one.uncertainty for one in maps]), (0.05, 0.95))
    for one in maps:
        pictures = {
            "splat": (255 * one.splat.clip(0, 1)).astype(np.uint8),
            "depth": depth_picture(one.depth_z, depth_range),
            "uncertainty": uncertainty_picture(one.uncertainty, uncertainty_range),
        }
        for name, picture in pictures.items():
            write_image(folder / name / f"{one.frame:06d}.jpg", picture)
    with replacing(layout_file(root, example.scene[0], *_frames(loaded))) as partial:
        partial.write_text(json.dumps(_layout(loaded, [one.frame for one in maps])) + "\n")


def _frames(loaded: LoadedEntry) -> tuple[list[int], list[int]]:
    return loaded.example.context.frame[0].tolist(), loaded.example.target.frame[0].tolist()


def layout_file(root: Path, scene: str, context: Sequence[int], target: Sequence[int]) -> Path:
    """Where an entry's cameras are stored."""
    return entry_folder(root / ILLUSTRATIONS, scene, context) / f"{entry_name(context, target)}.json"


def _layout(loaded: LoadedEntry, shown: list[int]) -> dict[str, Any]:
    example = loaded.example
    cameras = [
        {
            "role": role,
            "frame": int(views.frame[0, i]),
            "world_from_camera": views.cameras.world_from_camera[0, i].tolist(),
            "intrinsics_norm": views.cameras.intrinsics_norm[0, i].tolist(),
        }
        for role, views in (("context", example.context), ("target", example.target))
        for i in range(views.frame.shape[1])
    ]
    path = loaded.path[spread_out(len(loaded.path), MOST_PATH_POINTS)]
    return {
        "cameras": cameras,
        "path": path[:, :3, 3].tolist(),
        "up": (-loaded.path[:, :3, 1].mean(0)).tolist(),
        "circular": loaded.circular,
        "shown": shown,
        "epipolar": epipolar_lines(example.context.cameras),
    }


def epipolar_lines(context: Cameras) -> list[dict[str, Any]]:
    """Where the rays of some points of the first context view fall in the second, between near and far.

    Args:
        context: Cameras [1, 2] with bounds.

    Returns:
        ``point`` (x, y) in the first image and ``segment``, two such points in the second or None where the second
        camera does not see the ray.
    """
    points = torch.tensor(EPIPOLAR_POINTS)
    poses, intrinsics = context.world_from_camera[0], context.intrinsics_norm[0]
    origins, directions = world_rays(points, poses[0], intrinsics[0])
    bounds = context.near[0, 0].expand(len(points)), context.far[0, 0].expand(len(points))
    segments = project_rays(origins, directions, poses[1], intrinsics[1], bounds)
    return [
        {
            "point": points[i].tolist(),
            "segment": [segments.start_xy[i].tolist(), segments.end_xy[i].tolist()] if segments.overlaps[i] else None,
        }
        for i in range(len(points))
    ]


def depth_picture(depth_z: np.ndarray, log_range: np.ndarray) -> np.ndarray:
    """Depth [...] as colours uint8 [..., 3]: turbo, near is red, over a range of log depth."""
    from matplotlib import colormaps

    low, high = log_range
    near = 1 - (np.log(depth_z.clip(1e-6)) - low) / max(high - low, 1e-6)
    return (255 * colormaps["turbo"](near.clip(0, 1))[..., :3]).astype(np.uint8)


def uncertainty_picture(uncertainty: np.ndarray, value_range: np.ndarray) -> np.ndarray:
    """Uncertainty [...] as greys uint8 [..., 3]: dark where the network is unsure."""
    low, high = value_range
    sure = 1 - ((uncertainty - low) / max(high - low, 1e-6)).clip(0, 1)
    return np.repeat((255 * sure).astype(np.uint8)[..., None], 3, axis=-1)


LARGEST_DIFFERENCE = 0.5
"""Mean absolute difference over channels that is drawn brightest."""


def difference_picture(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How far two pictures uint8 [..., 3] lie apart, as colours uint8 [..., 3]: black where they agree."""
    from matplotlib import colormaps

    apart = np.abs(prediction.astype(np.float32) - truth.astype(np.float32)).mean(-1) / (255 * LARGEST_DIFFERENCE)
    return (255 * colormaps["inferno"](apart.clip(0, 1))[..., :3]).astype(np.uint8)
