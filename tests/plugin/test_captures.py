"""Captures that nerfstudio reads: where things stand, what is undistorted, which views are chosen, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_captures import World, write_capture, write_colmap_capture
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.data.datamanagers.full_images_datamanager import _undistort_image
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.dycheck_dataparser import DycheckDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.fusion import encode_layer
from lsplat_ns.geometry.conventions import opencv_from_opengl
from lsplat_ns.plugin.active_scene import ActiveScene
from lsplat_ns.plugin.captures import (
    CaptureContextConfig,
    active_scene_from_dataparser,
    generated_files,
    open_dataparser,
    read_capture,
    video_from_dataparser,
)
from lsplat_ns.plugin.datamanager import LatentSplatDataManagerConfig
from lsplat_ns.plugin.pipeline import LatentSplatPipeline, LatentSplatPipelineConfig
from lsplat_ns.plugin.recipes import tiny_trainer

SMALL = PreparationConfig(image_size=(64, 64))
TURNED = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
ODD = World(13.0, TURNED * np.linalg.det(TURNED), (5.0, -7.0, 100.0))


def scene_of(folder: Path, context: tuple[int, ...] | None = None, **options: object) -> ActiveScene:
    dataparser = NerfstudioDataParserConfig(data=folder).setup()
    return active_scene_from_dataparser(dataparser, SMALL, CaptureContextConfig(context, **options))


def pipeline_of(folder: Path, context: tuple[int, ...], **dataparser: object) -> LatentSplatPipeline:
    """latentsplat-tiny with random weights on a capture; the same weights every time."""
    torch.manual_seed(0)
    config: LatentSplatPipelineConfig = tiny_trainer("latentsplat-tiny").pipeline
    config.datamanager.dataparser = NerfstudioDataParserConfig(data=folder, **dataparser)
    config.datamanager.context = context
    pipeline = config.setup(device="cpu", test_mode="inference").eval()
    with torch.no_grad():  # random weights see no difference between pictures; exaggerate what they see
        encoder = pipeline.model.network.encoder
        for parameter in encoder.to_gaussians.parameters():
            parameter.mul_(4)
        encoder.depth_predictor.projection[-1].weight.mul_(20)  # and are sure of no depth, which makes all transparent
    return pipeline


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo room as a capture, in a world that is large, tilted and far from the origin."""
    return write_capture(tmp_path_factory.mktemp("captures") / "room", world=ODD)


# ------------------------------------------------------------------------------------------------------ line-up


def test_cameras_and_files_are_those_that_other_methods_see(capture: Path) -> None:
    scene = scene_of(capture)
    stock = NerfstudioDataParserConfig(data=capture, eval_mode="all").setup().get_dataparser_outputs("train")
    frames = tuple(range(14))
    ours = scene.dataparser_outputs(frames)
    torch.testing.assert_close(ours.cameras.camera_to_worlds, stock.cameras.camera_to_worlds, atol=2e-6, rtol=0)
    assert ours.image_filenames == stock.image_filenames
    assert torch.equal(ours.dataparser_transform, stock.dataparser_transform)
    assert ours.dataparser_scale == stock.dataparser_scale
    # A square is cut from the middle of each photo: what remains has the same focal length per pixel of the photo.
    torch.testing.assert_close(ours.cameras.fx, stock.cameras.fx)


