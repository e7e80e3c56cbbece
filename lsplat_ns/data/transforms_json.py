"""What must be in a ``transforms.json`` before nerfstudio reads it, checked so that a mistake is said in one line."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from lsplat_ns.errors import SceneDataError

CAMERA_KEYS = ("fl_x", "fl_y", "cx", "cy", "w", "h")
"""In pixels, for the whole capture or in every frame."""


def check_transforms(file: Path, camera_models: Collection[str]) -> None:
    """Check frames, poses, intrinsics and camera model of a ``transforms.json`` for nerfstudio-data.

    Numbers that make no camera (poses that are not rigid, no focal length) are left to those who use them.

    Args:
        file: The file.
        camera_models: The names that nerfstudio knows.

    Raises:
        SceneDataError: If the file is no such JSON, a frame lacks its image, its pose or its intrinsics, or the camera
            model is unknown.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SceneDataError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise SceneDataError(f"cannot read {file}: it is no JSON ({error})") from None
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise SceneDataError(f"{file} lists no frames; it needs a list `frames` of image and pose each")
    if "camera_model" in content and content["camera_model"] not in list(camera_models):
        raise SceneDataError(
            f"{file} states the camera model {content['camera_model']}; nerfstudio knows {', '.join(camera_models)}"
        )
    for number, frame in enumerate(frames):
        wrong = _why_no_frame(frame, content)
        if wrong:
            raise SceneDataError(f"{file}, frame {number} of the list: {wrong}")


def _why_no_frame(frame: Any, content: dict) -> str:
    """What an entry of ``frames`` lacks; empty where nothing."""
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
        return "no file_path"
    try:
        pose = np.array(frame.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError):
        pose = np.empty(0)
    if pose.shape != (4, 4):
        return "transform_matrix must be 4 rows of 4 numbers, camera to world with OpenGL axes"
    if not np.isfinite(pose).all():  # nerfstudio would spread it over all frames when it centres them
        return "transform_matrix has NaN or infinite numbers"
    missing = [key for key in CAMERA_KEYS if key not in frame and key not in content]
    if missing:
        angle = " (camera_angle_x alone is for blender-data)" if "camera_angle_x" in content else ""
        return f"no {', '.join(missing)}, neither here nor for the whole capture; state them in pixels{angle}"
    return ""
