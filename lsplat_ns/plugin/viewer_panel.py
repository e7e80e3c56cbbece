"""Everything that talks to viser directly: the one file to check when nerfstudio moves to another viser."""

from __future__ import annotations

import base64
import contextlib
import functools
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import viser.transforms
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.utils import get_camera
from nerfstudio.viewer.viewer_elements import ViewerControl
from rich.markup import escape
from torch import Tensor

from lsplat_ns.errors import ConfigError
from lsplat_ns.geometry.conventions import opencv_from_opengl
from lsplat_ns.geometry.trajectories import poses_between
from lsplat_ns.plugin.drawing import ViewOptions
from lsplat_ns.plugin.jobs import JobCancelled, Lane, Progress
from lsplat_ns.plugin.viewing import (
    FAST_DECODING_MS,
    SECONDS_AT_REST,
    Draw,
    FramePacer,
    FrameTimes,
    parse_context,
    plain_message,
)

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras
    from nerfstudio.viewer.render_state_machine import RenderStateMachine
    from nerfstudio.viewer.viewer import Viewer
    from viser import ClientHandle, GuiButtonGroupHandle, GuiEvent

    from lsplat_ns.fusion import FusedGaussians
    from lsplat_ns.plugin.datamanager import ContextChoice
    from lsplat_ns.plugin.pipeline import LatentSplatPipeline
    from lsplat_ns.plugin.scene_model import PredictedScene, SceneModel

VISER_NERFSTUDIO_SCALE_RATIO = 10.0
"""nerfstudio draws its world ten times larger in viser."""
ORBIT_BASELINES = 2.0
"""Distance of the point that the first camera orbits, in context baselines."""
LARGEST_UPLOAD_BYTES = 40 * 2**20
MOST_UPLOADS_AT_ONCE = 4
MOST_FRUSTA = 60
"""Cameras of a video that are drawn for choosing context views by clicking."""
UNPICKED, PICKED = (120, 130, 140), (255, 211, 105)
DRAWS, DRAW_SIZE = 4, (96, 128)
"""The strip of draws: how many, and (height, width) of each."""
SECONDS_BETWEEN_STATUS, SECONDS_TO_CORRECT = 0.3, 0.1
VIDEO_FRAMES, VIDEO_HEIGHT, VIDEO_RATE = 96, 256, 24
COMMANDS = ("View", "Render", "Export", "Train")
"""Commands that go on with what was taken away, as fields to copy from."""
FLY_THROUGH, SAVED_PATH = "between the photos", "last saved in the Render tab"


class ViewerPanel(ViewerControl):
    """The latentSplat folder of the viewer, and how large and how often pictures are drawn.

    In tools without a browser no viewer ever calls ``_setup``; every frame is then decoded, and everything is shown.
    """

    def __init__(self, model: SceneModel) -> None:
        self.model = model
        self.viewer: Viewer | None = None
        self.pipeline: LatentSplatPipeline | None = None  # set by it
        # One thing at a time in each: scenes, draws of a scene, and long work. Only the latest wish of the first two
        # counts; long work that runs is not replaced.
        self.scenes, self.draws, self.work = Lane("lsplat-scene"), Lane("lsplat-draw"), Lane("lsplat-work")
        self._pacer = FramePacer()
        self._decoded_ms, self._status_at = math.inf, 0.0

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
            self._status = gui.add_markdown("")
            self.scene_part = ScenePart(self)
            self.draw_part = DrawPart(self)
            self.look_part = LookPart(self)
            self.keep_part = KeepPart(self)
        viewer.viser_server.on_client_connect(self._welcome)

    # ------------------------------------------------------------------------------------- asked by the scene model

    def should_decode(self) -> bool:
        """Whether the next frame is decoded: always, unless the camera moves and decoding is slow."""
        if self.viewer is None:
            return True
        if self.look_part.tinted:  # colours of kinds are no colours of the scene
            return False
        return self.at_rest or self.look_part.decodes_while_moving or self._decoded_ms < FAST_DECODING_MS

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
            machine._calculate_image_res = functools.partial(self._image_size, machine)
        self.stand_in_scene(client)

    def _image_size(self, machine: RenderStateMachine, aspect_ratio: float) -> tuple[int, int]:
        """(height, width) of a tab's next picture, instead of nerfstudio's guess from pixels per second."""
        max_res = max(1, int(self.viewer.control_panel.max_res))
        if machine.state == "high":
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

    def rerender(self) -> None:
        """Draw every tab's picture anew."""
        self.viewer._trigger_rerender()

    # ------------------------------------------------------------------------------------- telling what happens

    def clients(self) -> list[ClientHandle]:
        """The tabs that are open."""
        return list(self.viewer.viser_server.get_clients().values())

    def say(self, title: str, body: str = "", *, failed: bool = False) -> None:
        """Tell every tab, and the terminal."""
        colour = "red" if failed else ""
        CONSOLE.print(f"[{colour}]{escape(title)}[/] {escape(body)}" if failed else escape(f"{title} {body}".strip()))
        for client in self.clients():
            client.add_notification(
                title, body, auto_close=12_000 if failed else 5_000, color="red" if failed else None
            )

    @contextlib.contextmanager
    def telling(self, doing: str) -> Iterator[None]:
        """While something is done every tab says so; what goes wrong is said in plain words, and ends here."""
        notes = [client.add_notification(doing, "", loading=True, with_close_button=False) for client in self.clients()]
        try:
            yield
        except JobCancelled:
            self.say(f"{doing}: cancelled")
        except Exception as error:
            logging.getLogger(__name__).debug("in the viewer", exc_info=error)
            self.say(f"{doing}: not done", plain_message(error), failed=True)
        finally:
            for note in notes:
                note.remove()


