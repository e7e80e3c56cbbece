"""What a run remembers beside its config: the scene that was shown last, and the generated layers of every scene.

Several programs may have a run open: a viewer, a training with its viewer, the viewer of a saved scene. Each reads the
file anew before it changes its own part.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from lsplat_ns.data.atomic_files import replacing
from lsplat_ns.errors import SceneDataError
from lsplat_ns.plugin.active_scene import SIDECAR, ActiveScene

if TYPE_CHECKING:
    from lsplat_ns.plugin.generated_layers import GeneratedLayer

Notes = list[dict[str, Any]]


class SceneNotes:
    """``active_scene.json`` of a run: ``{"scene": id, "context": [frames], "layers": {id: [notes]}}``.

    Args:
        run_dir: The run's folder; without one nothing is remembered.
    """

    def __init__(self, run_dir: Path | None) -> None:
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.tell: Callable[[str], None] = _in_terminal
        """Takes what a person should know."""
        self._told: set[str] = set()
        self._unwritten: dict[str, Any] | None = None  # what could not be stored is known as long as this runs

    @property
    def file(self) -> Path | None:
        """Where it is kept."""
        return None if self.run_dir is None else self.run_dir / SIDECAR

    def read(self) -> dict[str, Any]:
        """What is remembered; nothing where it cannot be read, which is said."""
        if self._unwritten is not None:
            return self._unwritten
        try:
            return self._stored()
        except (OSError, ValueError) as error:
            self.warn(f"Ignoring {self.file}: {error}")
            return {}

    def warn(self, line: str) -> None:
        """Tell a person; of the same line only once."""
        if line not in self._told:
            self._told.add(line)
            self.tell(line)

    def layers_of(self, scene: str) -> tuple[GeneratedLayer, ...]:
        """The layers that a scene had last. Those that can no longer be read are left out, which is said; their notes
        stay."""
        notes = self.read().get("layers", {}).get(scene)
        if not notes:
            return ()
        from lsplat_ns.plugin.generated_layers import read_layers

        layers: list[GeneratedLayer] = []
        for note in notes if isinstance(notes, list) else [notes]:
            try:
                layers += read_layers([note], self.run_dir)
            except SceneDataError as error:
                self.warn(f"{scene} is shown without some of its generated views: {error}")
        return tuple(layers)

    def remember(self, before: ActiveScene, shown: ActiveScene) -> bool:
        """Note a scene that is shown now, with its layers, instead of the one before. Returns whether that was stored.

        Of the scene's notes only those change that are of layers which it has, or had before.
        """
        if self.run_dir is None:
            return False
        known = self.read().get("layers", {})
        earlier, now = (_notes_of(scene, self.run_dir) for scene in (before, shown))
        same = before.name == shown.name
        layers = {before.name: earlier, **known}
        layers[shown.name] = _merged(known.get(shown.name, []), earlier if same else [], now)
        note: dict[str, Any] = {"scene": shown.name, "context": list(shown.choice.context)}
        if any(layers.values()):
            note["layers"] = {name: notes for name, notes in layers.items() if notes}
        try:
            self._put_aside_what_is_no_note()
            with replacing(self.run_dir / SIDECAR) as partial:
                partial.write_text(json.dumps(note) + "\n")
        except (SceneDataError, OSError) as error:  # the run of somebody else can be looked at all the same
            self._unwritten = note
            self.warn(f"Other tools will not know of this scene: {error}")
            return False
        self._unwritten = None
        return True

    def _stored(self) -> dict[str, Any]:
        """What the file holds. Raises ValueError if that is no note of a scene, and OSError."""
        if self.file is None or not self.file.is_file():
            return {}
        note = json.loads(self.file.read_text())
        if not isinstance(note, dict) or not isinstance(note.get("layers", {}), dict):
            raise ValueError("it is no note of a scene")
        return note

    def _put_aside_what_is_no_note(self) -> None:
        """It may name layers all the same."""
        try:
            self._stored()
        except ValueError:
            os.replace(self.file, self.file.with_suffix(".unreadable.json"))


def _notes_of(scene: ActiveScene, run_dir: Path) -> Notes:
    return [layer.note(run_dir) for layer in scene.layers]


def _merged(stored: object, earlier: Notes, now: Notes) -> list[Any]:
    """Notes of a scene after its layers have changed from ``earlier`` to ``now``, in the order in which they stand."""
    stored = stored if isinstance(stored, list) else []
    current, gone = _by_folder(now), _by_folder(earlier).keys() - _by_folder(now).keys()
    merged = [current.pop(_folder(note), note) for note in stored if _folder(note) not in gone]
    return [*merged, *current.values()]


def _by_folder(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {_folder(note): note for note in notes}


def _folder(note: object) -> str:
    return str(note.get("folder")) if isinstance(note, Mapping) else ""


def _in_terminal(line: str) -> None:
    CONSOLE.print(f"[yellow]{escape(line)}")
