"""Two evaluations side by side, entry by entry."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsplat_ns.data.atomic_files import replacing
from lsplat_ns.errors import ConfigError
from lsplat_ns.evaluation.image_folders import image_file
from lsplat_ns.evaluation.metrics import METRICS
from lsplat_ns.evaluation.pages import embedded, number, read_picture, sortable, write_page
from lsplat_ns.evaluation.plots import difference_histogram
from lsplat_ns.evaluation.protocol import OURS
from lsplat_ns.evaluation.results import PREDICTIONS, SETTINGS, SUMMARY, TRUTHS, EntryResult, read_json, read_results
from lsplat_ns.wording import counted

IMAGE_METRICS = ("psnr", "ssim", "lpips", "dists")
NORMAL_95 = 1.96
MUST_AGREE = ("data", "data_path", "index", "image_size", "precision", "draws", "seed")
"""Settings that change numbers whatever the networks are."""
THUMBNAIL = 220


@dataclass(frozen=True)
class PairedDifference:
    """One metric of two evaluations over the entries that both have."""

    metric: str
    a: float
    b: float
    differences: np.ndarray  # [entries], B - A

    @property
    def mean(self) -> float:
        """Mean of B - A."""
        return float(self.differences.mean())

    @property
    def half_width(self) -> float | None:
        """Half the 95 % interval of the mean, by the normal approximation; None for a single entry."""
        count = len(self.differences)
        if count < 2:
            return None
        return NORMAL_95 * float(self.differences.std(ddof=1)) / math.sqrt(count)

    @property
    def wins(self) -> int:
        """Entries in which B is better."""
        better = self.differences > 0 if METRICS[self.metric].higher_is_better else self.differences < 0
        return int(better.sum())

    @property
    def style(self) -> str:
        """better or worse where the interval excludes zero, else nothing."""
        width = self.half_width
        if width is None or abs(self.mean) <= width:
            return ""
        return "better" if (self.mean > 0) == METRICS[self.metric].higher_is_better else "worse"


@dataclass(frozen=True)
class Comparison:
    """Two evaluations and what they share."""

    folders: tuple[Path, Path]
    summaries: tuple[dict[str, Any], dict[str, Any]]
    pairs: list[tuple[EntryResult, EntryResult]]  # entries that both have
    differences: list[PairedDifference]
    warnings: list[str]

    @staticmethod
    def of(a: Path, b: Path) -> Comparison:
        """Join two evaluation folders.

        Raises:
            ConfigError: If one of them is no evaluation, or they share no entry.
        """
        for folder in (a, b):
            if not (folder / SUMMARY).is_file() or not (folder / SETTINGS).is_file():
                raise ConfigError(f"{folder} holds no evaluation; make one with lsplat evaluate")
        first, second = ({result.key: result for result in read_results(folder)} for folder in (a, b))
        pairs = [(first[key], second[key]) for key in first if key in second]
        if not pairs:
            raise ConfigError(f"{a} and {b} share no entry; evaluate both on the same index")
        summaries = read_json(a / SUMMARY), read_json(b / SUMMARY)
        found = [_paired(metric, pairs) for metric in IMAGE_METRICS]
        return Comparison(
            (a, b), summaries, pairs, [one for one in found if one is not None], _warnings(summaries, first, second)
        )


def _paired(metric: str, pairs: list[tuple[EntryResult, EntryResult]]) -> PairedDifference | None:
    values = [(one.mean(OURS, metric), other.mean(OURS, metric)) for one, other in pairs]
    both = np.array([value for value in values if None not in value], dtype=np.float64)
    if not len(both):
        return None
    return PairedDifference(metric, float(both[:, 0].mean()), float(both[:, 1].mean()), both[:, 1] - both[:, 0])


def _warnings(
    summaries: tuple[dict[str, Any], dict[str, Any]], first: dict[Any, EntryResult], second: dict[Any, EntryResult]
) -> list[str]:
    settings = [summary["settings"] for summary in summaries]
    found = [
        f"{name.replace('_', ' ').capitalize()} {difference}."
        for name in MUST_AGREE
        if (difference := _difference(name, *settings))
    ]
    for name, summary in zip("AB", summaries, strict=True):
        if not summary["complete"]:
            listed = counted(summary["listed"]["entries"], "entry", "entries")
            found.append(f"{name} is partial: {summary['entries']} of {listed}.")
    alone = len(first.keys() ^ second.keys())
    if alone:
        found.append(f"Evaluated by only one of the two and left out: {alone} of {len(first | second)} entries.")
    return found


def _difference(name: str, a: dict[str, Any], b: dict[str, Any]) -> str:
    """How a setting differs; nothing where it does not. Earlier versions of this program noted fewer."""
    noted = [side for side, settings in (("A", a), ("B", b)) if name in settings]
    if len(noted) == 1:
        return f"is noted by {noted[0]} alone, and may differ"
    return f"differs: {_said(a[name])} in A, {_said(b[name])} in B" if noted and a[name] != b[name] else ""


def _said(value: Any) -> str:
    """A setting as people write it; an image size is stored as [height, width]."""
    return f"{value[0]}x{value[1]}" if isinstance(value, list) else str(value) if value not in (None, "") else "none"


def table_rows(comparison: Comparison) -> list[dict[str, str]]:
    """What a table of the comparison holds, for pages and terminals."""
    rows = []
    for one in comparison.differences:
        info, width = METRICS[one.metric], one.half_width
        digits = info.digits + 1
        interval = "–" if width is None else f"{one.mean - width:+.{digits}f} … {one.mean + width:+.{digits}f}"
        rows.append(
            {
                "label": info.label,
                "arrow": "↑" if info.higher_is_better else "↓",
                "a": number(one.metric, one.a),
                "b": number(one.metric, one.b),
                "difference": f"{one.mean:+.{digits}f}",
                "interval": interval,
                "wins": f"{one.wins} of {len(one.differences)}",
                "style": one.style,
            }
        )
    for metric in ("fid", "kid"):
        a, b = (summary["distances"].get(metric) for summary in comparison.summaries)
        if a is not None and b is not None:
            info = METRICS[metric]
            rows.append(
                {
                    "label": info.label, "arrow": "↓", "a": number(metric, a), "b": number(metric, b),
                    "difference": f"{b - a:+.{info.digits}f}", "interval": "–", "wins": "–", "style": "",
                }
            )  # fmt: skip
    return rows


def write_comparison(comparison: Comparison, page: Path, names: tuple[str, str], illustrated: int = 12) -> None:
    """Write the page of a comparison.

    Args:
        comparison: The two evaluations.
        page: File to write.
        names: What A and B are called.
        illustrated: Entries that are shown in pictures: those that differ most.

    Raises:
        SceneDataError: If the page cannot be written.
    """
    shown = [one.metric for one in comparison.differences]
    write_page(
        "report_compare.html",
        page,
        title=f"{names[0]} and {names[1]}",
        facts=[("A", names[0]), ("B", names[1]), ("Entries of both", str(len(comparison.pairs)))],
        warnings=comparison.warnings,
        rows=table_rows(comparison),
        plot=difference_histogram({one.metric: one.differences for one in comparison.differences})
        if comparison.differences
        else "",
        cards=_cards(comparison, illustrated),
        scene_columns=[f"{METRICS[metric].label} {side}" for metric in shown for side in ("A", "B", "B − A")],
        scenes=_scene_rows(comparison, shown),
    )


def _cards(comparison: Comparison, count: int) -> list[dict[str, Any]]:
    """Entries with the largest differences in PSNR."""

    def difference(pair: tuple[EntryResult, EntryResult]) -> float:
        a, b = (result.mean(OURS, "psnr") for result in pair)
        return 0.0 if a is None or b is None else b - a

    cards = []
    for pair in sorted(comparison.pairs, key=lambda pair: -abs(difference(pair)))[:count]:
        result, value = pair[0], difference(pair)
        frame = result.target[0]
        place = result.scene, result.context, frame
        roots = (
            ("truth", comparison.folders[0] / TRUTHS),
            ("A", comparison.folders[0] / PREDICTIONS),
            ("B", comparison.folders[1] / PREDICTIONS),
        )
        pictures = [
            {"name": name, "src": embedded(read_picture(image_file(root, *place)), THUMBNAIL)} for name, root in roots
        ]
        style = "better" if value > 0 else "worse" if value < 0 else ""
        name = f"{result.scene}, frame {frame}"
        cards.append({"name": name, "pictures": pictures, "score": f"{value:+.2f} dB", "style": style})
    return cards


def _scene_rows(comparison: Comparison, metrics: list[str]) -> list[dict[str, Any]]:
    by_scene: dict[str, list[tuple[EntryResult, EntryResult]]] = {}
    for pair in comparison.pairs:
        by_scene.setdefault(pair[0].scene, []).append(pair)
    rows = []
    for scene, pairs in by_scene.items():
        cells = []
        for metric in metrics:
            paired = _paired(metric, pairs)
            values = (None, None, None) if paired is None else (paired.a, paired.b, paired.mean)
            cells += [sortable(metric, value) for value in values]
        rows.append({"name": scene, "cells": cells})
    return rows


def write_numbers(comparison: Comparison, path: Path) -> None:
    """Write the comparison as JSON. Raises SceneDataError where that fails."""
    numbers = {
        one.metric: {
            "a": one.a,
            "b": one.b,
            "mean_difference": one.mean,
            "interval_half_width_95": one.half_width,
            "b_better": one.wins,
            "entries": len(one.differences),
        }
        for one in comparison.differences
    }
    with replacing(path) as partial:
        partial.write_text(json.dumps({"warnings": comparison.warnings, "metrics": numbers}, indent=2) + "\n")