def _by_a_person(act: Callable[[Any], None]) -> Callable[[Any], None]:
    """A callback for changes that come from a browser, not for those that the panel itself makes."""
    return lambda event: act(event) if event.client is not None else None


def _correct(handle: Any, value: Any) -> None:
    """Set a field that a person has just changed.

    viser passes a tab's change on to the other tabs after all callbacks, and that message would replace an earlier one
    of the same field: the correction has to come later.
    """
    threading.Timer(SECONDS_TO_CORRECT, setattr, (handle, "value", value)).start()


def _repeatable(group: GuiButtonGroupHandle) -> GuiButtonGroupHandle:
    """A button group that hears the same button twice; viser takes the second click for no change."""
    group._impl.is_button = True
    return group


class ScenePart:
    """Which scene is shown, and which of its views the network sees."""

    def __init__(self, panel: ViewerPanel) -> None:
        self.panel = panel
        self._wanted = self._shown_name()
        self._picked: list[int] = []
        self._frusta: list[Any] = []
        self._uploads: list[bytes] = []
        gui = panel.viewer.viser_server.gui
        gui._current_file_upload_states = _BoundedUploads(self._refuse_upload)
        with gui.add_folder("Scene"):
            self._scene = gui.add_text("Scene", initial_value=self._wanted, hint="Id or number of a scene")
            self._go_to = _repeatable(gui.add_button_group("Go to", ("prev", "next", "any")))
            self._context = gui.add_text(
                "Context",
                initial_value=self._shown_context(),
                hint="Frames that the network sees, such as 1, 11; auto takes the pair with the best overlap",
            )
            self._pick = gui.add_checkbox(
                "Pick by clicking", False, hint="Draws the video's cameras; click two of them to see from these"
            )
            self._upload = gui.add_upload_button(
                "Add two photos", mime_type="image/*", hint="One after the other; their poses are found by matching"
            )
        self._scene.on_update(_by_a_person(lambda _: self.wish(self._scene.value)))
        self._go_to.on_click(lambda _: self._step(self._go_to.value))
        self._context.on_update(_by_a_person(lambda _: self._wish_context()))
        self._pick.on_update(lambda _: self.panel.draws.start_latest(self._draw_frusta))
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
            self.wish(self._shown_name(), parse_context(self._context.value))
        except ConfigError as error:
            self.panel.say("Context views not changed", str(error), failed=True)
            _correct(self._context, self._shown_context())

    def wish(self, scene: str, context: ContextChoice = None) -> None:
        """Show another scene, or the same from other views, when what happens now is done."""
        self._wanted = scene
        self.panel.scenes.start_latest(lambda: self._switch(scene, context))

    def _switch(self, scene: str, context: ContextChoice) -> None:
        """Picture, frusta and text change together."""
        panel = self.panel
        with panel.telling(f"Encoding {scene}"):
            with panel.viewer.train_lock:
                panel.pipeline.set_scene(scene, context)
                self._show_photos()
            for client in panel.clients():
                panel.stand_in_scene(client)
        self._wanted = self._shown_name()
        _correct(self._scene, self._wanted)
        _correct(self._context, self._shown_context())
        panel.draw_part.forget_strip()
        self._draw_frusta()
        panel.rerender()

    def _show_photos(self) -> None:
        viewer = self.panel.viewer
        for handle in viewer.camera_handles.values():
            handle.remove()
        viewer.camera_handles.clear()
        datamanager = viewer.pipeline.datamanager
        viewer.init_scene(datamanager.train_dataset, viewer.train_btn_state, datamanager.eval_dataset)
        if not viewer.hide_images.visible:
            viewer.set_camera_visibility(False)

    def _draw_frusta(self) -> None:
        """Draw the cameras of the scene's video, if views are picked by clicking."""
        for handle in self._frusta:
            handle.remove()
        self._frusta, self._picked = [], []
        scene = self.panel.model.active_scene
        if not self._pick.value or scene is None:
            return
        count = len(scene.video)
        spaced = torch.linspace(0, count - 1, min(count, MOST_FRUSTA)).round().long().tolist()
        frames = tuple(frame for frame in spaced if frame not in scene.choice.context)
        if not frames:
            return
        cameras = scene.nerfstudio_cameras(frames)
        poses = opencv_from_opengl(cameras.camera_to_worlds).double().numpy()
        for number, frame in enumerate(frames):
            handle = self.panel.viewer.viser_server.scene.add_camera_frustum(
                f"/lsplat/frames/{frame:06d}",
                fov=2 * math.atan(float(cameras.cy[number] / cameras.fy[number])),
                aspect=float(cameras.cx[number] / cameras.cy[number]),
                scale=self.panel.viewer.config.camera_frustum_scale * 0.6,
                color=UNPICKED,
                wxyz=viser.transforms.SO3.from_matrix(poses[number, :3, :3]).wxyz,
                position=poses[number, :3, 3] * VISER_NERFSTUDIO_SCALE_RATIO,
            )
            handle.on_click(functools.partial(self._pick_frame, frame))
            self._frusta.append(handle)

    def _pick_frame(self, frame: int, event: Any) -> None:
        if frame in self._picked:
            return
        self._picked.append(frame)
        if len(self._picked) == 1:
            self.panel.say(f"Frame {frame} is the first view", "click the second one")
            return
        picked, self._picked = tuple(sorted(self._picked)), []
        self.wish(self._shown_name(), picked)

    def _refuse_upload(self, name: str, size: int) -> None:
        limit = LARGEST_UPLOAD_BYTES // 2**20
        self.panel.say("Photo not taken", f"{name}: {size / 2**20:.0f} MB; {limit} MB at most, one by one", failed=True)

    def _add_photo(self, event: GuiEvent) -> None:
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
            datamanager = panel.pipeline.datamanager
            if datamanager.config.run_dir is None:
                raise ConfigError("photos need a run's folder to be kept in")
            size = datamanager.config.preparation.image_size
            scene = add_photos(
                datamanager.config.run_dir, contents, size, lambda report: panel.say("Poses found", report)
            )
            self.wish(scene)