@pytest.mark.parametrize("context", [(2, 9), (9, 2, 13)])
def test_gaussians_stand_on_the_rays_of_their_photos_pixels_in_nerfstudios_frame(
    capture: Path, context: tuple[int, ...]
) -> None:
    pipeline = pipeline_of(capture, context)
    model, scene = pipeline.model, pipeline.datamanager.scene
    fused = model.prediction().fused
    camera = scene.nerfstudio_cameras(context)
    assert set(fused.layer[0].tolist()) == set(range(len(context) - 1))
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    centres = torch.stack([columns.flatten(), rows.flatten()], -1)
    for view, means in enumerate(model.means[fused.layer[0] == 0].split(64 * 64)):
        assert (pixels_of(means, camera, view) - centres).abs().max() < 0.6
    to_nerfstudio = scene.network_from_nerfstudio.inverse()
    for number, pair in enumerate(scene.pairs[1:], start=1):
        whole = encode_layer(model.network, pair, deterministic=True).gaussians.means[0]
        assert (pixels_of(to_nerfstudio.apply_to_points(whole), camera, number + 1) - centres).abs().max() < 0.6
        kept = fused.gaussians.means[0, fused.layer[0] == number]
        nearest = torch.cdist(kept, whole, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        assert nearest.max() < 1e-5 and 0 < len(kept) < len(whole)


def pixels_of(means: torch.Tensor, cameras: NerfstudioCameras, view: int) -> torch.Tensor:
    """Where points [N, 3] of nerfstudio's frame, all before a camera, appear in its image: (x, y) in pixels."""
    local = local_points(means, cameras, view)
    assert (local[:, 2] > 0).all()
    focal = torch.stack([cameras.fx[view], cameras.fy[view]])
    return focal.reshape(2) * local[:, :2] / local[:, 2:] + torch.stack([cameras.cx[view], cameras.cy[view]]).reshape(2)


def local_points(means: torch.Tensor, cameras: NerfstudioCameras, view: int) -> torch.Tensor:
    """Points of nerfstudio's frame in the OpenCV axes of one of its cameras."""
    pose = torch.eye(4)
    pose[:3] = cameras.camera_to_worlds[view]
    return (torch.linalg.inv(opencv_from_opengl(pose)) @ torch.cat([means, torch.ones(len(means), 1)], 1).T).T[:, :3]


@pytest.mark.parametrize("distance", [0.4, 2.0])
def test_a_wall_has_the_depth_that_nerfstudio_measures(capture: Path, distance: float) -> None:
    """The predicted Gaussians are moved onto a wall before the second camera, upright in nerfstudio's frame."""
    pipeline = pipeline_of(capture, (2, 9))
    model, scene, cameras = pipeline.model, pipeline.datamanager.scene, pipeline.datamanager.train_dataset.cameras
    local = local_points(model.means, cameras, 1)
    on_wall = torch.cat([local * distance / local[:, 2:], torch.ones(len(local), 1)], 1)
    pose = opencv_from_opengl(torch.cat([cameras.camera_to_worlds[1], torch.tensor([[0.0, 0.0, 0.0, 1.0]])]))
    means = scene.network_from_nerfstudio.apply_to_points((on_wall @ pose.T)[:, :3])[None]
    spread = 0.02 * distance * scene.network_from_nerfstudio.scale
    prediction = model.prediction()
    wall = replace(
        prediction.shown,
        means=means,
        covariances=(spread**2 * torch.eye(3)).expand(*means.shape[:2], 3, 3),
        opacities=torch.full(means.shape[:2], 0.9),
    )
    model._prediction = replace(prediction, shown=wall)
    outputs = model.get_outputs_for_camera(cameras[1:2])
    inner = outputs["accumulation"][16:48, 16:48] > 0.99
    assert inner.float().mean() > 0.9
    assert outputs["depth"][16:48, 16:48][inner].median() == pytest.approx(distance, rel=5e-3)


@pytest.mark.parametrize("context", [(2, 9), (2, 9, 13)])
def test_the_picture_does_not_depend_on_the_captures_units_or_axes(
    capture: Path, tmp_path: Path, context: tuple[int, ...]
) -> None:
    plain = write_capture(tmp_path / "plain")
    large = write_capture(tmp_path / "large", world=World(scale=1000.0))
    options = {"auto_scale_poses": False, "orientation_method": "none", "center_method": "none"}
    pipelines = [
        pipeline_of(plain, context, **options),
        pipeline_of(large, context, **options),
        pipeline_of(capture, context),
    ]
    pictures, depths = [], []
    for pipeline in pipelines:
        target = pipeline.datamanager.eval_dataset.frames.index(5)
        outputs = pipeline.model.get_outputs_for_camera(pipeline.datamanager.eval_dataset.cameras[target : target + 1])
        pictures.append(torch.cat([outputs["rgb"], outputs["rgb_splat"], outputs["uncertainty"]], -1))
        depths.append(outputs["depth"].median())
    assert pictures[0].std() > 0.05
    for other in pictures[1:]:
        # Rounding moves a few Gaussians over the threshold of what is drawn at all.
        assert (pictures[0] - other).abs().mean() < 1e-3 and (pictures[0] - other).abs().max() < 0.05
    assert depths[1] / depths[0] == pytest.approx(1000, rel=1e-2)


def test_a_colmap_model_gives_the_scene_that_the_same_capture_gives_as_nerfstudio_data(tmp_path: Path) -> None:
    model = write_colmap_capture(tmp_path / "model", frames=range(6))
    dataparser = ColmapDataParserConfig(data=model, downscale_factor=1).setup()
    ours = active_scene_from_dataparser(dataparser, SMALL, CaptureContextConfig((1, 4)))
    same = scene_of(write_capture(tmp_path / "plain", frames=range(6)), (1, 4))
    torch.testing.assert_close(ours.video.world_from_camera, same.video.world_from_camera, atol=1e-3, rtol=0)
    torch.testing.assert_close(ours.video.intrinsics_norm, same.video.intrinsics_norm)
    assert [file.name for file in ours.capture.image_files] == [file.name for file in same.capture.image_files]


def test_generated_views_are_told_by_our_own_transforms_json_alone(tmp_path: Path) -> None:
    file = tmp_path / "transforms.json"
    file.write_text(json.dumps({"frames": [{"file_path": "a.png", "generated": True}, {"file_path": "b.png"}]}))
    assert generated_files(tmp_path) == {tmp_path.resolve() / "a.png"}
    for content in ("{ broken", "[]", '{"frames": [1]}', '{"frames": [{"generated": true}]}'):
        file.write_text(content)  # beside a capture that another dataparser reads
        assert generated_files(tmp_path) == frozenset()


# -------------------------------------------------------------------------------------------------- undistortion


@pytest.mark.parametrize(
    ("model", "parameters"),
    [("OPENCV", {"k1": -0.2, "k2": 0.05, "k3": 0.01, "p1": 0.003, "p2": -0.002}),
     ("OPENCV_FISHEYE", {"k1": -0.03, "k2": 0.01, "k3": -0.001, "k4": 0.0005})],
)  # fmt: skip
def test_photos_are_undistorted_as_nerfstudios_full_image_datamanager_does(
    tmp_path: Path, model: str, parameters: dict[str, float]
) -> None:
    folder = write_capture(tmp_path / "lens", frames=range(4), **parameters)
    meta = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps({**meta, "camera_model": model}))
    video = video_from_dataparser(NerfstudioDataParserConfig(data=folder).setup())
    stock = NerfstudioDataParserConfig(data=folder, eval_mode="all").setup().get_dataparser_outputs("train")
    camera = stock.cameras[1].reshape(())
    photo = np.asarray(Image.open(stock.image_filenames[1]))
    matrix, expected, _ = _undistort_image(
        camera, camera.distortion_params.numpy(), {}, photo, camera.get_intrinsics_matrices().numpy()
    )
    picture = video.read_image(1)
    # The principal point is the centre of ours; nerfstudio's has it elsewhere.
    height, width = video.read_size(1)
    left, top = round(float(matrix[0, 2]) - width / 2), round(float(matrix[1, 2]) - height / 2)
    cut = expected[top : top + height, left : left + width]
    assert picture.shape == cut.shape == (height, width, 3) and min(picture.shape[:2]) > 40
    assert np.abs(picture.astype(int) - cut).max() <= 1
    pixels = video.intrinsics_norm[1] * torch.tensor([[width], [height], [1.0]])
    np.testing.assert_allclose([pixels[0, 0], pixels[1, 1]], [matrix[0, 0], matrix[1, 1]], rtol=1e-5)
    assert (pixels[:2, 2] - torch.tensor([width / 2, height / 2])).abs().max() <= 0.51


