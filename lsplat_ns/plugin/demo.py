"""``lsplat demo``: flying through rooms that the shipped networks predict from two pictures, with no training."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track

from lsplat_ns.checkpoints.demo_weights import demo_weights_path, read_demo_weights
from lsplat_ns.checkpoints.mvldm_runs import CONFIG as MVLDM_CONFIG
from lsplat_ns.checkpoints.mvldm_runs import GUIDANCE, IMAGE_SIZE, network_from_plain, write_mvldm
from lsplat_ns.data.video import write_video
from lsplat_ns.diffusion.sampler import SamplingConfig, generate
from lsplat_ns.diffusion.schedule import SolverConfig
from lsplat_ns.diffusion.view_plan import plan_views
from lsplat_ns.errors import ConfigError, MissingWeights
from lsplat_ns.geometry.conventions import opencv_from_opengl
from lsplat_ns.geometry.trajectories import poses_between
from lsplat_ns.plugin.demo_recipes import DEMO_GUIDANCE, METHODS, SHOWN_SCENES, SIDE, demo_trainer
from lsplat_ns.plugin.generating import QUICK_SOLVER, QUICK_STEPS, GenerationOptions, guidance_of, load_generator
from lsplat_ns.plugin.runs import PROVENANCE, RunFolderConfig, write_run
from lsplat_ns.plugin.taking_away import bytes_of, fly_through_cameras
from lsplat_ns.plugin.train_demo import scenes_in
from lsplat_ns.plugin.trainer import is_port_free

if TYPE_CHECKING:
    from lsplat_ns.plugin.pipeline import LatentSplatPipeline

VIDEO_FRAMES, VIDEO_SIDE = 96, 256
NO_GENERATOR = (
    "This package brings no MV-LDM: to generate views, enter the folder of a trained or imported one in the viewer's "
    "field MV-LDM run."
)
STRIP_STEPS = 8
"""Steps of the round trip of which one is drawn in a strip."""
BEYOND = 0.5
"""How far beyond the second photo the generated view of a strip is, as a fraction of the photos' distance."""


def run_demo(folder: Path, render: Path | None, picture: Path | None, port: int, scene: str | None) -> None:
    """Make scenes and runs where they are missing, then show a scene in the viewer, or render a video or a strip.

    Args:
        folder: Where scenes and runs are kept.
        render: Video to render instead of opening the viewer.
        picture: Strip to draw instead.
        port: Of the viewer.
        scene: Scene id or number; by default the one last shown.

    Raises:
        LsplatError: With one line, if the port is taken, the weights are damaged or the folder cannot be used.
    """
    viewing = render is None and picture is None
    if viewing and not is_port_free(port):
        raise ConfigError(f"port {port} is in use; choose another with --port")
    scenes = scenes_in(folder / "scenes", SHOWN_SCENES)
    generator = None
    try:
        generator = generator_run(folder / METHODS["mvldm"])
    except MissingWeights:
        if viewing:
            CONSOLE.print(f"[yellow]{NO_GENERATOR}")
    run = prediction_run(folder / METHODS["latentsplat"], scenes, generator)
    if picture is not None:
        draw_strip(run, picture, scene, generator)
    if render is not None:
        render_fly_through(run, render, scene)
    if viewing:
        if scene is not None:
            _opened(run, scene)  # which remembers the scene beside the run
        open_viewer(run, port)


def prediction_run(folder: Path, scenes: Path, generator: Path | None = None) -> Path:
    """The run of the shipped latentSplat, as every nerfstudio tool opens it; made where it is missing or outdated.

    It is outdated where the weights are others, or the scenes or the generator lie elsewhere, as in a moved folder.

    Args:
        folder: The run's folder.
        scenes: Data to look at.
        generator: Run of MV-LDM that its viewer generates with.

    Returns:
        The run's config.yml.
    """
    path = demo_weights_path(METHODS["latentsplat"])
    weights, provenance = read_demo_weights(path)
    folder = folder.expanduser().resolve()
    scenes, generator = scenes.resolve(), None if generator is None else generator.resolve()
    provenance = {**provenance, "scenes": str(scenes), "generator": None if generator is None else str(generator)}
    if _holds(folder, provenance, "config.yml"):
        return folder / "config.yml"
    config = RunFolderConfig.of(demo_trainer(provenance["steps_done"]), folder)
    model = config.pipeline.model
    model.schedule = replace(model.schedule, adversarial=replace(model.schedule.adversarial, loss="none"))
    model.generator = generator
    config.data = config.pipeline.datamanager.data = scenes
    pipeline = {"_model.device_indicator_param": torch.empty(0)}
    pipeline.update({f"_model.network.{key}": value for key, value in weights.items()})
    _clear(folder)
    write_run(config, pipeline, provenance["steps_done"], provenance)
    return folder / "config.yml"