class _BoundedUploads(dict):
    """viser's uploads in progress, with limits: an upload that is not noted here is ignored by viser."""

    def __init__(self, refused: Callable[[str, int], None]) -> None:
        super().__init__()
        self._refused = refused

    def __setitem__(self, uuid: str, state: dict) -> None:
        if state["total_bytes"] > LARGEST_UPLOAD_BYTES or len(self) >= MOST_UPLOADS_AT_ONCE:
            self._refused(str(state["filename"])[-60:], state["total_bytes"])
        else:
            super().__setitem__(uuid, state)


class DrawPart:
    """Which draw of the scene is shown, and a strip of others."""

    def __init__(self, panel: ViewerPanel) -> None:
        self.panel = panel
        self._seeds: list[int] = []
        gui, draw = panel.viewer.viser_server.gui, panel.model.draw
        with gui.add_folder("Draw"):
            self._mode = gui.add_dropdown("Show", ("mode", "sample"), draw.mode, hint="Mode or a draw of the scene")
            self._seed = gui.add_number("Seed", initial_value=draw.seed, step=1, min=0)
            self._temperature = gui.add_slider(
                "Temperature", 0.0, 2.0, 0.05, draw.temperature, hint="Factor of the noise; 1 is what was learned"
            )
            self._resample = gui.add_button("Resample", hint="Another draw")
            self._strip_button = gui.add_button(f"{DRAWS} draws of this view")
            self._strip = gui.add_markdown("", visible=False)
            self._choice = _repeatable(
                gui.add_button_group("Fly in", tuple(map(str, range(1, DRAWS + 1))), visible=False)
            )
        self._mode.on_update(_by_a_person(lambda _: self._show()))
        self._seed.on_update(_by_a_person(lambda _: self._show()))
        self._temperature.on_update(_by_a_person(lambda _: self._show()))
        self._resample.on_click(lambda _: self._show_seed(random.randrange(2**31)))
        self._strip_button.on_click(lambda event: panel.draws.start_latest(lambda: self._draw_strip(event.client)))
        self._choice.on_click(lambda _: self._fly_in(int(self._choice.value) - 1))

    def _show_seed(self, seed: int) -> None:
        self._mode.value, self._seed.value = "sample", seed
        self._show()

    def _show(self) -> None:
        self.panel.draws.start_latest(self._redraw)

    def _redraw(self) -> None:
        model = self.panel.model
        with self.panel.telling("Drawing the scene"), self.panel.viewer.train_lock:
            # Read here and not where it was clicked: clicks arrive on many threads, and the last values count.
            model.show_draw(self._mode.value, int(self._seed.value), float(self._temperature.value))
            model.prediction()
        if self._seed.value != model.draw.seed:
            _correct(self._seed, model.draw.seed)
        self.panel.rerender()

    def _draw_strip(self, client: ClientHandle) -> None:
        from lsplat_ns.plugin.taking_away import png_bytes

        model, pictures = self.panel.model, []
        with self.panel.telling("Drawing the scene four times"):
            scene, temperature = model.active_scene, model.draw.temperature
            if scene is None:
                raise ConfigError("no scene is loaded")
            seeds = random.sample(range(1, 1000), DRAWS)
            camera = self.panel.camera_of(client, DRAW_SIZE).to(model.device)
            for seed in seeds:
                with self.panel.viewer.train_lock, model.evaluating():
                    prediction = model.predict(scene, Draw("sample", seed, temperature))
                    pictures.append(model.view(prediction, camera)["rgb"])
            gap = torch.ones(DRAW_SIZE[0], 4, 3, device=model.device)
            strip = torch.cat([part for picture in pictures for part in (picture, gap)][:-1], dim=1)
            image = base64.b64encode(png_bytes(strip)).decode()
            self._strip.content = f"![four draws](data:image/png;base64,{image})\n\nseeds {', '.join(map(str, seeds))}"
            self._seeds = seeds
            self._strip.visible = self._choice.visible = True

    def forget_strip(self) -> None:
        """Take the strip away; it shows another scene."""
        self._seeds = []
        self._strip.visible = self._choice.visible = False

    def _fly_in(self, number: int) -> None:
        if number < len(self._seeds):
            self._show_seed(self._seeds[number])


