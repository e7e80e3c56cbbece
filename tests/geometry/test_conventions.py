from __future__ import annotations

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras

from lsplat_ns.data.demo_scenes.renderer import Camera
from lsplat_ns.data.demo_scenes.writers import pytorch3d_viewpoint
from lsplat_ns.geometry.conventions import (
    cameras_from_pytorch3d,
    cameras_from_re10k_rows,
    intrinsics_norm_from_px,
    intrinsics_px_from_norm,
    opencv_from_opengl,
    opengl_from_opencv,
    z_up_rotation,
)
from lsplat_ns.geometry.rays import pixel_centers, project, world_rays
from lsplat_ns.geometry.similarity import Similarity
from lsplat_ns.geometry.trajectories import fly_through, poses_between


def random_pose(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    rotation = rotation * torch.linalg.det(rotation)
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, torch.randn(3, generator=generator)
    return pose


def test_our_rays_are_nerfstudios_rays() -> None:
    pose = random_pose(1)
    camera = Cameras(opengl_from_opencv(pose)[None, :3], fx=30.0, fy=28.0, cx=11.0, cy=9.5, width=20, height=18)
    bundle = camera.generate_rays(camera_indices=0)
    intrinsics = intrinsics_norm_from_px(*(torch.tensor(v) for v in (30.0, 28.0, 11.0, 9.5)), 20, 18)
    points = pixel_centers(18, 20, pose).reshape(-1, 2)
    origins, directions = world_rays(points, pose, intrinsics)
    torch.testing.assert_close(directions.reshape(18, 20, 3), bundle.directions, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(origins.expand(360, 3).reshape(18, 20, 3), bundle.origins, atol=1e-6, rtol=1e-6)


def test_axes_flip_there_and_back() -> None:
    pose = random_pose(2)
    torch.testing.assert_close(opencv_from_opengl(opengl_from_opencv(pose)), pose)
    assert opencv_from_opengl(torch.eye(4, dtype=torch.int64)[:3]).dtype == torch.float32


def test_intrinsics_go_to_pixels_and_back() -> None:
    intrinsics = intrinsics_norm_from_px(*(torch.tensor(v) for v in (30.0, 28.0, 11.0, 9.5)), 20, 18)
    pixels = intrinsics_px_from_norm(intrinsics, (18, 20))
    assert [round(float(pixels[i, j]), 4) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2), (2, 2))] == [30, 28, 11, 9.5, 1]


def test_a_re10k_row_holds_the_inverse_pose() -> None:
    pose = random_pose(3)
    row = torch.cat([torch.tensor([0.6, 0.9, 0.5, 0.5, 0, 0]), torch.linalg.inv(pose)[:3].flatten()])
    poses, intrinsics = cameras_from_re10k_rows(row[None])
    torch.testing.assert_close(poses[0], pose, atol=1e-5, rtol=1e-5)
    assert intrinsics[0, 1, 1] == row[1]


def test_scenes_are_turned_upright() -> None:
    for seed in range(5):
        pose = random_pose(seed)
        up = z_up_rotation(pose[None]) @ -pose[:3, 1]
        torch.testing.assert_close(up, torch.tensor([0.0, 0.0, 1.0]), atol=1e-5, rtol=0)
    upside_down = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    upside_down[:3, 1] = torch.tensor([0.0, 0.0, 1.0])
    upside_down[:3, 2] = torch.tensor([0.0, 1.0, 0.0])
    rotation = z_up_rotation(upside_down[None])
    torch.testing.assert_close(rotation @ -upside_down[:3, 1], torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0))


def test_a_similarity_and_its_inverse_cancel() -> None:
    pose = random_pose(4)
    similarity = Similarity(2.5, pose[:3, :3], pose[:3, 3])
    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    there = similarity.apply_to_points(points)
    torch.testing.assert_close(similarity.inverse().apply_to_points(there), points, atol=1e-5, rtol=1e-5)
    camera = random_pose(5)
    again = similarity.inverse().apply_to_poses(similarity.apply_to_poses(camera))
    torch.testing.assert_close(again, camera, atol=1e-5, rtol=1e-5)


def test_covariances_move_like_the_points_they_describe() -> None:
    pose = random_pose(6)
    similarity = Similarity(0.7, pose[:3, :3], pose[:3, 3])
    points = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 0.3, 2.0])
    moved = similarity.apply_to_covariances(torch.cov(points.T))
    torch.testing.assert_close(moved, torch.cov(similarity.apply_to_points(points).T), atol=1e-4, rtol=1e-4)


def test_a_flight_starts_and_ends_at_its_first_camera_and_passes_the_second() -> None:
    start, end = random_pose(7), random_pose(8)
    path = fly_through(start, end, 40)
    torch.testing.assert_close(path[0], start, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(path[20, :3, :3], end[:3, :3], atol=1e-4, rtol=1e-4)
    steps = (path[1:, :3, 3] - path[:-1, :3, 3]).norm(dim=-1)
    assert steps.max() < 0.35 * (end[:3, 3] - start[:3, 3]).norm()
    rotations = path[:, :3, :3]
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand_as(rotations), atol=1e-5, rtol=1e-5)


def test_interpolating_equal_poses_stays_put() -> None:
    pose = random_pose(9)
    torch.testing.assert_close(poses_between(pose, pose, torch.tensor([0.0, 0.5, 1.0])), pose.expand(3, 4, 4))


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("size", [(30, 44), (44, 30)])
def test_pytorch3d_cameras_project_as_pytorch3d_does(isotropic: bool, size: tuple[int, int]) -> None:
    """Step by step after PyTorch3D's own definitions: row vectors, +x left and +y up, NDC of the image's centre."""
    height, width = size
    rotation, translation = random_pose(10)[:3, :3], torch.tensor([0.2, -0.3, 5.0])
    focal, principal = torch.tensor([2.1, 1.7]), torch.tensor([0.12, -0.08])
    points = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    in_camera = points @ rotation + translation
    ndc = focal * in_camera[:, :2] / in_camera[:, 2:] + principal
    unit_px = torch.tensor([min(size), min(size)] if isotropic else [width, height]) / 2
    expected_px = torch.tensor([width, height]) / 2 - ndc * unit_px

    world_from_camera, intrinsics_norm = cameras_from_pytorch3d(
        rotation[None], translation[None], focal[None], principal[None], torch.tensor([size]), torch.tensor([isotropic])
    )
    seen, _ = project(points, world_from_camera, intrinsics_norm)
    torch.testing.assert_close(seen * torch.tensor([width, height]), expected_px, atol=1e-4, rtol=1e-4)
    centre = -translation @ rotation.T
    torch.testing.assert_close(world_from_camera[0, :3, 3], centre, atol=1e-5, rtol=1e-5)
    assert torch.linalg.det(world_from_camera[0, :3, :3]) > 0.999


def test_demo_cameras_survive_the_way_through_pytorch3d() -> None:
    pose, size = random_pose(11).double().numpy(), (30, 44)
    view = pytorch3d_viewpoint(Camera(pose, (0.8, 1.1)), size)
    world_from_camera, intrinsics_norm = cameras_from_pytorch3d(
        *(torch.tensor(view[key])[None] for key in ("R", "T", "focal_length", "principal_point")),
        torch.tensor([size]),
        torch.tensor([True]),
    )
    torch.testing.assert_close(world_from_camera[0].double(), torch.from_numpy(pose), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(intrinsics_norm[0].diagonal()[:2], torch.tensor([0.8, 1.1]))
