"""What a run remembers of its scenes: nothing is forgotten by a full disk, another program or a file that is gone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import SceneDataError
from lsplat_ns.plugin import scene_notes
from lsplat_ns.plugin.active_scene import SIDECAR, ActiveScene
from lsplat_ns.plugin.generated_folder import TRANSFORMS
from lsplat_ns.plugin.generated_layers import GeneratedLayer, read_layer
from lsplat_ns.plugin.scene_notes import SceneNotes


def layer_in(run: Path, name: str) -> GeneratedLayer:
    """A layer of one view, on the disk."""
    folder = run / "generated" / name
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "images" / "000007.png")
    lens = {"fl_x": 8.0, "fl_y": 8.0, "cx": 4.0, "cy": 4.0, "w": 8, "h": 8}
    frame = {"file_path": "images/000007.png", "generated": True, "transform_matrix": torch.eye(4).tolist(), **lens}
    (folder / TRANSFORMS).write_text(json.dumps({"frames": [frame]}))
    return read_layer(folder, (7,))


def scene_of(name: str, *layers: GeneratedLayer) -> ActiveScene:
    """A scene of which only its name, its context frames and its layers matter."""
    video = PosedVideo(name, torch.eye(4).repeat(12, 1, 1), torch.eye(3).repeat(12, 1, 1), None, None)
    return ActiveScene(video, FrameChoice((0, 9), (5,)), None, None, layers=layers)


def folders(notes: SceneNotes, scene: str) -> list[str]:
    return [layer.folder.name for layer in notes.layers_of(scene)]


@pytest.fixture
def notes(tmp_path: Path) -> SceneNotes:
    made = SceneNotes(tmp_path)
    made.tell = (told := []).append
    made.told = told
    return made


def test_layers_of_all_scenes_are_remembered(notes: SceneNotes, tmp_path: Path) -> None:
    a, b = scene_of("a", layer_in(tmp_path, "a-1")), scene_of("b", layer_in(tmp_path, "b-1"))
    assert notes.remember(scene_of("a"), a) and notes.remember(a, b)
    later = SceneNotes(tmp_path)
    assert later.read()["scene"] == "b" and later.read()["context"] == [0, 9]
    assert folders(later, "a") == ["a-1"] and folders(later, "b") == ["b-1"] and not notes.told
    notes.remember(b, replace(b, layers=()))
    assert folders(later, "b") == [] and folders(later, "a") == ["a-1"]
    assert not SceneNotes(None).remember(a, b) and SceneNotes(None).layers_of("a") == ()


def test_a_full_disk_forgets_nothing_and_is_said_once(
    notes: SceneNotes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = scene_of("a", layer_in(tmp_path, "a-1"))
    notes.remember(scene_of("a"), a)
    stored = (tmp_path / SIDECAR).read_text()

    def full(path: Path) -> None:
        raise SceneDataError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(scene_notes, "replacing", full)
    b = scene_of("b", layer_in(tmp_path, "b-1"))
    assert not notes.remember(a, b) and not notes.remember(b, scene_of("c"))
    assert (tmp_path / SIDECAR).read_text() == stored
    assert notes.told == [
        f"Other tools will not know of this scene: cannot write {tmp_path / SIDECAR}: No space left on device"
    ]
    assert folders(notes, "a") == ["a-1"] and folders(notes, "b") == ["b-1"]  # as long as the program runs
    monkeypatch.undo()
    assert notes.remember(scene_of("c"), a)
    assert folders(SceneNotes(tmp_path), "b") == ["b-1"]


def test_two_programs_keep_what_the_other_one_has_noted(notes: SceneNotes, tmp_path: Path) -> None:
    first, second, third = (layer_in(tmp_path, f"a-{number}") for number in (1, 2, 3))
    other = SceneNotes(tmp_path)
    other.remember(scene_of("c"), scene_of("c", layer_in(tmp_path, "c-1")))
    notes.remember(scene_of("a"), scene_of("a", first, second))
    assert folders(notes, "c") == ["c-1"]
    # A viewer of a saved scene with the first layer alone: it hides that, and adds another one.
    other.remember(scene_of("a", first), scene_of("a", replace(first, visible=False), third))
    assert folders(notes, "a") == ["a-1", "a-2", "a-3"]
    assert [layer.visible for layer in notes.layers_of("a")] == [False, True, True]
    other.remember(scene_of("a", first, third), scene_of("a", third))  # taken back
    assert folders(notes, "a") == ["a-2", "a-3"]


@pytest.mark.parametrize("gone", ["folder", "picture"])
def test_a_layer_that_can_no_longer_be_read_takes_no_other_one_with_it(
    gone: str, notes: SceneNotes, tmp_path: Path
) -> None:
    scene = scene_of("a", layer_in(tmp_path, "a-1"), layer_in(tmp_path, "a-2"))
    notes.remember(scene_of("a"), scene)
    place = scene.layers[0].folder / ("images/000007.png" if gone == "picture" else TRANSFORMS)
    aside = place.rename(tmp_path / "aside")
    assert folders(notes, "a") == ["a-2"]
    (told,) = notes.told
    assert "a is shown without some of its generated views" in told and str(place) in told
    shown = scene_of("a", *notes.layers_of("a"))
    notes.remember(scene_of("b"), shown)
    notes.remember(shown, scene_of("a", replace(shown.layers[0], opacity=0.5)))
    aside.rename(place)  # it is there again
    assert folders(notes, "a") == ["a-1", "a-2"] and [one.opacity for one in notes.layers_of("a")] == [1.0, 0.5]


@pytest.mark.parametrize("content", ["", "{ torn", "[1]", '{"scene": "a", "layers": []}'])
def test_a_file_that_is_no_note_is_put_aside_before_it_is_replaced(
    content: str, notes: SceneNotes, tmp_path: Path
) -> None:
    (tmp_path / SIDECAR).write_text(content)
    assert notes.read() == {} and notes.layers_of("a") == () and len(notes.told) == 1
    assert notes.remember(scene_of("a"), scene_of("b"))
    assert notes.read() == {"scene": "b", "context": [0, 9]}
    assert (tmp_path / SIDECAR).with_suffix(".unreadable.json").read_text() == content


def test_a_note_with_impossible_numbers_is_passed_over(notes: SceneNotes, tmp_path: Path) -> None:
    layer_in(tmp_path, "a-1")
    wrong = [{"folder": "generated/a-1", "frames": [float("inf")]}, 7, {"folder": "generated/a-1", "frames": [7]}]
    (tmp_path / SIDECAR).write_text(json.dumps({"scene": "a", "context": [0, 9], "layers": {"a": wrong}}))
    assert folders(notes, "a") == ["a-1"] and len(notes.told) == 2
