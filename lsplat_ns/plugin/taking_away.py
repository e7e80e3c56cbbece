"""What a person takes away from the viewer: pictures, videos, files of Gaussians, and the scene as a run's config."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from nerfstudio.cameras.cameras import Cameras
from PIL import Image
from torch import Tensor

from lsplat_ns.data.atomic_files import replacing
from lsplat_ns.data.video import write_video
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.geometry.conventions import opencv_from_opengl, opengl_from_opencv
from lsplat_ns.geometry.trajectories import fly_through
from lsplat_ns.plugin.active_scene import ActiveScene
from lsplat_ns.plugin.added_photos import added_capture, added_scenes
from lsplat_ns.plugin.jobs import Progress
from lsplat_ns.plugin.scene_model import PredictedScene, SceneModel
from lsplat_ns.plugin.viewing import Draw

MOST_VIDEO_FRAMES = 10_000
MOST_VIDEO_PIXELS = 4096 * 4096


def file_name(scene: str) -> str:
    """A scene id as the name of a file in the run's folder, whatever characters it has."""
    return re.sub(r"[^\w.-]+", "_", scene).strip("._") or "scene"


def png_bytes(rgb: Tensor) -> bytes:
    """A picture [height, width, 3] in [0, 1] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(bytes_of(rgb)).save(buffer, "PNG")
    return buffer.getvalue()


def bytes_of(rgb: Tensor) -> np.ndarray:
    """Colours [...] in [0, 1] as uint8, on the CPU."""
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def fly_through_cameras(context: Cameras, frames: int, height: int) -> Cameras:
    """A round trip between the first and the last of the context cameras, as pictures of ``height`` (even sides)."""
    poses = opencv_from_opengl(context.camera_to_worlds)
    path = fly_through(poses[0], poses[-1], frames)
    factor = height / float(context.height[0])
    return Cameras(
        camera_to_worlds=opengl_from_opencv(path)[:, :3],
        fx=context.fx[0] * factor,
        fy=context.fy[0] * factor,
        cx=context.cx[0] * factor,
        cy=context.cy[0] * factor,
        width=int(int(context.width[0]) * factor) // 2 * 2,
        height=height,
    )


def stored_paths(data: Path) -> dict[str, Path]:
    """Camera paths that the viewer's Render tab has stored beside the data, by name, newest first."""
    files = sorted((data / "camera_paths").glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return {file.stem: file for file in files}


def read_camera_path(file: Path) -> tuple[Cameras, int]:
    """Cameras and frames per second of a camera path as nerfstudio writes it.

    Raises:
        SceneDataError: If the file is something else, or asks for too much.
    """
    from nerfstudio.cameras.camera_paths import get_path_from_json

    try:
        path = json.loads(file.read_text())
        width, height = (int(path[name]) // 2 * 2 for name in ("render_width", "render_height"))
        path["render_width"], path["render_height"] = width, height  # video encoders want even sides
        count, rate = len(path["camera_path"]), round(float(path.get("fps", 24)))
        if min(width, height) < 2 or width * height > MOST_VIDEO_PIXELS or not 1 <= count <= MOST_VIDEO_FRAMES:
            raise ValueError(f"{count} frames of {width}x{height}")
        return get_path_from_json(path), min(max(rate, 1), 120)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SceneDataError(f"{file} is no camera path that can be rendered: {error}") from None


def render_video(
    model: SceneModel,
    prediction: PredictedScene,
    cameras: Cameras,
    file: Path,
    *,
    frames_per_second: int,
    progress: Progress,
    lock: object,
) -> None:
    """Render a predicted scene along a path into an mp4. The viewer may show another scene meanwhile.

    Args:
        model: Rendered with; ``lock`` is held for one frame at a time.
        prediction: What is rendered.
        cameras: In the nerfstudio frame of that scene; even sides.
        file: Appears whole or not at all.
        frames_per_second: Of the video.
        progress: Told how far it is.
        lock: The viewer's.

    Raises:
        JobCancelled: If it was cancelled; nothing is left behind.
        SceneDataError: If the file cannot be written.
    """

    def frames() -> Iterator[np.ndarray]:
        total = len(cameras)
        for number in range(total):
            progress.report(number, total)
            with lock, model.evaluating():
                rgb = model.view(prediction, cameras[number : number + 1])["rgb"]
            yield bytes_of(rgb)
        progress.report(total, total)

    write_video(file, frames(), frames_per_second)


def save_scene_config(run_dir: Path, scene: ActiveScene, draw: Draw) -> Path:
    """Write ``scenes/ID.yml`` into a run's folder: its config with this scene, its context views and its draw chosen.

    Generated layers that are shown are noted in ``scenes/ID.layers.json`` beside it.

    Raises:
        ConfigError: If the run has no config.yml.
        SceneDataError: If the file cannot be written.
    """
    source = run_dir / "config.yml"
    if not source.is_file():
        raise ConfigError(f"no run at {source}")
    config = yaml.load(source.read_text(), Loader=yaml.Loader)  # trusted, as by every nerfstudio tool
    datamanager = config.pipeline.datamanager
    if scene.name in added_scenes(run_dir):
        datamanager.dataparser = added_capture(run_dir, scene.name).config
        config.data = datamanager.data = datamanager.dataparser.data
        datamanager.context = scene.choice.context
    elif hasattr(datamanager.dataparser, "scene"):
        datamanager.dataparser.scene, datamanager.dataparser.context = scene.name, scene.choice.context
    else:
        datamanager.context = scene.choice.context
    model = config.pipeline.model
    model.scene_mode, model.scene_seed, model.scene_temperature = draw.mode, draw.seed, draw.temperature
    file = run_dir / "scenes" / f"{file_name(scene.name)}.yml"
    layers = [layer.note(run_dir) for layer in scene.layers if layer.visible]
    datamanager.layers = file.with_suffix(".layers.json").resolve() if layers else None
    if layers:
        with replacing(datamanager.layers) as partial:
            partial.write_text(json.dumps(layers) + "\n")
    with replacing(file) as partial:
        partial.write_text(yaml.dump(config))
    return file


def commands_for(config: Path) -> dict[str, str]:
    """Commands that view, render and export the scene of a config."""
    quoted, name = shlex.quote(str(config)), config.stem
    video, folder = (shlex.quote(str(Path(*parts))) for parts in (("renders", f"{name}.mp4"), ("exports", name)))
    return {
        "View": f"ns-viewer --load-config {quoted}",
        "Render": f"ns-render interpolate --load-config {quoted} --pose-source train --output-path {video}",
        "Export": f"ns-export gaussian-splat --load-config {quoted} --output-dir {folder}",
    }
