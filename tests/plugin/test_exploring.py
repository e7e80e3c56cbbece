"""Where a scene knows least: which views are tried, and which of them is taken."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras

from lsplat_ns.geometry.conventions import opencv_from_opengl, opengl_from_opencv
from lsplat_ns.plugin.exploring import PITCHES, YAWS, UncertainView, least_certain_view


class Doubtful:
    """A model that doubts what lies to the right, and sees nothing beyond some angle."""

    def __init__(self, sees_degrees: float) -> None:
        self.sees_degrees, self.yaws, self.pitches = sees_degrees, set(), set()

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def view(self, prediction: Any, camera: Cameras, decode: bool) -> dict[str, torch.Tensor]:
        x, y, z = opencv_from_opengl(camera.camera_to_worlds)[0, :3, 2].tolist()
        yaw, pitch = math.degrees(math.atan2(x, z)), math.degrees(math.asin(-y))
        self.yaws.add(round(yaw))
        self.pitches.add(round(pitch))
        seen = float(yaw <= self.sees_degrees)
        return {"uncertainty": torch.full((2, 2), 1 + yaw / 100), "accumulation": torch.full((2, 2), seen)}


def explored(model: Doubtful) -> UncertainView | None:
    context = SimpleNamespace(camera_to_worlds=torch.eye(4)[:3].repeat(2, 1, 1))
    scene = SimpleNamespace(choice=SimpleNamespace(context=(0, 1)), nerfstudio_cameras=lambda frames: context)
    camera = Cameras(opengl_from_opencv(torch.eye(4))[None, :3], 40.0, 40.0, 24.0, 18.0, 48, 36)
    return least_certain_view(model, SimpleNamespace(scene=scene), camera, contextlib.nullcontext())


@pytest.mark.parametrize(("sees", "expected"), [(90.0, 30), (20.0, 15)])
def test_turns_are_as_many_degrees_as_they_say_and_views_of_nothing_do_not_count(sees: float, expected: int) -> None:
    model = Doubtful(sees)
    found = explored(model)
    assert model.yaws >= set(YAWS) and model.pitches >= set(PITCHES)
    forward = found.world_from_camera[:3, 2]
    assert math.degrees(math.atan2(forward[0], forward[2])) == pytest.approx(expected, abs=1e-3)


def test_where_nothing_is_in_sight_there_is_no_view() -> None:
    assert explored(Doubtful(-90.0)) is None
