"""The folder Take away."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lsplat_ns.errors import ConfigError
from lsplat_ns.plugin.jobs import Progress
from lsplat_ns.plugin.viewing import FramePacer

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras
    from viser import ClientHandle

    from lsplat_ns.plugin.scene_model import PredictedScene
    from lsplat_ns.plugin.viewer_panel.panel import ViewerPanel

VIDEO_FRAMES, VIDEO_HEIGHT, VIDEO_RATE = 96, 256, 24
COMMANDS = ("View", "Render", "Export", "Train")
"""Commands that go on with what was taken away, as fields to copy from."""
FLY_THROUGH, SAVED_PATH = "between the photos", "last saved in the Render tab"


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
