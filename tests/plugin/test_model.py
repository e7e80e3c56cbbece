"""The nerfstudio model and pipeline in this process: what viewer, renderer and exporter rely on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException

from lsplat_ns.errors import CheckpointMismatch, SceneDataError
from lsplat_ns.latentsplat import FastParts, LatentSplat
from lsplat_ns.plugin.drawing import decoding_size
from lsplat_ns.plugin.optimizers import FINE_TUNED, LinearWarmupConfig, TwoRateAdamConfig
from lsplat_ns.plugin.pipeline import LatentSplatPipeline
from lsplat_ns.plugin.recipes import tiny_trainer

NAMES = ["rgb", "depth", "accumulation", "rgb_splat", "uncertainty", "latent"]


@pytest.fixture
def pipeline(rooms: Path, tmp_path: Path) -> Iterator[LatentSplatPipeline]:
    torch.manual_seed(0)
    config = deepcopy(tiny_trainer("latentsplat-tiny"))
    config.pipeline.datamanager.data = rooms
    config.pipeline.datamanager.run_dir = tmp_path
    yield config.pipeline.setup(device="cpu", test_mode="val")


def camera_of(pipeline: LatentSplatPipeline, width: int = 64, height: int = 64) -> Cameras:
    camera = deepcopy(pipeline.datamanager.train_dataset.cameras[0:1])
    factor = height / 64
    camera.fx *= factor
    camera.fy *= factor
    camera.cx[...], camera.cy[...] = width / 2, height / 2
    camera.width[...], camera.height[...] = width, height
    return camera


@pytest.mark.parametrize(("width", "height"), [(64, 64), (1, 1), (301, 30), (51, 113)])
def test_outputs_have_the_size_that_was_asked_for_and_are_fit_to_show(
    pipeline: LatentSplatPipeline, width: int, height: int
) -> None:
    outputs = pipeline.model.get_outputs_for_camera(camera_of(pipeline, width, height))
    assert list(outputs) == NAMES
    for name, value in outputs.items():
        channels = 3 if name in ("rgb", "rgb_splat", "latent") else 1
        assert value.shape == (height, width, channels) and value.dtype == torch.float32, name
        assert torch.isfinite(value).all(), name
        if channels == 3:
            assert value.min() >= 0 and value.max() <= 1, name
    assert outputs["depth"].min() > 0


def test_a_context_camera_sees_what_the_network_renders_there(pipeline: LatentSplatPipeline) -> None:
    model = pipeline.model
    outputs = model.get_outputs_for_camera(pipeline.datamanager.train_dataset.cameras[1:2])
    prediction = model.prediction()
    cameras = prediction.scene.context.cameras.select(slice(1, 2))
    with torch.no_grad():
        view = model.network.view(prediction.gaussians, cameras, (64, 64), deterministic=True)
    torch.testing.assert_close(outputs["rgb"].permute(2, 0, 1), view.image[0, 0].clamp(0, 1), atol=2e-3, rtol=0)
    # Rounding of the pose lets a Gaussian at the threshold of 1/255 come or go.
    torch.testing.assert_close(outputs["accumulation"][..., 0], view.rendering.alpha[0, 0], atol=6e-3, rtol=0)


def test_exported_gaussians_stand_where_the_cameras_look(pipeline: LatentSplatPipeline) -> None:
    """Means in nerfstudio's frame project into a context view at the pixels whose rays they came from."""
    model = pipeline.model
    camera = pipeline.datamanager.train_dataset.cameras[0]
    count = model.means.shape[0] // 2  # Gaussians of the first view come first, row by row
    pose = torch.eye(4)
    pose[:3] = camera.camera_to_worlds
    points = model.means[:count] @ torch.linalg.inv(pose)[:3, :3].T + torch.linalg.inv(pose)[:3, 3]
    u = camera.fx * points[:, 0] / -points[:, 2] + camera.cx
    v = camera.fy * -points[:, 1] / -points[:, 2] + camera.cy
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    assert (u - columns.flatten()).abs().max() < 0.6 and (v - rows.flatten()).abs().max() < 0.6
    assert model.quats.shape == (2 * count, 4) and model.opacities.shape == (2 * count, 1)
    assert model.shs_0.shape == (2 * count, 3) and model.shs_rest.shape == (2 * count, 15, 3)


