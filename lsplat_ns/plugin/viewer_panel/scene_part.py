"""The folder Scene."""

from __future__ import annotations

import functools
import math
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from lsplat_ns.errors import ConfigError
from lsplat_ns.geometry.conventions import opencv_from_opengl
from lsplat_ns.plugin.viewer_panel.widgets import add_frustum, by_a_person, correct, repeatable
from lsplat_ns.plugin.viewing import in_panel_words, parse_context

if TYPE_CHECKING:
    from viser import GuiEvent

    from lsplat_ns.plugin.datamanager import ContextChoice
    from lsplat_ns.plugin.viewer_panel.panel import ViewerPanel

LARGEST_UPLOAD_BYTES = 40 * 2**20
MOST_UPLOADS_AT_ONCE = 4
SECONDS_TO_ANNOUNCE, SECONDS_TO_STALL = 2.0, 30.0
"""How long a part waits for the announcement of its upload, and an upload for its next part."""
MOST_FRUSTA = 60
"""Cameras of a video that are drawn for choosing context views by clicking."""
UNPICKED, PICKED = (120, 130, 140), (255, 211, 105)


class ScenePart:
    """Which scene is shown, and which of its views the network sees."""

    def __init__(self, panel: ViewerPanel) -> None:
        self.panel = panel
        self._wanted = self._shown_name()
        self._picked: list[int] = []
        self._frusta: list[Any] = []
        self._drawing = threading.Lock()
        self._uploads: list[bytes] = []
        self._uploading = threading.Lock()  # two that end together come on two threads
        gui = panel.viewer.viser_server.gui
        gui._current_file_upload_states = _BoundedUploads(self._refuse_upload)
        with gui.add_folder("Scene"):
            self._scene = gui.add_text("Scene", initial_value=self._wanted, hint="Id or number of a scene")
            self._go_to = repeatable(gui.add_button_group("Go to", ("prev", "next", "any")))
            self._context = gui.add_text(
                "Context",
                initial_value=self._shown_context(),
                hint="Frames that the network sees, such as 1, 11; auto takes the pair with the best overlap",
            )
            self._pick = gui.add_checkbox(
                "Pick by clicking", False, hint="Draws the video's cameras; click two of them to see from these"
            )
            self._angle = gui.add_number(
                "Photo angle",
                0.0,
                min=0,
                max=180,
                step=1,
                hint="Of photos that you add: degrees across the longer side; 0 takes what the camera noted",
            )
            self._upload = gui.add_upload_button(
                "Add two photos", mime_type="image/*", hint="One after the other; their poses are found by matching"
            )
        self._scene.on_update(by_a_person(lambda _: self.wish(self._scene.value)))
        self._go_to.on_click(lambda _: self._step(self._go_to.value))
        self._context.on_update(by_a_person(lambda _: self._wish_context()))
        self._pick.on_update(lambda _: self._begin_picking())
        self._upload.on_upload(self._add_photo)

    def _shown_name(self) -> str:
        scene = self.panel.model.active_scene
        return "" if scene is None else scene.name

    def _shown_context(self) -> str:
        scene = self.panel.model.active_scene
        return "" if scene is None else ", ".join(map(str, scene.choice.context))

    def _step(self, where: str) -> None:
        ids = self.panel.pipeline.datamanager.scene_ids()
        at = ids.index(self._wanted) if self._wanted in ids else 0
        if where == "any":
            others = [scene for scene in ids if scene != self._wanted]
            self.wish(random.choice(others or ids))
        else:
            self.wish(ids[(at + (1 if where == "next" else -1)) % len(ids)])

    def _wish_context(self) -> None:
        try:
            self.wish(self._wanted or self._shown_name(), parse_context(self._context.value))
        except ConfigError as error:
            self.panel.say("Context views not changed", str(error), failed=True)
            correct(self._context, self._shown_context)

    def wish(self, scene: str, context: ContextChoice = None) -> None:
        """Show another scene, or the same from other views, when what happens now is done."""
        self._wanted = scene
        self.panel.scenes.start_latest(lambda: self.show(scene, context), "scene")

    def show(self, scene: str, context: ContextChoice = None) -> None:
        """Show another scene now. Picture, frusta and text change together."""
        panel = self.panel
        with panel.telling(f"Encoding {scene}"):
            with panel.viewer.train_lock:
                panel.pipeline.set_scene(scene, context)
                self._show_photos()
            for client in panel.clients():
                panel.stand_in_scene(client)
        self._wanted = self._shown_name()
        correct(self._scene, self._shown_name)
        correct(self._context, self._shown_context)
        panel.draw_part.forget_old_strip()
        panel.generate_part.follow_scene()
        self._picked = []
        self._draw_frusta()
        panel.rerender()

    def _show_photos(self) -> None:
        viewer = self.panel.viewer
        for handle in viewer.camera_handles.values():
            handle.remove()
        viewer.camera_handles.clear()
        datamanager = viewer.pipeline.datamanager
        viewer.config.camera_frustum_scale = self.panel.frustum_scale
        viewer.init_scene(datamanager.train_dataset, viewer.train_btn_state, datamanager.eval_dataset)
        if not viewer.hide_images.visible:
            viewer.set_camera_visibility(False)

    def _begin_picking(self) -> None:
        self._picked = []
        self.panel.draws.start_latest(self._draw_frusta, "frusta")

    def _draw_frusta(self) -> None:
        """Draw the cameras of the scene's video, if views are picked by clicking."""
        with self._drawing:
            for handle in self._frusta:
                handle.remove()
            self._frusta = self._frusta_of_video()

    def _frusta_of_video(self) -> list[Any]:
        scene, drawn = self.panel.model.active_scene, []
        if not self._pick.value or scene is None:
            return []
        count = len(scene.video)
        spaced = torch.linspace(0, count - 1, min(count, MOST_FRUSTA)).round().long().tolist()
        frames = tuple(frame for frame in spaced if frame not in scene.choice.context)
        if not frames:
            return []
        cameras = scene.nerfstudio_cameras(frames)
        poses = opencv_from_opengl(cameras.camera_to_worlds)
        for number, frame in enumerate(frames):
            handle = add_frustum(
                self.panel.viewer.viser_server.scene,
                f"/lsplat/frames/{frame:06d}",
                poses[number],
                fov_y=2 * math.atan(float(cameras.cy[number] / cameras.fy[number])),
                aspect=float(cameras.cx[number] / cameras.cy[number]),
                scale=0.6 * self.panel.frustum_scale,
                color=PICKED if frame in self._picked else UNPICKED,
            )
            handle.on_click(functools.partial(self._pick_frame, frame))
            drawn.append(handle)
        return drawn

    def _pick_frame(self, frame: int, event: Any) -> None:
        if frame in self._picked:
            return
        self._picked.append(frame)
        if len(self._picked) == 1:
            self.panel.draws.start_latest(self._draw_frusta, "frusta")
            self.panel.say(f"Frame {frame} is the first view", "click the second one")
            return
        picked, self._picked = tuple(sorted(self._picked)), []
        self.wish(self._shown_name(), picked)  # the cameras that were clicked are those of the scene that is shown

    def _refuse_upload(self, name: str, why: str) -> None:
        self.panel.say("Photo not taken", f"{name}: {why}", failed=True)

    def _add_photo(self, event: GuiEvent) -> None:
        with self._uploading:
            self._uploads.append(event.target.value.content)
            if len(self._uploads) == 1:
                self.panel.say("First photo is here", "add the second one")
                return
            contents, self._uploads = self._uploads[:2], []
        if not self.panel.work.start(lambda: self._pose(contents)):
            self.panel.say("Photos not taken", "something else is being done; wait or cancel it", failed=True)

    def _pose(self, contents: list[bytes]) -> None:
        from lsplat_ns.plugin.added_photos import add_photos

        panel = self.panel
        with panel.telling("Finding the photos' poses"):
            size = panel.pipeline.datamanager.config.preparation.image_size
            scene = add_photos(panel.run_dir, contents, size, self._report, float(self._angle.value) or None)
            self.wish(scene)

    def _report(self, report: str) -> None:
        """The terminal gets all lines; a notification shows what may be wrong, and how far the photos agree."""
        lines = report.splitlines()
        CONSOLE.print(escape(in_panel_words(report)))
        warnings = [line for line in lines if line.startswith("Warning: ")]
        self.panel.say("Poses found", "; ".join([*warnings, lines[-1]]))


