"""The panel of latentSplat in the viewer, and how large and how often pictures are drawn."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import viser.transforms
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.utils import get_camera
from nerfstudio.viewer.viewer_elements import ViewerControl
from rich.markup import escape
from torch import Tensor

from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.geometry.conventions import opencv_from_opengl
from lsplat_ns.geometry.trajectories import poses_between
from lsplat_ns.interrupts import end_when_terminated
from lsplat_ns.plugin.active_scene import context_baseline
from lsplat_ns.plugin.drawing import ViewOptions
from lsplat_ns.plugin.jobs import JobCancelled, Lane
from lsplat_ns.plugin.viewer_panel.draw_part import DrawPart
from lsplat_ns.plugin.viewer_panel.generate_part import GeneratePart
from lsplat_ns.plugin.viewer_panel.keep_part import KeepPart
from lsplat_ns.plugin.viewer_panel.look_part import LookPart
from lsplat_ns.plugin.viewer_panel.scene_part import ScenePart
from lsplat_ns.plugin.viewer_panel.widgets import VISER_NERFSTUDIO_SCALE_RATIO, inputs_labelled
from lsplat_ns.plugin.viewing import (
    EXPLAINED,
    FAST_DECODING_MS,
    SECONDS_AT_REST,
    FramePacer,
    FrameTimes,
    in_panel_words,
    plain_message,
)

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras
    from nerfstudio.viewer.render_state_machine import RenderStateMachine
    from nerfstudio.viewer.viewer import Viewer
    from viser import ClientHandle

    from lsplat_ns.fusion import FusedGaussians
    from lsplat_ns.plugin.active_scene import ActiveScene
    from lsplat_ns.plugin.pipeline import LatentSplatPipeline
    from lsplat_ns.plugin.scene_model import PredictedScene, SceneModel
    from lsplat_ns.plugin.taking_away import StoredPath

ORBIT_BASELINES = 2.0
"""Distance of the point that the first camera orbits, in context baselines."""
SECONDS_BETWEEN_STATUS, SECONDS_TO_FINISH, SECONDS_TO_STORE = 0.3, 10.0, 5.0
MILLISECONDS_TO_READ = 40
"""For each character of a notification, beside the seconds that all have."""
FRUSTUM_BASELINES, STEP_BACK = 0.03, 0.7
"""Size of drawn cameras, and how far the camera steps back from where views were generated, in context baselines."""
DEPTH_BUFFER = "gl_z_buf_depth"
"""What nerfstudio adds to the outputs for itself, of another size: beside a picture, in the split view, it fails."""
BACKGROUND = (0, 0, 0)
"""Behind the splats as in training and in headless tools, so that the same camera gives the same picture."""


class ViewerPanel(ViewerControl):
    """The latentSplat folder of the viewer, and how large and how often pictures are drawn.

    In tools without a browser no viewer ever calls ``_setup``; every frame is then decoded, and everything is shown.
    """

    def __init__(self, model: SceneModel) -> None:
        self.model = model
        self.viewer: Viewer | None = None
        self.pipeline: LatentSplatPipeline | None = None  # set by it
        # One thing at a time in each: scenes, draws of a scene (and what is drawn beside it), and long work. Only the
        # latest wish of a kind counts in the first two; long work that runs is not replaced.
        self.scenes, self.draws, self.work = Lane("lsplat-scene"), Lane("lsplat-draw"), Lane("lsplat-work")
        self._pacer = FramePacer()
        self._decoded_ms, self._status_at = math.inf, 0.0
        self._machines: list[RenderStateMachine] = []  # of tabs that are open, or were a moment ago
        # In the thread of each tab: whether it draws the picture after which it waits for the next move. Another tab
        # may be moving then, so that no camera of all is at rest.
        self._drawing = threading.local()

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
        viewer.control_panel.background_color = BACKGROUND
        offer = viewer.control_panel.update_output_options
        viewer.control_panel.update_output_options = lambda names: offer([n for n in names if n != DEPTH_BUFFER])
        self._stated_scale = viewer.config.camera_frustum_scale
        viewer.config.camera_frustum_scale = self.frustum_scale
        gui = viewer.viser_server.gui
        with gui.add_folder("latentSplat", order=-1.0):  # before what nerfstudio offers for every method
            self._status = gui.add_markdown("")
            self.scene_part = ScenePart(self)
            self.draw_part = DrawPart(self)
            self.look_part = LookPart(self)
            self.generate_part = GeneratePart(self)
            self.keep_part = KeepPart(self)
        self._watch_saved_paths()
        self.pipeline.datamanager.notes.tell = lambda line: self.say("Please note", line, failed=True)
        if viewer.trainer is None:
            end_when_terminated()  # a training that is terminated goes on from its last checkpoint
            viewer.pause_train.visible = viewer.resume_train.visible = False  # nothing is trained
        viewer.viser_server.on_client_connect(self._welcome)
        atexit.register(self.finish)

    def finish(self) -> None:
        """End all threads when the program ends: what long work began to write, or only proposed, is taken away.

        A thread that computes while the interpreter goes aborts the whole process.
        """
        for part in (self.generate_part, self.keep_part):
            part.cancel()
        for lane in (self.work, self.draws, self.scenes):
            lane.finish(SECONDS_TO_FINISH)
        self.generate_part.discard_proposal()
        for machine in self._machines:
            machine.running = False
        for machine in self._machines:
            machine.join(SECONDS_TO_FINISH)

    # ------------------------------------------------------------------------------------- asked by the scene model

    def should_decode(self) -> bool:
        """Whether the next frame is decoded: always, unless the camera moves and decoding is slow."""
        if self.viewer is None:
            return True
        if self.look_part.tinted:  # colours of kinds are no colours of the scene
            return False
        still = self.at_rest or getattr(self._drawing, "last_picture", False)
        return still or self.look_part.decodes_while_moving or self._decoded_ms < FAST_DECODING_MS

    def options(self) -> ViewOptions:
        """What the panel changes about views."""
        return ViewOptions() if self.viewer is None else self.look_part.options()

    def kept(self, fused: FusedGaussians) -> Tensor | None:
        """A mask [G] of the Gaussians that are shown; None is all of them."""
        return None if self.viewer is None else self.look_part.kept(fused)

    @property
    def tinted(self) -> bool:
        """Whether photos and generated views are shown in colours of their own."""
        return self.viewer is not None and self.look_part.tinted

    @property
    def drawn_by_browser(self) -> bool:
        """Whether browsers draw the splats themselves, in front of an empty picture."""
        return self.viewer is not None and self.look_part.drawn_by_browser

    def looks_at(self, output: str) -> bool:
        """Whether anybody looks at an output, in either half of the split view."""
        if self.viewer is None:
            return True
        control = self.viewer.control_panel
        return control.output_render == output or (control.split and control.split_output_render == output)

    def note_frame(self, times: FrameTimes, gaussians: int, size: tuple[int, int]) -> None:
        """Learn from a picture that was made, and say what it cost."""
        total = times.total()
        if "decode" in times.milliseconds:
            self._decoded_ms = total
        if not self.at_rest:
            self._pacer.took(total / 1000)
        if time.monotonic() - self._status_at > SECONDS_BETWEEN_STATUS:
            self._status_at = time.monotonic()
            self._status.content = times.line(gaussians, size)

    @property
    def at_rest(self) -> bool:
        """Whether no camera has moved for a moment."""
        return time.time() - self.viewer.last_move_time > SECONDS_AT_REST

    # ---------------------------------------------------------------------------------------------- browser tabs

    def _welcome(self, client: ClientHandle) -> None:
        machine = self.viewer.render_statemachines.get(client.client_id)
        if machine is not None:
            self._machines = [*(one for one in self._machines if one.is_alive()), machine]
            machine._calculate_image_res = functools.partial(self._image_size, machine)
            machine._send_output_to_viewer = functools.partial(_send_or_log, machine._send_output_to_viewer)
        self.stand_in_scene(client)

    def _image_size(self, machine: RenderStateMachine, aspect_ratio: float) -> tuple[int, int]:
        """(height, width) of a tab's next picture, instead of nerfstudio's guess from pixels per second."""
        max_res = max(1, int(self.viewer.control_panel.max_res))
        self._drawing.last_picture = machine.state == "high"
        if self._drawing.last_picture:
            return self._pacer.resting_size(aspect_ratio, max_res)
        return self._pacer.moving_size(aspect_ratio, max_res)

    def stand_in_scene(self, client: ClientHandle) -> None:
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

    def camera_of(self, client: ClientHandle, size: tuple[int, int]) -> Cameras:
        """What a tab looks from, as one camera [1] of ``size`` (height, width)."""
        return get_camera(self.viewer.get_camera_state(client), *size)

    def move(self, client: ClientHandle, world_from_camera: Tensor) -> None:
        """Put a tab's camera at an OpenCV pose [4, 4] in nerfstudio's frame."""
        pose = world_from_camera.double().cpu().numpy()
        with client.atomic():
            client.camera.wxyz = viser.transforms.SO3.from_matrix(pose[:3, :3]).wxyz
            client.camera.position = pose[:3, 3] * VISER_NERFSTUDIO_SCALE_RATIO

    def prediction(self) -> PredictedScene:
        """The scene that is shown. Raises ConfigError if there is none."""
        with self.viewer.train_lock:
            prediction = self.model.prediction()
        if prediction is None:
            raise ConfigError("no scene is loaded")
        return prediction

    def step_back(self, client: ClientHandle) -> None:
        """Move a tab's camera backwards, by a share of the context baseline."""
        scene = self.model.active_scene
        distance = 0.0 if scene is None else STEP_BACK * context_baseline(scene) * VISER_NERFSTUDIO_SCALE_RATIO
        forward = viser.transforms.SO3(client.camera.wxyz).as_matrix()[:, 2]
        client.camera.position = client.camera.position - distance * forward

    @property
    def frustum_scale(self) -> float:
        """Size of drawn cameras: what the options say, else by the distance of the context cameras.

        nerfstudio's own fits hundreds of cameras; two of a scene would be too small to be clicked.
        """
        scene = self.model.active_scene
        if scene is None or self._stated_scale != ViewerConfig().camera_frustum_scale:
            return self._stated_scale
        return FRUSTUM_BASELINES * context_baseline(scene) * VISER_NERFSTUDIO_SCALE_RATIO

    @property
    def run_dir(self) -> Path:
        """The run's folder, which everything is written into. Raises ConfigError if there is none."""
        run_dir = self.pipeline.datamanager.config.run_dir
        if run_dir is None:
            raise ConfigError("this needs a run's folder to write into")
        return Path(run_dir)

    def saved_path(self, scene: ActiveScene) -> StoredPath:
        """The camera path that was saved last in the Render tab, for a scene. Says so if it was saved in another one.

        Raises:
            ConfigError: If there is none, or its cameras are no perspective ones.
            SceneDataError: If it cannot be read.
        """
        from lsplat_ns.plugin.taking_away import read_camera_path, stored_paths

        files = list(stored_paths(self.viewer.datapath).values())
        if not files:
            raise ConfigError("no camera path is saved: add cameras in the Render tab and press Generate Command")
        path = read_camera_path(files[0], scene)
        if path.scene not in (None, scene.name):
            self.say(f"Path of another scene: {files[0].stem}", f"it was saved in {path.scene}, not in {scene.name}")
        return path

    def _watch_saved_paths(self) -> None:
        """Keep camera paths of the Render tab in their folder, whatever name a tab states, and note their scene."""
        from lsplat_ns.plugin.taking_away import file_name

        gui = self.viewer.viser_server.gui

        def keep_in_folder(_: Any) -> None:
            for field in inputs_labelled(gui, "Render name"):
                if field.value != file_name(field.value):
                    field.value = file_name(field.value)

        for button in inputs_labelled(gui, "Generate Command"):
            button._impl.update_cb.insert(0, keep_in_folder)  # before nerfstudio's, which stores the path
            button.on_click(lambda _: self._note_saved_path())

    def _note_saved_path(self) -> None:
        """After nerfstudio has stored a camera path, note in it to which scene it belongs."""
        from lsplat_ns.plugin.taking_away import note_scene, stored_paths

        scene, files = self.model.active_scene, list(stored_paths(self.viewer.datapath).values())
        # Without cameras in the Render tab nothing was stored.
        if scene is not None and files and time.time() - files[0].stat().st_mtime < SECONDS_TO_STORE:
            try:
                note_scene(files[0], scene)
            except SceneDataError as error:
                self.say("Path saved without its scene", str(error), failed=True)

    def begin(self, doing: str, work: Callable[[], None]) -> None:
        """Start long work, if none runs."""

        def told() -> None:
            with self.telling(doing):
                work()

        if not self.work.start(told):
            self.say(f"{doing}: not started", "something else is being done; wait or cancel it", failed=True)

    def rerender(self) -> None:
        """Draw every tab's picture anew."""
        self.look_part.follow()
        self.viewer._trigger_rerender()

    # ------------------------------------------------------------------------------------- telling what happens

    def clients(self) -> list[ClientHandle]:
        """The tabs that are open."""
        return list(self.viewer.viser_server.get_clients().values())

    def say(self, title: str, body: str = "", *, failed: bool = False) -> None:
        """Tell every tab, and the terminal."""
        body = in_panel_words(body)
        colour = "red" if failed else ""
        CONSOLE.print(f"[{colour}]{escape(title)}[/] {escape(body)}" if failed else escape(f"{title} {body}".strip()))
        shown = (12_000 if failed else 5_000) + MILLISECONDS_TO_READ * len(body)
        for client in self.clients():
            client.add_notification(title, body, auto_close=shown, color="red" if failed else None)

    @contextlib.contextmanager
    def telling(self, doing: str) -> Iterator[None]:
        """While something is done every tab says so; what goes wrong is said in plain words, and ends here."""
        notes = [client.add_notification(doing, "", loading=True, with_close_button=False) for client in self.clients()]
        try:
            yield
        except JobCancelled:
            self.say(f"{doing}: cancelled")
        except Exception as error:
            level = logging.DEBUG if isinstance(error, EXPLAINED) else logging.ERROR
            logging.getLogger(__name__).log(level, "%s: not done", doing, exc_info=error)
            self.say(f"{doing}: not done", plain_message(error), failed=True)
        finally:
            for note in notes:
                note.remove()


def _send_or_log(send: Callable[..., None], outputs: dict[str, Tensor], static_render: bool = True) -> None:
    """Send a picture to a tab. An exception would end the tab's thread for good."""
    try:
        send(outputs, static_render=static_render)
    except Exception:
        logging.getLogger(__name__).exception("a picture could not be sent")
