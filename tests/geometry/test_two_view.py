"""Relative pose from matched points, with poses that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest

from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.two_view import agreeing, estimate_relative_pose, rotation_share, shared_view

TOLERANCE = 1 / 500  # one pixel of a camera with a focal length of 500


def turned(degrees_xyz: tuple[float, float, float]) -> np.ndarray:
    x, y, z = np.radians(degrees_xyz)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def camera(rotation: np.ndarray, centre: tuple[float, float, float]) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, centre
    return pose


def seen(points: np.ndarray, first_from_camera: np.ndarray) -> np.ndarray:
    local = (points - first_from_camera[:3, 3]) @ first_from_camera[:3, :3]
    return local[:, :2] / local[:, 2:]


def cloud(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.c_[rng.uniform(-2, 2, (count, 2)), rng.uniform(3, 8, count)]


def rotation_error_degrees(estimate: np.ndarray, truth: np.ndarray) -> float:
    cosine = (np.trace(estimate[:3, :3].T @ truth[:3, :3]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def direction_error_degrees(estimate: np.ndarray, truth: np.ndarray) -> float:
    direction = truth[:3, 3] / np.linalg.norm(truth[:3, 3])
    return float(np.degrees(np.arccos(np.clip(estimate[:3, 3] @ direction, -1, 1))))


@pytest.mark.parametrize("centre", [(0.6, 0.0, 0.0), (0.0, -0.5, 0.1), (0.1, 0.0, 0.8), (-0.4, 0.2, -0.3)])
def test_exact_points_give_the_exact_pose_one_unit_away(centre: tuple[float, float, float]) -> None:
    truth = camera(turned((3, -8, 2)), centre)
    points = cloud(200, np.random.default_rng(0))
    pose = estimate_relative_pose(points[:, :2] / points[:, 2:], seen(points, truth), TOLERANCE)
    assert rotation_error_degrees(pose.first_from_second, truth) < 1e-3
    assert direction_error_degrees(pose.first_from_second, truth) < 1e-2
    assert np.linalg.norm(pose.first_from_second[:3, 3]) == pytest.approx(1)
    assert pose.inliers.all()
    np.testing.assert_allclose(pose.points, points / np.linalg.norm(centre), rtol=1e-2)
    assert pose.rotation_degrees == pytest.approx(rotation_error_degrees(np.eye(4), truth), abs=0.01)


def noisy_matches(wrong: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    truth = camera(turned((2, 10, -1)), (0.7, 0.1, 0.0))
    points = cloud(400, rng)
    first, second = points[:, :2] / points[:, 2:], seen(points, truth)
    bad = rng.random(400) < wrong
    second = second + rng.normal(0, 0.3 * TOLERANCE, second.shape)
    second[bad] = rng.uniform(-0.5, 0.5, (int(bad.sum()), 2))
    return truth, first, second, bad


def test_noise_and_a_third_of_wrong_matches_are_survived() -> None:
    truth, first, second, bad = noisy_matches(0.33)
    pose = estimate_relative_pose(first, second, TOLERANCE)
    assert rotation_error_degrees(pose.first_from_second, truth) < 0.1
    assert direction_error_degrees(pose.first_from_second, truth) < 0.5
    assert pose.inliers[~bad].mean() > 0.95 and pose.inliers[bad].mean() < 0.05


def test_the_same_matches_give_the_same_pose() -> None:
    _, first, second, _ = noisy_matches(0.33)
    poses = [estimate_relative_pose(first, second, TOLERANCE).first_from_second for _ in range(3)]
    assert np.array_equal(poses[0], poses[1]) and np.array_equal(poses[0], poses[2])


def test_the_triangulation_angle_is_that_between_lines_of_sight() -> None:
    points = np.c_[np.random.default_rng(2).uniform(-0.1, 0.1, (100, 2)), np.full(100, 5.0)]
    truth = camera(np.eye(3), (0.5, 0.0, 0.0))
    pose = estimate_relative_pose(
        points[:, :2] / 5 + np.random.default_rng(3).normal(0, 1e-7, (100, 2)), seen(points, truth), TOLERANCE
    )
    assert pose.triangulation_degrees == pytest.approx(np.degrees(np.arctan(0.5 / 5)), rel=0.05)


def test_matches_that_no_camera_motion_explains_are_refused() -> None:
    rng = np.random.default_rng(4)
    with pytest.raises(SceneDataError, match="only 7 matching points"):
        estimate_relative_pose(rng.random((7, 2)), rng.random((7, 2)), TOLERANCE)
    with pytest.raises(SceneDataError, match="camera motion"):
        estimate_relative_pose(rng.random((20, 2)), rng.random((20, 2)), 1e-6)


def test_a_turning_camera_is_told_from_a_moving_one() -> None:
    rng = np.random.default_rng(5)
    points = cloud(300, rng)
    first = points[:, :2] / points[:, 2:]
    for wrong in (0, 100):
        second = seen(points, camera(turned((4, -20, 3)), (0, 0, 0))) + rng.normal(0, 0.3 * TOLERANCE, first.shape)
        second[:wrong] = rng.uniform(-0.5, 0.5, (wrong, 2))
        assert rotation_share(first, second, TOLERANCE) == pytest.approx(1 - wrong / 300, abs=0.02)
    assert rotation_share(first, seen(points, camera(turned((4, -20, 3)), (0.5, 0, 0))), TOLERANCE) < 0.3


def test_a_match_behind_a_camera_does_not_agree() -> None:
    truth = camera(np.eye(3), (0.5, 0.0, 0.0))
    points = cloud(50, np.random.default_rng(6))
    first, second = points[:, :2] / points[:, 2:], seen(points, truth)
    assert agreeing(np.linalg.inv(truth), first, second, TOLERANCE).all()
    backwards = camera(np.eye(3), (-0.5, 0.0, 0.0))  # the same epipolar lines, depths negative
    assert not agreeing(np.linalg.inv(backwards), first, second, TOLERANCE).any()


@pytest.mark.parametrize(("step", "share"), [(0.0, 1.0), (0.5, 0.5), (1.25, 0.0)])
def test_the_shared_view_of_a_wall_is_what_a_sidestep_leaves(step: float, share: float) -> None:
    intrinsics = np.array([[1.0, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]])
    grid = (np.stack(np.meshgrid(np.arange(10), np.arange(10)), -1).reshape(-1, 2) + 0.5) / 10
    wall = np.c_[grid - 0.5, np.ones(100)]  # one unit wide, one unit away
    other_from_camera = np.linalg.inv(camera(np.eye(3), (step, 0.0, 0.0)))
    assert shared_view(grid, wall, intrinsics, intrinsics, other_from_camera) == pytest.approx(share, abs=0.05)


def test_what_lies_behind_the_other_camera_is_not_shared() -> None:
    intrinsics = np.array([[1.0, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]])
    backwards = camera(np.diag([-1.0, 1.0, -1.0]), (0.0, 0.0, 0.0))
    middle, point = np.array([[0.5, 0.5]]), np.array([[0.0, 0.0, 1.0]])
    assert shared_view(middle, point, intrinsics, intrinsics, np.linalg.inv(backwards)) == 0
