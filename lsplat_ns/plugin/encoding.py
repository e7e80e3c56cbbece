"""A capture becomes a run without training: the networks of another run, shown on this capture's photos."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, Literal, Optional, Type

import torch
import tyro
from nerfstudio.configs.base_config import LoggingConfig, MachineConfig, PrintableConfig
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE

from lsplat_ns.errors import ConfigError
from lsplat_ns.plugin.captures import CaptureContextConfig
from lsplat_ns.plugin.dataparsers import SceneSetDataParserConfig
from lsplat_ns.plugin.runs import RunFolderConfig, StoredRun, free_folder, write_run
from lsplat_ns.plugin.scene_model import PredictedScene
from lsplat_ns.plugin.trainer import is_port_free, one_line_errors


def encode_capture(
    run: Path,
    capture: Path,
    output: Path,
    *,
    context: Optional[tuple[int, ...]] = None,
    num_context_views: int = 2,
    include_capture: bool = False,
) -> Path:
    """Make a run that shows a capture through the networks of a trained or imported run.

    The scene is predicted once, so that whatever is wrong with photos or weights shows before anything is written. The
    folder appears whole or not at all.

    Args:
        run: Run folder (or its config.yml) of any latentSplat method.
        capture: Folder with a transforms.json, as nerfstudio-data reads it.
        output: Run folder to make; must not exist or be empty.
        context: Frames that the network sees, in the order of file names (2 before 10); by default they are chosen.
        num_context_views: How many are chosen, where further ones fit; more than two are encoded in pairs and fused.
        include_capture: Copy the capture into the run's folder, under the same name; the run then refers to that copy.

    Returns:
        The new run's config.yml.

    Raises:
        ConfigError: If ``run`` is no run of a latentSplat method, or the output folder is in use.
        CheckpointMismatch: If it has no checkpoint that fits.
        SceneDataError: If the capture cannot be read or no scene can be predicted from it.
        LsplatError: If the run cannot be written.
    """
    folder = free_folder(output)
    dataparser = NerfstudioDataParserConfig(data=capture.expanduser().resolve())
    options = CaptureContextConfig(context, num_context_views=num_context_views)
    _encode(StoredRun.open(run), folder, dataparser, options, include_capture)
    return folder / "config.yml"


def _encode(
    stored: StoredRun,
    folder: Path,
    dataparser: DataParserConfig,
    options: CaptureContextConfig,
    include_capture: bool = False,
) -> PredictedScene:
    """Predict a capture with the weights of a run, and write both as a new run."""
    if isinstance(dataparser, SceneSetDataParserConfig):
        raise ConfigError(
            "a dataset of many scenes is looked at in the run itself; give a capture, e.g. nerfstudio-data"
        )
    config = RunFolderConfig.of(stored.config, folder)
    datamanager = config.pipeline.datamanager
    for name in CaptureContextConfig.__dataclass_fields__:
        setattr(datamanager, name, getattr(options, name))
    datamanager.dataparser = dataparser
    config.data = datamanager.data = dataparser.data
    prediction = _predict(config, stored)
    capture = dataparser.data if include_capture else None
    if include_capture:
        config.data = datamanager.data = dataparser.data = folder / dataparser.data.name
    provenance = {
        "source": str(stored.folder),
        "steps_done": stored.steps_done,
        "context_frames": list(prediction.scene.choice.context),
        "gaussians_per_layer": _layer_sizes(prediction),
        "encoded": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    outputs = prediction.scene.dataparser_outputs(prediction.scene.choice.context)
    state = stored.pipeline_state
    write_run(config, state, stored.steps_done, provenance, capture=capture, dataparser_outputs=outputs)
    return prediction


def _predict(config: RunFolderConfig, stored: StoredRun) -> PredictedScene:
    """The scene that the run will show."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Not by setup() and load_pipeline(), which end the program where this raises.
    pipeline = config.pipeline._target(config.pipeline, device=device, test_mode="inference")
    pipeline.model.update_to_step(stored.steps_done - 1)
    pipeline.load_state_dict(stored.pipeline_state)
    return pipeline.eval().model.prediction()


@dataclass
class EncodedCaptureConfig(CaptureContextConfig, PrintableConfig):
    """The capture, and the frames of it that the network sees."""

    data: Optional[Path] = None
    """Folder of the capture."""
    dataparser: AnnotatedDataParserUnion = field(default_factory=NerfstudioDataParserConfig)
    """How the capture is read: nerfstudio-data, colmap, or any other of nerfstudio's dataparsers."""


@dataclass
class EncodingConfig(PrintableConfig):
    """What is encoded. Everything else (networks, image size) is the trained run's."""

    datamanager: EncodedCaptureConfig = field(default_factory=EncodedCaptureConfig)
    """The capture."""


@dataclass
class PortConfig(PrintableConfig):
    """Where the viewer is opened."""

    websocket_port: int = 7007
    """Port of the viewer."""


