"""``lsplat evaluate`` of an MV-LDM run: views of every scene are generated and compared with true ones.

Of each scene of the evaluation index, the first entry says what is given and which part of its path is generated. Each
scene's views lie in a folder as ``lsplat generate`` writes it, which is also how an interrupted evaluation goes on:

summary.json                  means, by number of given views
from-1/SCENE/                 generated views from one given view, their video, contact sheet and cameras
from-1/SCENE/scores.json      the numbers of that scene
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from lsplat_ns.checkpoints.mvldm_runs import WEIGHTS
from lsplat_ns.checkpoints.upstream import sha256
from lsplat_ns.data.batches import PreparationConfig, network_scale, read_views
from lsplat_ns.diffusion.sampler import GenerationProgress, GroupSampler, SamplingConfig
from lsplat_ns.diffusion.schedule import SolverConfig
from lsplat_ns.diffusion.view_plan import ViewPlanConfig, plan_views
from lsplat_ns.errors import ConfigError, LsplatError, SceneDataError
from lsplat_ns.evaluation.entries import Entry, IndexedScenes, spread_out
from lsplat_ns.evaluation.generated_views import (
    ANCHORS,
    GENERATED,
    NEAREST,
    TRUE,
    SceneScores,
    first_anchors,
    score_scene,
    summarise_scenes,
)
from lsplat_ns.evaluation.image_folders import scene_folder_name
from lsplat_ns.evaluation.results import ALL, SUMMARY, EvaluationFolder
from lsplat_ns.plugin.captures import open_dataparser
from lsplat_ns.plugin.dataparsers import Re10kDataParserConfig, SceneSetDataParser, dataparser_for
from lsplat_ns.plugin.evaluation_data import indexed_scenes
from lsplat_ns.plugin.generate_options import expanded
from lsplat_ns.plugin.generated_folder import GeneratedFolder, StoredFrames, write_json
from lsplat_ns.plugin.generating import (
    GenerationOptions,
    describe_request,
    generate_frames,
    guidance_of,
    image_size_of,
    load_generator,
    run_folder,
)
from lsplat_ns.plugin.generation_tasks import GenerationTask
from lsplat_ns.plugin.measuring_commands import Evaluate, ScoredGeneration
from lsplat_ns.scene import Views
from lsplat_ns.wording import counted

SCORES = "scores.json"


@dataclass(frozen=True)
class GenerationEvaluation:
    """What to evaluate, and how.

    Raises:
        ConfigError: If the options fit no plan of views.
    """

    run: Path  # of MV-LDM
    data: IndexedScenes  # one entry per scene
    counts: tuple[int, ...]  # given views; all scenes are done with each
    frames: int  # to generate per scene
    options: GenerationOptions
    scale: float | None = None  # on camera positions; None: the first two context views are 1 apart, as in training

    def __post_init__(self) -> None:
        if not self.counts or len(set(self.counts)) < len(self.counts) or min(self.counts) < 1:
            raise ConfigError("--given takes different numbers of views, each 1 or more")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"--scale takes a positive factor on camera positions, not {self.scale:g}")
        if self.frames < 2:
            raise ConfigError(f"--frames takes 2 or more, not {self.frames}")
        for count in self.counts:
            plan_views(range(count), range(count, count + self.frames), self.options.plan)

    def prepare(self, entry: Entry, count: int) -> tuple[GenerationTask, Views]:
        """What is generated of a scene, and the true views of the same cameras.

        The first ``count`` context views of the entry are given. Generated are frames evenly spread from the entry's
        first view to its last, but none of its context views, so that they are the same whatever is given.

        Raises:
            SceneDataError: If the scene cannot be used.
        """
        choice, size = entry.choice, self.data.size
        if len(choice.context) < count:
            raise SceneDataError(
                f"scene {entry.scene} has {counted(len(choice.context), 'context view')}, not {count}; lower --given"
            )
        every = (*choice.context, *choice.target)
        between = [frame for frame in range(min(every), max(every) + 1) if frame not in choice.context]
        if len(between) < 2:
            raise SceneDataError(f"scene {entry.scene} has too few frames to generate between its context views")
        frames = tuple(between[place] for place in spread_out(len(between), self.frames))
        given, video = choice.context[:count], self.data.read_scene(entry.scene)
        scale = self.scale or network_scale(video, choice.context[:2], PreparationConfig(size))
        context, truth = (read_views(video, chosen, size, scale) for chosen in (given, frames))
        return GenerationTask(entry.scene, context, truth.cameras, frames, scale), truth

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on; a folder holds one such evaluation."""
        lower = self.options.acceleration != "off" and torch.cuda.is_available()
        return {
            "network_sha256": sha256(self.run / WEIGHTS),
            "data": self.data.name,
            "index": self.data.index,
            "image_size": list(self.data.size),
            "frames": self.frames,
            "scale": self.scale,
            **asdict(self.options.plan),
            **{("solver" if name == "kind" else name): v for name, v in asdict(self.options.sampling.solver).items()},
            "guidance": self.options.sampling.guidance,
            "seed": self.options.sampling.seed,
            "precision": "mixed" if lower else "float32",
        }