def test_rendering_never_raises_but_says_what_is_wrong(
    pipeline: LatentSplatPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = camera_of(pipeline, 120, 80)

    def fail(*args: object, **options: object) -> None:
        raise ValueError("something broke")

    fine = pipeline.model.get_outputs_for_camera(camera)
    monkeypatch.setattr(pipeline.model.network, "render", fail)
    outputs = pipeline.model.get_outputs_for_camera(camera)
    assert {name: value.shape for name, value in outputs.items()} == {n: v.shape for n, v in fine.items()}
    assert outputs["rgb"].std() > 0.01  # there is writing on it


@pytest.mark.parametrize("error", [SceneDataError("cannot read views/000007.png"), MemoryError()])
def test_a_tool_without_a_viewer_ends_with_one_line_instead_of_a_video_of_it(
    error: Exception, pipeline: LatentSplatPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(pipeline.model.network, "render", fail)
    outputs = pipeline.model.get_outputs_for_camera(camera_of(pipeline))  # training goes on
    assert list(outputs) == NAMES
    pipeline.test_mode = "inference"
    with pytest.raises(SystemExit, match=r"error: (cannot read views|Out of memory)"):
        pipeline.model.get_outputs_for_camera(camera_of(pipeline))


def test_the_viewers_interrupt_passes_through(pipeline: LatentSplatPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise IOChangeException

    monkeypatch.setattr(pipeline.model.network, "render", interrupt)
    with pytest.raises(IOChangeException):
        pipeline.model.get_outputs_for_camera(camera_of(pipeline))


def test_a_pose_of_whole_numbers_is_drawn_all_the_same(pipeline: LatentSplatPipeline) -> None:
    camera = camera_of(pipeline)
    camera.camera_to_worlds = torch.eye(4, dtype=torch.int64)[None, :3]
    assert list(pipeline.model.get_outputs_for_camera(camera)) == NAMES


@pytest.mark.parametrize("kind", [CameraType.FISHEYE, CameraType.EQUIRECTANGULAR, CameraType.VR180_L])
def test_a_camera_that_splats_are_not_drawn_for_ends_a_tool_with_one_line_and_not_with_wrong_pictures(
    pipeline: LatentSplatPipeline, kind: CameraType
) -> None:
    camera = camera_of(pipeline)
    camera.camera_type[...] = kind.value
    with pytest.raises(SystemExit, match=r"error: .* cameras cannot be drawn; take Perspective"):
        pipeline.model.get_outputs_for_camera(camera)


def test_gaussians_that_are_not_finite_are_not_handed_to_other_tools(pipeline: LatentSplatPipeline) -> None:
    model = pipeline.model
    count, prediction = len(model.gauss_params["means"]), model.prediction()
    model._exported = None
    prediction.gaussians.covariances[0, 3] = torch.nan
    prediction.gaussians.means[0, 5, 1] = torch.inf
    params = model.gauss_params
    assert {len(values) for values in params.values()} == {count - 2}
    assert all(bool(values.isfinite().all()) for values in params.values())


def test_a_crop_box_removes_what_is_outside(pipeline: LatentSplatPipeline) -> None:
    box = OrientedBox(R=torch.eye(3), T=torch.full((3,), 1e4), S=torch.ones(3))
    outputs = pipeline.model.get_outputs_for_camera(camera_of(pipeline), obb_box=box)
    assert outputs["accumulation"].max() == 0


def test_a_still_camera_sees_identical_frames_in_every_mode(pipeline: LatentSplatPipeline) -> None:
    model, camera = pipeline.model, camera_of(pipeline)

    def frame(mode: str, seed: int) -> torch.Tensor:
        model.show_draw(mode, seed)
        first, second = (model.get_outputs_for_camera(camera)["rgb"] for _ in range(2))
        assert torch.equal(first, second)
        return first

    mode = frame("mode", 0)
    sample = frame("sample", 1)
    assert not torch.equal(mode, sample)
    assert torch.equal(sample, frame("sample", 1))  # the same seed, drawn anew
    assert not torch.equal(sample, frame("sample", 2))


def test_switching_scenes_changes_picture_and_cameras_and_is_remembered(
    pipeline: LatentSplatPipeline, rooms: Path, tmp_path: Path
) -> None:
    pipeline.config.datamanager.dataparser.scene_split = "train"
    before = pipeline.model.get_outputs_for_camera(camera_of(pipeline))["rgb"]
    scenes = list(json.loads((rooms / "train" / "index.json").read_text()))
    pipeline.set_scene(scenes[1], (2, 9))
    assert pipeline.datamanager.scene.name == scenes[1]
    assert len(pipeline.datamanager.train_dataset) == 2 and len(pipeline.datamanager.eval_dataset) == 12
    after = pipeline.model.get_outputs_for_camera(camera_of(pipeline))["rgb"]
    assert (before - after).abs().mean() > 1e-3
    assert json.loads((tmp_path / "active_scene.json").read_text()) == {"scene": scenes[1], "context": [2, 9]}
    for wrong, context in (("nowhere", None), (scenes[0], (0, 99))):
        with pytest.raises(SceneDataError):
            pipeline.set_scene(wrong, context)
        assert pipeline.datamanager.scene.name == scenes[1]


def test_a_scene_whose_id_looks_like_markup_is_announced_as_it_is(
    pipeline: LatentSplatPipeline, capsys: pytest.CaptureFixture
) -> None:
    scene = pipeline.datamanager.scene
    pipeline.datamanager.scene = replace(scene, video=replace(scene.video, scene="x[/red]"))
    pipeline.datamanager.announce()
    assert "Scene x[/red] (" in capsys.readouterr().out


def test_eval_hooks_give_numbers_and_pictures_that_writers_take(pipeline: LatentSplatPipeline, tmp_path: Path) -> None:
    _, losses, metrics = pipeline.get_eval_loss_dict(0)
    assert float(losses["mse"]) > 0 and float(metrics["psnr"]) > 0
    metrics, images = pipeline.get_eval_image_metrics_and_images(7)
    assert metrics["num_rays"] == 64 * 64 and isinstance(metrics["psnr"], float)
    assert set(images) == {"img", "depth", "splat", "context"}
    for name, image in images.items():
        assert image.shape[0] == 64 and image.shape[2] == 3 and 0 <= image.min() <= image.max() <= 1, name
    average = pipeline.get_average_eval_image_metrics(output_path=tmp_path / "views", get_std=True)
    json.dumps(average)
    assert {"psnr", "psnr_std", "ssim", "psnr_splat", "entries"} <= set(average)
    assert len(list((tmp_path / "views").rglob("*.png"))) > 0
    assert pipeline.training  # as before


def test_weights_of_another_network_are_refused(pipeline: LatentSplatPipeline) -> None:
    state = pipeline.state_dict()
    state.pop(next(key for key in state if "to_gaussians" in key))
    with pytest.raises(CheckpointMismatch, match="to_gaussians"):
        pipeline.load_state_dict(state)
    with pytest.raises(CheckpointMismatch, match="no model"):
        pipeline.load_state_dict({"something": torch.zeros(1)})


def test_new_weights_give_a_new_prediction(pipeline: LatentSplatPipeline) -> None:
    camera = camera_of(pipeline)
    before = pipeline.model.get_outputs_for_camera(camera)["rgb"]
    state = {key: value + 0.05 if "to_gaussians" in key else value for key, value in pipeline.state_dict().items()}
    pipeline.load_pipeline(state, step=3)
    assert pipeline.model.step == 3
    assert not torch.equal(before, pipeline.model.get_outputs_for_camera(camera)["rgb"])


def test_encoder_and_autoencoder_have_their_own_learning_rates(pipeline: LatentSplatPipeline) -> None:
    parameters = pipeline.get_param_groups()["generator"]
    optimizer = TwoRateAdamConfig(lr=1e-4, fine_tuned_lr=1e-5).setup(parameters)
    encoder, autoencoder = optimizer.param_groups
    batch = pipeline.config.datamanager.batch_size
    assert (encoder["lr"], autoencoder["lr"]) == (1e-4, 1e-5 * batch)
    assert (encoder["betas"], autoencoder["betas"]) == ((0.9, 0.999), (0.5, 0.9))
    assert len(autoencoder["params"]) == len(list(pipeline.model.network.autoencoder.parameters()))
    assert all(getattr(p, FINE_TUNED) for p in autoencoder["params"])
    scheduler = LinearWarmupConfig().setup().get_scheduler(optimizer, lr_init=1.0)
    assert encoder["lr"] == pytest.approx(1e-4 * 5e-4)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert encoder["lr"] == pytest.approx(1e-4 * (5e-4 + (1 - 5e-4) * 4 / 2000))
    assert all(type(value) is float for value in scheduler.state_dict()["_last_lr"])


def test_rates_stay_after_the_warm_up_unless_a_decay_is_asked_for() -> None:
    constant = LinearWarmupConfig(warm_up_steps=10).setup()
    assert [constant.factor(step) for step in (10, 500, 10**6)] == [1.0, 1.0, 1.0]
    falling = LinearWarmupConfig(warm_up_steps=10, decay_steps=100, final_factor=0.1).setup()
    factors = [falling.factor(step) for step in range(10, 100, 10)]
    assert factors == sorted(factors, reverse=True)
    assert falling.factor(50) == pytest.approx(0.55)
    assert falling.factor(100) == falling.factor(5000) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [((64, 64), 256, (256, 256)), ((90, 160), 64, (64, 112)), ((512, 301), 256, (432, 256)), ((1, 400), 64, (8, 256))],
)
def test_views_are_decoded_near_the_training_size_and_a_sliver_not_as_a_poster(
    size: tuple[int, int], short: int, expected: tuple[int, int]
) -> None:
    result = decoding_size(size, short, 8)
    assert all(side % 8 == 0 for side in result)
    np.testing.assert_allclose(result, expected, atol=8)


def test_compiling_happens_when_a_run_is_opened_and_not_at_the_first_picture(
    pipeline: LatentSplatPipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    model = pipeline.model
    model.config.acceleration = "compiled"
    decoded = []

    def as_on_a_gpu(network: LatentSplat, compiled: bool) -> None:
        assert compiled
        network.fast = FastParts(decoder=lambda *maps: decoded.append(maps) or network.decode_maps(*maps))

    monkeypatch.setattr("lsplat_ns.plugin.model.accelerate", as_on_a_gpu)
    pipeline.eval()
    model.accelerate()
    assert len(decoded) == 1 and model._prediction is not None
    assert "Compiling" in capsys.readouterr().out
