"""Widgets that the parts share, and how viser's own behave where their way does not fit."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import viser.transforms
from torch import Tensor
from viser import CameraFrustumHandle, GuiApi, GuiButtonGroupHandle, SceneApi

from lsplat_ns.plugin.jobs import Progress

VISER_NERFSTUDIO_SCALE_RATIO = 10.0
"""nerfstudio draws its world ten times larger in viser."""
SECONDS_TO_CORRECT = 0.1
SAVED_PATH = "last saved in the Render tab"
"""The camera path that Generate Command of nerfstudio's Render tab stored last."""


def by_a_person(act: Callable[[Any], None]) -> Callable[[Any], None]:
    """A callback for changes that come from a browser, not for those that the panel itself makes."""
    return lambda event: act(event) if event.client is not None else None


def correct(handle: Any, read: Callable[[], Any], wish: Any = None) -> None:
    """Set a field that a person has just changed to what is read then; with a wish only if it still holds that.

    viser passes a tab's change on to the other tabs after all callbacks, and that message would replace an earlier one
    of the same field: the correction has to come later.
    """

    def put_right() -> None:
        if wish is None or handle.value == wish:
            handle.value = read()

    threading.Timer(SECONDS_TO_CORRECT, put_right).start()


def repeatable(group: GuiButtonGroupHandle) -> GuiButtonGroupHandle:
    """A button group that hears the same button twice; viser takes the second click for no change."""
    group._impl.is_button = True
    return group


def inputs_labelled(gui: GuiApi, label: str) -> list[Any]:
    """Buttons and fields by the label that a person reads, nerfstudio's among them: it keeps no handles of its own."""
    return [handle for handle in gui._gui_input_handle_from_id.values() if handle._impl.label == label]


def add_frustum(
    scene: SceneApi,
    name: str,
    world_from_camera: Tensor,
    *,
    fov_y: float,
    aspect: float,
    scale: float,
    color: tuple[int, int, int],
    image: np.ndarray | None = None,
) -> CameraFrustumHandle:
    """Draw a camera [4, 4] (OpenCV, nerfstudio's frame), with a picture uint8 [height, width, 3] if there is one."""
    pose = world_from_camera.double().cpu().numpy()
    return scene.add_camera_frustum(
        name,
        fov=fov_y,
        aspect=aspect,
        scale=scale,
        color=color,
        image=image,
        wxyz=viser.transforms.SO3.from_matrix(pose[:3, :3]).wxyz,
        position=pose[:3, 3] * VISER_NERFSTUDIO_SCALE_RATIO,
    )


class ProgressRow:
    """A bar, the time left, and a button that cancels; seen while something runs."""

    def __init__(self, gui: GuiApi, cancel: str) -> None:
        self._progress: Progress | None = None
        self._bar = gui.add_progress_bar(0, visible=False)
        self._left = gui.add_markdown("", visible=False)
        self._cancel = gui.add_button(cancel, visible=False)
        self._cancel.on_click(lambda _: self.cancel())

    def cancel(self) -> None:
        """Cancel what runs, if anything does."""
        if self._progress is not None:
            self._progress.cancel()

    @contextlib.contextmanager
    def progressing(self) -> Iterator[Progress]:
        """What is given takes the progress, and cancels at the next report."""
        started = time.monotonic()

        def show(share: float) -> None:
            self._bar.value = 100 * share
            if share > 0:
                self._left.content = f"{(time.monotonic() - started) * (1 / share - 1):.0f} s left"

        self._progress = Progress(show)
        self._left.content = ""
        self._bar.visible = self._left.visible = self._cancel.visible = True
        try:
            yield self._progress
        finally:
            self._progress = None
            self._bar.visible = self._left.visible = self._cancel.visible = False
            self._bar.value = 0
