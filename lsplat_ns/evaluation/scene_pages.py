"""The page of one scene: context, target, prediction, difference, splat, depth, uncertainty, and the cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from lsplat_ns.evaluation.figures import (
    TargetPictures,
    comparison_strip,
    epipolar_figure,
    figure_bytes,
    save_figure,
    uncertainty_figure,
)
from lsplat_ns.evaluation.illustration import ILLUSTRATIONS, layout_file
from lsplat_ns.evaluation.image_folders import (
    CONTEXT,
    entry_folder,
    entry_name,
    image_file,
    pair_name,
    scene_folder_name,
)
from lsplat_ns.evaluation.metrics import METRICS
from lsplat_ns.evaluation.pages import data_uri, embedded, number, read_picture, write_page
from lsplat_ns.evaluation.plots import camera_layout
from lsplat_ns.evaluation.protocol import OURS
from lsplat_ns.evaluation.results import PREDICTIONS, TRUTHS, EntryResult, read_json

SCENES, FIGURES, VIDEOS = "scenes", "figures", "videos"
PICTURES = ("truth", "prediction", "difference", "splat", "depth", "uncertainty")
CAPTIONS = {
    "difference": "difference (black: none)",
    "depth": "depth (red: near)",
    "uncertainty": "uncertainty (dark: unsure)",
}


def illustrated_scenes(folder: Path, by_scene: Mapping[str, Sequence[EntryResult]]) -> dict[str, list[EntryResult]]:
    """The scenes that have illustrations, with those of their entries that do."""
    found = {
        scene: [r for r in listed if layout_file(folder, scene, r.context, r.target).is_file()]
        for scene, listed in by_scene.items()
    }
    return {scene: listed for scene, listed in found.items() if listed}


def scene_page_name(scene: str) -> str:
    """File name of a scene's page, as a link may state it."""
    return quote(f"{scene_folder_name(scene)}.html")


def write_scene_page(
    folder: Path, scene: str, results: Sequence[EntryResult], previous: str | None, following: str | None
) -> None:
    """Write a scene's page, and its figures as files of their own.

    Args:
        folder: The evaluation.
        scene: Scene id.
        results: Entries of the scene that have illustrations.
        previous: File name of the page before, if any.
        following: File name of the page after, if any.
    """
    entries, seen = [], set()
    for result in results:
        entries.append(_entry(folder, result, is_first_of_pair=result.context not in seen))
        seen.add(result.context)
    write_page(
        "report_scene.html",
        folder / SCENES / f"{scene_folder_name(scene)}.html",
        scene=scene,
        entries=entries,
        previous=previous,
        following=following,
    )


def _entry(folder: Path, result: EntryResult, is_first_of_pair: bool) -> dict[str, Any]:
    scene, context = result.scene, result.context
    layout = read_json(layout_file(folder, scene, context, result.target))
    views = [(frame, read_picture(image_file(folder / TRUTHS, scene, context, frame, CONTEXT))) for frame in context]
    targets = [_target_pictures(folder, result, frame) for frame in layout["shown"]]
    targets = [target for target in targets if target is not None]
    names = [name for name in METRICS if name in result.metrics[OURS]]
    kinds = result.kinds or ("",) * len(result.target)
    contexts = [picture for _, picture in views if picture is not None]
    epipolar = ""
    if len(contexts) >= 2 and targets:
        drawn = _save_figures(folder, result, contexts, targets, layout)
        epipolar = data_uri(drawn, "image/png")
    return {
        "title": " · ".join([f"Context frames {', '.join(map(str, context))}", *sorted(set(result.kinds))]),
        "contexts": [{"frame": frame, "src": embedded(picture)} for frame, picture in views],
        "layout": camera_layout(layout),
        "labels": [METRICS[name].label for name in names],
        "rows": [
            {
                "frame": frame,
                "kind": kind,
                "cells": [number(name, result.metrics[OURS][name][position]) for name in names],
            }
            for position, (frame, kind) in enumerate(zip(result.target, kinds, strict=True))
        ],
        "targets": [
            {
                "frame": target.frame,
                "pictures": [
                    {"name": CAPTIONS.get(name, name), "src": embedded(getattr(target, name))} for name in PICTURES
                ],
            }
            for target in targets
        ],
        "epipolar": epipolar if is_first_of_pair else "",
        "videos": _videos(folder, scene, context) if is_first_of_pair else [],
    }


def video_stem(scene: str, context: Sequence[int]) -> str:
    """The beginning of the file names of a scene's videos."""
    return f"{scene_folder_name(scene)}_{pair_name(context)}"


def _videos(folder: Path, scene: str, context: Sequence[int]) -> list[dict[str, str]]:
    stem = video_stem(scene, context)
    files = sorted((folder / VIDEOS).glob(f"{escape(stem)}_*.mp4"))
    return [{"src": f"../{VIDEOS}/{quote(path.name)}", "name": path.stem[len(stem) + 1 :]} for path in files]


def _target_pictures(folder: Path, result: EntryResult, frame: int) -> TargetPictures | None:
    place = result.scene, result.context
    maps = entry_folder(folder / ILLUSTRATIONS, *place)
    found = {
        "truth": read_picture(image_file(folder / TRUTHS, *place, frame)),
        "prediction": read_picture(image_file(folder / PREDICTIONS, *place, frame)),
        **{name: read_picture(maps / name / f"{frame:06d}.jpg") for name in ("splat", "depth", "uncertainty")},
    }
    return None if any(picture is None for picture in found.values()) else TargetPictures(frame, **found)


def _save_figures(
    folder: Path,
    result: EntryResult,
    contexts: Sequence[np.ndarray],
    targets: Sequence[TargetPictures],
    layout: dict[str, Any],
) -> bytes:
    """Write the figures of an entry; returns that of the epipolar lines."""
    stem = folder / FIGURES / f"{scene_folder_name(result.scene)}_{entry_name(result.context, result.target)}"
    epipolar = epipolar_figure(contexts, layout["epipolar"])
    save_figure(comparison_strip(contexts, targets), Path(f"{stem}_comparison.png"))
    save_figure(uncertainty_figure(targets), Path(f"{stem}_uncertainty.png"))
    save_figure(epipolar, Path(f"{stem}_epipolar.png"))
    return figure_bytes(epipolar)
