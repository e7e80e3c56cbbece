"""Rays, projection and relative disparity."""

import torch
from parity import recording

from lsplat_ns.geometry.rays import (
    FLOAT32_EPSILON,
    bounds_from_baseline,
    depth_from_relative_disparity,
    field_of_view,
    pixel_centers,
    pixel_size_at_unit_depth,
    project,
    relative_disparity_from_depth,
    with_scene_bounds,
    world_rays,
)
from lsplat_ns.scene import Cameras, SceneBatch, Views


def cameras(centers: list[list[float]], focal: tuple[float, float] = (0.9, 0.9)) -> Cameras:
    pose = torch.eye(4).repeat(len(centers), 1, 1)
    pose[:, :3, 3] = torch.tensor(centers)
    intrinsics = torch.tensor([[focal[0], 0, 0.5], [0, focal[1], 0.5], [0, 0, 1]]).expand(len(centers), 3, 3)
    ones = torch.ones(1, len(centers))
    return Cameras(pose[None], intrinsics[None], ones, 2 * ones)


def test_pixel_centers_are_row_major_and_half_a_pixel_inside():
    points = pixel_centers(2, 4, torch.zeros(()))
    assert points[:2].tolist() == [[0.125, 0.25], [0.375, 0.25]]
    assert points[-1].tolist() == [0.875, 0.75]


def test_rays_projection_and_field_of_view_match_the_recording():
    case = recording("ls_epipolar")
    pose, intrinsics = case.input("extrinsics"), case.input("intrinsics")
    points = pixel_centers(8, 10, pose)
    case.assert_close("image_grid", points.reshape(8, 10, 2), 1e-6)
    origins, directions = world_rays(points, pose[::2, None], intrinsics[::2, None])
    case.assert_close("origins", origins, 0.0)
    case.assert_close("directions", directions, 0.0)  # the same bits
    case.assert_close("get_fov", field_of_view(intrinsics), 1e-5)
    xy, in_front = project(case.input("points"), pose[:, None], intrinsics[:, None])
    case.assert_close("project/xy", xy, 1e-5)
    case.assert_close("project/in_front", in_front, 0)


def test_a_point_on_a_ray_projects_to_where_the_ray_starts():
    case = recording("ls_epipolar")
    pose, intrinsics = case.input("extrinsics").double()[:, None], case.input("intrinsics").double()[:, None]
    points = pixel_centers(5, 7, pose)
    origins, directions = world_rays(points, pose, intrinsics)
    xy, in_front = project(origins + 3 * directions, pose, intrinsics)
    assert in_front.all()
    assert torch.allclose(xy, points.expand_as(xy), atol=1e-6)


def test_projection_undoes_the_rays_of_a_pose_whose_rotation_is_not_quite_orthogonal():
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] += 1e-3 * torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    intrinsics = torch.tensor([[0.9, 0, 0.4], [0, 1.2, 0.6], [0, 0, 1]], dtype=torch.float64)
    points = pixel_centers(5, 7, pose)
    origins, directions = world_rays(points, pose, intrinsics)
    xy, _ = project(origins + 3 * directions, pose, intrinsics)
    assert torch.allclose(xy, points, atol=1e-6)


def test_projection_guards_its_division_by_z_as_the_original_does():
    intrinsics = torch.tensor([[0.9, 0, 0.4], [0, 1.2, 0.6], [0, 0, 1]])
    xy, _ = project(torch.tensor([0.0, 0.0, FLOAT32_EPSILON]), torch.eye(4), intrinsics)
    assert torch.allclose(xy, torch.tensor([0.2, 0.3]))  # the principal point times z / (z + epsilon)


def test_relative_disparity_matches_the_recording_and_inverts():
    case = recording("ls_conversions")
    near, far, steps = case.input("near")[:, None], case.input("far")[:, None], case.input("t")
    depth = depth_from_relative_disparity(steps, near, far)
    case.assert_close("relative_disparity_to_depth", depth, 1e-6)
    disparity = relative_disparity_from_depth(depth, near, far)
    case.assert_close("depth_to_relative_disparity", disparity, 1e-5)
    depth = depth_from_relative_disparity(steps.double(), near.double(), far.double())
    assert torch.allclose(relative_disparity_from_depth(depth, near.double(), far.double()), steps.double(), atol=1e-6)


def test_bounds_match_every_recorded_encoder_case():
    for name in ("ls_encoder_small", "ls_encoder_full_64", "ls_encoder_small_nodown"):
        case = recording(name)
        context = Cameras(*(case.input(key) for key in ("extrinsics", "intrinsics", "near", "far")))
        near, far = bounds_from_baseline(context, case.inputs["image_u8"].shape[-2:])
        case.assert_close("shim/near", near[:, None].expand(-1, 2), 1e-6)
        case.assert_close("shim/far", far[:, None].expand(-1, 2), 1e-6)


def test_bounds_take_the_widest_pair_and_the_stated_disparities():
    context = cameras([[0.0, 0, 0], [1.0, 0, 0], [4.0, 0, 0]], focal=(0.9, 0.9))
    near, far = bounds_from_baseline(context, (256, 256), near_disparity=3.0, far_disparity=0.5)
    pixel = pixel_size_at_unit_depth(context.intrinsics_norm[0, 0], (256, 256))[0]
    assert torch.allclose(4.0 / near / pixel, torch.tensor(3.0 * 256))  # pixels that a point at near shifts by
    assert torch.allclose(4.0 / far / pixel, torch.tensor(0.5))


def test_context_and_target_cameras_share_the_scene_bounds():
    def views(centers: list[list[float]]) -> Views:
        count = len(centers)
        return Views(torch.zeros(1, count, 3, 8, 8), cameras(centers), torch.zeros(1, count, dtype=torch.int64))

    batch = SceneBatch(views([[0.0, 0, 0], [1.0, 0, 0]]), views([[0.5, 0, 0]] * 3), ("scene",))
    bounded = with_scene_bounds(batch)
    near, far = bounds_from_baseline(batch.context.cameras, (8, 8))
    assert (bounded.context.cameras.near == near).all() and (bounded.target.cameras.near == near).all()
    assert (bounded.context.cameras.far == far).all() and (bounded.target.cameras.far == far).all()
    assert bounded.target.cameras.far.shape == (1, 3)
