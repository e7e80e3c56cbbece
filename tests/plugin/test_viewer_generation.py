"""Generating missing views in the viewer: proposed, accepted, lifted as layers; driven over the viewer's websocket."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import yaml
from shown_run import Shown
from viser_tab import Tab

from lsplat_ns.data.batches import baseline_of
from lsplat_ns.errors import ConfigError, LsplatError, SceneDataError
from lsplat_ns.plugin import scene_generation
from lsplat_ns.plugin.active_scene import context_baseline
from lsplat_ns.plugin.generated_layers import read_layer, read_layers
from lsplat_ns.plugin.jobs import Progress
from lsplat_ns.plugin.mvldm_recipes import tiny_mvldm_trainer
from lsplat_ns.plugin.scene_generation import chosen_run, generation_task, poses_along, poses_here
from lsplat_ns.plugin.viewer_panel.generate_part import GeneratePart
from lsplat_ns.plugin.viewer_panel.widgets import VISER_NERFSTUDIO_SCALE_RATIO


@pytest.fixture
def quick(shown: Shown, tab: Tab, mvldm: Path) -> Tab:
    """A tab that generates two views in two steps, in a scene without layers or proposed views."""
    tab.click("Discard all")
    shown.without_layers(tab)
    for label, value in (("MV-LDM run", str(mvldm)), ("Views", 2), ("Steps", 2), ("Cameras", "from here")):
        tab.set(label, value)
    return tab


def seen(shown: Shown) -> dict[str, torch.Tensor]:
    """The picture at rest, which is decoded."""
    return shown.seen(shown.pipeline.datamanager.train_dataset.cameras[0:1])


# ---------------------------------------------------------------------------------------------- before a browser


def test_neighbours_stand_beside_the_camera_a_quarter_of_the_baseline_apart() -> None:
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    poses = poses_here(pose, baseline=2.0, count=3)
    assert poses[:, :3, 3].tolist() == [[0.5, 2, 3], [1, 2, 3], [1.5, 2, 3]]
    assert torch.equal(poses_here(pose, 2.0, 1)[0], pose)


def test_the_task_is_in_units_of_the_baseline_and_cameras_are_where_they_were(shown: Shown, mvldm: Path) -> None:
    scene = shown.pipeline.model.active_scene
    path = scene.nerfstudio_cameras((0, 3, 5, 8, 13))
    poses = poses_along(path, 3)
    task = generation_task(scene, poses, mvldm)
    assert set(task.given) == set(scene.choice.context) and task.context.size == scene.preparation.image_size
    assert baseline_of(task.context.cameras.world_from_camera[0]) == pytest.approx(1, abs=1e-5)
    expected = scene.video.world_from_camera[[0, 5, 13]].clone()
    expected[:, :3, 3] *= task.scale
    torch.testing.assert_close(task.cameras.world_from_camera[0], expected, atol=1e-4, rtol=0)
    assert context_baseline(scene) * float(scene.network_from_nerfstudio.scale) == pytest.approx(1, abs=1e-5)


def test_what_is_no_generator_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ns-train mvldm-tiny"):
        chosen_run("  ")
    with pytest.raises(ConfigError, match="lsplat import"):
        chosen_run(str(tmp_path))


def test_views_have_the_size_that_the_generator_was_trained_at_and_its_config_is_not_run(
    shown: Shown, mvldm: Path, tmp_path: Path
) -> None:
    scene = shown.pipeline.model.active_scene
    run = Path(shutil.copytree(mvldm, tmp_path / "mvldm"))
    poses = poses_along(scene.nerfstudio_cameras((0, 5)), 2)
    config = tiny_mvldm_trainer("mvldm-tiny")
    for size, expected in (((64, 96), (64, 96)), ((32, 32), (64, 64)), ((512, 512), (64, 64))):
        config.pipeline.datamanager.preparation.image_size = size  # too small for the scene, or for the photos: its own
        (run / "config.yml").write_text(yaml.dump(config))
        assert generation_task(scene, poses, run).context.size == expected
    evil = tmp_path / "evil"
    call = "!!python/object/apply:pathlib.Path"
    (run / "config.yml").write_text(f"{call}.touch [{call} [{evil}]]")
    with pytest.raises(ConfigError, match="no image size"):
        generation_task(scene, poses, run)
    assert not evil.exists()


def test_a_generator_that_does_not_fit_beside_the_scene_is_said_so(
    mvldm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(scene_generation, "load_mvldm", out_of_memory)
    with pytest.raises(LsplatError, match="too small for MV-LDM"):
        scene_generation.Generator().load(mvldm, torch.device("cpu"))


def test_the_viewer_offers_as_many_views_as_are_generated_at_once(
    shown: Shown, mvldm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene_generation, "MOST_VIEWS", 2)
    panel = MagicMock()
    panel.model.active_scene, panel.model.config.generator = None, None
    GeneratePart(panel)
    (field,) = (call for call in panel.viewer.viser_server.gui.add_number.mock_calls if call.args[:1] == ("Views",))
    assert field.kwargs["max"] == 2
    scene = shown.pipeline.model.active_scene
    with pytest.raises(ConfigError, match="1 to 2 views are generated at once, not 3"):
        generation_task(scene, poses_along(scene.nerfstudio_cameras((0, 3, 5)), 3), mvldm)


@pytest.mark.parametrize(("device", "solver", "steps"), [("cuda", "ddim", 70), ("cpu", "dpm-solver++", 12)])
def test_the_published_sampling_is_proposed_where_it_takes_no_minutes(device: str, solver: str, steps: int) -> None:
    panel = MagicMock()
    panel.model.active_scene, panel.model.config.generator = None, Path("a/run")
    panel.model.device = torch.device(device)
    GeneratePart(panel)
    gui = panel.viewer.viser_server.gui
    assert next(c for c in gui.add_number.mock_calls if c.args[:1] == ("Steps",)).args[1] == steps
    assert next(c for c in gui.add_dropdown.mock_calls if c.args[:1] == ("Solver",)).kwargs["initial_value"] == solver
    assert next(c for c in gui.add_text.mock_calls if c.args[:1] == ("MV-LDM run",)).args[1] == "a/run"


@pytest.mark.parametrize(
    "notes",
    [{}, [1], [{"folder": "generated/x"}], [{"folder": "../elsewhere", "frames": [1]}],
     [{"folder": "generated/gone", "frames": [1]}]],
)  # fmt: skip
def test_notes_of_layers_from_elsewhere_are_refused(notes: object, tmp_path: Path) -> None:
    with pytest.raises(SceneDataError):
        read_layers(notes, tmp_path)


# ------------------------------------------------------------------------------------------------- in the viewer


def test_without_a_checkpoint_one_message_says_what_to_do(shown: Shown, tab: Tab) -> None:
    tab.set("MV-LDM run", "")
    tab.click("Generate")
    tab.wait(lambda: tab.said("no MV-LDM is chosen") and tab.said("ns-train mvldm-tiny"), "what to do")
    shown.settle(tab)
    tab.set("MV-LDM run", "/nowhere")
    tab.click("Generate")
    tab.wait(lambda: tab.said("no MV-LDM at /nowhere"), "what is wrong")
    shown.settle(tab)


def test_guidance_follows_the_run_that_is_typed(tab: Tab, mvldm: Path, tmp_path: Path) -> None:
    careful = Path(shutil.copytree(mvldm, tmp_path / "careful"))
    strong = Path(shutil.copytree(mvldm, tmp_path / "strong"))
    for folder, guidance in ((careful, 1.5), (strong, 50)):
        (folder / "provenance.json").write_text(json.dumps({"guidance": guidance}))
    asked = ((careful, 1.5), (strong, 10), (mvldm, 3.0), (careful, 1.5), ("/nowhere", 1.5), ("x" * 5000, 1.5))
    for run, wanted in asked:
        tab.set("MV-LDM run", str(run))
        tab.wait(lambda: tab.value("Guidance") == wanted, f"guidance {wanted}")  # noqa: B023
    tab.set("MV-LDM run", str(mvldm))
    tab.wait(lambda: tab.value("Guidance") == 3, "the published guidance")


def test_views_are_proposed_as_frusta_and_a_sheet_with_scores_and_can_be_discarded(shown: Shown, quick: Tab) -> None:
    before = shown.folders_of_views()
    shown.generate(quick)
    quick.wait(lambda: {"/lsplat/generated/000", "/lsplat/generated/001"} <= quick.nodes, "cameras")
    assert "data:image/png" in quick.texts() and "0 is best" in quick.texts()
    labels = [widget["label"] for widget in quick.widgets.values() if str(widget.get("label")).startswith("View ")]
    assert len(labels) == 2 and all(float(label.split(": ")[1]) > 0 for label in labels)
    (folder,) = shown.folders_of_views() - before
    assert (folder / "contact_sheet.png").is_file()
    quick.click("Discard all")
    quick.wait(lambda: not any("generated" in node for node in quick.nodes), "the frusta to go")
    quick.wait(lambda: not quick.visible("Lift accepted views"), "the buttons to go")
    assert shown.folders_of_views() == before


def test_generation_is_cancelled_within_a_step_while_the_viewer_flies_and_leaves_nothing(
    shown: Shown, quick: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, steps, report = shown.folders_of_views(), [], Progress.report

    def counting(progress: Progress, done: int, total: int) -> None:
        steps.append(done)
        report(progress, done, total)

    monkeypatch.setattr(Progress, "report", counting)
    quick.set("Steps", 1000)
    quick.click("Generate")
    quick.wait(lambda: quick.visible("Cancel generation") and "s left" in quick.texts(), "progress")
    for number in range(3):  # the render lock is free
        quick.look((0.1 * number, 0.0, 0.0))
        quick.wait_for_picture()
    assert shown.pipeline.model.viewer_control.work.busy
    quick.click("Cancel generation")
    reported = len(steps)
    quick.wait(lambda: quick.said("cancelled"), "the end")
    shown.settle(quick)
    assert len(steps) <= reported + 1
    quick.wait(lambda: not quick.visible("Cancel generation"), "the button to go")
    assert shown.folders_of_views() == before


def test_accepted_views_become_a_layer_that_is_shown_faded_hidden_and_taken_back(shown: Shown, quick: Tab) -> None:
    model, panel = shown.pipeline.model, shown.pipeline.model.viewer_control
    photos, before = model.prediction(), seen(shown)
    shown.generate(quick)
    first = next(w["label"] for w in quick.widgets.values() if str(w.get("label")).startswith("View 1"))
    quick.set(first, False)  # one of the two
    quick.click("Lift accepted views")
    quick.wait(lambda: len(model.active_scene.layers) == 1, "a layer")
    shown.settle(quick)
    quick.wait(lambda: "/lsplat/layers/000/000" in quick.nodes, "a camera of the layer")
    quick.wait(lambda: not any("generated" in node for node in quick.nodes), "the proposed ones to go")
    (layer,) = model.active_scene.layers
    assert len(layer.video) == 1
    fused = model.prediction().fused
    added = fused.generated[0]
    assert 0 < int(added.sum()) == fused.gaussians.count - photos.fused.gaussians.count
    torch.testing.assert_close(fused.gaussians.means[0, ~added], photos.fused.gaussians.means[0])  # photos first

    quick.set("From photos", False)
    quick.wait(lambda: panel.kept(fused) is not None, "photos hidden")
    alone = seen(shown)["accumulation"]
    assert alone.max() > 0
    quick.set("Layer opacity", 0.0)
    quick.wait(lambda: model.active_scene.layers[0].opacity == 0, "no opacity")
    shown.settle(quick)
    assert seen(shown)["accumulation"].max() < 1e-3
    assert model.prediction().fused is fused  # nothing was encoded anew
    quick.set("Layer opacity", 1.0)
    quick.wait(lambda: model.active_scene.layers[0].opacity == 1, "full opacity")
    shown.settle(quick)
    torch.testing.assert_close(seen(shown)["accumulation"], alone)
    quick.set("From photos", True)
    quick.wait(lambda: panel.kept(fused) is None, "photos shown")

    quick.set("Show layer", False)
    quick.wait(lambda: not model.active_scene.layers[0].visible, "the layer hidden")
    shown.settle(quick)
    assert torch.equal(seen(shown)["rgb_splat"], before["rgb_splat"])
    quick.click("Undo last layer")
    quick.wait(lambda: model.active_scene.layers == (), "the layer gone")
    shown.settle(quick)
    assert torch.equal(seen(shown)["rgb_splat"], before["rgb_splat"])
    quick.wait(lambda: not quick.visible("Show layer"), "its widgets to go")


def test_layers_stay_with_other_photos_and_headless_tools_show_them_too(shown: Shown, quick: Tab) -> None:
    model = shown.pipeline.model
    shown.lift(quick)
    name = model.active_scene.name
    quick.set("Context", "2, 10")
    quick.wait(lambda: model.active_scene.choice.context == (2, 10), "frames 2 and 10")
    shown.settle(quick)
    assert len(model.active_scene.layers) == 1
    quick.set("Layer opacity", 0.5)
    quick.wait(lambda: model.active_scene.layers[0].opacity == 0.5, "half opacity")
    shown.settle(quick)
    here = seen(shown)
    assert json.loads((shown.folder / "active_scene.json").read_text())["layers"][name][0]["opacity"] == 0.5
    quick.click("Save scene")
    quick.wait(lambda: quick.said("Scene saved"), "its config")
    shown.settle(quick)
    for file in (shown.folder / "config.yml", shown.folder / "scenes" / f"{name}.yml"):
        config = yaml.load(file.read_text(), Loader=yaml.Loader)
        config.pipeline.datamanager.run_dir = shown.folder
        pipeline = config.pipeline.setup(device=str(model.device), test_mode="inference").eval()
        pipeline.model.load_state_dict(model.state_dict())
        camera = shown.pipeline.datamanager.train_dataset.cameras[0:1]
        there = pipeline.model.get_outputs_for_camera(camera)
        assert torch.equal(there["rgb"], here["rgb"]) and torch.equal(there["rgb_splat"], here["rgb_splat"]), file
    shown.without_layers(quick)


def test_views_that_are_lifted_are_not_discarded_meanwhile_and_come_back_if_lifting_fails(
    shown: Shown, quick: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, part = shown.pipeline.model, shown.pipeline.model.viewer_control.generate_part
    show = shown.pipeline.show_scene

    def fail(scene: object) -> None:
        raise SceneDataError("no depth")

    def show_and_discard(scene: object) -> None:
        part._forget_proposal(delete=True)  # as a generation does that ends in this moment
        show(scene)

    shown.generate(quick)
    monkeypatch.setattr(shown.pipeline, "show_scene", fail)
    quick.click("Lift accepted views")
    quick.wait(lambda: quick.said("no depth"), "what is wrong")
    shown.settle(quick)
    quick.wait(lambda: quick.visible("Lift accepted views"), "the views to come back")
    monkeypatch.setattr(shown.pipeline, "show_scene", show_and_discard)
    quick.click("Lift accepted views")
    quick.wait(lambda: len(model.active_scene.layers) == 1, "a layer")
    shown.settle(quick)
    monkeypatch.undo()
    assert (model.active_scene.layers[0].folder / "transforms.json").is_file()
    shown.without_layers(quick)


def test_another_scene_forgets_what_was_proposed_and_keeps_no_layer(shown: Shown, quick: Tab) -> None:
    model, part = shown.pipeline.model, shown.pipeline.model.viewer_control.generate_part
    shown.lift(quick)
    shown.generate(quick)
    before = part._frusta[0].position
    quick.set("Context", "1, 12")  # the viewer's frame is another one now; the views stand where they stood
    quick.wait(lambda: model.active_scene.choice.context == (1, 12), "frames 1 and 12")
    shown.settle(quick)
    pose = model.active_scene.nerfstudio_from_lasting.apply_to_poses(part._proposal.views[0].lasting_from_camera)
    np.testing.assert_allclose(part._frusta[0].position, VISER_NERFSTUDIO_SCALE_RATIO * pose[:3, 3], atol=1e-4)
    assert np.abs(part._frusta[0].position - before).max() > 1e-2
    quick.set("Go to", "next")
    quick.wait(lambda: shown.pipeline.model.active_scene.layers == (), "the next scene")
    shown.settle(quick)
    quick.wait(lambda: not any("generated" in node or "layers" in node for node in quick.nodes), "the frusta to go")
    quick.wait(lambda: not (quick.visible("Lift accepted views") or quick.visible("Show layer")), "their widgets too")


def test_the_least_certain_view_is_offered_to_be_generated(shown: Shown, quick: Tab) -> None:
    quick.click("Go where it knows least")
    quick.wait(lambda: quick.said("Least certain view") and quick.visible("Generate there"), "the offer")
    shown.settle(quick)
    shown.generate(quick, "Generate there")
    quick.click("Discard all")


def test_views_along_a_saved_path_are_generated(shown: Shown, quick: Tab) -> None:
    cameras = shown.pipeline.model.active_scene.nerfstudio_cameras((1, 4, 7, 10))
    entries = []
    for pose in cameras.camera_to_worlds:
        whole = torch.cat([pose, torch.tensor([[0.0, 0.0, 0.0, 1.0]])])
        entries.append({"camera_to_world": whole.flatten().tolist(), "fov": 50.0, "aspect": 1.5})
    file = shown.folder / "camera_paths" / "mine.json"
    file.parent.mkdir(exist_ok=True)
    path = {"camera_type": "perspective", "render_height": 64, "render_width": 96, "fps": 24, "seconds": 1}
    file.write_text(json.dumps({**path, "camera_path": entries}))
    quick.set("Cameras", "last saved in the Render tab")
    quick.set("Views", 4)
    before = shown.folders_of_views()
    shown.generate(quick)
    (folder,) = shown.folders_of_views() - before
    assert folder.name.startswith(shown.pipeline.model.active_scene.name)
    layer = read_layer(folder, tuple(range(14, 18)))
    expected = shown.pipeline.model.active_scene.video.world_from_camera[[1, 4, 7, 10]]
    torch.testing.assert_close(layer.video.world_from_camera, expected, atol=1e-4, rtol=0)
    assert np.asarray(layer.video.read_image(0)).shape == (64, 64, 3)
    quick.click("Discard all")