# --------------------------------------------------------------------------------------- photos of every kind


def restored(folder: Path, frame: int, change: Callable[[Image.Image], Image.Image], suffix: str = ".png") -> Path:
    """The capture with one photo stored in another way."""
    meta = json.loads((folder / "transforms.json").read_text())
    entry = meta["frames"][frame]
    photo = Image.open(folder / entry["file_path"])
    entry["file_path"] = str(Path(entry["file_path"]).with_suffix(suffix))
    change(photo).save(folder / entry["file_path"])
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def see_through(photo: Image.Image) -> Image.Image:
    photo.putalpha(0)
    return photo


def sixteen_bits(photo: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("change", "suffix", "expected"),
    [
        (lambda photo: photo.convert("L"), ".png", lambda photo: photo.convert("L").convert("RGB")),
        (sixteen_bits, ".png", lambda photo: photo.convert("L").convert("RGB")),
        (sixteen_bits, ".tiff", lambda photo: photo.convert("L").convert("RGB")),
        (see_through, ".png", lambda photo: Image.new("RGB", photo.size, "white")),
        (see_through, ".webp", lambda photo: Image.new("RGB", photo.size, "white")),
        (lambda photo: photo.convert("P"), ".png", lambda photo: photo.convert("P").convert("RGB")),
    ],
    ids=["grey", "16 bits", "16 bits tiff", "transparent", "transparent webp", "palette"],
)
def test_photos_of_every_kind_become_rgb(
    tmp_path: Path, change: Callable, suffix: str, expected: Callable[[Image.Image], Image.Image]
) -> None:
    folder = write_capture(tmp_path / "my photos – 写真", frames=range(3))  # a space, and letters of other scripts
    original = Image.open(folder / "images" / "frame_00001.png")
    original.load()
    video = scene_of(restored(folder, 1, change, suffix), (0, 2)).video
    np.testing.assert_array_equal(video.read_image(1), np.asarray(expected(original)))


