"""The consistency score on true renders of demo scenes, and on what is no longer one scene."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from lsplat_ns.data.demo_scenes.demo_scene import build_demo_scene
from lsplat_ns.errors import MissingExtra, SceneDataError, ShapeMismatch
from lsplat_ns.evaluation.consistency import LONGEST_SIDE, Consistency, consistency, met3r
from lsplat_ns.geometry.rays import pixel_centers, world_rays
from lsplat_ns.geometry.trajectories import PathConfig, camera_path
from lsplat_ns.scene import Cameras

COUNT = 4
INTRINSICS = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]])


def views(kind: str, seed: int = 3, stride: int = 2, size: tuple[int, int] = (72, 96)) -> tuple[Tensor, Cameras]:
    """Images [4, 3, h, w] and cameras [1, 4] of a demo scene."""
    scene, frames = build_demo_scene(kind, seed, 0, 60, size), range(0, COUNT * stride, stride)
    images = torch.stack([torch.from_numpy(np.array(scene.frame(f).image)).permute(2, 0, 1) / 255 for f in frames])
    poses = torch.stack([torch.as_tensor(scene.cameras[f].world_from_camera) for f in frames]).float()
    intrinsics = torch.stack([torch.as_tensor(scene.cameras[f].intrinsics_norm) for f in frames]).float()
    return images, Cameras(poses[None], intrinsics[None], torch.ones(1, COUNT), torch.ones(1, COUNT))


def bent(images: Tensor, pixels: float) -> Tensor:
    """Every image bent by a smooth field of its own, ``pixels`` in standard deviation."""
    count, _, height, width = images.shape
    flow = torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * pixels
    flow = torch.nn.functional.interpolate(flow, (height, width), mode="bicubic")
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    grid = torch.stack([(x + flow[:, 0]) / width, (y + flow[:, 1]) / height], -1) * 2 - 1
    return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@pytest.fixture(scope="module")
def rooms() -> tuple[Tensor, Cameras]:
    return views("rooms")


@pytest.fixture(scope="module")
def truth(rooms: tuple[Tensor, Cameras]) -> Consistency:
    return consistency(*rooms)


def test_true_renders_are_consistent(truth: Consistency) -> None:
    assert truth.pairs == ((0, 1), (1, 2), (2, 3)) and truth.error.shape == (3,)
    assert truth.mean < 0.17 and float(truth.error.max()) < 0.2
    assert float(truth.color_error.max()) < 0.02 and float(truth.coverage.min()) > 0.6
    assert consistency(*views("objects", stride=1)).mean < 0.25


def test_the_score_grows_with_the_damage(rooms: tuple[Tensor, Cameras], truth: Consistency) -> None:
    images, cameras = rooms
    errors = [consistency(bent(images, pixels), cameras).mean for pixels in (0.5, 1, 4)]
    assert truth.mean < errors[0] - 0.05 and errors == sorted(errors)
    assert errors[1] > 0.3 and errors[2] > 0.55


def test_other_content_and_noise_score_worst(rooms: tuple[Tensor, Cameras]) -> None:
    images, cameras = rooms
    mixed = images.clone()
    mixed[1::2] = views("rooms", seed=4)[0][1::2]
    found = consistency(mixed, cameras)
    assert found.mean > 0.6 and float(found.color_error.min()) > 0.1
    assert consistency(torch.rand(images.shape, generator=torch.Generator().manual_seed(0)), cameras).mean > 0.85


def test_true_renders_with_wrong_poses_are_inconsistent() -> None:
    images, cameras = views("rooms", stride=5)
    good, bad = consistency(images, cameras), consistency(images, cameras.select([2, 0, 3, 1]))
    assert good.mean < 0.2 and bad.mean > 3 * good.mean


def test_one_bad_view_shows_in_the_pairs_that_hold_it(rooms: tuple[Tensor, Cameras], truth: Consistency) -> None:
    images, cameras = rooms
    damaged = images.clone()
    damaged[0] = bent(images[:1], 4)[0]
    error = consistency(damaged, cameras).error
    assert float(error[0]) > 0.4 and int(error.argmax()) == 0
    torch.testing.assert_close(error[2:], truth.error[2:])


def test_units_and_brightness_do_not_matter(rooms: tuple[Tensor, Cameras], truth: Consistency) -> None:
    images, cameras = rooms
    poses = cameras.world_from_camera.clone()
    poses[..., :3, 3] *= 7
    torch.testing.assert_close(
        consistency(images, replace(cameras, world_from_camera=poses)).error, truth.error, atol=2e-3, rtol=0
    )
    dim = images.clone()
    dim[1::2] *= 0.7
    darker = consistency(dim, cameras)
    assert darker.mean == pytest.approx(truth.mean, abs=0.02) and darker.color_error.min() > 3 * truth.color_error.max()


@pytest.fixture(scope="module")
def wall() -> Callable[[Tensor], Tensor]:
    """True renders [n, 3, 64, 64] of a textured plane at z = 6, seen from poses [n, 4, 4]."""
    texture = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    texture = torch.nn.functional.interpolate(texture, (1024, 1024), mode="bicubic").clamp(0, 1)
    points_xy = pixel_centers(64, 64, like=texture)

    def rendered(pose: Tensor) -> Tensor:
        origin, rays = world_rays(points_xy, pose, INTRINSICS)
        points = origin + (6 - origin[:, 2:]) / rays[:, 2:] * rays
        grid = (points[:, :2] / 8).view(1, 64, 64, 2)
        return torch.nn.functional.grid_sample(texture, grid, align_corners=False, padding_mode="reflection")[0]

    return lambda poses: torch.stack([rendered(pose) for pose in poses])


def scored(images: Tensor, poses: Tensor, origin: float = 0.0, unit: float = 1.0) -> Consistency:
    """The score of views at poses [n, 4, 4], which are stated with another origin and in another unit."""
    poses = poses.clone()
    poses[:, :3, 3] = (poses[:, :3, 3] + origin) * unit
    ones = torch.ones(1, len(poses))
    return consistency(images, Cameras(poses[None], INTRINSICS.expand(1, len(poses), 3, 3), ones, ones))


def path(kind: str) -> Tensor:
    """A path and the pose before it."""
    start = torch.eye(4)
    return torch.cat([start[None], camera_path(start, PathConfig(kind, 5))])


@pytest.mark.parametrize(("kind", "most"), [("truck", 0.02), ("dolly", 0.02), ("pan", 0.05)])
def test_neither_the_unit_nor_the_origin_of_cameras_matters(
    kind: str, most: float, wall: Callable[[Tensor], Tensor]
) -> None:
    poses = path(kind)
    images = wall(poses)
    expected = scored(images, poses)
    assert 0 < expected.mean < most and float(expected.coverage.min()) > 0.8
    for origin, unit in ((0, 1e-8), (0, 1e-6), (1, 1e4), (1, 1e8), (1000, 1)):
        found = scored(images, poses, origin, unit)
        torch.testing.assert_close(found.error, expected.error, atol=2e-3, rtol=0)
        torch.testing.assert_close(found.coverage, expected.coverage, atol=5e-3, rtol=0)


@pytest.mark.parametrize("trembling", [0.0, 1e-8, 1e-4])
def test_a_camera_that_rests_on_its_way_takes_depths_from_where_it_moves(
    trembling: float, wall: Callable[[Tensor], Tensor]
) -> None:
    poses = path("truck")[[0, 1, 2, 2, 2, 3, 4]]
    poses[:, :3, 3] += trembling * torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    error = scored(wall(poses), poses).error
    assert float(error.max()) < 0.03


def test_a_turn_on_the_spot_is_inconsistent_where_views_show_something_else(wall: Callable[[Tensor], Tensor]) -> None:
    poses = path("pan")
    images = wall(poses)
    images[3] = wall(path("truck")[-1:])[0]
    error = scored(images, poses).error
    assert float(error[[0, 1, 4]].max()) < 0.05 and float(error[[2, 3]].min()) > 0.3


def test_without_a_third_place_nothing_tells_depth_and_a_pair_has_no_score(wall: Callable[[Tensor], Tensor]) -> None:
    poses = path("truck")[[0, 0, 5]]
    error = scored(wall(poses), poses).error
    assert float(error[0]) < 0.01 and error[1].isnan()


def test_large_images_are_scored_at_the_same_size() -> None:
    images, cameras = views("rooms", size=(48, 64))
    images = torch.nn.functional.interpolate(images, (96, 128), mode="bilinear")
    larger = torch.nn.functional.interpolate(images, (192, 256), mode="nearest")
    assert LONGEST_SIDE == 128
    assert consistency(larger, cameras).mean == pytest.approx(consistency(images, cameras).mean, abs=0.03)


def test_views_with_nothing_in_common_have_no_score(rooms: tuple[Tensor, Cameras]) -> None:
    images, cameras = rooms
    poses = cameras.world_from_camera.clone()
    poses[0, 1::2, :3, :3] = poses[0, 1::2, :3, :3] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    found = consistency(images, replace(cameras, world_from_camera=poses))
    assert found.error.isnan().all() and np.isnan(found.mean) and float(found.coverage.max()) < 0.02
    assert consistency(torch.full_like(images, 0.5), cameras).error.isnan().all()


def test_bad_input_is_refused(rooms: tuple[Tensor, Cameras]) -> None:
    images, cameras = rooms
    with pytest.raises(SceneDataError, match="2 views are there"):
        consistency(images[:2], cameras.select([0, 1]))
    with pytest.raises(ShapeMismatch):
        consistency(images[:3], cameras)


def test_met3r_is_named_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "met3r", None)
    with pytest.raises(MissingExtra, match=r"MEt3R is not available .*pip install git"):
        met3r(torch.rand(3, 3, 32, 32))


def test_met3r_is_asked_in_both_orders_as_its_package_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeMEt3R(torch.nn.Module):
        """The score of a pair is the mean of its first picture: it depends on the order."""

        def __init__(self, **options: object) -> None:
            super().__init__()
            self.options, self.unused = options, torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> tuple[Tensor, None]:
            assert images.shape == (2, 2, 3, 64, 64) and self.options["img_size"] == 64
            assert self.options["backbone"] == "mast3r" and self.options["distance"] == "cosine"
            return images[:, 0].mean((1, 2, 3)), None

    module = ModuleType("met3r")
    module.MEt3R = FakeMEt3R
    monkeypatch.setitem(sys.modules, "met3r", module)
    images = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 32, 48)
    torch.testing.assert_close(met3r(images, image_size=64), torch.tensor([-0.5, 0.5]))
