from __future__ import annotations

import numpy as np
import pytest
import torch
from parity import recording
from PIL import Image

from lsplat_ns.data.benchmark import whole_image_crop
from lsplat_ns.data.transforms import byte_tensor, cropped_intrinsics, mirror_cameras, rescale_and_crop
from lsplat_ns.errors import SceneDataError
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


def test_mirrored_cameras_see_the_reflected_world_reflected() -> None:
    generator = torch.Generator().manual_seed(0)
    pose = torch.eye(4)[None]
    pose[0, :3, 3] = torch.tensor([0.3, -0.2, 0.1])
    intrinsics = torch.tensor([[[0.9, 0, 0.4], [0, 0.8, 0.55], [0, 0, 1]]])
    points = torch.rand(5, 3, generator=generator) + torch.tensor([0.0, 0.0, 2.0])
    pose_m, intrinsics_m = mirror_cameras(pose, intrinsics)
    xy, _ = project(points, pose, intrinsics)
    xy_m, _ = project(points * torch.tensor([-1.0, 1.0, 1.0]), pose_m, intrinsics_m)
    torch.testing.assert_close(xy_m[..., 0], 1 - xy[..., 0])
    torch.testing.assert_close(xy_m[..., 1], xy[..., 1])
    assert torch.linalg.det(pose_m[0, :3, :3]) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [(360, 640), (331, 577), (32, 41), (640, 360)])
def test_a_mirrored_crop_is_the_crop_of_the_mirrored_image(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    crop = rescale_and_crop(image, (32, 32), mirrored=True)
    np.testing.assert_array_equal(crop, rescale_and_crop(image[:, ::-1].copy(), (32, 32)))


def test_byte_tensor_is_channels_first() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 2] = 255, 0, 51
    tensor = byte_tensor(image)
    assert tensor.shape == (3, 4, 6) and tensor.dtype == torch.uint8 and tensor[:, 1, 2].tolist() == [255, 0, 51]


@pytest.mark.parametrize("target", [(32, 32), (40, 64), (45, 80), (32, 64), (33, 47)])
def test_crops_equal_the_recorded_ones(target: tuple[int, int]) -> None:
    case = recording("ls_shims")
    name = f"crop/{target[0]}x{target[1]}"
    frames = case.inputs["image_u8"].transpose(0, 2, 3, 1)
    images = torch.stack([byte_tensor(rescale_and_crop(frame, target)) for frame in frames])
    case.assert_close(f"{name}/image", images, 0.0)
    size = frames.shape[1:3]
    intrinsics = torch.stack([cropped_intrinsics(k, size, target) for k in case.input("intrinsics")])
    case.assert_close(f"{name}/intrinsics", intrinsics, 1e-6)


def test_mirrored_poses_equal_the_recorded_ones() -> None:
    case = recording("ls_shims")
    poses, _ = mirror_cameras(case.input("extrinsics"), case.input("intrinsics"))
    case.assert_close("augment/reflect_extrinsics", poses, 0.0)


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((360, 640), (256, 256)),
        ((360, 640), (256, 448)),
        ((360, 640), (360, 360)),
        ((640, 360), (256, 256)),
        ((480, 640), (256, 256)),
        ((331, 577), (256, 256)),  # no common divisor: all of the image is rescaled
        ((64, 96), (64, 64)),
        ((1080, 1920), (252, 420)),
    ],
)
def test_a_crop_equals_that_of_the_whole_rescaled_image(size: tuple[int, int], target: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    crop = rescale_and_crop(image, target)
    assert crop.shape == (*target, 3)
    np.testing.assert_array_equal(crop, whole_image_crop(image, target))
    np.testing.assert_array_equal(crop, rescale_and_crop(Image.fromarray(image), target))


def test_an_image_smaller_than_the_target_is_refused() -> None:
    for size in ((31, 64), (64, 31)):
        with pytest.raises(SceneDataError, match="smaller than the 32x32") as caught:
            rescale_and_crop(np.zeros((*size, 3), np.uint8), (32, 32))
        assert caught.value.reason == "image size"