def test_every_frame_may_have_a_camera_and_a_size_of_its_own(tmp_path: Path) -> None:
    """As Polycam and Record3D write it; a point cloud that is named but absent is no reason to refuse."""
    folder = write_capture(tmp_path / "polycam", frames=range(4), ply_file_path="absent.ply")
    meta = json.loads((folder / "transforms.json").read_text())
    camera = {key: meta.pop(key) for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")}
    for number, entry in enumerate(meta["frames"]):
        entry |= {key: int(value * (1 + number % 2)) if key in "wh" else value * (1 + number % 2)
                  for key, value in camera.items()}  # fmt: skip
    (folder / "transforms.json").write_text(json.dumps(meta))
    for frame in (1, 3):
        restored(folder, frame, lambda photo: photo.resize((2 * photo.width, 2 * photo.height)))
    video = scene_of(folder, (0, 2)).video
    assert [video.read_size(frame) for frame in range(4)] == [(64, 96), (128, 192)] * 2
    torch.testing.assert_close(video.intrinsics_norm, video.intrinsics_norm[:1].expand(4, 3, 3))


# ------------------------------------------------------------------------------------------------ choice of views


def test_ways_to_choose_context_views(capture: Path) -> None:
    assert scene_of(capture, (3, 8, 1)).choice.context == (3, 8, 1)
    assert scene_of(capture, context_choice="first-last").choice.context == (0, 13)
    assert scene_of(capture, context_choice="centred", context_gap=5).choice.context == (4, 9)
    chosen = scene_of(capture).choice
    assert len(chosen.context) == 2 and sorted(chosen.context + chosen.target) == list(range(14))
    more = scene_of(capture, num_context_views=4).choice
    assert (
        more.context[:2] == chosen.context
        and 3 <= len(more.context) <= 4
        and len(set(more.context)) == len(more.context)
    )


def test_pairs_are_encoded_at_a_baseline_of_one_and_joined_in_the_frame_of_the_first(capture: Path) -> None:
    scene = scene_of(capture, (2, 9, 13))
    first, second = scene.pairs
    for pair in scene.pairs:
        origins = pair.views.cameras.origins[0]
        assert float((origins[0] - origins[1]).norm()) == pytest.approx(1, rel=1e-4)
    assert (first.new_views, second.new_views) == ((0, 1), (1,)) and first.scale == 1
    assert second.views.frame[0].tolist() == [9, 13]
    torch.testing.assert_close(second.scale * second.views.cameras.origins[0, 0], first.views.cameras.origins[0, 1])
    torch.testing.assert_close(first.views.cameras.world_from_camera[0, 0], torch.eye(4), atol=1e-5, rtol=0)
    near, far = scene.bounds
    for pair in scene.pairs:
        assert (near <= pair.scale * pair.views.cameras.near).all() and (
            far >= pair.scale * pair.views.cameras.far
        ).all()


def test_two_photos_are_enough(tmp_path: Path) -> None:
    folder = write_capture(tmp_path / "two", frames=(2, 9))
    pipeline = pipeline_of(folder, (0, 1))
    assert pipeline.datamanager.scene.choice.target == (0, 1)  # nothing else to compare with
    scores = pipeline.get_average_eval_image_metrics()
    assert scores["psnr"] > 3


def test_scores_of_several_pairs_are_those_of_the_fused_scene(capture: Path) -> None:
    pipeline = pipeline_of(capture, (2, 9, 13))
    pipeline.config.evaluation = "mode"
    scores = pipeline.get_average_eval_image_metrics()
    scene, model = pipeline.datamanager.scene, pipeline.model
    example = scene.example((5, 11))
    assert example.context.frame[0].tolist() == [2, 9, 13]
    with torch.no_grad():
        view = model.network.view(model.prediction().gaussians, example.target.cameras, (64, 64), deterministic=True)
    outputs = model.get_outputs_for_camera(scene.nerfstudio_cameras((5,)))
    torch.testing.assert_close(outputs["rgb"].permute(2, 0, 1), view.image[0, 0].clamp(0, 1), atol=5e-3, rtol=0)
    pipeline.datamanager.scene.__dict__["pairs"] = scene.pairs[:1]
    assert pipeline.get_average_eval_image_metrics()["psnr"] != scores["psnr"]


def test_views_chosen_in_a_viewer_are_remembered_beside_the_run(capture: Path, tmp_path: Path) -> None:
    config = LatentSplatDataManagerConfig(
        dataparser=NerfstudioDataParserConfig(data=capture), preparation=SMALL, run_dir=tmp_path
    )
    manager = config.setup(test_mode="inference")
    assert manager.scene_source == "the capture, views chosen by overlap"
    manager.load_scene("room", (1, 7, 12))
    again = config.setup(test_mode="inference")
    assert again.scene.choice.context == (1, 7, 12) and "last chosen" in again.scene_source
    for wrong in ("nonsense", "7", "../../etc", ""):
        with pytest.raises(SceneDataError, match="the run's data hold room"):
            manager.load_scene(wrong)
    with pytest.raises(SceneDataError, match="two context views or more"):
        manager.load_scene("room", (3,))
    assert manager.scene.choice.context == (1, 7, 12)
    config.context = (0, 5)
    assert config.setup(test_mode="inference").scene.choice.context == (0, 5)
    config.context = None
    absent = [{"folder": "[/absent]", "frames": [1]}]
    (tmp_path / "active_scene.json").write_text(json.dumps({"scene": "room", "context": [1, 7], "layers": absent}))
    assert config.setup(test_mode="inference").scene_source == "the capture, views chosen by overlap"
    (tmp_path / "active_scene.json").write_text(json.dumps({"scene": "room", "context": [3]}))
    assert config.setup(test_mode="inference").scene_source == "the capture, views chosen by overlap"


# ----------------------------------------------------------------------------------------------------- bad input


def rewritten(folder: Path, change: dict) -> Path:
    meta = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps({**meta, **change}))
    return folder


