"""Paths that leave a view: where they go, where they look, and that they are smooth."""

from __future__ import annotations

import math

import pytest
import torch

from lsplat_ns.errors import ConfigError
from lsplat_ns.geometry.trajectories import PathConfig, camera_path

KINDS = ("orbit", "dolly", "truck", "pan", "spiral")
HOME = torch.eye(4)


@pytest.mark.parametrize("kind", KINDS)
def test_paths_are_rigid_smooth_and_without_repetition(kind: str) -> None:
    poses = torch.cat([HOME[None], camera_path(HOME, PathConfig(kind, 60))]).double()
    rotation = poses[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand(61, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(61).double(), atol=1e-6, rtol=0)
    steps = (poses[1:] - poses[:-1]).flatten(1).norm(dim=1)
    assert float(steps.min()) > 1e-4 and float(steps.max()) < 6 * float(steps.median())
    apart = torch.cdist(poses.flatten(1)[None], poses.flatten(1)[None])[0] + torch.eye(61)
    assert float(apart.min()) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_moves_with_the_view_it_starts_from(kind: str) -> None:
    start = torch.eye(4)
    start[:3, :3] = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))[0]
    start[:3, :3] *= torch.linalg.det(start[:3, :3])
    start[:3, 3] = torch.tensor([1.0, -2.0, 3.0])
    config = PathConfig(kind, 7)
    torch.testing.assert_close(camera_path(start, config), start @ camera_path(HOME, config))


def test_dolly_goes_forwards_truck_and_pan_and_orbit_to_the_right() -> None:
    last = {kind: camera_path(HOME, PathConfig(kind, 5, reach=0.5, degrees=30, pivot=2))[-1] for kind in KINDS}
    torch.testing.assert_close(last["dolly"][:3, 3], torch.tensor([0, 0, 0.5]))
    torch.testing.assert_close(last["truck"][:3, 3], torch.tensor([0.5, 0, 0]))
    torch.testing.assert_close(last["pan"][:3, 2], torch.tensor([0.5, 0, math.sqrt(0.75)]))
    torch.testing.assert_close(last["pan"][:3, 3], torch.zeros(3))
    torch.testing.assert_close(last["orbit"][:3, 3], torch.tensor([1, 0, 2 - math.sqrt(3)]))
    back = camera_path(HOME, PathConfig("dolly", 5, reach=-0.5))[-1]
    torch.testing.assert_close(back[:3, 3], torch.tensor([0, 0, -0.5]))


@pytest.mark.parametrize("kind", ["orbit", "spiral"])
def test_orbit_and_spiral_keep_the_pivot_in_the_middle(kind: str) -> None:
    poses = camera_path(HOME, PathConfig(kind, 24, degrees=-60, pivot=3))
    pivot = torch.linalg.inv(poses) @ torch.tensor([0.0, 0.0, 3.0, 1.0])
    assert float(pivot[:, :2].abs().max()) < 1e-5 and float(pivot[:, 2].min()) > 2.9
    if kind == "orbit":
        torch.testing.assert_close(pivot[:, 2], torch.full((24,), 3.0))
    else:
        torch.testing.assert_close(poses[:, :3, 3].norm(dim=1), 0.5 * torch.arange(1, 25) / 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "dolly", "reach": 0.0}, "all its poses would be the same"),
        ({"kind": "pan", "degrees": 0.0}, "other than 0"),
        ({"kind": "orbit", "degrees": 400.0}, "up to 360 degrees"),
        ({"kind": "orbit", "pivot": 0.0}, "ahead of the camera"),
        ({"kind": "spiral", "pivot": -1.0}, "ahead of the camera"),
        ({"kind": "dolly", "reach": math.nan}, "goes nowhere"),
        ({"kind": "pan", "frames": 0}, "1 frame or more"),
    ],
)
def test_paths_that_go_nowhere_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PathConfig(**options)
