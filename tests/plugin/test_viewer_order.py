"""What is clicked in the viewer while something else is under way: it is done to what was seen, or not at all."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shown_run import Shown
from viser_tab import PATIENCE, Tab

from lsplat_ns.plugin import exploring, scene_generation
from lsplat_ns.plugin.viewer_panel import panel as panel_module
from lsplat_ns.plugin.viewer_panel import scene_part


@pytest.fixture
def quick(tab: Tab, mvldm: Path) -> Tab:
    """A tab that generates a view in two steps."""
    for label, value in (("MV-LDM run", str(mvldm)), ("Views", 1), ("Steps", 2)):
        tab.set(label, value)
    return tab


class Held:
    """A function that waits until it is let go, from when it is first called."""

    def __init__(self, function: Callable) -> None:
        self.function, self.begun, self.free = function, threading.Event(), threading.Event()

    def __call__(self, *args: object, **options: object) -> object:
        self.begun.set()
        assert self.free.wait(PATIENCE)
        return self.function(*args, **options)


@pytest.fixture
def encoding(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Held]:
    """Makes the next prediction of a scene wait."""

    def hold() -> Held:
        held = Held(shown.pipeline.model.predict)
        monkeypatch.setattr(shown.pipeline.model, "predict", held)
        return held

    return hold


def test_what_is_done_to_a_layer_while_another_scene_is_encoded_leaves_that_scenes_layers_alone(
    shown: Shown, quick: Tab, encoding: Callable[[], Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shown.pipeline.model
    first, second = shown.ids[0], shown.ids[1]
    assert model.active_scene.name == first

    def go(where: str) -> None:
        quick.set("Go to", where)
        quick.wait(lambda: model.active_scene.name == (second if where == "next" else first), where)
        shown.settle(quick)

    def as_lifted() -> bool:
        return [(layer.visible, layer.opacity) for layer in model.active_scene.layers] == [(True, 1.0)]

    go("next")
    shown.lift(quick)
    go("prev")
    shown.lift(quick)
    folders = shown.folders_of_views()
    for act in (
        lambda: quick.click("Undo last layer"),
        lambda: quick.set("Layer opacity", 0.1),
        lambda: quick.set("Show layer", False),
    ):
        held = encoding()
        quick.set("Go to", "next")
        assert held.begun.wait(PATIENCE) and model.active_scene.name == first
        act()
        held.free.set()
        shown.settle(quick)
        assert model.active_scene.name == second and as_lifted() and shown.folders_of_views() == folders
        monkeypatch.undo()
        go("prev")
        assert as_lifted()
    assert quick.said(f"{first} is no longer shown")
    shown.without_layers(quick)
    go("next")
    shown.without_layers(quick)


def test_lifting_and_hiding_wait_for_each_other_and_the_layer_meant_is_the_one_chosen_then(
    shown: Shown, quick: Tab, encoding: Callable[[], Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shown.pipeline.model
    shown.lift(quick)
    shown.generate(quick)
    held = encoding()
    quick.set("Context", "2, 10")
    assert held.begun.wait(PATIENCE)
    quick.notifications.clear()
    quick.click("Lift accepted views")
    quick.click("Lift accepted views")  # twice by mistake
    quick.set("Show layer", False)
    held.free.set()
    shown.settle(quick)
    assert [layer.visible for layer in model.active_scene.layers] == [False, True]
    assert model.active_scene.choice.context == (2, 10) and not quick.said("not done")
    monkeypatch.undo()

    held = encoding()
    quick.set("Context", "1, 9")
    assert held.begun.wait(PATIENCE)
    quick.set("Show layer", False)  # of the second one, which is the one chosen
    quick.set("Layer", quick.options("Layer")[0])
    held.free.set()
    shown.settle(quick)
    assert [layer.visible for layer in model.active_scene.layers] == [False, False]
    shown.without_layers(quick)


def test_views_that_could_not_be_lifted_come_back_as_they_were_ticked(
    shown: Shown, quick: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(scene: object) -> None:
        raise MemoryError

    quick.set("Views", 2)
    shown.generate(quick)
    boxes = shown.pipeline.model.viewer_control.generate_part._proposed
    (label,) = (box._impl.label for box in boxes[:1])
    quick.set(label, False)
    monkeypatch.setattr(shown.pipeline, "show_scene", fail)
    quick.click("Lift accepted views")
    quick.wait(lambda: quick.said("Out of memory"), "what is wrong")
    shown.settle(quick)
    assert [box.value for box in shown.pipeline.model.viewer_control.generate_part._proposed] == [False, True]
    quick.click("Discard all")
    shown.settle(quick)


def test_views_that_cannot_be_scored_are_deleted(shown: Shown, quick: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    before = shown.folders_of_views()
    monkeypatch.setattr(scene_generation, "propose", fail)
    quick.click("Generate")
    quick.wait(lambda: quick.said("Out of memory"), "what is wrong")
    shown.settle(quick)
    assert shown.folders_of_views() == before


def test_context_views_typed_while_a_scene_is_encoded_are_that_scenes(
    shown: Shown, tab: Tab, encoding: Callable[[], Held]
) -> None:
    model = shown.pipeline.model
    other = next(scene for scene in shown.ids if scene != model.active_scene.name)
    held = encoding()
    tab.set("Scene", other)
    assert held.begun.wait(PATIENCE)
    tab.set("Context", "1, 9")
    held.free.set()
    shown.settle(tab)
    assert (model.active_scene.name, model.active_scene.choice.context) == (other, (1, 9))


def test_the_least_certain_view_of_a_scene_that_is_no_longer_shown_moves_no_camera(
    shown: Shown, tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, moved = shown.pipeline.model, []
    before = model.active_scene.name
    held = Held(exploring.least_certain_view)
    monkeypatch.setattr(exploring, "least_certain_view", held)
    monkeypatch.setattr(model.viewer_control, "move", lambda *args: moved.append(args))
    tab.click("Go where it knows least")
    assert held.begun.wait(PATIENCE)
    tab.set("Go to", "next")
    tab.wait(lambda: model.active_scene.name != before, "the next scene")
    held.free.set()
    shown.settle(tab)
    assert not moved and tab.said("another scene is shown by now")


def test_a_tab_at_rest_shows_the_decoded_picture_while_another_one_flies(
    shown: Shown, tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel_module, "FAST_DECODING_MS", 0.0)  # as where decoding is slow
    tab.set("Max res", 150)
    seen = {}
    for output in ("rgb_splat", "rgb"):
        tab.set("Output type", output)
        shown.settle(tab)
        tab.look((0.1, 0.0, 0.0))
        tab.wait_for_picture(lambda picture: picture.shape[:2] == (100, 150))
        time.sleep(1)  # the last picture is the one at rest
        seen[output] = tab.picture.astype(float)

    def is_decoded() -> bool:
        decoded, splatted = (np.abs(tab.picture - seen[output]).mean() for output in ("rgb", "rgb_splat"))
        return tab.picture.shape == seen["rgb"].shape and decoded < 0.2 * splatted

    other, landed = shown.tab(), threading.Event()

    def fly() -> None:
        while not landed.is_set():
            other._turn((0.3 * np.sin(3 * time.monotonic()), 0.0, 0.0), None)
            time.sleep(0.05)

    flight = threading.Thread(target=fly)
    flight.start()
    try:
        tab._turn((0.5, 0.0, 0.0), None)
        tab.wait_for_picture(lambda _: not is_decoded())
        tab._turn((0.1, 0.0, 0.0), None)
        tab.wait(is_decoded, "the decoded picture", seconds=60)
        assert not shown.pipeline.model.viewer_control.at_rest
    finally:
        landed.set()
        flight.join()
    shown.settle(tab)
    other.close()


def test_a_snapshot_is_what_is_seen(shown: Shown, tab: Tab) -> None:
    name = f"{shown.pipeline.model.active_scene.name}.png"
    tab.set("Max res", 150)

    def snapshot() -> np.ndarray:
        tab.downloads.pop(name, None)
        tab.click("Snapshot (PNG)")
        tab.wait(lambda: name in tab.downloads, "the snapshot")
        shown.settle(tab)
        return np.asarray(Image.open(io.BytesIO(tab.downloads[name]))).astype(float)

    def coarse(picture: np.ndarray) -> np.ndarray:
        return picture[:96, :144].reshape(12, 8, 18, 8, 3).mean((1, 3))

    tab.set("Output type", "rgb_splat")
    plain, shots = snapshot(), {}
    for label, value, before in (
        ("Tint both", True, False),
        ("From photos", False, True),
        ("Output type", "uncertainty", "rgb_splat"),
        ("Enable", True, False),  # the split view
    ):
        if label == "Enable":
            tab.set("Output render split", "depth")
        tab.set(label, value)
        shown.settle(tab)
        tab.look((0.0, 0.0, 0.01 * len(shots)))
        seen = tab.wait_for_picture(lambda picture: picture.shape[:2] == (100, 150))
        time.sleep(0.5)  # the picture at rest is the last one
        seen, shots[label] = tab.picture.astype(float), snapshot()
        by_jpeg = np.abs(coarse(shots[label]) - coarse(seen)).mean()
        assert by_jpeg < 10 and np.abs(coarse(shots[label]) - coarse(plain)).mean() > 3 * by_jpeg, label
        tab.set(label, before)
    for label, value in (("Output type", "rgb"), ("Output render split", "rgb"), ("Max res", 512)):
        tab.set(label, value)


def test_browsers_get_the_splats_of_a_scene_that_training_predicts_anew(
    shown: Shown, tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not tab.visible("Draw in browser"):
        pytest.skip("this viser draws no splats")
    splats, sent = shown.pipeline.model.viewer_control.look_part._splats, []
    show = splats.show
    monkeypatch.setattr(splats, "show", lambda gaussians, frame: (sent.append(gaussians), show(gaussians, frame)))
    layered = tab.value("Composite depth")
    tab.set("Composite depth", False)
    tab.set("Draw in browser", True)
    tab.wait(lambda: len(sent) == 1, "the splats")
    shown.settle(tab)
    with torch.no_grad(), shown.viewer.train_lock:
        shown.pipeline.model.set_scene(shown.pipeline.model.active_scene)  # to be predicted anew
    tab.look((0.1, 0.0, 0.0))
    tab.wait(lambda: len(sent) == 2, "the new splats")
    shown.settle(tab)
    tab.look((0.2, 0.0, 0.0))
    shown.settle(tab)
    assert len(sent) == 2
    tab.set("Draw in browser", False)
    tab.wait(lambda: "/lsplat/splats" not in tab.nodes, "the splats to go")
    assert tab.value("Composite depth") is False  # as it was before
    tab.set("Composite depth", layered)


def test_uploads_that_broke_off_do_not_keep_others_away(
    shown: Shown, tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(number: int) -> None:
        common = {"source_component_id": tab.id_of("Add two photos"), "transfer_uuid": f"broken-{number}"}
        tab.send("FileTransferStart", **common, filename="x.jpg", mime_type="image/jpeg", part_count=9, size_bytes=9)

    tab.upload("Add two photos", "nothing.jpg", b"", claimed=0)
    tab.wait(lambda: tab.said("nothing.jpg the file is empty") or tab.said("nothing.jpg: the file is empty"), "a word")
    for number in range(scene_part.MOST_UPLOADS_AT_ONCE):
        begin(number)
    tab.upload("Add two photos", "fifth.jpg", b"x")
    tab.wait(lambda: tab.said("other photos are on their way"), "the refusal")
    monkeypatch.setattr(scene_part, "SECONDS_TO_STALL", 0.0)
    tab.upload("Add two photos", "first.jpg", b"x")
    tab.wait(lambda: tab.said("First photo is here"), "the photo")
    tab.upload("Add two photos", "second.jpg", b"y")
    tab.wait(lambda: tab.said("photo 1"), "the refusal of what is no picture")
    shown.settle(tab)


def test_a_draw_that_cannot_be_compared_with_is_not_left_in_its_field(shown: Shown, tab: Tab) -> None:
    before = tab.value("Compare seed")
    tab.set("Compare seed", -3)
    tab.wait(lambda: tab.said("Nothing to compare with"), "a message")
    tab.wait(lambda: tab.value("Compare seed") == before, "the seed that is compared with")
