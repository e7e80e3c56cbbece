"""The consistency score on true renders of demo scenes, and on what is no longer one scene."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from lsplat_ns.data.demo_scenes.demo_scene import build_demo_scene
from lsplat_ns.errors import MissingExtra, SceneDataError, ShapeMismatch
from lsplat_ns.evaluation.consistency import LONGEST_SIDE, Consistency, consistency, met3r
from lsplat_ns.scene import Cameras

COUNT = 4


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
