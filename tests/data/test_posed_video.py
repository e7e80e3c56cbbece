from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.errors import SceneDataError


def video(change: Callable[[Tensor, Tensor], object] = lambda poses, intrinsics: None, frames: int = 4) -> PosedVideo:
    poses = torch.eye(4).repeat(frames, 1, 1)
    intrinsics = torch.tensor([[0.8, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]).repeat(frames, 1, 1)
    change(poses, intrinsics)
    return PosedVideo("room", poses, intrinsics, lambda frame: np.zeros((8, 8, 3), np.uint8), lambda frame: (8, 8))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda poses, intrinsics: poses.__setitem__((2, 0, 3), float("nan")), "frame 2, has a camera with NaN"),
        (lambda poses, intrinsics: intrinsics.__setitem__((1, 0, 0), float("inf")), "frame 1, has a camera with NaN"),
        (lambda poses, intrinsics: poses[3, :3, :3].mul_(1.01), "frame 3, has a pose that is not rigid"),
        (lambda poses, intrinsics: poses[3, 0].mul_(-1), "frame 3, has a pose that is not rigid"),
        (lambda poses, intrinsics: poses.__setitem__((1, 0, 1), 0.1), "frame 1, has a pose that is not rigid"),
        (lambda poses, intrinsics: poses.__setitem__((1, 3, 0), 1.0), "frame 1, has a pose that is not rigid"),
        (lambda poses, intrinsics: intrinsics[:, :2].mul_(256), "frame 0, has intrinsics in pixels"),
        (lambda poses, intrinsics: intrinsics[1, :2, 2].mul_(64), "frame 1, has intrinsics in pixels"),
        (lambda poses, intrinsics: intrinsics.__setitem__((2, 1, 1), 0.0), "frame 2, has a focal length"),
    ],
)
def test_a_camera_that_cannot_be_is_named_with_its_frame(change: Callable, expected: str) -> None:
    with pytest.raises(SceneDataError, match=f"scene room, {expected}") as caught:
        video(change)
    assert caught.value.reason == "broken"


def test_rotations_rounded_to_six_digits_are_rigid() -> None:
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.3, -0.5], [-0.3, 0.0, 0.2], [0.5, -0.2, 0.0]]))
    rounded = (turn * 1e6).round() / 1e6
    assert len(video(lambda poses, intrinsics: poses[:, :3, :3].copy_(rounded))) == 4


def test_a_scene_without_frames_is_too_short() -> None:
    with pytest.raises(SceneDataError, match="no frame") as caught:
        video(frames=0)
    assert caught.value.reason == "too short"


def test_the_field_of_view_is_measured_through_the_middle_of_the_image() -> None:
    """Spec section 1: between the rays through the middles of opposite edges."""
    assert video().largest_fov_degrees() == pytest.approx(2 * np.degrees(np.arctan(0.5 / 0.8)), abs=1e-3)
    wide = video(lambda poses, intrinsics: intrinsics.__setitem__((3, 1, 1), 0.4))
    assert wide.largest_fov_degrees() == pytest.approx(2 * np.degrees(np.arctan(0.5 / 0.4)), abs=1e-3)


def test_frames_that_do_not_exist_are_named() -> None:
    video().check_frames((0, 3))
    for frame in (-1, 4):
        with pytest.raises(SceneDataError, match=f"frames 0 to 3, but frame {frame} was asked for"):
            video().check_frames((0, frame))
