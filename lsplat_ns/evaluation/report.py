"""The report of an evaluation: index.html, and a page for every illustrated scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsplat_ns.evaluation.image_folders import image_file
from lsplat_ns.evaluation.metrics import METRICS
from lsplat_ns.evaluation.pages import (
    embedded,
    metric_columns,
    milliseconds,
    number,
    read_picture,
    sortable,
    write_page,
)
from lsplat_ns.evaluation.plots import quality_by_distance, quality_histograms
from lsplat_ns.evaluation.protocol import MEAN, NEAREST, OURS, SPLAT
from lsplat_ns.evaluation.published import TIMES, PublishedRow, PublishedTable, tables_for
from lsplat_ns.evaluation.results import ALL, PREDICTIONS, TRUTHS, EntryResult, read_results
from lsplat_ns.evaluation.scene_pages import illustrated_scenes, scene_page_name, write_scene_page
from lsplat_ns.evaluation.set_distances import ENOUGH_IMAGES
from lsplat_ns.wording import counted

IMAGE_METRICS = ("psnr", "ssim", "lpips", "dists")
SET_METRICS = ("fid", "kid")
SCORED = (OURS, SPLAT, NEAREST, MEAN)
PARTS = {"encode": "Encode two views, once per scene", "splat": "Splat one view", "decode": "Decode one view"}
THUMBNAIL = 200
PICTURES = """Pictures are cut off to 8 bits before they are compared, as in the original, which reads its PNG files
back. A metric is averaged over the targets of an entry, then over entries; ± is the standard deviation over entries."""
OTHERS = """Splatted colour: the Gaussians as they are rendered, without the decoder. No network: for each target a copy
of the context view whose camera is nearest, and the mean of the context views. FID and KID are of predictions only."""


@dataclass(frozen=True)
class ReportContext:
    """What the report says of the run."""

    title: str
    method: str
    dataset: str  # as in ``published``
    facts: tuple[tuple[str, str], ...]


def write_report(folder: Path, summary: dict[str, Any], context: ReportContext) -> Path:
    """Write the pages of an evaluation's folder from its summary, results and pictures.

    Args:
        folder: The evaluation.
        summary: Of ``evaluate.finish``.
        context: What the numbers belong to.

    Returns:
        The page to open.

    Raises:
        SceneDataError: If a page cannot be written.
    """
    by_scene: dict[str, list[EntryResult]] = {}
    for result in read_results(folder):
        by_scene.setdefault(result.scene, []).append(result)
    illustrated = illustrated_scenes(folder, by_scene)
    names = list(illustrated)
    for number_of, scene in enumerate(names):
        before = scene_page_name(names[number_of - 1]) if number_of else None
        after = scene_page_name(names[number_of + 1]) if number_of + 1 < len(names) else None
        write_scene_page(folder, scene, illustrated[scene], before, after)
    results = [result for listed in by_scene.values() for result in listed]
    measured = _measured(summary)
    tables = tables_for(context.dataset, summary["settings"]["index"], set(summary["metrics"]) - {ALL})
    image_metrics = [name for name in IMAGE_METRICS if name in summary["metrics"][ALL][OURS]]
    page = folder / "index.html"
    write_page(
        "report_index.html",
        page,
        title=context.title,
        facts=_facts(summary, context),
        complete=summary["complete"],
        used=summary["entries"],
        listed=summary["listed"]["entries"],
        columns=metric_columns([*IMAGE_METRICS, *SET_METRICS]),
        image_columns=metric_columns(image_metrics),
        groups=[_own_rows(measured, summary, context), *(published_rows(t, summary, measured) for t in tables)],
        notes=[*measured_notes(summary), *(f"{t.title}: {note}" for t in tables for note in t.notes)],
        by_kind=_kind_groups(summary, context, image_metrics),
        plots=_plots(results, image_metrics),
        times=_times(summary),
        device=summary["device"],
        cards=[_card(folder, scene, listed[0]) for scene, listed in illustrated.items()],
        scenes=_scene_rows(summary, set(illustrated), image_metrics),
        skipped=sorted(summary["skipped"].items()),
        skip_counts=_skip_counts(summary["skipped"]),
        definitions=[
            ("Pictures", PICTURES),
            ("Other rows", OTHERS),
            *((info.label, info.definition) for info in METRICS.values()),
        ],
    )
    return page


def measured_notes(summary: dict[str, Any]) -> list[str]:
    """One line per reason why metrics were not measured, and one where FID and KID are of few images."""
    by_reason: dict[str, list[str]] = {}
    for name, why in summary["unavailable"].items():
        by_reason.setdefault(why, []).append(METRICS[name].label)
    notes = [f"Not measured: {' and '.join(labels)}: {why}" for why, labels in by_reason.items()]
    images = summary["distances"].get("images", ENOUGH_IMAGES)
    if images < ENOUGH_IMAGES:
        notes.append(f"FID and KID are of {images} images: below {ENOUGH_IMAGES} they compare with nothing elsewhere.")
    return notes


def _measured(summary: dict[str, Any]) -> dict[str, float]:
    """The prediction's means by metric."""
    means = {name: value["mean"] for name, value in summary["metrics"][ALL][OURS].items()}
    return {**means, **{name: summary["distances"][name] for name in SET_METRICS if name in summary["distances"]}}


