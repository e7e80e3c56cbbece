"""Everything that talks to viser directly: the one file to check when nerfstudio moves to another viser."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from nerfstudio.viewer.viewer_elements import ViewerControl

from lsplat_ns.errors import ConfigError, LsplatError
from lsplat_ns.geometry.conventions import opencv_from_opengl
from lsplat_ns.geometry.trajectories import poses_between

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer
    from viser import ClientHandle

    from lsplat_ns.plugin.model import LatentSplatModel

SECONDS_AT_REST = 0.25
"""A camera that has not moved for so long is at rest: its picture is decoded."""
VISER_NERFSTUDIO_SCALE_RATIO = 10.0
"""nerfstudio draws its world ten times larger in viser."""
ORBIT_BASELINES = 2.0
"""Distance of the point that the first camera orbits, in context baselines."""


class ViewerPanel(ViewerControl):
    """The latentSplat folder of the viewer: which scene, which draw of it, and decoding while flying.

    In tools without a browser no viewer ever calls ``_setup``; every frame is then decoded.
    """

    def __init__(self, model: LatentSplatModel) -> None:
        self.model = model
        self.viewer: Viewer | None = None
        self.on_scene_wanted: Callable[[str], None] | None = None  # set by the pipeline
        self.scene_ids: Callable[[], list[str]] = list

    def _setup(self, viewer: Viewer) -> None:
        """Called by nerfstudio once the viewer is up."""
        wanted = viewer.config.websocket_port
        if wanted is not None and viewer.viser_server.get_port() != wanted:
            # viser silently takes the next free port, and nerfstudio then prints a URL at which nothing answers.
            viewer.viser_server.stop()
            raise SystemExit(
                f"error: {ConfigError(f'port {wanted} is in use; choose another with --viewer.websocket-port')}"
            )
        super()._setup(viewer)
        gui = viewer.viser_server.gui
        with gui.add_folder("latentSplat"):
            self._scene_text = gui.add_text("Scene", initial_value=self._scene_name(), hint="Scene id or number")
            self._step_buttons = gui.add_button_group("Go to", ("previous", "next"))
            self._mode = gui.add_dropdown(
                "Show",
                ("mode", "sample"),
                initial_value=self.model.config.scene_mode,
                hint="Mode or a draw of the scene",
            )
            self._seed = gui.add_number("Seed", initial_value=self.model.config.scene_seed, step=1, min=0)
            self._always_decode = gui.add_checkbox("Decode while moving", initial_value=False)
            self._status = gui.add_markdown("")
        viewer.viser_server.on_client_connect(self._stand_in_scene)
        self._scene_text.on_update(lambda event: self._wish(self._scene_text.value) if event.client else None)
        self._step_buttons.on_click(lambda _: self._step(1 if self._step_buttons.value == "next" else -1))
        self._mode.on_update(lambda _: self._redraw())
        self._seed.on_update(lambda _: self._redraw())

    def should_decode(self) -> bool:
        """Whether the next frame is worth decoding: always, unless the camera moves in a slow viewer."""
        if self.viewer is None or self._always_decode.value:
            return True
        return time.time() - self.viewer.last_move_time > SECONDS_AT_REST

    def _scene_name(self) -> str:
        scene = self.model.active_scene
        return scene.name if scene is not None else ""

    def _step(self, offset: int) -> None:
        ids = self.scene_ids()
        if self._scene_name() in ids:
            self._wish(ids[(ids.index(self._scene_name()) + offset) % len(ids)])

    def _wish(self, scene: str) -> None:
        """Show another scene: picture, frusta and text change together."""
        if self.on_scene_wanted is None or scene == self._scene_name():
            return
        try:
            with self.viewer.train_lock:
                self.on_scene_wanted(scene)
                self._show_frusta()
            self._status.content = ""
        except LsplatError as error:
            self._status.content = f"**{error}**"
        self._scene_text.value = self._scene_name()
        self.viewer._trigger_rerender()

    def _show_frusta(self) -> None:
        viewer = self.viewer
        for handle in viewer.camera_handles.values():
            handle.remove()
        viewer.camera_handles.clear()
        datamanager = viewer.pipeline.datamanager
        viewer.init_scene(datamanager.train_dataset, viewer.train_btn_state, datamanager.eval_dataset)
        for client in viewer.viser_server.get_clients().values():
            self._stand_in_scene(client)

    def _stand_in_scene(self, client: ClientHandle) -> None:
        """Put a browser's camera between the context views, looking where they look.

        Not into one of them: there the photo on its frustum would hide the prediction.
        """
        scene = self.model.active_scene
        if scene is None:
            return
        cameras = scene.nerfstudio_cameras(scene.choice.context)
        poses = opencv_from_opengl(cameras.camera_to_worlds)
        pose = poses_between(poses[0], poses[-1], torch.tensor([0.5]))[0].double().numpy()
        baseline = float((poses[0, :3, 3] - poses[-1, :3, 3]).norm())
        position = pose[:3, 3] * VISER_NERFSTUDIO_SCALE_RATIO
        with client.atomic():
            client.camera.up_direction = (0.0, 0.0, 1.0)
            client.camera.position = position
            client.camera.look_at = position + pose[:3, 2] * ORBIT_BASELINES * baseline * VISER_NERFSTUDIO_SCALE_RATIO
            client.camera.fov = 2 * math.atan(float(cameras.height[0] / cameras.fy[0]) / 2)

    def _redraw(self) -> None:
        """Draw the scene again with the chosen mode and seed."""
        with self.viewer.train_lock:
            self.model.show_draw(self._mode.value, int(self._seed.value))
        self.viewer._trigger_rerender()