def evaluate_generation(command: Evaluate) -> dict[str, Any]:
    """Generate views of every scene of an evaluation index, score them, and write ``summary.json``, with progress.

    A second call with the same options goes on where the first was interrupted.

    Args:
        command: The command line: a run of MV-LDM, data, and what to generate.

    Returns:
        The summary: ``complete``, ``command``, ``settings``, ``device``, ``listed`` scenes, ``skipped`` (why, by
        scene), and ``given``: by the number of given views, what ``generated_views.summarise_scenes`` says.

    Raises:
        LsplatError: If the run, the data or the index cannot be used, or the folder holds something else.
        KeyboardInterrupt: After a summary that says that it is partial, where any scene is done.
    """
    command = expanded(command)
    run, output, wanted = run_folder(command.run_folder), command.output, command.generation
    if command.most_entries is not None and command.most_entries < 1:
        raise ConfigError(f"--most-entries must be 1 or more, but is {command.most_entries}")
    guidance = guidance_of(run, wanted.guidance)
    sampling = SamplingConfig(SolverConfig(wanted.solver, wanted.steps), guidance, command.seed)
    scenes = _one_entry_each(_indexed(run, command), command.most_entries)
    options = GenerationOptions(ViewPlanConfig(wanted.sampling), sampling)
    evaluation = GenerationEvaluation(run, scenes, wanted.given, wanted.frames, options, wanted.scale)
    folder = EvaluationFolder(output, evaluation.settings())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_generator(run, device, options)
    found: dict[int, dict[str, SceneScores]] = {count: {} for count in evaluation.counts}
    skipped, complete = dict(scenes.left_out), False
    try:
        with _progress() as progress:
            for entry, count, scores in _score_all(evaluation, model, output, progress, device):
                if isinstance(scores, SceneScores):
                    found[count][entry.scene] = scores
                else:
                    skipped[entry.scene] = str(scores)
        complete = True
    except KeyboardInterrupt:
        if not any(found.values()):
            raise
    if not any(found.values()):
        raise LsplatError(f"no scene of the evaluation index could be evaluated: {[*skipped.values()][-1]}")
    summary = {
        "complete": complete,
        "command": _in_words(command),
        "settings": folder.settings,
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "listed": len(scenes.entries),
        "skipped": skipped,
        "given": {str(count): summarise_scenes(scores) for count, scores in found.items() if scores},
    }
    write_json(output / SUMMARY, summary)
    _print_summary(summary)
    print(f"Wrote {output / SUMMARY}; each scene's views are beside it")
    if not complete:
        raise KeyboardInterrupt
    return summary


def _indexed(run: Path, command: Evaluate) -> IndexedScenes:
    """The entries of a dataset of many scenes, at the size that a run was trained at."""
    data = command.data
    if data is None:
        raise ConfigError("state with --data what a run of MV-LDM is to be evaluated on")
    dataparser = open_dataparser(dataparser_for(data, Re10kDataParserConfig()))
    if not isinstance(dataparser, SceneSetDataParser):
        raise ConfigError(f"{data} is a capture; a run of MV-LDM is evaluated on a dataset of many scenes")
    if command.index is not None:
        dataparser.config.evaluation_index = command.index
    found = indexed_scenes(dataparser, PreparationConfig(image_size_of(run)))
    if found is None:
        raise ConfigError(
            f"{data} has no evaluation index; name one with --index, or draw one with "
            f"`lsplat index {data} --evaluation`"
        )
    return found


