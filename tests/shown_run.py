"""A run in nerfstudio's viewer, in this process."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import torch
import yaml
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.viewer.viewer import Viewer
from untrained_runs import write_untrained_run

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
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
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

    def close(self) -> None:
        self.pipeline.model.viewer_control.finish()
        self.viewer.viser_server.stop()
