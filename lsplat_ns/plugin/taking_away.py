"""What a person takes away from the viewer: pictures, videos, files of Gaussians, and the scene as a run's config."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from PIL import Image
from torch import Tensor

from lsplat_ns.data.atomic_files import replacing
from lsplat_ns.data.video import write_video
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.geometry.conventions import opencv_from_opengl, opengl_from_opencv
from lsplat_ns.geometry.similarity import Similarity
from lsplat_ns.geometry.trajectories import fly_through
from lsplat_ns.plugin.active_scene import ActiveScene, check_perspective
from lsplat_ns.plugin.added_photos import added_capture, added_scenes
from lsplat_ns.plugin.generated_layers import delete_unreferenced, folders_in
from lsplat_ns.plugin.jobs import Progress
from lsplat_ns.plugin.scene_model import PredictedScene, SceneModel
from lsplat_ns.plugin.viewing import Draw
from lsplat_ns.scene import Gaussians

MOST_VIDEO_FRAMES = 10_000
MOST_VIDEO_PIXELS = 4096 * 4096
SCENE_NOTE = "lsplat_scene"
"""Key of our note in a camera path."""


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


@dataclass(frozen=True)
class StoredPath:
    """A camera path of the viewer's Render tab."""

    cameras: Cameras  # perspective, in nerfstudio's frame of the scene that is shown
    frames_per_second: int
    crop: OrientedBox | None  # the viewer's crop box when it was stored
    scene: str | None  # that was shown when it was stored; None where nobody noted it


