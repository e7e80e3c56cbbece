"""The camera paths of the original's validation videos: frame counts, ease, circles, and where the cameras look."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lsplat_ns.geometry.validation_trajectories import validation_trajectory


def turned(degrees: float, centre: tuple[float, float, float], axis: int = 1) -> Tensor:
    angle = math.radians(degrees)
    first, second = [i for i in range(3) if i != axis]
    pose = torch.eye(4)
    pose[first, first] = pose[second, second] = math.cos(angle)
    pose[first, second], pose[second, first] = math.sin(angle), -math.sin(angle)
    pose[:3, 3] = torch.tensor(centre)
    return pose


FIRST, SECOND = turned(20, (-1.0, 0.2, 0.0)), turned(-15, (1.5, -0.1, 0.4))
BASELINE = float((SECOND[:3, 3] - FIRST[:3, 3]).norm())


@pytest.mark.parametrize(("name", "frames"), [("interpolation", 58), ("wobble", 60), ("fly-through", 300)])
def test_paths_have_the_originals_length_and_rigid_poses(name: str, frames: int) -> None:
    poses, fractions = validation_trajectory(name, FIRST, SECOND)
    assert poses.shape == (frames, 4, 4) and fractions.shape == (frames,)
    rotation = poses[:, :3, :3].double()
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand_as(rotation), atol=1e-6, rtol=0)
    assert bool((torch.linalg.det(rotation) > 0).all()) and bool((poses[:, 3] == torch.tensor([0.0, 0, 0, 1])).all())


def test_interpolation_eases_from_one_camera_to_the_other_and_back_without_a_frame_twice() -> None:
    poses, fractions = validation_trajectory("interpolation", FIRST, SECOND)
    time = torch.arange(30) / 29
    torch.testing.assert_close(fractions[:30], ((math.pi * (time + 1)).cos() + 1) / 2, atol=1e-6, rtol=0)
    torch.testing.assert_close(poses[0], FIRST, atol=1e-5, rtol=0)
    torch.testing.assert_close(poses[29], SECOND, atol=1e-5, rtol=0)
    torch.testing.assert_close(poses[30:], poses[1:29].flip(0), atol=0, rtol=0)


def distance_to_look_ray(pose: Tensor, point: Tensor) -> float:
    to_point = point - pose[:3, 3]
    return float((to_point - (to_point @ pose[:3, 2]) * pose[:3, 2]).norm())


def test_cameras_that_look_at_one_point_keep_looking_at_it_along_the_way() -> None:
    point = torch.tensor([0.3, -0.2, 4.0])
    first, second = (looking_at(point, torch.tensor(centre)) for centre in ((-1.0, 0.5, 0.0), (1.0, 0.0, 1.0)))
    poses, fractions = validation_trajectory("interpolation", first, second)
    assert max(distance_to_look_ray(pose, point) for pose in poses) < 1e-4
    distances = (poses[:, :3, 3] - point).norm(dim=1)
    ends = (first[:3, 3] - point).norm(), (second[:3, 3] - point).norm()
    torch.testing.assert_close(distances, ends[0] + fractions * (ends[1] - ends[0]), atol=1e-4, rtol=0)


def looking_at(point: Tensor, centre: Tensor) -> Tensor:
    ahead = (point - centre) / (point - centre).norm()
    right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), ahead)
    right = right / right.norm()
    pose = torch.eye(4)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(ahead, right), ahead], 1)
    pose[:3, 3] = centre
    return pose


def test_parallel_cameras_move_along_a_straight_line() -> None:
    second = FIRST.clone()
    second[:3, 3] += torch.tensor([2.0, 0.0, 0.0])
    poses, fractions = validation_trajectory("interpolation", FIRST, second)
    torch.testing.assert_close(poses[:, :3, 3], FIRST[:3, 3] + fractions[:, None] * torch.tensor([2.0, 0, 0]))
    torch.testing.assert_close(poses[:, :3, :3], FIRST[:3, :3].expand(58, 3, 3))


def test_wobble_widens_to_a_quarter_of_the_baseline_in_the_first_cameras_image_plane() -> None:
    poses, fractions = validation_trajectory("wobble", FIRST, SECOND)
    assert not bool(fractions.any())
    torch.testing.assert_close(poses[:, :3, :3], FIRST[:3, :3].expand(60, 3, 3))
    seen = torch.linalg.inv(FIRST) @ poses[:, :, 3:]  # centres in the first camera's frame
    for i, t in enumerate((torch.arange(60) / 59).tolist()):
        radius = 0.25 * BASELINE * t
        wanted = [radius * math.sin(2 * math.pi * t), -radius * math.cos(2 * math.pi * t), 0.0]
        assert seen[i, :3, 0].tolist() == pytest.approx(wanted, abs=1e-5)


def test_fly_through_goes_two_ways_beyond_on_five_circles_of_half_a_baseline() -> None:
    poses, fractions = validation_trajectory("fly-through", FIRST, SECOND)
    time = torch.arange(300) / 299
    torch.testing.assert_close(fractions, 5 * time - 2, atol=1e-5, rtol=0)
    for i in (0, 100, 179, 299):
        t = float(time[i])
        offset = torch.tensor([math.sin(10 * math.pi * t), -math.cos(10 * math.pi * t), 0.0]) * 0.5 * BASELINE
        centre = poses[i, :3, 3] - poses[i, :3, :3] @ offset
        if i == 179:  # t = 0.5987: just before the second camera
            assert float((centre - SECOND[:3, 3]).norm()) < 0.05
        along = (centre - FIRST[:3, 3]) @ (SECOND[:3, 3] - FIRST[:3, 3]) / BASELINE**2
        assert (float(along) < 0) == (float(fractions[i]) < 0)