def one_place(folder: Path, origin: tuple[float, float, float], apart: float = 0.0) -> Path:
    meta = json.loads(write_capture(folder, frames=range(4)).joinpath("transforms.json").read_text())
    for number, entry in enumerate(meta["frames"]):
        for axis in range(3):
            entry["transform_matrix"][axis][3] = origin[axis] + apart * number
    return rewritten(folder, {"frames": meta["frames"]})


def test_captures_that_cannot_be_a_scene_are_named_in_one_line(tmp_path: Path) -> None:
    missing = write_capture(tmp_path / "missing", frames=range(4))
    (missing / "images" / "frame_00002.png").unlink()
    cut = write_capture(tmp_path / "cut", frames=range(4))
    (cut / "images" / "frame_00002.png").write_bytes((cut / "images" / "frame_00002.png").read_bytes()[:900])
    no_picture = write_capture(tmp_path / "text", frames=range(4))
    (no_picture / "images" / "frame_00002.png").write_text("%!PS-Adobe-3.0 EPSF-3.0")  # would start another program
    no_pose = write_capture(tmp_path / "pose", frames=range(4))
    frames = json.loads((no_pose / "transforms.json").read_text())["frames"]
    rewritten(no_pose, {"frames": [*frames[:2], {"file_path": frames[2]["file_path"]}, frames[3]]})
    turned = write_capture(tmp_path / "turned", frames=range(4))
    Image.open(turned / "images" / "frame_00002.png").rotate(90, expand=True).save(
        turned / "images" / "frame_00002.png"
    )
    broken = write_capture(tmp_path / "broken", frames=range(4))
    (broken / "transforms.json").write_text("{ not json")
    no_size = rewritten(write_capture(tmp_path / "size", frames=range(4)), {"w": 0})
    model = rewritten(write_capture(tmp_path / "model", frames=range(4)), {"camera_model": "FULL_OPENCV"})
    nan = write_capture(tmp_path / "nan", frames=range(4))
    meta = json.loads((nan / "transforms.json").read_text())
    meta["frames"][1]["transform_matrix"][0][0] = float("nan")
    (nan / "transforms.json").write_text(json.dumps(meta))
    nan_lens = write_capture(tmp_path / "lens", frames=range(4), camera_model="OPENCV_FISHEYE", k1=float("nan"))
    sphere = rewritten(write_capture(tmp_path / "sphere", frames=range(4)), {"camera_model": "EQUIRECTANGULAR"})
    small = write_capture(tmp_path / "small", frames=range(4), size=(32, 48))
    for folder, parts in (
        (tmp_path / "absent", ["no data at", "absent"]),
        (rewritten(write_capture(tmp_path / "empty", frames=range(2)), {"frames": []}), ["empty"]),
        (write_capture(tmp_path / "one", frames=(3,)), ["one", "two"]),
        (one_place(tmp_path / "origin", (0, 0, 0)), ["stand at one place"]),
        (one_place(tmp_path / "place", (3.1, -2.7, 8.3)), ["stand at one place"]),
        (one_place(tmp_path / "rounded", (3.1, -2.7, 8.3), apart=1e-6), ["stand at one place"]),
        (broken, ["cannot read", "broken"]),
        (no_size, ["the camera of", "frame_00000.png", "states a size of 0x64 pixels"]),
        (model, ["states the camera model FULL_OPENCV; nerfstudio knows", "OPENCV_FISHEYE"]),
        (nan, ["frame 1 of the list", "NaN"]),
        (nan_lens, ["NaN or infinite numbers among its intrinsics or distortion"]),
        (sphere, ["equirectangular", "pinhole"]),
        (missing, ["cannot read image", "frame_00002.png"]),
        (cut, ["cannot read image", "frame_00002.png"]),
        (no_picture, ["cannot read image", "frame_00002.png", "no picture"]),
        (no_pose, ["transforms.json", "frame 2 of the list", "transform_matrix"]),
        (turned, ["frame_00002.png", "64x96 pixels", "96x64", "turn its pixels"]),
        (small, ["48x32", "64x64"]),
    ):
        with pytest.raises(SceneDataError) as raised:
            scene_of(folder, (0, 2) if folder not in (nan,) else None).pairs  # noqa: B018
        assert all(part in str(raised.value) for part in parts), raised.value
        assert "\n" not in str(raised.value)


