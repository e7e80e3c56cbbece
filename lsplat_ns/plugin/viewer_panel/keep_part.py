"""The folder Take away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from nerfstudio.utils.colormaps import apply_colormap

from lsplat_ns.plugin.viewer_panel.widgets import SAVED_PATH, ProgressRow
from lsplat_ns.plugin.viewing import FramePacer

if TYPE_CHECKING:
    from viser import ClientHandle

    from lsplat_ns.plugin.scene_model import PredictedScene
    from lsplat_ns.plugin.taking_away import StoredPath
    from lsplat_ns.plugin.viewer_panel.panel import ViewerPanel

VIDEO_FRAMES, VIDEO_HEIGHT, VIDEO_RATE = 96, 256, 24
COMMANDS = ("View", "Render", "Export", "Train")
"""Commands that go on with what was taken away, as fields to copy from."""
FLY_THROUGH = "between the photos"


class KeepPart:
    """What a person takes away: pictures, videos, files of Gaussians, the scene as a config, a dataset."""

    def __init__(self, panel: ViewerPanel) -> None:
        self.panel = panel
        gui = panel.viewer.viser_server.gui
        with gui.add_folder("Take away", expand_by_default=False):
            self._snapshot = gui.add_button("Snapshot (PNG)", hint="Of what is seen, as large as Max res allows")
            self._path = gui.add_dropdown("Path", (FLY_THROUGH, SAVED_PATH), hint="Generate Command there saves a path")
            self._video = gui.add_button("Video (mp4)", hint="Decoded views along the path")
            self._bake = gui.add_button("Dataset", hint="Views along the path as a dataset for ns-train splatfacto")
            self._progress = ProgressRow(gui, "Cancel")
            self._format = gui.add_dropdown("Gaussians as", ("ply", "splat", "npz"))
            self._export = gui.add_button("Export Gaussians")
            self._save = gui.add_button("Save scene", hint="A config of its own, for ns-render and ns-export")
            self._commands = [gui.add_text(name, "", visible=False) for name in COMMANDS]
        self._snapshot.on_click(lambda event: panel.begin("Snapshot", lambda: self._take_snapshot(event.client)))
        self._video.on_click(lambda event: panel.begin("Rendering", lambda: self._render(event.client)))
        self._bake.on_click(lambda _: panel.begin("Baking", self._write_dataset))
        self._export.on_click(lambda event: panel.begin("Exporting", lambda: self._write_gaussians(event.client)))
        self._save.on_click(lambda _: panel.begin("Saving the scene", self._save_scene))

    def cancel(self) -> None:
        """Cancel rendering or baking, if either runs."""
        self._progress.cancel()

    def _take_snapshot(self, client: ClientHandle) -> None:
        from lsplat_ns.plugin.taking_away import file_name, png_bytes

        panel, model, control = self.panel, self.panel.model, self.panel.viewer.control_panel
        prediction = panel.prediction()
        size = FramePacer().resting_size(client.camera.aspect, max(64, int(control.max_res)))
        camera = panel.camera_of(client, size).to(model.device)
        box = control.crop_obb if control.crop_viewport else None
        with panel.viewer.train_lock, model.evaluating():
            shown = model.shown_gaussians(prediction, box)
            outputs = model.shown_outputs(prediction, camera, box, shown, decode=not panel.tinted)
        picture = apply_colormap(outputs[control.output_render], control.colormap_options)
        if control.split:
            other = apply_colormap(outputs[control.split_output_render], control.split_colormap_options)
            column = int(control.split_percentage * size[1])
            picture = torch.cat([picture[:, :column], other[:, column:]], dim=1)
        client.send_file_download(f"{file_name(prediction.scene.name)}.png", png_bytes(picture))

    def _chosen_path(self, prediction: PredictedScene) -> StoredPath:
        from lsplat_ns.plugin.taking_away import StoredPath, fly_through_cameras

        scene = prediction.scene
        if self._path.value == SAVED_PATH:
            return self.panel.saved_path(scene)
        cameras = fly_through_cameras(scene.nerfstudio_cameras(scene.choice.context), VIDEO_FRAMES, VIDEO_HEIGHT)
        return StoredPath(cameras, VIDEO_RATE, crop=None, scene=scene.name)

    def _render(self, client: ClientHandle) -> None:
        from lsplat_ns.plugin.taking_away import file_name, render_video

        panel, prediction = self.panel, self.panel.prediction()
        file = panel.run_dir / "renders" / f"{file_name(prediction.scene.name)}.mp4"
        path = self._chosen_path(prediction)
        with self._progress.progressing() as progress:
            render_video(
                panel.model,
                prediction,
                path.cameras,
                file,
                frames_per_second=path.frames_per_second,
                crop=path.crop,
                progress=progress,
                lock=panel.viewer.train_lock,
            )
        panel.say("Video rendered", str(file))
        client.send_file_download(file.name, file.read_bytes())

    def _write_dataset(self) -> None:
        from lsplat_ns.plugin.baking import bake
        from lsplat_ns.plugin.taking_away import file_name

        panel, prediction = self.panel, self.panel.prediction()
        folder = panel.run_dir / "baked" / file_name(prediction.scene.name)
        path, lock = self._chosen_path(prediction), panel.viewer.train_lock
        with self._progress.progressing() as progress:
            command = bake(panel.model, prediction, path.cameras, folder, crop=path.crop, progress=progress, lock=lock)
        self._tell_commands({"Train": command})
        panel.say("Dataset written", str(folder))

    def _write_gaussians(self, client: ClientHandle) -> None:
        from lsplat_ns.plugin.exporting import write_scene
        from lsplat_ns.plugin.taking_away import file_name

        prediction = self.panel.prediction()
        file = self.panel.run_dir / "exports" / f"{file_name(prediction.scene.name)}.{self._format.value}"
        file.parent.mkdir(parents=True, exist_ok=True)
        count = write_scene(prediction, file)
        self.panel.say(f"{count:,} Gaussians exported", str(file))
        client.send_file_download(file.name, file.read_bytes())

    def _save_scene(self) -> None:
        from lsplat_ns.plugin.taking_away import commands_for, save_scene_config

        prediction = self.panel.prediction()
        file = save_scene_config(self.panel.run_dir, prediction.scene, prediction.draw)
        self._tell_commands(commands_for(file))
        self.panel.say("Scene saved", str(file))

    def _tell_commands(self, commands: dict[str, str]) -> None:
        for name, handle in zip(COMMANDS, self._commands, strict=True):
            handle.value, handle.visible = commands.get(name, ""), name in commands