class LookPart:
    """What of the scene is shown, and how."""

    def __init__(self, panel: ViewerPanel) -> None:
        self.panel = panel
        model, gui = panel.model, panel.viewer.viser_server.gui
        if model.config.compare_seed is None:
            model.config.compare_seed = 1
        with gui.add_folder("Look", expand_by_default=False):
            self._confidence = gui.add_slider(
                "Hide below", 0.0, 1.0, 0.01, 0.0, hint="Pixels of a smaller confidence (1 - uncertainty) are hidden"
            )
            self._compare = gui.add_number(
                "Compare seed", model.config.compare_seed, min=0, step=1, hint="Output difference: against this draw"
            )
            self._decode = gui.add_checkbox("Decode while moving", False, hint="Slower, where decoding is slow")
            self._photos = gui.add_checkbox("From photos", True, hint="Gaussians that were predicted from photos")
            self._generated = gui.add_checkbox("From generated views", True, hint="Gaussians of generated views")
            self._tint = gui.add_checkbox("Tint both", False, hint="Photos blue, generated views orange; not decoded")
            self._explore = gui.add_button("Go where it knows least", hint="To the least certain view nearby")
        for handle in (self._confidence, self._decode, self._photos, self._generated, self._tint):
            handle.on_update(_by_a_person(lambda _: panel.rerender()))
        self._explore.on_click(
            lambda event: panel.draws.start_latest(lambda: self._go_where_it_knows_least(event.client))
        )
        self._compare.on_update(_by_a_person(lambda _: self._compare_with(int(self._compare.value))))

    def _go_where_it_knows_least(self, client: ClientHandle) -> None:
        from lsplat_ns.plugin.exploring import SIZE, least_certain_view

        panel = self.panel
        with panel.telling("Looking for the least certain view"):
            prediction = panel.prediction()
            found = least_certain_view(panel.model, prediction, panel.camera_of(client, SIZE), panel.viewer.train_lock)
            if found is None:
                raise ConfigError("nothing of the scene is in sight here; go back to where it can be seen")
            panel.move(client, found.world_from_camera)
            panel.say("Least certain view nearby", f"mean uncertainty {found.uncertainty:.2f}")

    def _compare_with(self, seed: int) -> None:
        try:
            self.panel.model.config.compare_seed = Draw("sample", seed).seed
            self.panel.rerender()
        except ConfigError as error:
            self.panel.say("Nothing to compare with", str(error), failed=True)

    @property
    def decodes_while_moving(self) -> bool:
        """Whether slow decoding is wanted while the camera moves."""
        return self._decode.value

    @property
    def tinted(self) -> bool:
        """Whether photos and generated views have colours of their own."""
        return self._tint.value

    def options(self) -> ViewOptions:
        """What is changed about views."""
        return ViewOptions(least_confidence=float(self._confidence.value))

    def kept(self, fused: FusedGaussians) -> Tensor | None:
        """A mask [G] of what is shown; None is everything."""
        if self._photos.value and self._generated.value:
            return None
        generated = fused.generated[0]
        return (generated & self._generated.value) | (~generated & self._photos.value)


