"""Plots of a report, as SVG that takes its ink from the page: readable on light and on dark."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lsplat_ns.evaluation.metrics import METRICS
from lsplat_ns.evaluation.protocol import MEAN, NEAREST, OURS, SPLAT
from lsplat_ns.evaluation.results import EntryResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#123456"
"""A colour that nothing else has; it becomes the page's text colour."""
COLORS = {OURS: "#e8590c", SPLAT: "#f2b134", NEAREST: "#4c8dd6", MEAN: "#8b95a1"}
CONTEXT_COLOR, TARGET_COLOR = "#e8590c", "#4c8dd6"
FRUSTUM = 0.12
"""Depth of a drawn camera, as a fraction of the extent of all cameras."""


def _figure(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = list(np.atleast_1d(figure.subplots(1, columns)))
    for one in axes:
        one.set_facecolor("none")
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(INK)
        one.tick_params(colors=INK, labelsize=9)
        one.xaxis.label.set_color(INK)
        one.yaxis.label.set_color(INK)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    """One legend above all axes, in as many rows as its figure's width needs; inside it would cover curves."""
    handles, labels = axes.get_legend_handles_labels()
    columns = len(labels) if figure.get_figwidth() > 6 else 2
    figure.legend(
        handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=8, labelcolor=INK,
        handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip


def _svg(figure: Figure, description: str) -> str:
    """The drawing as an element to put into a page, text as text."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "lsplat"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    element = text[text.index("<svg") :].replace(INK, "currentColor")
    return element.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)


def quality_histograms(results: Sequence[EntryResult], metrics: Sequence[str]) -> str:
    """How each image metric is spread over targets: the prediction, and the copies of context views."""
    figure, axes = _figure(3.1 * len(metrics), 2.8, len(metrics))
    for one, metric in zip(axes, metrics, strict=True):
        found = {what: _values(results, what, metric) for what in COLORS}
        found = {what: values for what, values in found.items() if len(values)}
        everything = np.concatenate(list(found.values()))
        low, high = np.quantile(everything, (0.005, 0.995))
        edges = np.linspace(low, high if high > low else low + 1e-3, 33)
        for what, values in found.items():
            counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
            share = 100 * counts / len(values)
            one.stairs(share, edges, color=COLORS[what], linewidth=1.6, label=what)
            one.stairs(share, edges, color=COLORS[what], alpha=0.15, fill=True)
        info = METRICS[metric]
        one.set_xlabel(f"{info.label}{' (dB)' if metric == 'psnr' else ''}")
    axes[0].set_ylabel("targets (%)")
    _legend(figure, axes[0])
    return _svg(figure, "Histograms of image metrics")


def quality_by_distance(results: Sequence[EntryResult], metrics: Sequence[str]) -> str:
    """How image metrics depend on the distance, in frames, from the nearest context view."""
    figure, axes = _figure(3.1 * len(metrics), 2.8, len(metrics))
    frames = np.array([distance for result in results for distance in result.distances])
    edges = np.unique(np.quantile(frames, np.linspace(0, 1, 11)).round())
    for one, metric in zip(axes, metrics, strict=True):
        for what, color in COLORS.items():
            values = np.array([v for result in results for v in _of(result, what, metric)], dtype=np.float64)
            if not np.isfinite(values).any():
                continue
            rows = []
            for low, high in pairwise(edges):
                last = high == edges[-1]
                inside = (frames >= low) & ((frames <= high) if last else (frames < high)) & np.isfinite(values)
                if inside.any():
                    rows.append((frames[inside].mean(), values[inside].mean(), values[inside].std()))
            x, mean, std = np.array(rows or [(np.nan, np.nan, np.nan)]).T
            one.plot(x, mean, color=color, linewidth=1.8, marker="o", markersize=3.5, label=what)
            if what == OURS:
                one.fill_between(x, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
        one.set_ylabel(METRICS[metric].label)
        one.set_xlabel("frames from the nearest context view")
    _legend(figure, axes[0])
    return _svg(figure, "Image metrics by distance from the context views")


def difference_histogram(differences: dict[str, np.ndarray]) -> str:
    """How the differences of two evaluations, entry by entry, are spread, for each metric."""
    figure, axes = _figure(3.1 * len(differences), 2.4, len(differences))
    for one, (metric, values) in zip(axes, differences.items(), strict=True):
        reach = max(float(np.abs(values).max()), 1e-6)
        counts, edges = np.histogram(values, np.linspace(-reach, reach, 34))
        one.stairs(counts, edges, color=COLORS[OURS], linewidth=1.4)
        one.stairs(counts, edges, color=COLORS[OURS], alpha=0.15, fill=True)
        one.axvline(0, color=INK, linewidth=0.8)
        one.axvline(values.mean(), color=COLORS[OURS], linewidth=1.6, linestyle="--")
        one.set_xlabel(f"{METRICS[metric].label}: B − A")
    axes[0].set_ylabel("entries")
    for one in axes:
        one.yaxis.get_major_locator().set_params(integer=True)
    return _svg(figure, "Histograms of differences between the two evaluations")


def camera_layout(layout: dict[str, Any]) -> str:
    """The cameras of an entry from above and from the side."""
    figure, axes = _figure(5.6, 2.0, 2)
    centres = np.array(layout["path"])
    places = np.array([camera["world_from_camera"] for camera in layout["cameras"]])
    turn, middle = _upright(np.array(layout["up"]), centres), centres.mean(0)
    extent = max(float(np.ptp(centres, axis=0).max()), float(np.ptp(places[:, :3, 3], axis=0).max()), 1e-6)
    path = (centres - middle) @ turn.T
    if layout["circular"]:
        path = np.concatenate([path, path[:1]])
    for one, vertical, name in zip(axes, (1, 2), ("from above", "from the side"), strict=True):
        one.plot(path[:, 0], path[:, vertical], color=INK, alpha=0.35, linewidth=1)
        for camera in layout["cameras"]:
            color = CONTEXT_COLOR if camera["role"] == "context" else TARGET_COLOR
            outline = (_frustum(camera, FRUSTUM * extent) - middle) @ turn.T
            one.plot(outline[:, 0], outline[:, vertical], color=color, linewidth=1.3, solid_joinstyle="round")
        one.set_aspect("equal", adjustable="datalim")
        one.set_title(name, fontsize=9, color=INK, loc="left")
        one.set_xticks([])
        one.set_yticks([])
        one.spines[["left", "bottom"]].set_visible(False)
    return _svg(figure, "Cameras of the entry")


def _frustum(camera: dict[str, Any], depth: float) -> np.ndarray:
    """One line [n, 3] through tip and corners of a camera's image at a depth."""
    corners = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]]) @ np.linalg.inv(camera["intrinsics_norm"]).T
    pose = np.array(camera["world_from_camera"])
    a, b, c, d = depth * corners @ pose[:3, :3].T + pose[:3, 3]
    tip = pose[:3, 3]
    return np.array([tip, a, b, tip, c, d, tip, a, d, c, b])


def _upright(up: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """A rotation [3, 3] with ``up`` as its last row, and the cameras' main horizontal direction as its first."""
    up = up / max(np.linalg.norm(up), 1e-12)
    level = centres - centres.mean(0)
    level = level - np.outer(level @ up, up)
    along = np.linalg.svd(level, full_matrices=False)[2][0]
    along = along - up * (along @ up)
    if np.linalg.norm(along) < 1e-6:
        along = np.cross(up, np.eye(3)[np.abs(up).argmin()])
    along = along / np.linalg.norm(along)
    return np.stack([along, np.cross(up, along), up])


def _of(result: EntryResult, what: str, metric: str) -> list[float]:
    """One number per target; NaN where it is undefined, or was not measured when this entry was evaluated."""
    values = result.metrics.get(what, {}).get(metric, [None] * len(result.target))
    return [float("nan") if value is None else value for value in values]


def _values(results: Sequence[EntryResult], what: str, metric: str) -> np.ndarray:
    values = np.array([v for result in results for v in _of(result, what, metric)])
    return values[np.isfinite(values)]