def _one_entry_each(data: IndexedScenes, most: int | None) -> IndexedScenes:
    """The first entry of each scene; of at most so many scenes, evenly spread."""
    first = tuple({entry.scene: entry for entry in reversed(data.entries)}.values())[::-1]
    data = replace(data, entries=first)
    return data if most is None else data.thinned(most)


def _score_all(
    evaluation: GenerationEvaluation, model: GroupSampler, output: Path, progress: Progress, device: str
) -> Iterator[tuple[Entry, int, SceneScores | SceneDataError]]:
    """Every scene from every number of given views: its scores, or why it cannot be used."""
    entries, counts = evaluation.data.entries, evaluation.counts
    bar = progress.add_task("Reading", total=len(entries) * len(counts))
    done = 0
    for entry in entries:
        for count in counts:
            title = f"{entry.scene} from {count}"

            def show(step: GenerationProgress, title: str = title, done: int = done) -> None:
                progress.update(bar, description=f"Generating {title}", completed=done + step.share)

            try:
                task, truth = evaluation.prepare(entry, count)
            except SceneDataError as error:
                yield entry, count, error
            else:
                place = output / f"from-{count}" / scene_folder_name(entry.scene)
                folder = GeneratedFolder.claim(place, describe_request(evaluation.run, task, evaluation.options))
                if not (place / SCORES).is_file():
                    with folder.locked():
                        folder.write_given(task)
                        generate_frames(model, task, folder, evaluation.options, device=device, on_step=show)
                        progress.update(bar, description=f"Comparing {title}")
                        _score(evaluation, task, truth, folder, device)
                yield entry, count, _read_scores(place / SCORES)
            done += 1
            progress.update(bar, completed=done)


def _score(
    evaluation: GenerationEvaluation, task: GenerationTask, truth: Views, folder: GeneratedFolder, device: str
) -> None:
    """Score a scene's stored views; the scores come last, so that where they are, everything is."""
    images: Tensor = torch.stack([StoredFrames(folder, task.frames)[frame] for frame in task.frames])
    plan = plan_views(task.given, task.frames, evaluation.options.plan)
    scores = score_scene(task.context.to(device), truth.to(device), images.to(device), first_anchors(plan))
    folder.finish(task, f"{task.name}: generated from {counted(len(task.given), 'view')}")
    write_json(folder.path / SCORES, asdict(scores))


def _read_scores(file: Path) -> SceneScores:
    try:
        values = json.loads(file.read_text())
        return SceneScores(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SceneDataError(f"cannot read {file} ({error}); delete it and call the command again") from None


def _in_words(command: Evaluate) -> str:
    """The command line that makes these numbers, without options that have their defaults."""
    plain, stated = ScoredGeneration(), asdict(command.generation)
    stated = {name: value for name, value in stated.items() if value != getattr(plain, name)}
    stated |= {name: value for name in ("index", "seed", "most_entries") if (value := getattr(command, name))}
    words = ["lsplat", "evaluate", command.run_folder, "--data", command.data, "--output", command.output]
    for name, value in stated.items():
        words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else (value,))]
    return shlex.join(str(word) for word in words)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("left"),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip


def _print_summary(summary: dict[str, Any]) -> None:
    state = "" if summary["complete"] else " (partial)"
    table = Table(title=f"Views generated of {counted(summary['listed'], 'scene')}{state}: PSNR / SSIM")
    table.add_column("")
    for name in ("all", ANCHORS, "inconsistency"):
        table.add_column(name, justify="right")
    for count, result in summary["given"].items():
        for what in (GENERATED, NEAREST, TRUE):
            means = [_means(result["metrics"][which].get(what, {})) for which in (ALL, ANCHORS)]
            error = result["consistency"].get(what)
            row = f"from {count}, {what}" if what == GENERATED else what
            table.add_row(row, *means, f"{error['mean']:.3f}" if error else "", end_section=what == TRUE)
    Console().print(table)
    if summary["skipped"]:
        print(f"Left out {len(summary['skipped'])}; {SUMMARY} says which and why")


def _means(scored: dict[str, Any]) -> str:
    return f"{scored['psnr']['mean']:.2f} / {scored['ssim']['mean']:.3f}" if scored else ""
