"""Segments of rays in another view, and the depth of closest approach."""

import pytest
import torch
from parity import recording

from lsplat_ns.geometry.epipolar import _solve, depth_of_closest_approach, project_rays
from lsplat_ns.geometry.rays import pixel_centers, project, world_rays

SAME_CENTER = 2
"""The recorded pair of cameras with one centre. What the original finds there is rounding noise."""

NEARLY_PARALLEL = 0.995
"""Cosine of the angle between two rays beyond which the distance to where they meet is little more than rounding."""

SEGMENT_OUTPUTS = {
    "overlaps_image": "overlaps",
    "t_min": "start_depth",
    "t_max": "end_depth",
    "xy_min": "start_xy",
    "xy_max": "end_xy",
}

DISTINCT = [pair for pair in range(12) if pair != SAME_CENTER]


def recorded_pairs(dtype: torch.dtype) -> tuple:
    """The recorded rays of 12 views, and the 12 cameras that look at them."""
    case = recording("ls_epipolar")
    pose, intrinsics = case.input("extrinsics").to(dtype)[:, None], case.input("intrinsics").to(dtype)[:, None]
    rays = world_rays(pixel_centers(8, 10, pose), pose[::2], intrinsics[::2])
    return case, rays, (pose[1::2], intrinsics[1::2])


@pytest.mark.parametrize("name", ["nearfar", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_segments_match_the_recording(name: str, dtype: torch.dtype):
    case, rays, camera = recorded_pairs(dtype)
    near, far = torch.tensor([0.5, 100.0], dtype=dtype).view(2, 1, 1)
    segments = project_rays(*rays, *camera, bounds=(near, far) if name == "nearfar" else None)
    recorded = {key: torch.from_numpy(case.outputs[f"project_rays/{name}/{key}"])[DISTINCT] for key in SEGMENT_OUTPUTS}
    seen = recorded["overlaps_image"]
    assert (segments.overlaps[DISTINCT] == seen).all()
    for key, field in SEGMENT_OUTPUTS.items():
        actual = getattr(segments, field)[DISTINCT][seen].to(recorded[key].dtype)
        assert torch.allclose(actual, recorded[key][seen], rtol=1e-4, atol=2e-6), key


def deviation_of_depths() -> tuple[torch.Tensor, torch.Tensor]:
    """Relative deviations of float32 depths from the recorded ones, and the cosines of the angles between the rays."""
    case, rays, camera = recorded_pairs(torch.float32)
    rays, camera = ([part[DISTINCT, :, None] for part in parts] for parts in (rays, camera))
    points = torch.from_numpy(case.outputs["get_depth/xy"])[DISTINCT]
    recorded = torch.from_numpy(case.outputs["get_depth/depth"])[DISTINCT]
    relative = (depth_of_closest_approach(*rays, points, *camera) / recorded - 1).abs()
    return relative, (rays[1] * world_rays(points, *camera)[1]).sum(-1)


def test_depths_match_the_recording():
    relative, cosine = deviation_of_depths()
    assert relative.median() < 5e-7
    assert relative[cosine < NEARLY_PARALLEL].max() < 5e-5
    assert relative.max() < 2e-2


def test_the_depth_of_a_seen_point_is_its_distance():
    _, (origins, directions), (pose, intrinsics) = recorded_pairs(torch.float64)
    points = origins + 2.5 * directions
    xy, _ = project(points, pose, intrinsics)
    depth = depth_of_closest_approach(origins, directions, xy, pose, intrinsics)
    cosine = (directions * world_rays(xy, pose, intrinsics)[1]).sum(-1).abs()
    assert torch.allclose(depth[cosine < 0.99], torch.tensor(2.5, dtype=torch.float64), atol=1e-4)


def test_samples_lie_on_the_epipolar_line_in_order_of_depth():
    _, rays, camera = recorded_pairs(torch.float64)
    rays, camera = ([part[DISTINCT] for part in parts] for parts in (rays, camera))
    segments = project_rays(*rays, *camera, bounds=tuple(torch.tensor([[[0.5]], [[100.0]]], dtype=torch.float64)))
    rays, camera = ([part[:, :, None] for part in parts] for parts in (rays, camera))
    depth = depth_of_closest_approach(*rays, segments.sample(6), *camera)
    usable = segments.overlaps & (depth < 1e9).all(-1)  # without rays through the epipole, which are parallel
    assert usable.sum() > 0.9 * segments.overlaps.sum()
    assert (depth.diff(dim=-1) > 0)[usable].all()
    xy, _ = project(rays[0] + depth[..., None] * rays[1], *camera)
    error = (xy - segments.sample(6)).norm(dim=-1)[usable]
    assert error.median() < 1e-6 and error.max() < 1e-4, (error.median(), error.quantile(0.99), error.max())


def test_rays_from_the_same_center_overlap_exactly_where_they_hit_the_image():
    _, rays, camera = recorded_pairs(torch.float64)
    (origins, directions), camera = ([part[SAME_CENTER] for part in parts] for parts in (rays, camera))
    xy, in_front = project(origins + directions, *camera)
    inside = in_front & ((xy >= 0) & (xy <= 1)).all(-1)
    assert (project_rays(origins, directions, *camera).overlaps == inside).all()
    assert inside.any() and not inside.all()


def test_a_view_behind_sees_nothing_and_its_samples_are_the_corner():
    pose, intrinsics = torch.eye(4), torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1.0]])
    away = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))  # looks the other way
    away[2, 3] = -1.0
    segments = project_rays(
        *world_rays(pixel_centers(4, 4, pose), pose, intrinsics),
        away,
        intrinsics,
        (torch.ones(1), torch.full((1,), 9.0)),
    )
    assert not segments.overlaps.any()
    assert (segments.sample(5) == 0).all()


def looking_back(turn: float) -> tuple:
    """The middle ray of one camera, and the camera one unit to its right, turned about its vertical axis or not."""
    intrinsics = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]], dtype=torch.float64)
    pose = torch.diag(torch.tensor([turn, 1.0, turn, 1.0], dtype=torch.float64))
    pose[0, 3] = 1.0
    center = torch.tensor([0.5, 0.5], dtype=torch.float64)
    return world_rays(center, torch.eye(4, dtype=torch.float64), intrinsics), center, (pose, intrinsics)


def test_parallel_rays_meet_at_infinity():
    rays, center, camera = looking_back(1.0)
    assert 1e10 < depth_of_closest_approach(*rays, center, *camera) < torch.inf


def test_opposite_rays_meet_half_way_between_their_cameras():
    rays, center, camera = looking_back(-1.0)
    assert depth_of_closest_approach(*rays, center, *camera) == 0.5


def test_the_meeting_point_is_exact_for_the_float32_system_even_at_a_hundredth_of_a_radian():
    generator = torch.Generator().manual_seed(0)
    directions = torch.tensor([0.0, 0.0, 1.0]) + 0.005 * torch.randn(2, 100, 3, generator=generator)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    matrix = (directions[..., :, None] * directions[..., None, :] - torch.eye(3)).sum(0)
    vector = torch.randn(100, 3, generator=generator)
    exact = torch.linalg.solve(matrix.double(), vector.double())
    assert torch.linalg.cond(matrix).median() > 1e4
    assert torch.allclose(_solve(matrix, vector), exact.float(), rtol=1e-6)
