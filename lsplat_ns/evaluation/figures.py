"""Figures as papers show them, one PNG file each: comparison strips, uncertainty maps, epipolar lines."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lsplat_ns.data.atomic_files import replacing
from lsplat_ns.evaluation.illustration import difference_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE, GAP, LABEL = 1.7, 0.05, 0.24
"""Inches: of a picture, between pictures, and for the headings."""
DOTS_PER_INCH = 150
LINE_COLORS = ("#e8590c", "#1c7ed6", "#37b24d", "#ae3ec9", "#f59f00", "#0ca678")


@dataclass(frozen=True)
class TargetPictures:
    """The pictures of one target, uint8 [height, width, 3]."""

    frame: int
    truth: np.ndarray
    prediction: np.ndarray
    splat: np.ndarray
    depth: np.ndarray
    uncertainty: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        """How far prediction and truth lie apart."""
        return difference_picture(self.prediction, self.truth)


def comparison_strip(contexts: Sequence[np.ndarray], targets: Sequence[TargetPictures]) -> Figure:
    """One row per target: the context views once, then splat, prediction, truth and difference."""
    names = [*(f"context {i + 1}" for i in range(len(contexts))), "splat", "prediction", "truth", "difference"]
    rows = []
    for number, target in enumerate(targets):
        seen = list(contexts) if number == 0 else [None] * len(contexts)
        rows.append([*seen, target.splat, target.prediction, target.truth, target.difference])
    return _grid(names, rows)


def uncertainty_figure(targets: Sequence[TargetPictures]) -> Figure:
    """One row per target: splatted colour, prediction, truth, depth, and the standard deviation of the features."""
    rows = [[one.splat, one.prediction, one.truth, one.depth, one.uncertainty] for one in targets]
    return _grid(["splat", "prediction", "truth", "depth", "uncertainty (dark: unsure)"], rows)


def strip_figure(pictures: dict[str, np.ndarray]) -> Figure:
    """Pictures uint8 [height, width, 3] of one shape in a row, under their names."""
    return _grid(list(pictures), [list(pictures.values())])


def epipolar_figure(contexts: Sequence[np.ndarray], lines: Sequence[dict[str, Any]]) -> Figure:
    """Points of the first context view, and the parts of their rays that the second one sees."""
    figure = _grid(["context 1: points", "context 2: their rays, near to far"], [list(contexts[:2])], tile=2.6)
    first, second = figure.axes[:2]
    for line, color in zip(lines, LINE_COLORS, strict=False):
        height, width = contexts[0].shape[:2]
        first.plot(line["point"][0] * width - 0.5, line["point"][1] * height - 0.5, "o", color=color, markersize=6,
                   markeredgecolor="white", markeredgewidth=1.2)  # fmt: skip
        if line["segment"] is None:
            continue
        height, width = contexts[1].shape[:2]
        (x0, y0), (x1, y1) = line["segment"]
        second.plot([x0 * width - 0.5, x1 * width - 0.5], [y0 * height - 0.5, y1 * height - 0.5], color="white",
                    linewidth=3.2, solid_capstyle="round")  # fmt: skip
        second.plot([x0 * width - 0.5, x1 * width - 0.5], [y0 * height - 0.5, y1 * height - 0.5], color=color,
                    linewidth=1.8, solid_capstyle="round")  # fmt: skip
    return figure


def _grid(names: Sequence[str], rows: Sequence[Sequence[np.ndarray | None]], tile: float = TILE) -> Figure:
    """Pictures in rows under headings; None leaves a place empty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first = next(picture for picture in rows[0] if picture is not None)
    tall = tile * first.shape[0] / first.shape[1]
    width = len(names) * (tile + GAP) - GAP
    height = LABEL + len(rows) * (tall + GAP) - GAP
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    for column, name in enumerate(names):
        left = (column * (tile + GAP) + tile / 2) / width
        figure.text(left, 1 - LABEL / 2 / height, name, ha="center", va="center", fontsize=8.5, parse_math=False)
        for number, row in enumerate(rows):
            if row[column] is None:
                continue
            bottom = height - LABEL - number * (tall + GAP) - tall
            box = (column * (tile + GAP) / width, bottom / height, tile / width, tall / height)
            axes = figure.add_axes(box)
            axes.imshow(row[column], interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            axes.set_xlim(-0.5, row[column].shape[1] - 0.5)
            axes.set_ylim(row[column].shape[0] - 0.5, -0.5)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all. Raises SceneDataError where that fails."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def figure_bytes(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
