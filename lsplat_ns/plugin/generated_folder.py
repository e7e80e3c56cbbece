"""The folder of a generation: frames as they come, then cameras, video and contact sheet.

generation.json     what was asked for; the same request goes on where it stopped
images/000012.png   given and generated frames, by number
transforms.json     their cameras, for any nerfstudio method; marks generated frames
video.mp4           generated frames
contact_sheet.png   frames, and cameras from above and from the side
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lsplat_ns.data.atomic_files import is_leftover, remove_leftovers, replacing
from lsplat_ns.data.contact_sheet import SheetRow, draw_contact_sheet
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.video import write_video
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.geometry.conventions import intrinsics_px_from_norm, opengl_from_opencv
from lsplat_ns.plugin.generation_tasks import GenerationTask
from lsplat_ns.scene import Cameras
from lsplat_ns.wording import counted

REQUEST, IMAGES, TRANSFORMS = "generation.json", "images", "transforms.json"
VIDEO, SHEET, CONSISTENCY = "video.mp4", "contact_sheet.png", "consistency.json"
CONTENTS = (REQUEST, IMAGES, TRANSFORMS, VIDEO, SHEET, CONSISTENCY)
FRAMES_PER_SECOND = 10


@dataclass(frozen=True)
class GeneratedFolder:
    """A folder that belongs to one request."""

    path: Path

    @staticmethod
    def claim(path: Path, request: Mapping[str, Any]) -> GeneratedFolder:
        """Make the folder, or go on with one that was made for the same request.

        Args:
            path: The folder.
            request: Plain values that determine every image.

        Raises:
            ConfigError: If the folder holds something else, or another request's frames.
            SceneDataError: If it cannot be written.
        """
        path = path.resolve()
        refuse_in_use(path, request)
        if not (path / REQUEST).is_file():
            write_json(path / REQUEST, {"request": request})
        return GeneratedFolder(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out while the block runs; what killed ones have left half written is removed.

        Raises:
            ConfigError: If another process is in.
        """
        try:
            import fcntl
        except ImportError:  # Windows; there two processes would write the same images
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)  # the folder itself: files in it are replaced
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another process generates into {self.path}; wait, or choose another") from None
            for folder in (self.path, self.path / IMAGES):
                remove_leftovers(folder)
            yield
        finally:
            os.close(handle)

    @property
    def views_per_group(self) -> int | None:
        """Views that memory allows at once, where an earlier call found out."""
        return json.loads((self.path / REQUEST).read_text()).get("views_per_group")

    def remember_views_per_group(self, count: int) -> None:
        """Let later calls begin with groups of this size."""
        content = json.loads((self.path / REQUEST).read_text())
        write_json(self.path / REQUEST, {**content, "views_per_group": count})

    def write_given(self, task: GenerationTask) -> None:
        """Store the given views."""
        for frame, image in zip(task.given, task.context.image[0], strict=True):
            self.write_image(frame, image)

    def image_file(self, frame: int) -> Path:
        """Where a frame is stored."""
        return self.path / IMAGES / f"{frame:06d}.png"

    def write_image(self, frame: int, image: Tensor) -> None:
        """Store a frame [3, height, width] in [0, 1]. Raises SceneDataError if the disk is full."""
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        with replacing(self.image_file(frame)) as partial:
            Image.fromarray(pixels).save(partial, format="png")

    def read_image(self, frame: int) -> np.ndarray:
        """A stored frame uint8 [height, width, 3]. Raises SceneDataError if it cannot be read."""
        file = self.image_file(frame)
        try:
            with Image.open(file) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's for damaged files
            raise SceneDataError(f"cannot read {file}: {error}; delete it and call the command again") from None

    def finish(self, task: GenerationTask, title: str) -> None:
        """Write cameras, video and contact sheet of a task whose frames are all stored."""
        numbers, cameras = in_order(task)
        generated = set(task.frames)
        write_json(self.path / TRANSFORMS, self._transforms(numbers, cameras, task))
        write_video(self.path / VIDEO, (self.read_image(f) for f in numbers if f in generated), FRAMES_PER_SECOND)
        video = PosedVideo(
            scene=task.name,
            world_from_camera=cameras.world_from_camera[0],
            intrinsics_norm=cameras.intrinsics_norm[0],
            read_image=lambda i: self.read_image(numbers[i]),
            read_size=lambda _: task.context.size,
        )
        context = tuple(i for i, frame in enumerate(numbers) if frame not in generated)
        targets = tuple(i for i, frame in enumerate(numbers) if frame in generated)
        note = (
            f"{counted(len(targets), 'generated view')} from {len(context)} given; lengths in the units of the source"
        )
        row = SheetRow(video, "generated", FrameChoice(context, targets), numbers)
        draw_contact_sheet([row], self.path / SHEET, title, note)

    def _transforms(self, numbers: tuple[int, ...], cameras: Cameras, task: GenerationTask) -> dict[str, Any]:
        """The cameras as nerfstudio-data reads them."""
        height, width = task.context.size
        poses = opengl_from_opencv(cameras.world_from_camera[0]).tolist()
        intrinsics_px = intrinsics_px_from_norm(cameras.intrinsics_norm[0], (height, width)).tolist()
        frames = []
        for number, pose, matrix in zip(numbers, poses, intrinsics_px, strict=True):
            lens = {"fl_x": matrix[0][0], "fl_y": matrix[1][1], "cx": matrix[0][2], "cy": matrix[1][2]}
            name = str(self.image_file(number).relative_to(self.path))
            frame = {"file_path": name, "w": width, "h": height, **lens, "transform_matrix": pose}
            frames.append(frame | {"generated": True} if number in task.frames else frame)
        return {"camera_model": "OPENCV", "frames": frames}