class KeepPart:
    """What a person takes away: pictures, videos, files of Gaussians, the scene as a config, a dataset."""

    def __init__(self, panel: ViewerPanel) -> None:
        self.panel = panel
        self._progress: Progress | None = None
        gui = panel.viewer.viser_server.gui
        with gui.add_folder("Take away", expand_by_default=False):
            self._snapshot = gui.add_button("Snapshot (PNG)")
            self._path = gui.add_dropdown("Path", (FLY_THROUGH, SAVED_PATH), hint="Generate Command there saves a path")
            self._video = gui.add_button("Video (mp4)", hint="Decoded views along the path")
            self._bake = gui.add_button("Dataset", hint="Views along the path as a dataset for ns-train splatfacto")
            self._bar = gui.add_progress_bar(0, visible=False)
            self._left = gui.add_markdown("", visible=False)
            self._cancel = gui.add_button("Cancel", visible=False)
            self._format = gui.add_dropdown("Gaussians as", ("ply", "splat", "npz"))
            self._export = gui.add_button("Export Gaussians")
            self._save = gui.add_button("Save scene", hint="A config of its own, for ns-render and ns-export")
            self._commands = [gui.add_text(name, "", disabled=True, visible=False) for name in COMMANDS]
        self._snapshot.on_click(lambda event: self.begin("Snapshot", lambda: self._take_snapshot(event.client)))
        self._video.on_click(lambda event: self.begin("Rendering", lambda: self._render(event.client)))
        self._bake.on_click(lambda _: self.begin("Baking", self._write_dataset))
        self._export.on_click(lambda event: self.begin("Exporting", lambda: self._write_gaussians(event.client)))
        self._save.on_click(lambda _: self.begin("Saving the scene", self._save_scene))
        self._cancel.on_click(lambda _: self._progress.cancel() if self._progress is not None else None)

    def begin(self, doing: str, work: Callable[[], None]) -> None:
        """Start long work, if none runs."""

        def told() -> None:
            with self.panel.telling(doing):
                work()

        if not self.panel.work.start(told):
            self.panel.say(f"{doing}: not started", "something else is being done; wait or cancel it", failed=True)

    @property
    def _run_dir(self) -> Path:
        run_dir = self.panel.pipeline.datamanager.config.run_dir
        if run_dir is None:
            raise ConfigError("this needs a run's folder to write into")
        return Path(run_dir)

    @contextlib.contextmanager
    def progressing(self) -> Iterator[Progress]:
        """A progress bar with time left, and a button that cancels."""
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

    def _take_snapshot(self, client: ClientHandle) -> None:
        from lsplat_ns.plugin.taking_away import file_name, png_bytes

        model, prediction = self.panel.model, self.panel.prediction()
        size = FramePacer().resting_size(client.camera.aspect, max(64, int(self.panel.viewer.control_panel.max_res)))
        camera = self.panel.camera_of(client, size)
        with self.panel.viewer.train_lock, model.evaluating():
            outputs = model.view(prediction, camera.to(model.device), options=self.panel.options())
        client.send_file_download(f"{file_name(prediction.scene.name)}.png", png_bytes(outputs["rgb"]))

    def _cameras(self, prediction: PredictedScene) -> tuple[Cameras, int]:
        from lsplat_ns.plugin.taking_away import fly_through_cameras, read_camera_path, stored_paths

        if self._path.value == FLY_THROUGH:
            context = prediction.scene.nerfstudio_cameras(prediction.scene.choice.context)
            return fly_through_cameras(context, VIDEO_FRAMES, VIDEO_HEIGHT), VIDEO_RATE
        files = list(stored_paths(self.panel.viewer.datapath).values())
        if not files:
            raise ConfigError("no camera path is saved: add cameras in the Render tab and press Generate Command")
        return read_camera_path(files[0])

    def _render(self, client: ClientHandle) -> None:
        from lsplat_ns.plugin.taking_away import file_name, render_video

        panel, prediction = self.panel, self.panel.prediction()
        file = self._run_dir / "renders" / f"{file_name(prediction.scene.name)}.mp4"
        cameras, rate = self._cameras(prediction)
        with self.progressing() as progress:
            lock = panel.viewer.train_lock
            render_video(panel.model, prediction, cameras, file, frames_per_second=rate, progress=progress, lock=lock)
        panel.say("Video rendered", str(file))
        client.send_file_download(file.name, file.read_bytes())

    def _write_dataset(self) -> None:
        from lsplat_ns.plugin.baking import bake
        from lsplat_ns.plugin.taking_away import file_name

        panel, prediction = self.panel, self.panel.prediction()
        folder = self._run_dir / "baked" / file_name(prediction.scene.name)
        cameras, _ = self._cameras(prediction)
        with self.progressing() as progress:
            command = bake(panel.model, prediction, cameras, folder, progress=progress, lock=panel.viewer.train_lock)
        self._tell_commands({"Train": command})
        panel.say("Dataset written", str(folder))

    def _write_gaussians(self, client: ClientHandle) -> None:
        from lsplat_ns.plugin.exporting import write_scene
        from lsplat_ns.plugin.taking_away import file_name

        prediction = self.panel.prediction()
        file = self._run_dir / "exports" / f"{file_name(prediction.scene.name)}.{self._format.value}"
        file.parent.mkdir(parents=True, exist_ok=True)
        count = write_scene(prediction, file)
        self.panel.say(f"{count:,} Gaussians exported", str(file))
        client.send_file_download(file.name, file.read_bytes())

    def _save_scene(self) -> None:
        from lsplat_ns.plugin.taking_away import commands_for, save_scene_config

        file = save_scene_config(self._run_dir, self.panel.prediction().scene)
        self._tell_commands(commands_for(file))
        self.panel.say("Scene saved", str(file))

    def _tell_commands(self, commands: dict[str, str]) -> None:
        for name, handle in zip(COMMANDS, self._commands, strict=True):
            handle.value, handle.visible = commands.get(name, ""), name in commands
