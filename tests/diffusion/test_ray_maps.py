"""Claims about cameras as maps: they equal the recorded original in every mode, and mean what they say."""

import pytest
import torch
from mvldm_recordings import RAYS, ray_outputs, relative_pose_outputs
from parity import recording

from lsplat_ns.diffusion.ray_maps import RayMapConfig, ray_maps, relative_to
from lsplat_ns.errors import ConfigError
from lsplat_ns.scene import Cameras


def two_cameras() -> Cameras:
    """The second camera stands 2 to the right of the first, turned to look along +x."""
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    poses[0, 1, :3, :3] = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    poses[0, 1, 0, 3] = 2
    intrinsics = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]).repeat(1, 2, 1, 1)
    return Cameras(poses, intrinsics, torch.ones(1, 2), torch.ones(1, 2))


def test_ray_maps_equal_the_recorded_original_in_every_mode() -> None:
    case = recording("mv_rays")
    for name, value in ray_outputs(case).items():
        case.assert_close(name, value, 1e-6)


def test_relative_poses_equal_the_recorded_original() -> None:
    case = recording("mv_rays")
    for name, value in relative_pose_outputs(case).items():
        case.assert_close(name, value, 1e-6)


@pytest.mark.parametrize(
    "config", [*RAYS.values(), RayMapConfig("srt", True, 0, 2), RayMapConfig("positional", False, 3, 0)]
)
def test_the_stated_number_of_channels_is_the_real_one(config: RayMapConfig) -> None:
    assert ray_maps(two_cameras(), (4, 6), config).shape == (1, 2, config.channels, 4, 6)


def test_the_recorded_number_of_input_channels_is_ours() -> None:
    meta = recording("mv_rays").meta
    assert {name: 4 + 1 + config.channels for name, config in RAYS.items()} == {
        name: meta[f"in_channels_{name}"] for name in RAYS
    }


def test_a_ray_starts_at_its_camera_and_goes_through_its_pixel() -> None:
    maps = ray_maps(two_cameras(), (3, 5), RayMapConfig())
    assert torch.equal(maps[0, 1, :3, 2, 4], torch.tensor([2.0, 0, 0]))
    assert torch.equal(maps[0, 0, 3:, 1, 2], torch.tensor([0.0, 0, 1]))  # the central pixel, straight ahead
    assert torch.equal(maps[0, 1, 3:, 1, 2], torch.tensor([1.0, 0, 0]))
    right_below = torch.tensor([0.4, 1 / 3, 1])
    torch.testing.assert_close(maps[0, 0, 3:, 2, 4], right_below / right_below.norm())


def test_moments_do_not_depend_on_where_along_the_ray_it_starts() -> None:
    cameras = two_cameras()
    central = ray_maps(cameras, (1, 1), RayMapConfig(moments=True))
    cameras.world_from_camera[0, 1, 0, 3] = 7  # along the direction it looks in
    moved = ray_maps(cameras, (1, 1), RayMapConfig(moments=True))
    assert torch.equal(central, moved)


def test_the_reference_camera_becomes_the_identity_and_common_motion_cancels() -> None:
    cameras = two_cameras()
    relative = relative_to(cameras, 1)
    assert torch.equal(relative.world_from_camera[0, 1], torch.eye(4))
    moved = relative_to(relative_to(cameras, 0), 1)
    torch.testing.assert_close(moved.world_from_camera, relative.world_from_camera)
    assert torch.equal(relative.intrinsics_norm, cameras.intrinsics_norm)


def test_autocast_does_not_round_poses_or_rays() -> None:
    cameras = two_cameras()
    cameras.world_from_camera[0, 0, :3, 3] = torch.tensor([0.1, 0.2, 0.3])
    expected = ray_maps(relative_to(cameras, 0), (4, 4), RayMapConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ray_maps(relative_to(cameras, 0), (4, 4), RayMapConfig()), expected)


def test_contradictory_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="no ray encoding 'fourier'"):
        RayMapConfig("fourier")
    with pytest.raises(ConfigError, match="0 or more"):
        RayMapConfig(origin_octaves=-1)