def _facts(summary: dict[str, Any], context: ReportContext) -> list[tuple[str, str]]:
    copied = summary["targets_that_are_context_views"]
    copies = counted(copied, "is a context view", "are context views")
    targets = f"{summary['targets']}" + (f", of which {copies}" if copied else "")
    scenes = len(summary["scenes"])
    return [
        *context.facts,
        ("Scenes", f"{scenes} used, {summary['listed']['scenes'] - scenes} left out"),
        ("Entries", f"{summary['entries']} of {summary['listed']['entries']}"),
        ("Targets", targets),
    ]


def _own_rows(measured: dict[str, float], summary: dict[str, Any], context: ReportContext) -> dict[str, Any]:
    scored = summary["metrics"][ALL]
    rows = []
    for what in (what for what in SCORED if what in scored):
        name = f"{context.method}, this run" if what == OURS else what
        cells = [_cell(metric, scored[what].get(metric)) for metric in IMAGE_METRICS]
        cells += [{"text": number(metric, measured.get(metric) if what == OURS else None)} for metric in SET_METRICS]
        rows.append({"name": name, "note": "", "cells": cells, "source": "measured here"})
    return {"style": "ours", "title": "", "rows": rows}


def _cell(metric: str, value: dict[str, float] | None) -> dict[str, str]:
    if value is None:
        return {"text": number(metric, None)}
    return {"text": number(metric, value["mean"]), "spread": number(metric, value["std"])}


def published_rows(table: PublishedTable, summary: dict[str, Any], measured: dict[str, float]) -> dict[str, Any]:
    """A group of table rows, with verdicts on latentSplat's where the evaluation compares, else with why it does not.

    Args:
        table: Published rows.
        summary: Of the evaluation.
        measured: The prediction's means by metric.
    """
    settings = summary["settings"]
    differences = table.differences(
        settings["index"], summary["entries"], summary["targets"], tuple(settings["image_size"])
    )
    remark = f"Not comparable with this evaluation: {'; '.join(differences)}." if differences else ""
    rows = [_published_row(row, {} if differences else measured) for row in table.rows]
    title = f"Published: {table.title} ({table.index}, {table.pairs} pairs)"
    return {"style": "published", "title": title, "remark": remark, "rows": rows}


def _published_row(row: PublishedRow, measured: dict[str, float]) -> dict[str, Any]:
    cells = []
    for metric in (*IMAGE_METRICS, *SET_METRICS):
        cell = {"text": number(metric, row.metrics.get(metric))}
        verdict = row.verdict(metric, measured[metric]) if metric in measured else None
        if verdict is not None:
            cell["verdict"] = "within" if verdict else "outside"
            cell["text"] += f" ±{row.tolerance[metric]:g}"
        cells.append(cell)
    return {"name": row.method, "note": row.note, "cells": cells, "source": f"{row.source} ({row.mark})"}


def _kind_groups(summary: dict[str, Any], context: ReportContext, metrics: Sequence[str]) -> list[dict[str, Any]]:
    groups = []
    for kind in (kind for kind in summary["metrics"] if kind != ALL):
        rows = []
        for what in SCORED:
            scored = summary["metrics"][kind].get(what)
            if scored:
                cells = [_cell(metric, scored.get(metric)) for metric in metrics]
                source = counted(max(value["count"] for value in scored.values()), "entry", "entries")
                name = context.method if what == OURS else what
                rows.append({"name": name, "note": "", "cells": cells, "source": source})
        groups.append({"style": "ours", "title": kind.capitalize(), "rows": rows})
    return groups


def _plots(results: Sequence[EntryResult], metrics: Sequence[str]) -> list[str]:
    kept = [name for name in metrics if any(r.mean(OURS, name) is not None for r in results)]
    if not kept:
        return []
    plots = [quality_histograms(results, kept)]
    if len({distance for result in results for distance in result.distances}) > 1:
        plots.append(quality_by_distance(results, kept))
    return plots


def _times(summary: dict[str, Any]) -> list[dict[str, str]]:
    published = {time.part: time for time in TIMES}
    rows = []
    for part, title in PARTS.items():
        measured = summary["seconds"][part]
        theirs = published.get(part)
        rows.append(
            {
                "part": title,
                "median": milliseconds(measured["median"]),
                "mean": milliseconds(measured["mean"]),
                "published": milliseconds(theirs.seconds if theirs else None),
                "source": f"{theirs.source}; 256x256, unsynchronised, GPU not named" if theirs else "",
            }
        )
    return rows


def _card(folder: Path, scene: str, result: EntryResult) -> dict[str, str]:
    frame = result.target[0]
    pictures = {
        name: embedded(read_picture(image_file(folder / root, scene, result.context, frame)), THUMBNAIL)
        for name, root in (("truth", TRUTHS), ("prediction", PREDICTIONS))
    }
    score = f"{number('psnr', result.mean(OURS, 'psnr'))} dB"
    return {"name": scene, "href": f"scenes/{scene_page_name(scene)}", "score": score, **pictures}


def _scene_rows(summary: dict[str, Any], illustrated: set[str], metrics: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": scene,
            "href": f"scenes/{scene_page_name(scene)}" if scene in illustrated else "",
            "entries": values["entries"],
            "cells": [sortable(metric, values.get(metric)) for metric in metrics],
        }
        for scene, values in summary["scenes"].items()
    ]


def _skip_counts(skipped: dict[str, str]) -> list[tuple[str, int]]:
    """Reasons without the names in them, the most frequent first."""
    counts = Counter(_general(reason, name) for name, reason in skipped.items())
    return counts.most_common(8)


def _general(reason: str, name: str) -> str:
    return reason.replace(name.split(" (", maxsplit=1)[0], "…")