def test_a_photo_that_cannot_be_read_is_said_and_the_others_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_capture(tmp_path / "room", frames=range(6))
    whole = scene_of(folder).choice
    assert "cannot be looked at" not in capsys.readouterr().out
    for frame in whole.context:
        (folder / "images" / f"frame_{frame:05d}.png").write_text("no picture")
    choice = scene_of(folder).choice
    assert not set(choice.context + choice.target) & set(whole.context)
    assert sorted(choice.context + choice.target) == [f for f in range(6) if f not in whole.context]
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 6 photos cannot be looked at" in said and "it is no picture" in said
    for frame in range(1, 6):
        (folder / "images" / f"frame_{frame:05d}.png").write_text("no picture")
    with pytest.raises(SceneDataError, match=r"cannot read image .*it is no picture"):
        scene_of(folder)


def test_context_frames_that_make_no_sense_are_refused(capture: Path) -> None:
    with pytest.raises(SceneDataError, match="frames 0 to 13, but frame 14"):
        scene_of(capture, (2, 14))
    for context in ((3,), (3, 3)):
        with pytest.raises(ConfigError, match="two different frames"):
            scene_of(capture, context)
    with pytest.raises(ConfigError, match="num-context-views"):
        CaptureContextConfig(num_context_views=1)


def test_two_context_frames_at_one_place_are_refused(tmp_path: Path) -> None:
    folder = write_capture(tmp_path / "room", frames=range(5))
    meta = json.loads((folder / "transforms.json").read_text())
    for row in range(3):
        meta["frames"][1]["transform_matrix"][row][3] = meta["frames"][0]["transform_matrix"][row][3]
    (folder / "transforms.json").write_text(json.dumps(meta))
    with pytest.raises(SceneDataError, match="0 and 1 of room stand at one place"):
        scene_of(folder, (0, 1))
    assert not {0, 1} <= set(scene_of(folder).choice.context)


