"""How well the views of a generated folder agree with each other."""

from __future__ import annotations

import math

import torch

from lsplat_ns.errors import MissingExtra
from lsplat_ns.evaluation.consistency import consistency, met3r
from lsplat_ns.plugin.generated_folder import CONSISTENCY, GeneratedFolder, in_order, write_json
from lsplat_ns.plugin.generation_tasks import GenerationTask

DEFINITION = (
    "1 - patch correlation of neighbouring views at the depth that a third one finds, both directions averaged; "
    "0 is best, true renders have about 0.1; null: too little in common"
)


def score_views(folder: GeneratedFolder, task: GenerationTask, *, with_met3r: bool = False) -> str:
    """Score neighbouring views, given ones included that are of the path, and write ``consistency.json``.

    Args:
        folder: Where all of the task's frames are stored.
        task: What was generated.
        with_met3r: Also measure MEt3R; where its package is not installed, the file and the result say so.

    Returns:
        Lines for the user.
    """
    frames, cameras = in_order(task)
    on_path = [place for place, frame in enumerate(frames) if frame not in task.off_path]
    frames, cameras = [frames[place] for place in on_path], cameras.select(on_path)
    if len(frames) < 3:
        return "Consistency: not measured, for it takes three views"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.stack([torch.from_numpy(folder.read_image(f).copy()).permute(2, 0, 1) for f in frames]) / 255
    found = consistency(images.to(device), cameras.to(device))
    pairs = [
        {
            "frames": [frames[i] for i in pair],
            "error": _number(error),
            "color_error": _number(color_error),
            "coverage": coverage,
        }
        for pair, error, color_error, coverage in zip(
            found.pairs, found.error.tolist(), found.color_error.tolist(), found.coverage.tolist(), strict=True
        )
    ]
    content = {"definition": DEFINITION, "mean_error": _number(found.mean), "pairs": pairs}
    mean = "no two views have enough in common" if math.isnan(found.mean) else f"{found.mean:.3f}"
    lines = [f"Consistency: {mean} (0 is best, true renders have about 0.1; {CONSISTENCY} has it by pairs)"]
    if with_met3r:
        try:
            scores = met3r(images)
            content["met3r"] = {"mean": float(scores.mean()), "pairs": scores.tolist()}
            lines.append(
                f"MEt3R: {float(scores.mean()):.4f} (both directions averaged, as in the paper; lower is better)"
            )
        except MissingExtra as error:
            content["met3r"] = {"not measured": str(error)}
            lines.append(f"Not measured: {error}")
    write_json(folder.path / CONSISTENCY, content)
    return "\n".join(lines)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
