"""``lsplat demo``: from nothing to flying through a predicted scene."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from lsplat_ns.data.demo_scenes import MakeScenesConfig, make_scenes
from lsplat_ns.data.video import write_video
from lsplat_ns.errors import ConfigError
from lsplat_ns.plugin.recipes import tiny_trainer
from lsplat_ns.plugin.taking_away import fly_through_cameras
from lsplat_ns.plugin.trainer import (
    LatentSplatTrainerConfig,
    checkpoint_steps,
    is_port_free,
    newest_whole_checkpoint,
)

if TYPE_CHECKING:
    from lsplat_ns.plugin.pipeline import LatentSplatPipeline

SCENES = MakeScenesConfig(output=Path(), kind="rooms", scenes=24, frames=30, size=(128, 128), seed=7)
"""What the demo trains on and shows."""
VIDEO_FRAMES, VIDEO_SIDE = 96, 256


def run_demo(folder: Path, steps: int, render: Path | None, port: int, scene: str | None) -> None:
    """Make scenes and a model where they are missing, then show a scene in the viewer or render it to a video.

    What an interrupted call has finished is used by the next one.

    Raises:
        LsplatError: With one line, if the port is taken or the folder cannot be used.
    """
    if render is None and not is_port_free(port):
        raise ConfigError(f"port {port} is in use; choose another with --port")
    scenes = _scenes(folder / "scenes")
    config = _demo_config(folder, scenes, steps)
    _train(config, steps)
    run = config.get_base_dir() / "config.yml"
    if render is not None:
        render_fly_through(run, render, scene)
    else:
        open_viewer(run, port)


def _scenes(folder: Path) -> Path:
    if (folder / "test" / "index.json").is_file():
        CONSOLE.print(f"Using the demo scenes in {folder}")
        return folder
    with _progress("Making demo scenes") as progress:
        task = progress.add_task("Making demo scenes", total=SCENES.scenes)
        make_scenes(replace(SCENES, output=folder), on_scene=lambda _: progress.advance(task))
    return folder


def _demo_config(folder: Path, scenes: Path, steps: int) -> LatentSplatTrainerConfig:
    config = tiny_trainer("latentsplat-tiny")
    config.output_dir, config.experiment_name, config.timestamp = folder / "runs", "demo", "tiny"
    config.data = config.pipeline.datamanager.data = scenes.resolve()
    config.vis = "tensorboard"
    config.max_num_iterations = steps
    # With one example per step the last steps are noisy; falling rates average them out.
    config.optimizers["generator"]["scheduler"].decay_steps = steps
    config.steps_per_eval_batch = config.steps_per_eval_image = 0
    config.logging.local_writer.enable = False
    config.viewer.quit_on_train_completion = True
    return config


def _train(config: LatentSplatTrainerConfig, steps: int) -> None:
    """Train up to ``steps``, from the last checkpoint if there is one."""
    folder = config.get_checkpoint_dir()
    done = newest_whole_checkpoint(folder) + 1 if checkpoint_steps(folder) else 0
    if done >= steps:
        CONSOLE.print(f"Using the model in {config.get_base_dir()} ({done} steps)")
        return
    if done:
        config.load_dir = folder
    CONSOLE.print(f"Training latentsplat-tiny for {steps - done} steps; Ctrl-C keeps what is learned so far.")
    torch.manual_seed(config.machine.seed)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    with _progress("Training") as progress:
        task = progress.add_task("Training", total=steps, completed=done)
        trainer.callbacks.append(
            TrainingCallback(
                [TrainingCallbackLocation.AFTER_TRAIN_ITERATION],
                func=lambda step: progress.update(task, completed=step + 1),
            )
        )
        trainer.train()
    if trainer.interrupted:
        raise SystemExit(0)


def _progress(title: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=CONSOLE
    )


def open_viewer(run: Path, port: int) -> None:
    """Show a run (its config.yml) in nerfstudio's viewer until Ctrl-C."""
    from nerfstudio.scripts.viewer.run_viewer import RunViewer, ViewerConfigWithoutNumRays

    CONSOLE.print(f"\nOpen [bold]http://localhost:{port}[/bold] in a browser. Ctrl-C ends it.\n")
    try:
        RunViewer(load_config=run, viewer=ViewerConfigWithoutNumRays(websocket_port=port)).main()
    except KeyboardInterrupt:
        CONSOLE.print("Stopped.")


def render_fly_through(run: Path, video: Path, scene: str | None = None) -> None:
    """Render a round trip between the context views of a run's active scene.

    Args:
        run: The run's config.yml.
        video: File to write, an mp4.
        scene: Scene id or number; by default the run's active scene.
    """
    from nerfstudio.utils.eval_utils import eval_setup

    _, pipeline, _, _ = eval_setup(run, test_mode="inference")
    if scene is not None:
        pipeline.set_scene(scene)
    cameras = fly_through_cameras(pipeline.datamanager.train_dataset.cameras, VIDEO_FRAMES, VIDEO_SIDE)
    frames = (_frame(pipeline, cameras[i : i + 1]) for i in track(range(VIDEO_FRAMES), description="Rendering"))
    count = write_video(video, frames)
    CONSOLE.print(f"Wrote {video}: {count} frames of scene {pipeline.datamanager.scene.name}")


def _frame(pipeline: LatentSplatPipeline, camera: NerfstudioCameras) -> np.ndarray:
    rgb = pipeline.model.get_outputs_for_camera(camera)["rgb"]
    return (rgb * 255).round().to(torch.uint8).cpu().numpy()
