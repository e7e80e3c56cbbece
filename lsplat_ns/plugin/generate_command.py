"""From the options of ``lsplat generate`` to views on disk, and to a scene made of them."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from lsplat_ns.diffusion.sampler import SamplingConfig
from lsplat_ns.diffusion.schedule import SolverConfig
from lsplat_ns.diffusion.view_plan import ViewPlanConfig
from lsplat_ns.errors import ConfigError
from lsplat_ns.geometry.trajectories import PathConfig
from lsplat_ns.plugin.generate_options import GenerateOptions, expanded
from lsplat_ns.plugin.generated_folder import CONTENTS, SHEET, TRANSFORMS, VIDEO
from lsplat_ns.plugin.generated_scores import score_views
from lsplat_ns.plugin.generating import (
    GenerationOptions,
    check_size,
    generate_into,
    guidance_of,
    image_size_of,
    run_folder,
)
from lsplat_ns.plugin.generation_tasks import GenerationTask, PhotoRequest, SceneRequest, Trajectory
from lsplat_ns.plugin.lifting_method import lift_folder
from lsplat_ns.plugin.runs import StoredRun
from lsplat_ns.wording import counted

PATH_FRAMES = 40
"""Length of a path where none is stated."""


def run_generate(command: GenerateOptions, size: tuple[int, int] | None) -> None:
    """Do what the command line asks for. Raises LsplatError, with one line, where that cannot be done."""
    command = expanded(command)
    run = run_folder(command.checkpoint)
    if size is None:
        size = image_size_of(run)
    check_size(run, size)
    options = GenerationOptions(
        ViewPlanConfig(command.sampling, command.num_anchors, command.views_per_group),
        SamplingConfig(SolverConfig(command.solver, command.steps), guidance_of(run, command.guidance), command.seed),
        command.acceleration,
    )
    lifted = None if command.lift is None else _check_lift(command, size)
    task = _task(command, size)
    if lifted is not None and task.turns_on_the_spot:
        raise ConfigError("a camera that turns on the spot shows no depth; leave out --lift, or choose another path")
    folder = generate_into(run, task, command.output, options)
    print(f"Wrote {counted(len(task.frames), 'view')} to {folder.path}: images/, {VIDEO}, {SHEET}, {TRANSFORMS}")
    if command.consistency or command.met3r:
        with Console(stderr=True).status("Comparing neighbouring views"):
            scores = score_views(folder, task, with_met3r=command.met3r)
        print(scores)
    if lifted is None:
        if not task.turns_on_the_spot:
            print(f"Train on them with: ns-train splatfacto --data {shlex.quote(str(folder.path))}")
        return
    config = lift_folder(command.lift, folder.path, lifted)
    print(f"Open the scene with: ns-viewer --load-config {shlex.quote(str(config))}")


def _check_lift(command: GenerateOptions, size: tuple[int, int]) -> Path:
    """Where the lifted scene will be. What is wrong with it shows before the views are generated."""
    wanted = StoredRun.open(command.lift).config.pipeline.datamanager.preparation.image_size
    if size[0] < wanted[0] or size[1] < wanted[1]:
        raise ConfigError(
            f"{command.lift} looks at images of {wanted[0]}x{wanted[1]}, but views of {size[0]}x{size[1]} are to be "
            f"generated; raise --size"
        )
    lifted = command.output / "lifted" if command.lift_output is None else command.lift_output
    place, views = lifted.resolve(), command.output.resolve()
    if views.is_relative_to(place) or any(place.is_relative_to(views / name) for name in CONTENTS):
        raise ConfigError(f"the views themselves are written to {lifted}; choose another folder with --lift-output")
    if lifted.exists() and (not lifted.is_dir() or any(lifted.iterdir())):
        raise ConfigError(f"{lifted} exists and is not an empty folder; choose another with --lift-output")
    return lifted


def _task(command: GenerateOptions, size: tuple[int, int]) -> GenerationTask:
    if command.limit_frames is not None and command.limit_frames < 1:
        raise ConfigError(f"--limit-frames takes 1 or more, not {command.limit_frames}")
    if bool(command.image) == (command.data is not None):
        raise ConfigError("state either a scene with --data DATASET --scene SCENE, or a photo with --image PHOTO")
    if command.image:
        _refuse(command, ("scene", "context", "index", "scale"), "belongs to a scene; leave it out with --image")
        if command.trajectory == "scene":
            raise ConfigError("a photo has no cameras of its own; choose another --trajectory")
        default = "between" if len(command.image) == 2 else "orbit"
        task, report = PhotoRequest(command.image, command.fov).task(size, _trajectory(command, default))
        print(report)
        return task
    _refuse(command, ("fov",), "belongs to photos; cameras of a scene are known")
    request = SceneRequest(
        command.data,
        command.scene,
        command.index,
        command.split,
        command.context,
        command.limit_frames,
        command.scale,
    )
    return request.task(size, _trajectory(command, "scene"))


def _refuse(command: GenerateOptions, options: tuple[str, ...], why: str) -> None:
    for option in options:
        if getattr(command, option) is not None:
            raise ConfigError(f"--{option} {why}")


def _trajectory(command: GenerateOptions, default: str) -> Trajectory:
    kind = command.trajectory or default
    frames = command.limit_frames or PATH_FRAMES
    if kind == "scene":
        return None
    if kind == "between":
        return frames
    return PathConfig(kind, frames, command.reach, command.degrees, command.pivot)
