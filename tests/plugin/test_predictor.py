"""The Python API, and that the README's example runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_captures import photo, room
from PIL import Image
from untrained_runs import write_untrained_run

import lsplat_ns
from lsplat_ns.data.batches import make_example
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import CheckpointMismatch, ConfigError, SceneDataError, ShapeMismatch

SIZE = (96, 144)
FRAMES = (0, 9)
README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_run(tmp_path_factory.mktemp("api") / "run")


@pytest.fixture(scope="module")
def predictor(run: Path) -> lsplat_ns.Predictor:
    return lsplat_ns.load(run, device="cpu")


def views(*frames: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    cameras = [room(SIZE).cameras[frame] for frame in frames]
    poses = np.stack([camera.world_from_camera for camera in cameras])
    return [photo(frame, SIZE) for frame in frames], poses, cameras[0].intrinsics_norm


@pytest.fixture(scope="module")
def scene(predictor: lsplat_ns.Predictor) -> lsplat_ns.Scene:
    return predictor.predict(*views(*FRAMES))


# ------------------------------------------------------------------------------------------------------- results


def test_a_scene_is_that_of_the_network_on_the_same_frames_of_a_dataset(
    predictor: lsplat_ns.Predictor, scene: lsplat_ns.Scene
) -> None:
    images, poses, intrinsics = views(*range(10))
    video = PosedVideo(
        "room", torch.from_numpy(poses).float(), torch.from_numpy(intrinsics).float().repeat(10, 1, 1),
        lambda frame: images[frame], lambda frame: SIZE,
    )  # fmt: skip
    example = make_example(video, FrameChoice(FRAMES, (4,)), predictor.preparation)
    network = predictor.network
    with torch.no_grad():
        gaussians = network.encode(example.context, deterministic=True).mode()
        decoded = network.view(gaussians, example.target.cameras, (64, 64), deterministic=True)
    target = example.target.cameras
    view = scene.render(poses[4], target.intrinsics_norm[0, 0], (64, 64))
    truth = decoded.image[0, 0].clamp(0, 1).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(view.image, truth, atol=2e-3)
    baseline = np.linalg.norm(poses[0, :3, 3] - poses[9, :3, 3])
    np.testing.assert_allclose(scene.gaussians.means, gaussians.means * baseline, atol=2e-3)
    covered = decoded.rendering.alpha[0, 0] > 0.5
    depth = decoded.rendering.depth_z[0, 0] / decoded.rendering.alpha[0, 0] * baseline
    np.testing.assert_allclose(view.depth_z[covered], depth[covered], rtol=1e-2)


@pytest.mark.parametrize(("unit", "origin"), [(1e-4, (0, 0, 0)), (1.0, (4.0e5, 5.2e6, 120.0))], ids=["unit", "map"])
def test_units_and_origin_of_the_poses_do_not_change_the_picture(
    predictor: lsplat_ns.Predictor, scene: lsplat_ns.Scene, unit: float, origin: tuple[float, float, float]
) -> None:
    images, poses, intrinsics = views(*FRAMES)
    moved = poses.copy()
    moved[:, :3, 3] = unit * moved[:, :3, 3] + origin
    other = predictor.predict(images, moved, intrinsics)
    for one, same in zip(poses, moved, strict=True):
        here, there = scene.render(one, intrinsics, SIZE), other.render(same, intrinsics, SIZE)
        np.testing.assert_allclose(there.image, here.image, atol=5e-3)
        np.testing.assert_allclose(there.depth_z, unit * here.depth_z, rtol=5e-3)
    expected = unit * scene.gaussians.means.double() + torch.tensor(origin)
    np.testing.assert_allclose(other.gaussians.means, expected, rtol=1e-6, atol=unit * 1e-2)


def test_a_rendering_has_the_asked_size_and_sane_values(scene: lsplat_ns.Scene) -> None:
    _, poses, intrinsics = views(*FRAMES)
    one, several = scene.render(poses[0], intrinsics, (50, 71)), scene.render(poses, [intrinsics] * 2, (50, 71))
    for view, leading in ((one, ()), (several, (2,))):
        assert view.image.shape == view.splat.shape == (*leading, 50, 71, 3)
        assert view.depth_z.shape == view.alpha.shape == view.uncertainty.shape == (*leading, 50, 71)
        for name in ("image", "splat", "depth_z", "alpha", "uncertainty"):
            values = getattr(view, name)
            assert values.dtype == np.float32 and np.isfinite(values).all(), name
        assert view.image.min() >= 0 and view.image.max() <= 1 and view.depth_z.min() > 0
    np.testing.assert_array_equal(one.image, several.image[0])
    assert np.abs(several.image[0] - several.image[1]).max() > 0.01


def test_torch_tensors_and_channels_first_give_the_same(predictor: lsplat_ns.Predictor, scene: lsplat_ns.Scene) -> None:
    images, poses, intrinsics = views(*FRAMES)
    tensors = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]).float() / 255
    other = predictor.predict(tensors, torch.from_numpy(poses), torch.from_numpy(intrinsics).float())
    view = other.render(torch.from_numpy(poses[1]), torch.from_numpy(intrinsics), SIZE)
    np.testing.assert_allclose(view.image, scene.render(poses[1], intrinsics, SIZE).image, atol=1e-3)


def test_a_seed_draws_the_same_scene_and_another_seed_another_one(predictor: lsplat_ns.Predictor) -> None:
    images, poses, intrinsics = views(*FRAMES)
    pictures = [
        predictor.predict(images, poses, intrinsics, seed=seed, check_poses=False).render(poses[0], intrinsics, SIZE)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(pictures[0].image, pictures[1].image)
    assert np.abs(pictures[0].image - pictures[2].image).max() > 1e-3
    drawn = predictor.predict(images, poses, intrinsics, seed=1, check_poses=False)
    without_latent_noise = replace(drawn, _seed=None).render(poses[0], intrinsics, SIZE)
    assert np.abs(pictures[0].image - without_latent_noise.image).max() > 1e-3


def test_a_principal_point_off_the_centre_moves_the_picture_with_it(
    predictor: lsplat_ns.Predictor, scene: lsplat_ns.Scene
) -> None:
    images, poses, intrinsics = views(*FRAMES)
    shifted = intrinsics.copy()
    shifted[0, 2] += 0.25
    view = scene.render(poses[0], shifted, (64, 96)).alpha
    np.testing.assert_allclose(view[:, 24:], scene.render(poses[0], intrinsics, (64, 96)).alpha[:, :72], atol=0.05)
    # Context pictures that were cut on the left, with intrinsics that say so, show the same world.
    cut = [image[:, 24:] for image in images]
    narrower = intrinsics * [[144 / 120], [1], [1]]
    narrower[0, 2] = (72 - 24) / 120
    other = predictor.predict(cut, poses, narrower).render(poses[0], intrinsics, (64, 64))
    np.testing.assert_allclose(other.image, scene.render(poses[0], intrinsics, (64, 64)).image, atol=0.02)


def test_more_than_two_images_are_fused(predictor: lsplat_ns.Predictor, scene: lsplat_ns.Scene) -> None:
    images, poses, intrinsics = views(0, 9, 5)
    fused = predictor.predict(images, poses, intrinsics)
    assert scene.gaussians.count < fused.gaussians.count <= 1.5 * scene.gaussians.count
    assert np.isfinite(fused.render(poses[2], intrinsics, SIZE).image).all()


# ----------------------------------------------------------------------------------------------------- bad input


def test_wrong_images_and_cameras_are_refused_before_the_network_runs(predictor: lsplat_ns.Predictor) -> None:
    images, poses, intrinsics = views(*FRAMES)
    in_pixels = np.diag([SIZE[1], SIZE[0], 1.0]) @ intrinsics
    for arguments, words in (
        ((images, poses, in_pixels), "look like pixels"),
        ((images, poses @ np.diag([1, 1, -1, 1]), intrinsics), "mirrors"),
        ((images, poses @ np.diag([3, 3, 3, 1]), intrinsics), "scaled by 3"),
        (([image * 1.0 for image in images], poses, intrinsics), "divide by 255"),
        ((images[:1], poses[:1], intrinsics), "at least two"),
        ((images, np.stack([poses[0], poses[0]]), intrinsics), "taken from one place"),
        (([image[:40, :40] for image in images], poses, intrinsics), "40x40"),
    ):
        with pytest.raises(SceneDataError, match=words):
            predictor.predict(*arguments)
    with pytest.raises(ShapeMismatch, match="world_from_camera"):
        predictor.predict(images, poses[:1], intrinsics)


def test_wrong_cameras_to_render_are_refused(scene: lsplat_ns.Scene) -> None:
    _, poses, intrinsics = views(*FRAMES)
    with pytest.raises(SceneDataError, match="look like pixels"):
        scene.render(poses[0], np.diag([SIZE[1], SIZE[0], 1.0]) @ intrinsics, SIZE)
    with pytest.raises(SceneDataError, match="mirrors"):
        scene.render(poses[0] @ np.diag([1, 1, -1, 1]), intrinsics, SIZE)
    for size in ((0, 10), (10,), (10.5, 10)):
        with pytest.raises(ConfigError, match="height and a width"):
            scene.render(poses[0], intrinsics, size)


def test_what_is_no_run_cannot_be_loaded(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run at"):
        lsplat_ns.load(tmp_path)
    without = tmp_path / "without"
    shutil.copytree(run, without)
    (checkpoint,) = (without / "nerfstudio_models").iterdir()
    config = (without / "config.yml").read_text()
    changed, count = re.subn(r"d_feature: \d+", "d_feature: 40", config.replace(str(run), str(without)))
    assert count > 0
    (without / "config.yml").write_text(changed)
    with pytest.raises(CheckpointMismatch, match=r"does not fit its config.*size mismatch") as raised:
        lsplat_ns.load(without)
    assert "\n" not in str(raised.value)
    checkpoint.unlink()
    (without / "config.yml").write_text("a: 1\n")
    with pytest.raises(ConfigError, match="no run of a latentSplat method"):
        lsplat_ns.load(without)


# --------------------------------------------------------------------------------------------- names and example


def test_the_public_names_are_these_and_importing_them_costs_nothing() -> None:
    assert lsplat_ns.__all__ == ["Predictor", "RenderedView", "Scene", "load"]
    assert set(lsplat_ns.__all__) <= set(dir(lsplat_ns))
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        lsplat_ns.predict  # noqa: B018
    script = "import sys, lsplat_ns; print(*({'torch', 'numpy', 'nerfstudio', 'PIL'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_the_example_of_the_readme_runs_and_has_under_ten_lines(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"## Use it from Python\n+```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert sum(bool(line.strip()) for line in block.splitlines()) < 10
    (stated,) = re.findall(r'load\("([^"]+)"\)', block)
    (tmp_path / stated).parent.mkdir(parents=True)
    (tmp_path / stated).symlink_to(run)
    # Two photos of a wall, 0.3 apart, as the example says; 1.6 wide at a distance of 1.
    wall = Image.fromarray(photo(0, SIZE)).resize((576, 384))
    for name, left in (("left.jpg", 0), ("right.jpg", round(0.3 * 0.8 * 256))):
        wall.crop((left, 96, left + 256, 96 + 192)).save(tmp_path / name, quality=95)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block, names)
    assert names["view"].image.shape == (192, 256, 3)
    assert names["scene"].gaussians.count > 1000


def test_a_scene_keeps_nothing_of_the_callers_arrays(predictor: lsplat_ns.Predictor) -> None:
    images, poses, intrinsics = views(*FRAMES)
    images, poses = [image.copy() for image in images], poses.copy()
    made = predictor.predict(images, poses, intrinsics, check_poses=False)
    pose = poses[0].copy()
    before = made.render(pose, intrinsics, SIZE).image
    for array in (*images, poses):
        array[...] = 0
    np.testing.assert_array_equal(made.render(pose, intrinsics, SIZE).image, before)


def test_co3d_units_are_kept_where_the_run_keeps_them(predictor: lsplat_ns.Predictor) -> None:
    images, poses, intrinsics = views(*FRAMES)
    keeping = replace(predictor, preparation=replace(predictor.preparation, baseline_to_one=False))
    made = keeping.predict(images, poses, intrinsics)
    np.testing.assert_allclose(
        made.gaussians.means - torch.from_numpy(poses[0, :3, 3]).float(), made._network_gaussians.means, atol=1e-4
    )
    assert np.isfinite(made.render(poses[1], intrinsics, SIZE).image).all()
