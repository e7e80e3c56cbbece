"""``lsplat evaluate``, ``lsplat compare``, and the evaluation behind ``ns-eval``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import torch

from lsplat_ns.errors import ConfigError
from lsplat_ns.evaluation.entries import EvaluationData, IndexedScenes
from lsplat_ns.evaluation.evaluate import Evaluation, EvaluationOutcome, evaluate_entries, finish
from lsplat_ns.evaluation.metrics import METRICS, find_image_metrics
from lsplat_ns.evaluation.protocol import OURS
from lsplat_ns.evaluation.report import ReportContext, measured_notes, write_report
from lsplat_ns.evaluation.results import ALL, EntryResult, EvaluationFolder
from lsplat_ns.geometry.validation_trajectories import Trajectory
from lsplat_ns.plugin.active_scene import ActiveScene
from lsplat_ns.plugin.captures import active_scene_from_dataparser, open_dataparser
from lsplat_ns.plugin.dataparsers import SceneSetDataParser, dataparser_for
from lsplat_ns.plugin.evaluation_data import ActiveSceneData, indexed_scenes
from lsplat_ns.plugin.evaluation_pictures import Illustrator
from lsplat_ns.plugin.predictor import load_network
from lsplat_ns.plugin.runs import StoredRun
from lsplat_ns.wording import counted

if TYPE_CHECKING:
    from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
    from rich.progress import Progress


@dataclass(frozen=True)
class EvaluationOptions:
    """Choices of ``lsplat evaluate``; its command describes them."""

    index: Optional[Path] = None
    data: Optional[Path] = None
    sample: int = 1
    seed: int = 0
    illustrated: int = 24
    video: Sequence[Trajectory] = ()
    most_entries: Optional[int] = None
    distances: bool = True

    def __post_init__(self) -> None:
        for name, least in (("sample", 0), ("illustrated", 0), ("most_entries", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be {least} or more, but is {value}")


# ------------------------------------------------------------------------------------------------ lsplat evaluate


def evaluate_run(run: Path, output: Path, options: EvaluationOptions) -> dict[str, Any]:
    """Evaluate a run into a folder, with progress, and write summary and report.

    A second call with the same options goes on where the first was interrupted.

    Args:
        run: Run folder, or its config.yml.
        output: Folder to make or to go on with.
        options: What to evaluate.

    Returns:
        The summary.

    Raises:
        LsplatError: If the run, its data or the index cannot be used, or the folder holds another evaluation.
        KeyboardInterrupt: After a summary and a report that say that they are partial, where any entry is done.
    """
    from rich.console import Console

    console = Console(stderr=True)
    stored = StoredRun.open(run)
    config = _dataparser_config(stored, options.data)
    network_config = stored.config.pipeline.model.network
    opened = _open_data(config, stored, options)
    with console.status("Loading the network"):
        network = load_network(stored, network_config)
    data = ActiveSceneData(opened, network) if isinstance(opened, ActiveScene) else opened
    settings = _settings(stored, config, data, options)
    folder = EvaluationFolder(output, settings)
    found = find_image_metrics()
    illustrator = Illustrator(
        network, data, output, scenes=options.illustrated, videos=options.video,
        seed=options.seed if options.sample else None,
    )  # fmt: skip
    evaluation = Evaluation(network, data, found, options.sample, options.seed, on_draw=illustrator.show)
    if folder.done:
        console.print(
            f"Going on in {output}: {counted(len(folder.done), 'entry is', 'entries are')} done", highlight=False
        )
    outcome = _evaluate_with_progress(evaluation, folder, console)
    if not (outcome.finished or folder.done):
        raise KeyboardInterrupt
    if outcome.finished:
        _illustrate_the_rest(evaluation, folder, illustrator, console)
    summary = _finish_with_progress(evaluation, outcome, options, console)
    with console.status("Writing the report"):
        page = write_report(output, summary, _report_context(stored, config, settings))
    _print_summary(summary, page)
    if not outcome.finished:
        raise KeyboardInterrupt
    return summary


def check_run(run: Path, options: EvaluationOptions) -> None:
    """Raise LsplatError where :func:`evaluate_run` would before its first entry: no usable run, data or index."""
    stored = StoredRun.open(run)
    _open_data(_dataparser_config(stored, options.data), stored, options)


def _dataparser_config(stored: StoredRun, data: Optional[Path]) -> DataParserConfig:
    """The run's dataset, or another one of the stated folder, with the run's options where they fit."""
    datamanager = stored.config.pipeline.datamanager
    config = datamanager.dataparser
    if data is None:
        return replace(config, data=Path(datamanager.data or config.data))
    return dataparser_for(data.expanduser(), config)


def _open_data(config: DataParserConfig, stored: StoredRun, options: EvaluationOptions) -> IndexedScenes | ActiveScene:
    """The entries of a dataset of many scenes, or the scene that a capture is."""
    datamanager = stored.config.pipeline.datamanager
    dataparser = open_dataparser(config)
    if not isinstance(dataparser, SceneSetDataParser):
        if options.index is not None:
            raise ConfigError(f"--index is for datasets of many scenes, but {config.data} is a capture")
        return active_scene_from_dataparser(dataparser, datamanager.preparation, datamanager)
    if options.index is not None:
        dataparser.config.evaluation_index = options.index
    data = indexed_scenes(dataparser, datamanager.preparation)
    if data is None:
        raise ConfigError(
            f"{config.data} has no evaluation index; name one with --index, or draw one with "
            f"`lsplat index {config.data} --evaluation`"
        )
    return data if options.most_entries is None else data.thinned(options.most_entries)


def _settings(
    stored: StoredRun, config: DataParserConfig, data: EvaluationData, options: EvaluationOptions
) -> dict[str, Any]:
    """What the numbers depend on; a folder holds one such evaluation.

    Of the data, where they lie and which entries are evaluated: to read all images would take as long as to score them.
    """
    entries = repr([entry.key for entry in data.entries]).encode()
    exact = stored.config.pipeline.model.acceleration == "off" or not torch.cuda.is_available()
    folders = (config.data, *getattr(config, "more_data", ()))
    return {
        "run": str(stored.folder.resolve()),
        "steps": stored.steps_done,
        "weights_sha256": stored.weights_sha256(),
        "data": data.name,
        "data_path": " + ".join(str(Path(folder).resolve()) for folder in folders),
        "index": data.index,
        "entries_sha256": sha256(entries).hexdigest(),
        "image_size": list(data.size),
        "precision": "float32" if exact else "mixed",
        "draws": options.sample,
        "seed": options.seed,
    }


def _progress(console: Any) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"), console=console, transient=True,
    )  # fmt: skip


def _evaluate_with_progress(evaluation: Evaluation, folder: EvaluationFolder, console: Any) -> EvaluationOutcome:
    with _progress(console) as progress:
        task = progress.add_task("Evaluating", total=len(evaluation.data.entries), note="")
        total, count = 0.0, 0

        def on_entry(done: int, result: Optional[EntryResult]) -> None:
            nonlocal total, count
            value = None if result is None else result.mean(OURS, "psnr")
            if value is not None:
                total, count = total + value, count + 1
            note = f"PSNR {total / count:.2f} dB" if count else ""
            progress.update(task, completed=done, note=note)

        return evaluate_entries(evaluation, folder, on_entry=on_entry)


def _illustrate_the_rest(
    evaluation: Evaluation, folder: EvaluationFolder, illustrator: Illustrator, console: Any
) -> None:
    """Pages and videos of entries that an earlier call evaluated without them."""
    entries = [entry for entry in illustrator.missing() if entry.key in folder.done]
    with _progress(console) as progress:
        task = progress.add_task("Illustrating", total=len(entries), note="", visible=bool(entries))
        for entry in entries:
            loaded = evaluation.data.load(entry)
            illustrator.show(entry, loaded, evaluation.draw(entry, loaded.example.to(evaluation.device)))
            progress.advance(task)


def _finish_with_progress(
    evaluation: Evaluation, outcome: EvaluationOutcome, options: EvaluationOptions, console: Any
) -> dict[str, Any]:
    """Sum up; Ctrl-C while FID is computed leaves a partial summary."""
    targets = sum(len(result.target) for result in outcome.folder.done.values())
    try:
        with _progress(console) as progress:
            task = progress.add_task("FID and KID", total=2 * targets, note="", visible=False)
            return finish(
                evaluation,
                outcome,
                distances=options.distances,
                on_images=lambda count: progress.update(task, advance=count, visible=True),
            )
    except KeyboardInterrupt:
        outcome.finished = False
        return finish(evaluation, outcome, distances=False)


def _report_context(stored: StoredRun, config: DataParserConfig, settings: dict[str, Any]) -> ReportContext:
    height, width = settings["image_size"]
    draws = {0: "modes", 1: "one draw, as published"}.get(settings["draws"], f"means over {settings['draws']} draws")
    facts = (
        ("Method", stored.config.method_name),
        ("Steps", f"{stored.steps_done:,}"),
        ("Data", str(config.data)),
        ("Index", settings["index"] or "none; the capture's own views"),
        ("Images", f"{width}x{height}"),
        ("Prediction", f"{draws}, seed {settings['seed']}"),
        ("Precision", settings["precision"]),
        ("Made", date.today().isoformat()),
    )
    return ReportContext(f"Evaluation of {stored.folder.name}", stored.config.method_name, settings["data"], facts)


def _print_summary(summary: dict[str, Any], page: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    state = "" if summary["complete"] else " (partial)"
    listed = summary["listed"]["entries"]
    scenes = counted(len(summary["scenes"]), "scene")
    table = Table(title=f"{summary['entries']} of {counted(listed, 'entry', 'entries')}, {scenes}{state}")
    names = [name for name in METRICS if any(name in scored for scored in summary["metrics"][ALL].values())]
    table.add_column("")
    for name in names:
        table.add_column(METRICS[name].label, justify="right")
    for what, scored in summary["metrics"][ALL].items():
        digits = [METRICS[name].digits for name in names]
        cells = [f"{scored[n]['mean']:.{d}f}" if n in scored else "–" for n, d in zip(names, digits, strict=True)]
        table.add_row(what, *cells)
    console = Console()
    console.print(table)
    if summary["distances"]:
        found = summary["distances"]
        print(f"FID {found['fid']:.2f}, KID {found['kid']:.4f} of {found['images']} images")
    if summary["skipped"]:
        print(f"Left out {len(summary['skipped'])}; summary.json and the report say which and why")
    for note in measured_notes(summary):
        print(note)
    print(f"Report: {page}")