class _BoundedUploads(dict):
    """viser's uploads in progress, with limits: an upload that is not noted here is ignored by viser.

    viser hands each message to any thread of a pool. What overtakes the announcement of its upload waits for it.

    Args:
        refused: Takes the name of a file that is not taken, and why.
    """

    def __init__(self, refused: Callable[[str, str], None]) -> None:
        super().__init__()
        self._refused = refused
        self._heard_of: dict[str, float] = {}  # every upload that was announced, and when it last came on
        self._changed = threading.Condition()

    def __setitem__(self, uuid: str, state: dict) -> None:
        with self._changed:
            for other in list(self):
                if time.monotonic() - self._heard_of[other] > SECONDS_TO_STALL:  # its tab was closed in the middle
                    self.pop(other, None)
            reason = self._reason_against(state["total_bytes"])
            if reason is None:
                super().__setitem__(uuid, state)
            self._heard_of[uuid] = time.monotonic()
            self._changed.notify_all()
        if reason is not None:
            self._refused(str(state["filename"])[-60:], reason)

    def _reason_against(self, size: int) -> str | None:
        if size > LARGEST_UPLOAD_BYTES:
            return f"{size / 2**20:.0f} MB; {LARGEST_UPLOAD_BYTES // 2**20} MB at most"
        if size <= 0:
            return "the file is empty"
        if len(self) >= MOST_UPLOADS_AT_ONCE:
            return "other photos are on their way; add it again in a moment"
        return None

    def __contains__(self, uuid: object) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: uuid in self._heard_of, SECONDS_TO_ANNOUNCE)
            if found := super().__contains__(uuid):
                self._heard_of[uuid] = time.monotonic()
            return found