def test_a_capture_with_stated_splits_lacks_no_frame(tmp_path: Path) -> None:
    folder = write_capture(tmp_path / "room", frames=range(6))
    names = [f"images/frame_{frame:05d}.png" for frame in range(6)]
    rewritten(folder, {"train_filenames": names[:3], "val_filenames": names[3:]})
    assert len(video_from_dataparser(NerfstudioDataParserConfig(data=folder).setup())) == 6


def test_frames_are_counted_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    folder = write_capture(tmp_path / "room", frames=range(12))
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    for number, frame in enumerate(frames):
        renamed = f"images/r_{number}.png"
        (folder / frame["file_path"]).rename(folder / renamed)
        frame["file_path"] = renamed
    rewritten(folder, {"frames": frames})
    _, record = read_capture(open_dataparser(NerfstudioDataParserConfig(data=folder)))
    assert [file.name for file in record.image_files] == [f"r_{number}.png" for number in range(12)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DycheckDataParserConfig, "dycheck-data cannot read .*No such file or directory"),
        (BlenderDataParserConfig, "blender-data cannot read .*No such file or directory"),
        (InstantNGPDataParserConfig, "instant-ngp-data cannot read .*: No image files found"),
    ],
)
def test_a_folder_of_another_kind_is_one_line_from_every_dataparser(
    tmp_path: Path, config: type[DataParserConfig], message: str
) -> None:
    (tmp_path / "transforms.json").write_text('{"frames": []}')
    with pytest.raises(SceneDataError, match=message) as caught:
        read_capture(open_dataparser(config(data=tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_split_that_cannot_be_read_is_said_and_the_others_are_used(
    capture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_camera_in_val = open_dataparser(InstantNGPDataParserConfig(data=capture))  # where nerfstudio loses its shape
    assert len(read_capture(one_camera_in_val)[0]) == 13
    said = " ".join(capsys.readouterr().out.split())
    assert "instant-ngp-data leaves out the val split of" in said and "not one for each image" in said


def test_a_colmap_model_is_read_without_questions_and_found_where_colmap_leaves_it(tmp_path: Path) -> None:
    large = write_colmap_capture(tmp_path / "large", frames=range(3), size=(64, 1700))  # nerfstudio wants copies
    (large / "colmap" / "sparse" / "0" / "points3D.txt").unlink()
    video, _ = read_capture(open_dataparser(ColmapDataParserConfig(data=large)))
    assert len(video) == 3 and video.read_size(0) == (64, 1700)
    (large / "colmap" / "sparse").rename(large / "sparse")
    with pytest.raises(SceneDataError, match=r"colmap cannot read .*does not exist\. State --colmap-path sparse/0"):
        read_capture(open_dataparser(ColmapDataParserConfig(data=large)))