def refuse_in_use(path: Path, request: Mapping[str, Any]) -> None:
    """Raise ConfigError where :meth:`GeneratedFolder.claim` would. Writes nothing."""
    path = path.resolve()
    file = path / REQUEST
    if path.exists() and not file.is_file() and not (path.is_dir() and all(map(is_leftover, path.iterdir()))):
        raise ConfigError(f"{path} is in use by something else than generated views; choose another with --output")
    if not file.is_file():
        return
    earlier, request = _read_request(file), json.loads(json.dumps(request))
    different = [key for key in request if earlier.get(key) != request[key]]
    if different:
        raise ConfigError(
            f"{path} holds views of another request, with a different {', '.join(different)}; choose another "
            f"with --output, or repeat the earlier command to go on with it"
        )


@dataclass(frozen=True)
class StoredFrames(Mapping[int, Tensor]):
    """The stored frames of a folder as images [3, height, width] in [0, 1], read when they are asked for."""

    folder: GeneratedFolder
    frames: tuple[int, ...]

    def __contains__(self, frame: object) -> bool:
        return frame in self.frames and self.folder.image_file(frame).is_file()

    def __getitem__(self, frame: int) -> Tensor:
        if frame not in self:
            raise KeyError(frame)
        return torch.from_numpy(self.folder.read_image(frame).copy()).permute(2, 0, 1).float() / 255

    def __iter__(self) -> Iterator[int]:
        return (frame for frame in self.frames if frame in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def fingerprint(*tensors: Tensor) -> str:
    """A short hash of tensors' numbers."""
    found = sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def in_order(task: GenerationTask) -> tuple[tuple[int, ...], Cameras]:
    """Given and generated frames by number, and their cameras [1, n] in the units of the source."""
    numbers = (*task.given, *task.frames)
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    cameras = task.context.cameras.concat(task.cameras).select(order)
    cameras.world_from_camera[..., :3, 3] /= task.scale
    return tuple(numbers[i] for i in order), cameras


def _read_request(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text())["request"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); choose another folder with --output") from None


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all. Raises SceneDataError if the disk is full."""
    with replacing(file) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")
