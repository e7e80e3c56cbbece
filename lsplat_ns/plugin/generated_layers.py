"""Generated views that were accepted into a scene: each lot of them is a layer, on or off, and more or less opaque.

A layer's views lie in a folder as ``lsplat generate`` writes it (``generated_folder``), inside the run's own. What is
noted of a layer beside the run, or with a saved scene, is where that folder is, which of its views were accepted, and
how it is shown: plain values, from which :func:`read_layers` makes the same layers again. Folders that no note refers
to any longer are deleted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.conventions import intrinsics_norm_from_px, opencv_from_opengl
from lsplat_ns.plugin.active_scene import SIDECAR
from lsplat_ns.plugin.generated_folder import TRANSFORMS, GeneratedFolder

FOLDER = "generated"
"""Folder of a run that holds generated views."""
SAVED_LAYERS = "scenes/*.layers.json"
"""Files of a run's folder that remember the layers of saved scenes."""


@dataclass(frozen=True)
class GeneratedLayer:
    """Views that are lifted into a scene together.

    Raises:
        SceneDataError: If the opacity is none.
    """

    video: PosedVideo  # the accepted views, in the lasting frame of the scene (``ActiveScene``)
    folder: Path  # that holds them
    frames: tuple[int, ...]  # their numbers in that folder
    visible: bool = True
    opacity: float = 1.0  # factor of what the network predicted

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise SceneDataError(f"the opacity of a layer lies in [0, 1], but is {self.opacity}")

    def note(self, run_dir: Path) -> dict[str, Any]:
        """Plain values from which :func:`read_layers` makes the layer again, in whatever place the run's folder is."""
        folder = self.folder.resolve().relative_to(run_dir.resolve())
        shown = {"visible": self.visible, "opacity": self.opacity}
        return {"folder": folder.as_posix(), "frames": list(self.frames), **shown}


def read_layer(folder: Path, frames: Sequence[int]) -> GeneratedLayer:
    """A layer of some of the generated views of a folder, shown in full.

    Args:
        folder: Written by ``lsplat generate``, or by the viewer; finished.
        frames: Numbers of the accepted views.

    Raises:
        SceneDataError: If the folder cannot be read, or holds no such generated view.
    """
    file = folder / TRANSFORMS
    try:
        content = json.loads(file.read_text())
        entries = {int(Path(e["file_path"]).stem): e for e in content["frames"] if e.get("generated")}
        absent = [frame for frame in frames if frame not in entries]
        if absent or not frames:
            raise SceneDataError(f"{folder} holds no generated view {absent[0] if absent else ''}".rstrip())
        chosen = [entries[frame] for frame in frames]
        poses = torch.tensor([entry["transform_matrix"] for entry in chosen], dtype=torch.float32)
        lens = [torch.tensor([float(e[name]) for e in chosen]) for name in ("fl_x", "fl_y", "cx", "cy", "w", "h")]
        sizes = [(int(entry["h"]), int(entry["w"])) for entry in chosen]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SceneDataError(f"{file} is no list of generated views: {error}") from None
    numbers, stored = tuple(frames), GeneratedFolder(folder)
    for frame in numbers:
        if not stored.image_file(frame).is_file():
            raise SceneDataError(f"generated view {stored.image_file(frame)} is gone")
    video = PosedVideo(
        scene=folder.name,
        world_from_camera=opencv_from_opengl(poses),
        intrinsics_norm=intrinsics_norm_from_px(*lens),
        read_image=lambda view: stored.read_image(numbers[view]),
        read_size=lambda view: sizes[view],
    )
    return GeneratedLayer(video, folder, numbers)


def read_layers(notes: object, run_dir: Path) -> tuple[GeneratedLayer, ...]:
    """The layers of notes that :meth:`GeneratedLayer.note` made.

    Raises:
        SceneDataError: If they are something else, or what they name is gone or lies outside the run's folder.
    """
    if not isinstance(notes, list) or not all(isinstance(note, Mapping) for note in notes):
        raise SceneDataError("generated layers are noted as a list; save the scene again")
    layers = []
    for note in notes:
        try:
            folder = (run_dir / str(note["folder"])).resolve()
            frames = tuple(int(frame) for frame in note["frames"])
            shown = {"visible": bool(note.get("visible", True)), "opacity": float(note.get("opacity", 1.0))}
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise SceneDataError(f"a generated layer is noted without what it takes ({error})") from None
        if not folder.is_relative_to(run_dir.resolve()):
            raise SceneDataError(f"{folder} is not in the folder of the run, {run_dir}")
        layers.append(replace(read_layer(folder, frames), **shown))
    return tuple(layers)


def folders_in(notes: object) -> Iterator[str]:
    """The folders that notes of layers refer to, in whatever lists and mappings the notes stand."""
    if isinstance(notes, Mapping):
        if "folder" in notes:
            yield str(notes["folder"])
        notes = list(notes.values())
    if isinstance(notes, list):
        for note in notes:
            yield from folders_in(note)


def delete_unreferenced(folders: Iterable[Path], run_dir: Path) -> None:
    """Delete those of some folders of generated views that no note of their run refers to.

    Nothing is deleted where a note cannot be read, since nobody knows what it refers to.

    Args:
        folders: Of layers that are no longer shown.
        run_dir: The run's folder; what does not lie in its ``generated`` stays.
    """
    run_dir = run_dir.resolve()
    doomed = {folder.resolve() for folder in folders if folder.resolve().parent == run_dir / FOLDER}
    try:
        for file in (run_dir / SIDECAR, *run_dir.glob(SAVED_LAYERS)) if doomed else ():
            if file.is_file():
                doomed -= {(run_dir / folder).resolve() for folder in folders_in(json.loads(file.read_text()))}
    except (OSError, ValueError):
        return
    for folder in doomed:
        shutil.rmtree(folder, ignore_errors=True)