def generator_run(folder: Path) -> Path:
    """The run of the shipped MV-LDM, as ``lsplat generate`` reads it; made where it is missing or outdated.

    Raises:
        MissingWeights: If the wheel ships none.
    """
    weights, provenance = read_demo_weights(demo_weights_path(METHODS["mvldm"]))
    provenance = {**provenance, IMAGE_SIZE: [SIDE, SIDE], GUIDANCE: DEMO_GUIDANCE}
    folder = folder.expanduser().resolve()
    if not _holds(folder, provenance, MVLDM_CONFIG):
        _clear(folder)
        write_mvldm(folder, network_from_plain(provenance["network"]), weights, provenance)
    return folder


def _holds(folder: Path, provenance: dict, file: str) -> bool:
    """Whether the very run that would be made is there."""
    try:
        return (folder / file).is_file() and json.loads((folder / PROVENANCE).read_text()) == provenance
    except (OSError, ValueError):
        return False


def _clear(folder: Path) -> None:
    """Make room for a run, without losing one that somebody else made."""
    if folder.exists() and any(folder.iterdir()):
        names = (f"{folder.name}.old-{number}" for number in count())
        kept = next(name for name in names if not folder.with_name(name).exists())
        folder.replace(folder.with_name(kept))
        CONSOLE.print(f"Another run is in {folder}: kept as {kept}")


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
    pipeline = _opened(run, scene)
    cameras = fly_through_cameras(pipeline.datamanager.train_dataset.cameras, VIDEO_FRAMES, VIDEO_SIDE)
    frames = (bytes_of(_view(pipeline, cameras[i : i + 1])["rgb"]) for i in track(range(len(cameras)), "Rendering"))
    written = write_video(video, frames)
    CONSOLE.print(f"Wrote {video}: {written} frames of scene {pipeline.datamanager.scene.name}")


def draw_strip(run: Path, file: Path, scene: str | None = None, generator: Path | None = None) -> None:
    """Draw the context views of a scene and, from half-way between them, the decoded view, depth and uncertainty.

    Where there is a generator, also what it generates beyond the second context view.

    Args:
        run: The run's config.yml.
        file: File to write, a PNG.
        scene: Scene id or number; by default the run's active scene.
        generator: Run of MV-LDM.
    """
    from lsplat_ns.evaluation.figures import save_figure, strip_figure
    from lsplat_ns.evaluation.illustration import depth_picture, uncertainty_picture

    pipeline = _opened(run, scene)
    context = pipeline.datamanager.train_dataset.cameras
    views = fly_through_cameras(context, STRIP_STEPS, VIDEO_SIDE)
    seen = _view(pipeline, views[STRIP_STEPS // 4 : STRIP_STEPS // 4 + 1])  # out and back: a quarter is the middle
    photos = [bytes_of(image.permute(1, 2, 0)) for image in pipeline.datamanager.scene.context.image[0]]
    depth, uncertainty = (seen[name][..., 0].cpu().numpy() for name in ("depth", "uncertainty"))
    pictures = {
        "photo 1": photos[0],
        "photo 2": photos[-1],
        "novel view": bytes_of(seen["rgb"]),
        "depth": depth_picture(depth, np.log(np.quantile(depth, (0.02, 0.98)).clip(1e-6))),
        "uncertainty (dark: unsure)": uncertainty_picture(uncertainty, np.quantile(uncertainty, (0.02, 0.98))),
    }
    if generator is not None:
        pictures["generated, beyond photo 2"] = bytes_of(_generated_beyond(pipeline, generator))
    save_figure(strip_figure(pictures), file)
    CONSOLE.print(f"Wrote {file}: scene {pipeline.datamanager.scene.name}")


def _generated_beyond(pipeline: LatentSplatPipeline, generator: Path) -> torch.Tensor:
    """What MV-LDM generates of the active scene farther on than its second photo: [height, width, 3] in [0, 1]."""
    from lsplat_ns.plugin.scene_generation import generation_task

    photos = opencv_from_opengl(pipeline.datamanager.train_dataset.cameras.camera_to_worlds)
    task = generation_task(
        pipeline.datamanager.scene, poses_between(photos[0], photos[-1], torch.tensor([1 + BEYOND])), generator
    )
    sampling = SamplingConfig(SolverConfig(QUICK_SOLVER, QUICK_STEPS), guidance_of(generator))
    options = GenerationOptions(sampling=sampling)
    device = pipeline.device
    model = load_generator(generator, str(device), options)
    plan = plan_views(task.given, task.frames, options.plan)
    groups = generate(model, task.context.to(device), task.cameras.to(device), task.frames, plan, options.sampling)
    with CONSOLE.status("Generating a view"):
        (group,) = groups
    return group.images[0].permute(1, 2, 0)


def _opened(run: Path, scene: str | None) -> LatentSplatPipeline:
    from nerfstudio.utils.eval_utils import eval_setup

    _, pipeline, _, _ = eval_setup(run, test_mode="inference")
    if scene is not None:
        pipeline.set_scene(scene)
    return pipeline


def _view(pipeline: LatentSplatPipeline, camera: NerfstudioCameras) -> dict[str, torch.Tensor]:
    return pipeline.model.get_outputs_for_camera(camera)
