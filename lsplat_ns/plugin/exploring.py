"""Where to look next: the nearby view of which a predicted scene knows least."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from lsplat_ns.geometry.conventions import opencv_from_opengl, opengl_from_opencv
from lsplat_ns.plugin.scene_model import PredictedScene, SceneModel

YAWS, PITCHES = (-30, -15, 0, 15, 30), (-12, 0, 12)
"""Turns that count as nearby, in degrees."""
STEPS = ((0.0, 0.0, 0.0), (-0.5, 0.0, 0.0), (0.5, 0.0, 0.0), (0.0, 0.0, 0.5))
"""Moves (right, down, forward) that count as nearby, in context baselines."""
LEAST_COVERED = 0.6
"""Share of what the scene covers here that it must cover there: a view of nothing cannot be judged nor continued."""
NOTHING = 0.02
"""A scene that covers less than this is not in sight."""
SIZE = (36, 48)
"""(height, width) at which views are judged."""


@dataclass(frozen=True)
class UncertainView:
    """A view and what the scene knows of it."""

    world_from_camera: Tensor  # [4, 4], OpenCV, nerfstudio's frame
    uncertainty: float  # mean over the picture, 0 to 1 or above
    covered: float  # mean accumulation


@torch.no_grad()
def least_certain_view(
    model: SceneModel, prediction: PredictedScene, camera: Cameras, lock: object
) -> UncertainView | None:
    """Try turns and moves of a camera, and find the view with the highest mean uncertainty that still shows the scene.

    Args:
        model: Rendered with (splatted only); ``lock`` is held for one view at a time.
        prediction: The scene.
        camera: [1], in the nerfstudio frame of that scene.
        lock: The viewer's.

    Returns:
        The view, or None if no view nearby shows enough of the scene.
    """
    height, width = SIZE
    context = prediction.scene.nerfstudio_cameras(prediction.scene.choice.context).camera_to_worlds[:, :, 3]
    baseline = float((context[0] - context[-1]).norm())
    start = opencv_from_opengl(camera.camera_to_worlds.cpu().float())[0]
    focal = camera.fy.flatten()[0].cpu() * height / camera.height.flatten()[0].cpu()

    def judged(pose: Tensor) -> UncertainView:
        view = Cameras(opengl_from_opencv(pose)[None, :3], focal, focal, width / 2, height / 2, width, height)
        with lock, model.evaluating():
            outputs = model.view(prediction, view, decode=False)
        return UncertainView(pose, float(outputs["uncertainty"].mean()), float(outputs["accumulation"].mean()))

    least_covered = max(NOTHING, LEAST_COVERED * judged(start).covered)
    moves = product(YAWS, PITCHES, STEPS)
    found = [judged(start @ _turned_and_moved(yaw, pitch, step, baseline)) for yaw, pitch, step in moves]
    seen = [view for view in found if view.covered >= least_covered]
    return max(seen, key=lambda view: view.uncertainty, default=None)


def _turned_and_moved(yaw: float, pitch: float, step: tuple[float, float, float], baseline: float) -> Tensor:
    """From a turned (degrees) and moved camera to the one before; y points down, so a positive yaw turns right."""
    yaw, pitch = math.radians(yaw), math.radians(pitch)
    motion = torch.eye(4)
    about_y = torch.tensor(
        [[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]], dtype=torch.float32
    )
    about_x = torch.tensor(
        [[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]], dtype=torch.float32
    )
    motion[:3, :3] = about_y @ about_x
    motion[:3, 3] = baseline * torch.tensor(step)
    return motion
