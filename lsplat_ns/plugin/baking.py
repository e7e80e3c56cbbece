"""A predicted scene as an ordinary dataset: decoded views along a path, with the Gaussians as seed points.

A per-scene method such as splatfacto can be trained on it, and then shows the decoded picture at full frame rate.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox

from lsplat_ns.errors import LsplatError
from lsplat_ns.geometry.harmonics import rgb_from_dc
from lsplat_ns.plugin.active_scene import ActiveScene
from lsplat_ns.plugin.jobs import Progress
from lsplat_ns.plugin.scene_model import PredictedScene, SceneModel
from lsplat_ns.plugin.taking_away import cropped, png_bytes
from lsplat_ns.scene import Gaussians

MOST_SEED_POINTS = 100_000
SEED_POINT = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])


def bake(
    model: SceneModel,
    prediction: PredictedScene,
    cameras: Cameras,
    folder: Path,
    *,
    crop: OrientedBox | None,
    progress: Progress,
    lock: object,
) -> str:
    """Write decoded views as a dataset that nerfstudio-data reads. A dataset that lies there is replaced at the end.

    Args:
        model: Rendered with; ``lock`` is held for one view at a time.
        prediction: What is rendered.
        cameras: Perspective, in the nerfstudio frame of that scene; the dataset keeps that frame.
        folder: Takes ``images/``, ``transforms.json`` and ``seed_points.ply``.
        crop: Only Gaussians in this box are drawn, and become seed points.
        progress: Told how far it is.
        lock: The viewer's.

    Returns:
        The command that trains splatfacto on it.

    Raises:
        JobCancelled: If it was cancelled; nothing is left behind.
        LsplatError: If the folder cannot be written.
    """
    shown = cropped(model, prediction, crop)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
            made = Path(scratch) / "dataset"
            (made / "images").mkdir(parents=True)
            frames = []
            for number in range(len(cameras)):
                progress.report(number, len(cameras))
                camera = cameras[number : number + 1]
                with lock, model.evaluating():
                    rgb = model.view(prediction, camera, shown=shown)["rgb"]
                name = f"images/view_{number:05d}.png"
                (made / name).write_bytes(png_bytes(rgb))
                frames.append({"file_path": name, **_camera_entry(camera)})
            content = {"camera_model": "OPENCV", "ply_file_path": "seed_points.ply", "frames": frames}
            (made / "transforms.json").write_text(json.dumps(content, indent=1) + "\n")
            _write_seed_points(shown, prediction.scene, made / "seed_points.ply")
            progress.report(len(cameras), len(cameras))
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)
    except OSError as error:
        raise LsplatError(f"could not write {folder}: {error}") from None
    # The poses are as they should be: turning and centring them anew would only lose the frame.
    options = "--orientation-method none --center-method none --auto-scale-poses False"
    return f"ns-train splatfacto --data {shlex.quote(str(folder))} nerfstudio-data {options}"


def _camera_entry(camera: Cameras) -> dict[str, object]:
    pose = torch.eye(4)
    pose[:3] = camera.camera_to_worlds.reshape(3, 4)
    numbers = {"fl_x": camera.fx, "fl_y": camera.fy, "cx": camera.cx, "cy": camera.cy}
    return {
        "w": int(camera.width),
        "h": int(camera.height),
        **{name: float(value) for name, value in numbers.items()},
        "transform_matrix": pose.tolist(),
    }


def _write_seed_points(gaussians: Gaussians, scene: ActiveScene, path: Path) -> None:
    """Write the centres and colours of the more opaque half of the Gaussians, in nerfstudio's frame, as a PLY."""
    opacities = gaussians.opacities[0]
    chosen = opacities.topk(min(-(-len(opacities) // 2), MOST_SEED_POINTS)).indices
    to_nerfstudio = scene.network_from_nerfstudio.inverse()
    points = np.empty(len(chosen), SEED_POINT)
    points["xyz"] = to_nerfstudio.apply_to_points(gaussians.means[0, chosen]).cpu().numpy()
    colour = rgb_from_dc(gaussians.color_harmonics[0, chosen, :, 0]).clamp(0, 1)
    points["rgb"] = (255 * colour).round().to(torch.uint8).cpu().numpy()
    properties = [f"property float {axis}" for axis in "xyz"]
    properties += [f"property uchar {name}" for name in ("red", "green", "blue")]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *properties, "end_header", ""]
    path.write_bytes("\n".join(header).encode() + points.tobytes())