@dataclass
class CaptureEncoderConfig(TrainerConfig):
    """``ns-train latentsplat-encode``: a run without training, with the networks of another one."""

    _target: Type = field(default_factory=lambda: CaptureEncoder)
    """target class to instantiate"""
    run: Optional[Path] = None
    """Run whose networks are used: the folder (or config.yml) that ns-train or lsplat import made."""
    pipeline: EncodingConfig = field(default_factory=EncodingConfig)
    """What is encoded."""
    vis: Literal["none", "viewer"] = "none"
    """viewer opens the scene once it is encoded."""
    viewer: PortConfig = field(default_factory=PortConfig)
    """Where it is opened."""
    # Options of training, which have no meaning here.
    machine: tyro.conf.Suppress[MachineConfig] = field(default_factory=MachineConfig)
    logging: tyro.conf.Suppress[LoggingConfig] = field(default_factory=LoggingConfig)
    optimizers: tyro.conf.Suppress[Dict[str, Any]] = field(default_factory=dict)
    gradient_accumulation_steps: tyro.conf.Suppress[Dict[str, int]] = field(default_factory=dict)
    project_name: tyro.conf.Suppress[Optional[str]] = None
    prompt: tyro.conf.Suppress[Optional[str]] = None
    relative_model_dir: tyro.conf.Suppress[Path] = Path("nerfstudio_models")
    load_scheduler: tyro.conf.Suppress[bool] = False
    load_dir: tyro.conf.Suppress[Optional[Path]] = None
    load_step: tyro.conf.Suppress[Optional[int]] = None
    load_config: tyro.conf.Suppress[Optional[Path]] = None
    load_checkpoint: tyro.conf.Suppress[Optional[Path]] = None
    steps_per_save: tyro.conf.Suppress[int] = 0
    steps_per_eval_batch: tyro.conf.Suppress[int] = 0
    steps_per_eval_image: tyro.conf.Suppress[int] = 0
    steps_per_eval_all_images: tyro.conf.Suppress[int] = 0
    max_num_iterations: tyro.conf.Suppress[int] = 0
    mixed_precision: tyro.conf.Suppress[bool] = False
    use_grad_scaler: tyro.conf.Suppress[bool] = False
    save_only_latest_checkpoint: tyro.conf.Suppress[bool] = True
    log_gradients: tyro.conf.Suppress[bool] = False
    start_paused: tyro.conf.Suppress[bool] = False

    def save_config(self) -> None:
        """Check what can be checked at once. Nothing is written: the encoder writes the run as a whole."""
        with one_line_errors():
            if self.run is None:
                raise ConfigError("state the trained model with --run RUN, a run folder of ns-train or lsplat import")
            port = self.viewer.websocket_port
            if self.is_viewer_enabled() and not is_port_free(port):
                raise ConfigError(f"port {port} is in use; choose another with --viewer.websocket-port")
            free_folder(self.get_base_dir())

    def set_experiment_name(self) -> None:
        """Name the experiment after the data, wherever ``--data`` stood on the command line."""
        if self.experiment_name is None:
            self.experiment_name = self.capture.resolve().stem or "unnamed"

    @property
    def capture(self) -> Path:
        """The capture's folder."""
        datamanager = self.pipeline.datamanager
        return Path(datamanager.dataparser.data if datamanager.data is None else datamanager.data)


class CaptureEncoder:
    """Stands where nerfstudio expects a trainer: "training" encodes the capture and ends by itself."""

    def __init__(self, config: CaptureEncoderConfig, local_rank: int = 0, world_size: int = 1) -> None:
        self.config = config

    def setup(self) -> None:
        """Nothing is prepared: :meth:`train` opens the run."""

    def train(self) -> None:
        """Encode, write the run and say what to call next; Ctrl-C writes nothing and ends with exit code 130."""
        config, datamanager = self.config, self.config.pipeline.datamanager
        folder = free_folder(config.get_base_dir())
        datamanager.dataparser.data = config.capture.expanduser().resolve()
        try:
            with one_line_errors():
                prediction = _encode(StoredRun.open(config.run), folder, datamanager.dataparser, datamanager)
        except KeyboardInterrupt:
            CONSOLE.print("Stopped; nothing was written.")
            raise SystemExit(130) from None
        _report(prediction, folder / "config.yml")
        if config.is_viewer_enabled():
            from lsplat_ns.plugin.demo import open_viewer

            open_viewer(folder / "config.yml", config.viewer.websocket_port)


def _layer_sizes(prediction: PredictedScene) -> list[int]:
    """How many Gaussians each pair of views contributed."""
    return torch.bincount(prediction.fused.layer[0], minlength=len(prediction.scene.pairs)).tolist()


def _report(prediction: PredictedScene, config: Path) -> None:
    counts = _layer_sizes(prediction)
    layers = f" in {len(counts)} layers ({', '.join(map(str, counts))})" if len(counts) > 1 else ""
    quoted = shlex.quote(str(config))
    for line in (
        f"Encoded {prediction.scene.name}: {sum(counts)} Gaussians{layers}",
        f"Wrote {config}",
        "Look at it, render it, export it:",
        f"  ns-viewer --load-config {quoted}",
        f"  ns-render interpolate --load-config {quoted} --pose-source train --output-path fly.mp4",
        f"  ns-export gaussian-splat --load-config {quoted} --output-dir splat",
    ):
        CONSOLE.print(line, soft_wrap=True, highlight=False, markup=False)
