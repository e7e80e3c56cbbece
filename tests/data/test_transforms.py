from __future__ import annotations

import numpy as np
import pytest
import torch

from lsplat_ns.data.transforms import cropped_intrinsics, image_tensor, mirror, rescale_and_crop
from lsplat_ns.geometry.rays import project


def test_re10k_frames_are_cropped_as_the_original_crops_them() -> None:
    """360x640 becomes 256x455, of which columns 99 to 354 are kept (spec 2.3)."""
    columns = np.broadcast_to(np.linspace(0, 255, 640)[None, :, None], (360, 640, 3)).astype(np.uint8)
    crop = rescale_and_crop(columns, (256, 256))
    assert crop.shape == (256, 256, 3)
    expected = np.linspace(0, 255, 455)[99:355]
    assert np.abs(crop[100, 5:-5, 0] - expected[5:-5]).max() < 2


def test_intrinsics_follow_the_crop() -> None:
    intrinsics = torch.tensor([[0.5, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]])
    cropped = cropped_intrinsics(intrinsics, (360, 640), (256, 256))
    assert float(cropped[0, 0]) == pytest.approx(0.5 * 455 / 256)
    assert float(cropped[1, 1]) == pytest.approx(0.9)
    assert float(intrinsics[0, 0]) == 0.5  # the input is left alone


def test_mirroring_reflects_image_and_projection_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    pose = torch.eye(4)[None]
    pose[0, :3, 3] = torch.tensor([0.3, -0.2, 0.1])
    intrinsics = torch.tensor([[[0.9, 0, 0.4], [0, 0.8, 0.55], [0, 0, 1]]])
    image = torch.rand(1, 3, 8, 8, generator=generator)
    points = torch.rand(5, 3, generator=generator) + torch.tensor([0.0, 0.0, 2.0])
    flipped, pose_m, intrinsics_m = mirror(image, pose, intrinsics)
    xy, _ = project(points, pose, intrinsics)
    xy_m, _ = project(points * torch.tensor([-1.0, 1.0, 1.0]), pose_m, intrinsics_m)
    torch.testing.assert_close(xy_m[..., 0], 1 - xy[..., 0])
    torch.testing.assert_close(xy_m[..., 1], xy[..., 1])
    torch.testing.assert_close(flipped.flip(-1), image)
    assert torch.linalg.det(pose_m[0, :3, :3]) == pytest.approx(1.0)


def test_image_tensor_is_channels_first_in_0_1() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 2] = 255, 0, 51
    tensor = image_tensor(image)
    assert tensor.shape == (3, 4, 6) and tensor[:, 1, 2].tolist() == pytest.approx([1.0, 0.0, 0.2])
