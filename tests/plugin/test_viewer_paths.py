"""Camera paths of the Render tab: to which scene and frame they belong, what of them is drawn, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nerfstudio.cameras.camera_paths import get_path_from_json
from shown_run import Shown
from viser_tab import Tab

from lsplat_ns.errors import ConfigError
from lsplat_ns.geometry.conventions import opencv_from_opengl
from lsplat_ns.plugin.taking_away import cropped, read_camera_path
from lsplat_ns.plugin.viewing import in_panel_words, plain_message


def test_a_saved_path_stays_where_it_was_when_other_photos_are_chosen_and_tells_if_it_is_of_another_scene(
    shown: Shown, tab: Tab
) -> None:
    model, panel = shown.pipeline.model, shown.pipeline.model.viewer_control
    for x in (0.0, 0.4):
        tab.look((x, 0.1, 0.2))
        tab.click("Add Keyframe")
    tab.set("Render name", "noted")
    file = shown.folder / "camera_paths" / "noted.json"
    tab.click("Generate Command")
    tab.wait(lambda: file.is_file() and "lsplat_scene" in file.read_text(), "the path and its note")
    scene = model.active_scene
    raw = get_path_from_json(json.loads(file.read_text())).camera_to_worlds
    assert torch.equal(panel.saved_path(scene).cameras.camera_to_worlds, raw)  # to the last bit
    tab.set("Context", "0, 13" if scene.choice.context != (0, 13) else "2, 11")
    tab.wait(lambda: model.active_scene.choice.context != scene.choice.context, "other photos")
    shown.settle(tab)
    now = model.active_scene
    moved = panel.saved_path(now).cameras.camera_to_worlds
    assert (moved - raw).abs().max() > 1e-2
    before, after = (
        frame.nerfstudio_from_video.inverse().apply_to_poses(opencv_from_opengl(poses))
        for frame, poses in ((scene, raw), (now, moved))
    )
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    tab.set("Go to", "next")
    tab.wait(lambda: model.active_scene.name != scene.name, "the next scene")
    shown.settle(tab)
    panel.saved_path(model.active_scene)
    tab.wait(lambda: tab.said(f"saved in {scene.name}"), "word that it is another scene's")
    file.unlink()


def test_the_name_of_a_path_leads_nowhere_else(shown: Shown, tab: Tab) -> None:
    for x in (0.0, 0.4):
        tab.look((x, 0.1, 0.2))
        tab.click("Add Keyframe")
    for name in ("../../evil", str(shown.folder.parent / "evil"), ".."):
        tab.set("Render name", name)
        tab.click("Generate Command")
        shown.settle(tab)
        tab.wait(lambda: "/" not in tab.value("Render name"), "a name within the folder")
    assert list(shown.folder.parent.rglob("evil.json")) == [shown.folder / "camera_paths" / "evil.json"]
    for file in (shown.folder / "camera_paths").iterdir():
        file.unlink()


def test_paths_with_a_crop_box_or_another_lens_are_rendered_as_by_ns_render_or_refused(
    shown: Shown, tmp_path: Path
) -> None:
    model, prediction = shown.pipeline.model, shown.pipeline.model.prediction()
    camera = shown.pipeline.datamanager.train_dataset.cameras[0]
    pose = torch.cat([camera.camera_to_worlds, torch.tensor([[0.0, 0.0, 0.0, 1.0]])])
    content = {
        "camera_type": "perspective", "render_height": 64, "render_width": 96,
        "camera_path": [{"camera_to_world": pose.flatten().tolist(), "fov": 50.0, "aspect": 1.5}],
        "crop": {"crop_center": [0.0, 0.0, 0.0], "crop_scale": [2.0, 2.0, 2.0], "crop_rot": [0.1, 0.2, 0.3],
                 "crop_bg_color": {"r": 0, "g": 0, "b": 0}},
    }  # fmt: skip
    file = tmp_path / "cropped.json"
    file.write_text(json.dumps(content))
    path = read_camera_path(file, prediction.scene)
    headless = model.get_outputs_for_camera(path.cameras, obb_box=path.crop)
    assert 0 < cropped(model, prediction, path.crop).count < prediction.shown.count
    ours = model.view(prediction, path.cameras, shown=cropped(model, prediction, path.crop))
    assert torch.equal(ours["rgb_splat"], headless["rgb_splat"])
    for kind in ("fisheye", "equirectangular"):
        file.write_text(json.dumps({**content, "camera_type": kind}))
        with pytest.raises(ConfigError, match=f"{kind} cameras cannot be drawn; take Perspective"):
            read_camera_path(file, prediction.scene)


def test_what_the_panel_says_names_fields_of_the_panel_and_no_options_of_a_command_line() -> None:
    for message in (
        "no focal length in the EXIF data: a field of view of 60 degrees is assumed; state it with --fov",
        "things moved, or the field of view is not the assumed one (--fov); take them closer together",
        "--fov is 170; the field of view must lie between 10 and 150 degrees",
        "the GPU's memory is too small for the smallest group of views; lower --size",
        "not finite numbers; generate in float32 (--acceleration off), or take another checkpoint",
    ):
        assert "--" not in plain_message(ConfigError(message))
    assert "under Photo angle" in in_panel_words("state it with --fov")
