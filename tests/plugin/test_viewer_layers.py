"""Generated layers of a scene: where their views stand, who remembers them, and when their files go."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_captures import write_capture
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from shown_run import Shown
from viser_tab import Tab

from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.geometry.conventions import opencv_from_opengl
from lsplat_ns.plugin.captures import CaptureContextConfig, active_scene_from_dataparser
from lsplat_ns.plugin.generated_layers import GeneratedLayer, delete_unreferenced, read_layers
from lsplat_ns.plugin.scene_generation import generation_task, poses_along


@pytest.fixture
def quick(tab: Tab, mvldm: Path) -> Tab:
    """A tab that generates a view in two steps."""
    for label, value in (("MV-LDM run", str(mvldm)), ("Views", 1), ("Steps", 2)):
        tab.set(label, value)
    return tab


def test_the_layers_of_a_scene_come_back_with_it_and_a_later_viewer_knows_them(shown: Shown, quick: Tab) -> None:
    model, datamanager = shown.pipeline.model, shown.pipeline.datamanager
    name = model.active_scene.name
    shown.lift(quick)
    quick.set("Layer opacity", 0.5)
    quick.wait(lambda: model.active_scene.layers[0].opacity == 0.5, "half opacity")
    shown.settle(quick)
    quick.set("Go to", "next")
    quick.wait(lambda: model.active_scene.name != name and model.active_scene.layers == (), "the next scene")
    shown.settle(quick)
    later = datamanager.config.setup(device=datamanager.device, test_mode="inference")
    assert later.scene.name == model.active_scene.name and later.scene.layers == ()
    assert [layer.opacity for layer in later.layers_of(name)] == [0.5]
    quick.set("Go to", "prev")
    quick.wait(lambda: model.active_scene.name == name, "the scene before")
    shown.settle(quick)
    assert [layer.opacity for layer in model.active_scene.layers] == [0.5]
    shown.without_layers(quick)


def test_views_that_nobody_decided_about_are_deleted_when_the_viewer_ends(shown: Shown, quick: Tab) -> None:
    before = shown.folders_of_views()
    shown.generate(quick)
    assert len(shown.folders_of_views() - before) == 1
    shown.pipeline.model.viewer_control.finish()
    assert shown.folders_of_views() == before
    quick.click("Discard all")


def test_views_of_a_layer_that_is_taken_back_are_deleted_unless_a_saved_scene_has_them(
    shown: Shown, quick: Tab
) -> None:
    def save() -> None:
        quick.notifications.clear()
        quick.click("Save scene")
        quick.wait(lambda: quick.said("Scene saved"), "its config")
        shown.settle(quick)

    model = shown.pipeline.model
    name = model.active_scene.name
    for folder in shown.folders_of_views():
        shutil.rmtree(folder)
    shown.lift(quick)
    quick.set("Show layer", False)
    quick.wait(lambda: not model.active_scene.layers[0].visible, "the layer hidden")
    shown.settle(quick)
    (note,) = json.loads((shown.folder / "active_scene.json").read_text())["layers"][name]
    (again,) = read_layers([note], shown.folder)
    assert not again.visible  # a later viewer knows of it
    save()
    shown.without_layers(quick)
    assert len(shown.folders_of_views()) == 1 and "layers" not in json.loads(
        (shown.folder / "active_scene.json").read_text()
    )
    shown.lift(quick)
    assert len(shown.folders_of_views()) == 2
    shown.without_layers(quick)
    assert len(shown.folders_of_views()) == 1  # the saved scene's
    save()
    assert shown.folders_of_views() == set() and not (shown.folder / "scenes" / f"{name}.layers.json").exists()


def test_nothing_is_deleted_where_a_note_cannot_be_read_or_outside_the_folder_of_generated_views(
    tmp_path: Path,
) -> None:
    views, photos = tmp_path / "generated" / "x-001", tmp_path / "added_photos"
    for folder in (views, photos, tmp_path / "scenes"):
        folder.mkdir(parents=True)
    broken = tmp_path / "scenes" / "x.layers.json"
    broken.write_text("{ broken")
    delete_unreferenced([views], tmp_path)
    broken.unlink()
    delete_unreferenced([photos, tmp_path / "generated", views / ".." / ".."], tmp_path)
    assert views.is_dir() and photos.is_dir()
    delete_unreferenced([views], tmp_path)
    assert not views.exists()


def test_generated_views_of_a_capture_stay_where_they_were_when_other_photos_are_chosen(
    mvldm: Path, tmp_path: Path
) -> None:
    """A capture's video stands in the frame of its first context camera, which is another one then."""
    capture = write_capture(tmp_path / "room")
    dataparser = NerfstudioDataParserConfig(data=capture).setup()
    scenes = [
        active_scene_from_dataparser(dataparser, PreparationConfig((64, 64)), CaptureContextConfig(context))
        for context in ((1, 7), (5, 2))
    ]
    tasks = [generation_task(scene, poses_along(scene.nerfstudio_cameras((3, 4)), 2), mvldm) for scene in scenes]
    first, second = (task.cameras.world_from_camera[0].clone() for task in tasks)
    for poses, task in ((first, tasks[0]), (second, tasks[1])):
        poses[:, :3, 3] /= task.scale
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)
    size = scenes[0].preparation.image_size
    video = PosedVideo(
        "x", first, scenes[0].video.intrinsics_norm[:2], lambda _: np.zeros((*size, 3), np.uint8), lambda _: size
    )
    for scene in scenes:
        pair = replace(scene, layers=(GeneratedLayer(video, tmp_path, (0, 1)),)).pairs[-1]
        partner, generated = pair.views.cameras.world_from_camera[0]
        between = torch.linalg.inv(partner) @ generated
        there = opencv_from_opengl(scene.nerfstudio_cameras(scene.choice.context).camera_to_worlds)
        wanted = [torch.linalg.inv(photo) @ first[1] for photo in there]  # nerfstudio's frame is the lasting one
        wanted = [motion / torch.tensor([1, 1, 1, motion[:3, 3].norm()]) for motion in wanted]
        between = between / torch.tensor([1, 1, 1, between[:3, 3].norm()])
        assert min(float((between - motion)[:3].abs().max()) for motion in wanted) < 1e-3