def stored_paths(data: Path) -> dict[str, Path]:
    """Camera paths that the viewer's Render tab has stored beside the data, by name, newest first."""
    files = sorted((data / "camera_paths").glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return {file.stem: file for file in files}


def note_scene(file: Path, scene: ActiveScene) -> None:
    """Note in a camera path that was stored a moment ago to which scene and frame its cameras belong.

    nerfstudio's frame depends on the context views; its tools pass over the note.

    Raises:
        SceneDataError: If the file cannot be changed.
    """
    note = {"scene": scene.name, "lasting_from_path": _frame_of(scene)}
    try:
        content = {**json.loads(file.read_text()), SCENE_NOTE: note}
    except (OSError, ValueError, TypeError) as error:
        raise SceneDataError(f"{file} is no camera path: {error}") from None
    with replacing(file) as partial:
        partial.write_text(json.dumps(content))


def read_camera_path(file: Path, scene: ActiveScene | None = None) -> StoredPath:
    """A camera path as nerfstudio writes it.

    Args:
        file: In a folder of :func:`stored_paths`.
        scene: That is shown. Cameras stored for it stay where they were, whatever its context views are now.

    Raises:
        SceneDataError: If the file is something else, or asks for too much.
        ConfigError: If its cameras are no perspective ones.
    """
    from nerfstudio.cameras.camera_paths import get_path_from_json
    from nerfstudio.scripts.render import get_crop_from_json

    try:
        path = json.loads(file.read_text())
        width, height = (int(path[name]) // 2 * 2 for name in ("render_width", "render_height"))
        path["render_width"], path["render_height"] = width, height  # video encoders want even sides
        count, rate = len(path["camera_path"]), round(float(path.get("fps", 24)))
        if min(width, height) < 2 or width * height > MOST_VIDEO_PIXELS or not 1 <= count <= MOST_VIDEO_FRAMES:
            raise ValueError(f"{count} frames of {width}x{height}")
        cameras, crop = get_path_from_json(path), get_crop_from_json(path)
        noted = path.get(SCENE_NOTE)
        box = None if crop is None else crop.obb
        if noted is not None and scene is not None and noted["scene"] == scene.name:
            cameras, box = _in_frame_of(scene, noted["lasting_from_path"], cameras, box)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise SceneDataError(f"{file} is no camera path that can be rendered: {error}") from None
    check_perspective(cameras)
    return StoredPath(cameras, min(max(rate, 1), 120), box, None if noted is None else str(noted["scene"]))


def _frame_of(scene: ActiveScene) -> dict[str, Any]:
    """Plain values that say where nerfstudio's frame of a scene stands in its lasting one."""
    lasting = scene.nerfstudio_from_lasting.inverse()
    return {"scale": lasting.scale, "pose": lasting.apply_to_poses(torch.eye(4)).tolist()}


def _in_frame_of(
    scene: ActiveScene, frame: dict[str, Any], cameras: Cameras, box: OrientedBox | None
) -> tuple[Cameras, OrientedBox | None]:
    """Cameras and a crop box of a frame that :func:`_frame_of` described, in nerfstudio's frame of the scene now."""
    if frame == _frame_of(scene):  # to the last bit
        return cameras, box
    pose = torch.tensor(frame["pose"])
    lasting_from_path, now = Similarity(float(frame["scale"]), pose[:3, :3], pose[:3, 3]), scene.nerfstudio_from_lasting
    poses = now.apply_to_poses(lasting_from_path.apply_to_poses(opencv_from_opengl(cameras.camera_to_worlds)))
    cameras.camera_to_worlds = opengl_from_opencv(poses)[:, :3]
    if box is not None:
        stands = torch.eye(4)
        stands[:3, :3], stands[:3, 3] = box.R, box.T
        stands = now.apply_to_poses(lasting_from_path.apply_to_poses(stands))
        box = OrientedBox(stands[:3, :3], stands[:3, 3], box.S * lasting_from_path.scale * now.scale)
    return cameras, box


def render_video(
    model: SceneModel,
    prediction: PredictedScene,
    cameras: Cameras,
    file: Path,
    *,
    frames_per_second: int,
    crop: OrientedBox | None,
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
        crop: Only Gaussians in this box are drawn, as by ns-render.
        progress: Told how far it is.
        lock: The viewer's.

    Raises:
        JobCancelled: If it was cancelled; nothing is left behind.
        SceneDataError: If the file cannot be written.
    """

    shown = cropped(model, prediction, crop)

    def frames() -> Iterator[np.ndarray]:
        total = len(cameras)
        for number in range(total):
            progress.report(number, total)
            with lock, model.evaluating():
                rgb = model.view(prediction, cameras[number : number + 1], shown=shown)["rgb"]
            yield bytes_of(rgb)
        progress.report(total, total)

    write_video(file, frames(), frames_per_second)


def cropped(model: SceneModel, prediction: PredictedScene, crop: OrientedBox | None) -> Gaussians:
    """What is drawn of a predicted scene with a crop box in nerfstudio's frame, if there is one."""
    return prediction.shown if crop is None else prediction.shown.select(model.inside(prediction, crop))


def save_scene_config(run_dir: Path, scene: ActiveScene, draw: Draw) -> Path:
    """Write ``scenes/ID.yml`` into a run's folder: its config with this scene, its context views and its draw chosen.

    Its generated layers are noted in ``scenes/ID.layers.json`` beside it. What an earlier save of it noted, and nothing
    else does, is deleted.

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
    layers = file.with_suffix(".layers.json").resolve()
    before = _noted_folders(layers, run_dir)
    datamanager.layers = layers if scene.layers else None
    with replacing(layers) as partial:
        partial.write_text(json.dumps([layer.note(run_dir) for layer in scene.layers]) + "\n")
    with replacing(file) as partial:
        partial.write_text(yaml.dump(config))
    if not scene.layers:
        layers.unlink()
    delete_unreferenced(before, run_dir)
    return file


def _noted_folders(layers: Path, run_dir: Path) -> list[Path]:
    try:
        return [run_dir / folder for folder in folders_in(json.loads(layers.read_text()))]
    except (OSError, ValueError):
        return []


def commands_for(config: Path) -> dict[str, str]:
    """Commands that view, render and export the scene of a config."""
    quoted, name = shlex.quote(str(config)), config.stem
    video, folder = (shlex.quote(str(Path(*parts))) for parts in (("renders", f"{name}.mp4"), ("exports", name)))
    return {
        "View": f"ns-viewer --load-config {quoted}",
        "Render": f"ns-render interpolate --load-config {quoted} --pose-source train --output-path {video}",
        "Export": f"ns-export gaussian-splat --load-config {quoted} --output-dir {folder}",
    }
