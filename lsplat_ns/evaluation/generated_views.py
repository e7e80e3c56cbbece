"""Scoring views that a generative model made of a scene, beside what needs no network and beside the scene itself.

A generated view is one of many that fit the given ones, so its distance from the truth is no whole measure. It stands
beside that of the nearest given view, unchanged; and the agreement of the views with each other
(``evaluation.consistency``) beside that of the true views of the same cameras.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsplat_ns.diffusion.view_plan import ViewGroup
from lsplat_ns.evaluation.consistency import consistency
from lsplat_ns.evaluation.metrics import psnr, ssim
from lsplat_ns.evaluation.results import ALL, spread
from lsplat_ns.scene import Views

GENERATED, NEAREST, TRUE = "generated", "nearest given view", "true renders"
ANCHORS = "first two anchors"
COUNTED_ANCHORS = 2
IMAGE_METRICS = {"psnr": psnr, "ssim": ssim}
DIGITS = 4
"""Decimals that are kept."""


@dataclass(frozen=True)
class SceneScores:
    """The scores of one scene's generated views."""

    given: tuple[int, ...]  # frames
    frames: tuple[int, ...]  # n generated ones
    anchors: tuple[int, ...]  # those of them that were generated first, two at most
    metrics: dict[str, dict[str, list[float | None]]]  # what is scored -> metric -> one per frame, None: undefined
    consistency: dict[str, float | None]  # what is scored -> mean error, None: the views have too little in common

    def mean(self, what: str, metric: str, which: str) -> float | None:
        """Mean over all frames or the first anchors; None where none has a number."""
        chosen = self.frames if which == ALL else self.anchors
        values = zip(self.frames, self.metrics[what][metric], strict=True)
        found = [value for frame, value in values if frame in chosen and value is not None]
        return statistics.fmean(found) if found else None


def first_anchors(plan: Sequence[ViewGroup]) -> tuple[int, ...]:
    """The frames of a plan that are generated first: two, or one where it has no more."""
    return tuple(frame for group in plan for frame in group.targets)[:COUNTED_ANCHORS]


@torch.no_grad()
def score_scene(given: Views, truth: Views, images: Tensor, anchors: tuple[int, ...]) -> SceneScores:
    """Compare generated views with true ones.

    Args:
        given: [1, v], what they were generated from.
        truth: [1, n], the true views of their cameras.
        images: [n, 3, height, width] in [0, 1], as they are stored: in 8 bits.
        anchors: Frames of ``truth`` that are scored apart as well.
    """
    true = truth.image[0]
    places = truth.cameras.origins[0], given.cameras.origins[0]
    distance = torch.cdist(*places, compute_mode="donot_use_mm_for_euclid_dist")
    pictures = {GENERATED: images, NEAREST: given.image[0][distance.argmin(1)]}
    metrics = {
        what: {name: [_plain(v) for v in metric(shown, true).tolist()] for name, metric in IMAGE_METRICS.items()}
        for what, shown in pictures.items()
    }
    agreement = {GENERATED: _disagreement(given, truth, images), TRUE: _disagreement(given, truth, true)}
    frames, known = (tuple(views.frame[0].tolist()) for views in (truth, given))
    return SceneScores(known, frames, anchors, metrics, agreement)


def _disagreement(given: Views, truth: Views, images: Tensor) -> float | None:
    """Mean inconsistency of given views and others, in the order of the path; None where it cannot be measured."""
    frames = torch.cat([given.frame[0], truth.frame[0]])
    order = frames.argsort()
    if len(frames) < 3:
        return None
    cameras = given.cameras.concat(truth.cameras).select(order)
    return _plain(consistency(torch.cat([given.image[0], images])[order], cameras).mean)


def _plain(value: float) -> float | None:
    return round(value, DIGITS) if math.isfinite(value) else None


def summarise_scenes(scores: dict[str, SceneScores]) -> dict[str, Any]:
    """Means over scenes of each metric's mean over a scene's views.

    Args:
        scores: By scene, at least one.

    Returns:
        ``metrics``: ``all`` and ``first two anchors`` -> what is scored -> metric -> mean, std, count;
        ``consistency``: what is scored -> mean, std, count, over scenes where generated and true views have a score,
        and the ``ratio`` of both; ``views``; and ``scenes``: scene -> means over its generated views.
    """
    metrics = {
        which: {
            what: {name: _spread([one.mean(what, name, which) for one in scores.values()]) for name in IMAGE_METRICS}
            for what in (GENERATED, NEAREST)
        }
        for which in (ALL, ANCHORS)
    }
    measured = [one.consistency for one in scores.values() if None not in one.consistency.values()]
    agreement: dict[str, Any] = {what: _spread([one[what] for one in measured]) for what in (GENERATED, TRUE)}
    if measured:
        agreement["ratio"] = round(agreement[GENERATED]["mean"] / agreement[TRUE]["mean"], DIGITS)
    scenes = {
        scene: {
            **{name: _rounded(one.mean(GENERATED, name, ALL)) for name in IMAGE_METRICS},
            f"psnr_{ANCHORS.replace(' ', '_')}": _rounded(one.mean(GENERATED, "psnr", ANCHORS)),
            "consistency": one.consistency[GENERATED],
        }
        for scene, one in scores.items()
    }
    views = sum(len(one.frames) for one in scores.values())
    return {"views": views, "metrics": metrics, "consistency": agreement, "scenes": scenes}


def _spread(values: Sequence[float | None]) -> dict[str, float]:
    found = [value for value in values if value is not None]
    return {name: round(value, DIGITS) for name, value in spread(found).items()} if found else {}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
