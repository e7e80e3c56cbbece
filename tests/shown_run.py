"""A run in nerfstudio's viewer, in this process."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch
import yaml
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.viewer.viewer import Viewer
from ports import free_port
from torch import Tensor
from untrained_runs import write_untrained_run
from viser_tab import Hearing, Tab

from lsplat_ns.plugin.pipeline import LatentSplatPipeline


class Shown:
    """A run of untrained networks in a viewer of this process, on the GPU where there is one."""

    def __init__(self, rooms: Path, folder: Path, method: str = "latentsplat-tiny") -> None:
        config = yaml.load((write_untrained_run(folder, method) / "config.yml").read_text(), Loader=yaml.Loader)
        config.pipeline.datamanager.data = rooms
        config.pipeline.datamanager.dataparser.data = rooms
        config.pipeline.datamanager.dataparser.scene_split = "train"
        (folder / "config.yml").write_text(yaml.dump(config))
        config.pipeline.datamanager.run_dir = folder
        self.folder = folder
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline: LatentSplatPipeline = config.pipeline.setup(device=device, test_mode="test")
        self.pipeline.eval()
        (checkpoint,) = (folder / "nerfstudio_models").glob("*.ckpt")
        stored = torch.load(checkpoint, map_location=device, weights_only=True)
        self.pipeline.load_pipeline(stored["pipeline"], stored["step"])
        self.port = free_port()
        self.viewer = Viewer(
            ViewerConfig(websocket_port=self.port, websocket_host="127.0.0.1"),
            log_filename=folder / "viewer.log",
            datapath=folder,
            pipeline=self.pipeline,
            train_lock=threading.Lock(),
        )
        datamanager = self.pipeline.datamanager
        self.viewer.init_scene(datamanager.train_dataset, "completed", datamanager.eval_dataset)
        self.ids = datamanager.scene_ids()
        self.hearing = Hearing(self.viewer.viser_server)
        self._first = self.pipeline.model.active_scene

    def tab(self, aspect: float = 1.5) -> Tab:
        """A tab in which the first scene is seen as at first, whatever was shown before."""
        tab = Tab(self.port, aspect, self.hearing)
        tab.wait(lambda: tab.has("Save scene") and tab.picture is not None and tab.moves > 0, "the panel and a picture")
        self.settle(tab)
        wanted = {"Scene": self._first.name, "Context": ", ".join(map(str, self._first.choice.context))}
        for field, value in wanted.items():
            tab.wait(lambda: tab.value(field) == self._told(field), "the corrected field")  # noqa: B023
            if tab.value(field) != value:
                tab.set(field, value)
                tab.wait(lambda: self._told(field) == tab.value(field) == value, value)  # noqa: B023
                self.settle(tab)
        return tab

    def _told(self, field: str) -> str:
        """What a field of the panel has to tell."""
        scene = self.pipeline.model.active_scene
        return scene.name if field == "Scene" else ", ".join(map(str, scene.choice.context))

    def settle(self, tab: Tab) -> None:
        """Wait until the panel does nothing any more and the tab knows of all that it did."""
        panel = self.pipeline.model.viewer_control
        tab.be_heard()
        # In this order: work may end by wishing for a scene, and a scene by drawing.
        tab.wait(lambda: not (panel.work.busy or panel.scenes.busy or panel.draws.busy), "the end of all work")
        tab.catch_up()
        tab.be_heard()  # where the panel moved the camera, the tab has said so

    def seen(self, camera: Cameras) -> dict[str, Tensor]:
        """What the viewer shows of a camera at rest, which is decoded."""
        model = self.pipeline.model
        while True:
            moved = self.viewer.last_move_time
            if model.viewer_control.at_rest:
                outputs = model.get_outputs_for_camera(camera)
                if self.viewer.last_move_time == moved:
                    return outputs
            time.sleep(0.02)

    def generate(self, tab: Tab, button: str = "Generate") -> None:
        """Generate views as the tab's widgets say."""
        tab.notifications.clear()
        tab.click(button)
        tab.wait(lambda: tab.said("view generated") or tab.said("views generated"), "generated views")
        self.settle(tab)
        assert tab.visible("Lift accepted views")

    def lift(self, tab: Tab) -> None:
        """Generate views and lift them."""
        layers = len(self.pipeline.model.active_scene.layers)
        self.generate(tab)
        tab.click("Lift accepted views")
        tab.wait(lambda: len(self.pipeline.model.active_scene.layers) == layers + 1, "a layer")
        self.settle(tab)

    def folders_of_views(self) -> set[Path]:
        """Where generated views are."""
        folder = self.folder / "generated"
        return set(folder.iterdir()) if folder.is_dir() else set()

    def without_layers(self, tab: Tab) -> None:
        """Take all generated layers away."""
        while layers := len(self.pipeline.model.active_scene.layers):
            tab.click("Undo last layer")
            tab.wait(lambda: len(self.pipeline.model.active_scene.layers) < layers, "undoing")
            self.settle(tab)

    def close(self) -> None:
        self.pipeline.model.viewer_control.finish()
        self.viewer.viser_server.stop()
