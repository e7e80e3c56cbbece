"""``lsplat generate``: views from photos or a scene by MV-LDM, as frames, video, contact sheet and cameras."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lsplat_ns.checkpoints.mvldm_runs import (
    CONFIG,
    WEIGHTS,
    load_mvldm,
    noted_guidance,
    noted_image_size,
    read_mvldm_config,
)
from lsplat_ns.checkpoints.upstream import sha256
from lsplat_ns.diffusion.sampler import GenerationProgress, GroupSampler, SamplingConfig, generate
from lsplat_ns.diffusion.schedule import TIMESTEPS, SolverConfig
from lsplat_ns.diffusion.view_plan import ViewPlanConfig, plan_views
from lsplat_ns.errors import ConfigError, LsplatError
from lsplat_ns.mvldm import MultiViewDiffusion
from lsplat_ns.mvldm_acceleration import accelerate_generation
from lsplat_ns.plugin.generated_folder import GeneratedFolder, StoredFrames, fingerprint, refuse_in_use
from lsplat_ns.plugin.generation_tasks import GenerationTask
from lsplat_ns.wording import counted

PUBLISHED_SIZE = (256, 256)
QUICK_SOLVER, QUICK_STEPS = "dpm-solver++", 12
"""What takes a CPU a sixth of the published sampling's time."""
HIGH_LEVEL = 900
"""Noise level, of TIMESTEPS, from which on latents hardly differ from pure noise."""
OnStep = Callable[[GenerationProgress], None]


@dataclass(frozen=True)
class GenerationOptions:
    """How views are generated."""

    plan: ViewPlanConfig = field(default_factory=ViewPlanConfig)
    """How a sequence is divided into groups."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Solver, guidance, seed."""
    acceleration: Literal["off", "mixed", "compiled"] = "mixed"
    """On a GPU: float32; lower precision and CUDA graphs; and compiled kernels. Changes numbers a little."""

    def __post_init__(self) -> None:
        if self.plan.anchors is not None and self.plan.mode != "anchored":
            raise ConfigError(f"anchors belong to anchored sampling, not to {self.plan.mode}")


def image_size_of(run: Path) -> tuple[int, int]:
    """The (height, width) that a run was trained at; the published size where neither config.yml nor a note tells."""
    path = run / "config.yml"
    if not path.is_file():
        return noted_image_size(run) or PUBLISHED_SIZE
    try:
        config: Any = yaml.load(path.read_text(), Loader=yaml.Loader)  # trusted, as by every nerfstudio tool
        height, width = config.pipeline.datamanager.preparation.image_size
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} tells no image size ({str(error).splitlines()[0]}); state it with --size") from None
    return height, width


def guidance_of(run: Path | None, stated: float | None = None) -> float:
    """The strength of guidance to generate with: the stated one, else what the run notes, else the published one."""
    if stated is not None:
        return stated
    noted = None if run is None else noted_guidance(run)
    return SamplingConfig().guidance if noted is None else noted


def run_folder(checkpoint: Path) -> Path:
    """The folder of an MV-LDM run, of it or of a file in it. Raises ConfigError where there is none."""
    run = checkpoint.parent if checkpoint.is_file() else checkpoint
    read_mvldm_config(run)
    return run


def check_size(run: Path, size: tuple[int, int]) -> None:
    """Raise ConfigError unless a run's network can make images of ``size`` (height, width)."""
    multiple = 2 * read_mvldm_config(run).autoencoder.downscale  # 2: video frames have even sides
    if any(side < multiple or side % multiple for side in size):
        raise ConfigError(f"--size takes multiples of {multiple} for this network, not {size[0]}x{size[1]}")


def generate_into(
    run: Path,
    task: GenerationTask,
    output: Path,
    options: GenerationOptions,
    *,
    say: Callable[[str], None] = print,
) -> GeneratedFolder:
    """Generate a task's views with a run's network into a folder, with a progress bar.

    Frames that the folder already holds are kept: the same call goes on where an earlier one stopped, and ends in the
    images of one that was never stopped. Ctrl-C keeps the finished ones.

    Args:
        run: Folder of an MV-LDM run.
        task: What to generate.
        output: Folder to make; or one that the same call has made.
        options: How.
        say: Takes lines for the user.

    Raises:
        ConfigError: If there is no run, the options contradict each other, or the folder is in use.
        CheckpointMismatch: If the run is damaged.
        LsplatError: If even one view at a time does not fit into memory.
    """
    plan_views(task.given, task.frames, options.plan)  # before anything is loaded
    run = run_folder(run)
    with Console(stderr=True).status(f"Reading {run}"):
        request = describe_request(run, task, options)
    refuse_in_use(output, request)
    if options.sampling.solver.first_level < HIGH_LEVEL:
        say(_low_start(options.sampling.solver))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_generator(run, device, options)
    folder = GeneratedFolder.claim(output, request)
    with folder.locked():
        folder.write_given(task)
        before = len(StoredFrames(folder, task.frames))
        if before:
            say(f"{before} of {counted(len(task.frames), 'frame')} {'is' if before == 1 else 'are'} there already")
        try:
            with _progress_bar(device) as on_step:
                generate_frames(model, task, folder, options, device=device, on_step=on_step, say=say)
        except KeyboardInterrupt:
            kept = len(StoredFrames(folder, task.frames))
            kept = f"{kept} of {counted(len(task.frames), 'frame')} {'is' if kept == 1 else 'are'} kept"
            say(f"{kept} in {folder.path}; the same command goes on from there")
            raise
        folder.finish(task, f"{task.name}: {_in_words(options)}")
    return folder


