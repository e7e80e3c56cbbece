"""Claims about the shipped MV-LDM: what the README says of it was measured with these very weights, and is so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lsplat_ns.checkpoints import demo_weights
from lsplat_ns.checkpoints.mvldm_runs import WEIGHTS as RUN_WEIGHTS
from lsplat_ns.checkpoints.upstream import sha256
from lsplat_ns.evaluation.generated_views import ANCHORS, GENERATED, NEAREST, TRUE
from lsplat_ns.plugin.demo import generator_run
from lsplat_ns.plugin.evaluating_generation import evaluate_generation
from lsplat_ns.plugin.generating import guidance_of
from lsplat_ns.plugin.measuring_commands import Evaluate, ScoredGeneration

WEIGHTS = demo_weights.FOLDER / "mvldm-tiny.safetensors"
SCORES_FILE = demo_weights.FOLDER / "demo_generator_scores.json"
"""The summary.json of ``lsplat evaluate``, as it is."""
IN_ORDER_FILE = demo_weights.FOLDER / "demo_generator_scores_in_order.json"
"""The same of views generated from two photos one after the other along the path."""
README = (Path(__file__).parents[2] / "README.md").read_text()
TOLERANCE_DB, TOLERANCE_CONSISTENCY = 0.1, 0.01
"""Kernels of other processors round differently."""

pytestmark = pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"the package ships no {WEIGHTS.name}")


@pytest.fixture(scope="module")
def scores() -> dict:
    return json.loads(SCORES_FILE.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generator_run(tmp_path_factory.mktemp("generator") / "run")


@pytest.fixture(scope="module")
def in_order() -> dict:
    return json.loads(IN_ORDER_FILE.read_text())


def readme_rows(scores: dict, in_order: dict) -> list[str]:
    """The rows of the README's table."""
    rows = []
    evaluated = ((scores, "1", "one photo"), (scores, "2", "two photos"), (in_order, "2", "two photos, in order"))
    for summary, count, words in evaluated:
        found = summary["given"][count]
        for what, label in ((GENERATED, f"generated from {words}"), (NEAREST, "nearest of them, unchanged")):
            means = [found["metrics"][which][what] for which in ("all", ANCHORS)]
            cells = [f"{mean['psnr']['mean']:.1f} / {mean['ssim']['mean']:.2f}" for mean in means]
            error = f"{found['consistency'][GENERATED]['mean']:.2f}" if what == GENERATED else ""
            rows.append(f"| {label} | {' | '.join(cells)} | {error} |".replace("|  |", "| |"))
        rows.append(f"| true renders | | | {found['consistency'][TRUE]['mean']:.2f} |")
    return rows


def test_the_shipped_weights_are_small_and_tell_where_they_come_from() -> None:
    weights, provenance = demo_weights.read_demo_weights(WEIGHTS)
    assert WEIGHTS.stat().st_size <= 16e6
    assert all(value.dtype == torch.float16 for value in load_file(WEIGHTS).values())
    assert provenance["method"] == "mvldm-tiny" and "train-demo mvldm" in provenance["command"]
    assert provenance["parameters"] == sum(value.numel() for value in weights.values())
    assert {"device", "seed", "data_seed", "training_scenes", "steps_done", "network"} <= provenance.keys()


def test_the_scores_are_complete_and_of_these_weights(scores: dict, in_order: dict, run: Path) -> None:
    for summary in (scores, in_order):
        assert summary["complete"] and summary["listed"] == 20 and not summary["skipped"]
        assert summary["settings"]["network_sha256"] == sha256(run / RUN_WEIGHTS)
        assert summary["settings"]["guidance"] == guidance_of(run)
    assert set(scores["given"]) == {"1", "2"} and set(in_order["given"]) == {"2"}


@pytest.mark.slow
def test_held_out_scenes_score_what_the_package_says(
    scores: dict, run: Path, unseen_rooms: Path, tmp_path: Path
) -> None:
    settings = scores["settings"]
    generation = ScoredGeneration(
        given=(1,), **{name: settings[name] for name in ("frames", "solver", "steps", "guidance", "scale")}
    )
    summary = evaluate_generation(
        Evaluate(run, tmp_path / "scores", data=unseen_rooms, seed=settings["seed"], generation=generation)
    )
    found = summary["given"]["1"]["scenes"]
    assert len(found) == 2
    for scene, values in found.items():
        said = scores["given"]["1"]["scenes"][scene]
        assert values["psnr"] == pytest.approx(said["psnr"], abs=TOLERANCE_DB), scene
        assert values["consistency"] == pytest.approx(said["consistency"], abs=TOLERANCE_CONSISTENCY), scene


@pytest.mark.parametrize("count", ["1", "2"])
def test_the_first_anchors_are_nearer_to_the_truth_than_the_nearest_given_view(scores: dict, count: str) -> None:
    scored = scores["given"][count]["metrics"][ANCHORS]
    assert scored[GENERATED]["psnr"]["mean"] > scored[NEAREST]["psnr"]["mean"]


def test_generated_views_agree_within_twice_of_what_true_renders_do(scores: dict, in_order: dict) -> None:
    for found in (scores["given"]["1"]["consistency"], in_order["given"]["2"]["consistency"]):
        assert found["ratio"] <= 2 and found[TRUE]["count"] == 20


def test_the_readme_s_table_is_the_measured_one(scores: dict, in_order: dict) -> None:
    for row in readme_rows(scores, in_order):
        assert row in README, row
    assert scores["command"] in README and in_order["command"] in README