def load_generator(run: Path, device: str, options: GenerationOptions) -> MultiViewDiffusion:
    """The network of a run, made as fast as the options allow. Raises as :func:`generate_into`."""
    try:
        with Console(stderr=True).status(f"Loading {run}"):
            model = load_mvldm(run, device)
        if options.acceleration != "off":
            accelerate_generation(model, compiled=options.acceleration == "compiled")
    except torch.cuda.OutOfMemoryError:
        needed = (run / WEIGHTS).stat().st_size / 1e9
        raise LsplatError(
            f"the GPU's memory is too small for the network, which takes {needed:.1f} GB while it is loaded; end other "
            "programs on it, or hide it with CUDA_VISIBLE_DEVICES= to generate on the CPU"
        ) from None
    return model


def generate_frames(
    model: GroupSampler,
    task: GenerationTask,
    folder: GeneratedFolder,
    options: GenerationOptions,
    *,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    cancelled: Callable[[], bool] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Generate the frames that a folder lacks and store each group as it is done. No stored frame is written again.

    Where the GPU's memory is too small, the autoencoder moves to main memory while it is not used, which changes no
    image. Where that is not enough, groups of views become smaller and stay so, in later calls for this folder as well.

    Raises:
        GenerationCancelled: If ``cancelled`` said so, within one step.
        LsplatError: If memory is too small for the smallest groups as well.
    """
    context, cameras = task.context.to(device), task.cameras.to(device)
    stored = StoredFrames(folder, task.frames)
    config = replace(options.plan, views_per_group=folder.views_per_group or options.plan.views_per_group)
    while True:
        plan = plan_views(task.given, task.frames, config)
        groups = generate(
            model,
            context,
            cameras,
            task.frames,
            plan,
            options.sampling,
            finished=stored,
            on_step=on_step,
            cancelled=cancelled,
        )
        try:
            for group in groups:
                for frame, image in zip(group.frames, group.images, strict=True):
                    if frame not in stored:  # an interruption between two frames leaves a part of a group
                        folder.write_image(frame, image)
            return
        except torch.cuda.OutOfMemoryError:
            del groups  # holds the tensors of the failed step
        # Outside the handler, whose traceback would keep them alive as well.
        torch.cuda.empty_cache()
        if isinstance(model, MultiViewDiffusion) and not model.autoencoder_waits_on_cpu:
            say("Out of memory: going on with the autoencoder in main memory while it is not used")
            model.offload_autoencoder()
            continue
        fewer = config.views_per_group - 1
        if config.mode == "single" or fewer < len(task.given) + 2:
            raise LsplatError("the GPU's memory is too small for the smallest group of views; lower --size")
        say(f"Out of memory with {config.views_per_group} views at once: going on with {fewer}")
        config = replace(config, views_per_group=fewer)
        folder.remember_views_per_group(fewer)


def describe_request(run: Path, task: GenerationTask, options: GenerationOptions) -> dict[str, Any]:
    """Plain values that determine every image, but for the device."""
    height, width = task.context.size
    cameras = task.context.cameras.concat(task.cameras)
    return {
        "network": sha256(run / WEIGHTS) + sha256(run / CONFIG)[:8],
        "scene": task.name,
        "size": [height, width],
        "given": list(task.given),
        "frames": list(task.frames),
        "scale": task.scale,
        "given images": fingerprint(task.context.image),
        "cameras": fingerprint(cameras.world_from_camera, cameras.intrinsics_norm),
        **asdict(options.plan),
        **asdict(options.sampling.solver),
        "guidance": options.sampling.guidance,
        "seed": options.sampling.seed,
        "acceleration": options.acceleration,
    }


def _low_start(solver: SolverConfig) -> str:
    """What is wrong with a solver that starts too low, and the nearest number of steps with which it does not."""
    counts = range(1, TIMESTEPS + 1)
    fine = [steps for steps in counts if replace(solver, steps=steps).first_level >= HIGH_LEVEL]
    nearest = min(fine, key=lambda steps: abs(steps - solver.steps))
    start = f"{solver.kind} in {counted(solver.steps, 'step')} starts at noise level {solver.first_level}"
    return f"{start} of {TIMESTEPS}, so views keep noise; take --steps {nearest}, or another --solver"


def _in_words(options: GenerationOptions) -> str:
    solver = options.sampling.solver
    return f"{options.plan.mode}, {counted(solver.steps, 'step')} of {solver.kind}, seed {options.sampling.seed}"


@contextlib.contextmanager
def _progress_bar(device: str) -> Iterator[OnStep]:
    """A bar with the time left on stderr, as long as the block runs; what it gives takes the steps."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"On {device}", total=1.0)

        def show(step: GenerationProgress) -> None:
            place = f"group {step.group + 1}/{step.groups}, step {step.step}/{step.steps}"
            progress.update(bar, description=f"On {device}: {place}", completed=step.share)

        yield show
        progress.update(bar, completed=1.0)
