"""``lsplat compare``: differences entry by entry, with intervals, and what does not compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from evaluation.scored_rooms import NASTY, write_dataset
from plugin.test_evaluating import in_browser, keep, page_of, texts, write_run_on

from lsplat_ns.errors import ConfigError, LsplatError
from lsplat_ns.evaluation.comparison import Comparison, PairedDifference
from lsplat_ns.evaluation.results import read_results
from lsplat_ns.plugin.comparing import compare_runs
from lsplat_ns.plugin.evaluating import EvaluationOptions, evaluate_run

OPTIONS = EvaluationOptions(illustrated=2, distances=False)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """Two runs on the same data, one of them evaluated before."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_dataset(folder / "data")
    first, second = (write_run_on(data, folder / name, seed) for seed, name in enumerate(("first", "second")))
    evaluate_run(first, folder / "evaluated", OPTIONS)
    return folder / "c", compare_runs(folder / "evaluated", second, folder / "c", OPTIONS)


def test_differences_are_paired_by_entry(compared: tuple[Path, Comparison]) -> None:
    output, _ = compared
    assert not (output / "a").exists()  # it was there already
    of_a, of_b = (read_results(folder) for folder in (output.parent / "evaluated", output / "b"))
    assert len(of_a) == 4
    stored = json.loads((output / "comparison.json").read_text())
    assert stored["warnings"] == []
    for metric in ("psnr", "ssim"):
        a, b = (np.array([r.mean("prediction", metric) for r in results]) for results in (of_a, of_b))
        found = stored["metrics"][metric]
        assert found["a"] == pytest.approx(a.mean()) and found["b"] == pytest.approx(b.mean())
        assert found["mean_difference"] == pytest.approx((b - a).mean()) and found["entries"] == 4
        assert found["interval_half_width_95"] == pytest.approx(1.96 * (b - a).std(ddof=1) / 2)
        assert found["b_better"] == int((b > a).sum())


def test_a_metric_that_falls_is_better_when_it_falls() -> None:
    falling = np.array([-0.1, -0.11, -0.12, 0.001])
    lpips = PairedDifference("lpips", 0.3, 0.2, falling[:3])
    assert lpips.wins == 3 and lpips.style == "better"
    assert PairedDifference("psnr", 20, 19.9, falling[:3]).style == "worse"
    assert PairedDifference("psnr", 20, 20, np.array([-0.1, 0.1])).style == ""
    assert PairedDifference("psnr", 20, 21, np.array([1.0])).half_width is None


@pytest.mark.browser
@in_browser
def test_the_page_shows_both_beside_the_truth_and_nothing_from_elsewhere(compared: tuple[Path, Comparison]) -> None:
    output, comparison = compared
    with page_of(output) as page:
        page.goto((output / "index.html").resolve().as_uri())
        keep(page, "comparison")
        assert page.locator("h1").inner_text() == "evaluated and second"
        (psnr, ssim) = texts(page, "h2:has-text('Results') + div tbody tr")
        one = comparison.differences[0]
        assert psnr.startswith(f"PSNR ↑ {one.a:.2f} {one.b:.2f} {one.mean:+.3f}") and ssim.startswith("SSIM ↑")
        assert page.locator(".card").count() == 2 and page.locator(".card img").count() == 6
        assert min(page.evaluate("[...document.images].map((image) => image.naturalWidth)")) >= 32
        assert NASTY in texts(page, "#scenes tbody td:first-child") and page.locator("b:not(.facts b)").count() == 0


def test_what_makes_numbers_differ_is_said(compared: tuple[Path, Comparison], tmp_path: Path) -> None:
    output, _ = compared
    other = shutil.copytree(output / "b", tmp_path / "other")
    summary = json.loads((other / "summary.json").read_text())
    summary["settings"] |= {"draws": 3, "precision": "mixed", "image_size": [32, 48], "data_path": "/elsewhere"}
    summary["complete"] = False
    (other / "summary.json").write_text(json.dumps(summary))
    lines = (other / "results.jsonl").read_text().splitlines(keepends=True)
    (other / "results.jsonl").write_text("".join(lines[1:]))
    found = Comparison.of(output / "b", other)
    assert found.warnings == [
        f"Data path differs: {output.parent / 'data'} in A, /elsewhere in B.",
        "Image size differs: 32x32 in A, 32x48 in B.",
        "Precision differs: float32 in A, mixed in B.",
        "Draws differs: 1 in A, 3 in B.",
        "B is partial: 4 of 5 entries.",
        "Evaluated by only one of the two and left out: 1 of 4 entries.",
    ]
    assert len(found.pairs) == 3 and all(not one.differences.any() for one in found.differences)


def test_evaluations_of_an_earlier_version_are_read(compared: tuple[Path, Comparison], tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        folders.append(shutil.copytree(compared[0] / "b", tmp_path / name))
        summary = json.loads((folders[-1] / "summary.json").read_text())
        del summary["settings"]["data_path"], summary["settings"]["weights_sha256"]
        (folders[-1] / "summary.json").write_text(json.dumps(summary))
    assert Comparison.of(*folders).warnings == []
    now = Comparison.of(folders[0], compared[0] / "b")
    assert now.warnings == ["Data path is noted by B alone, and may differ."] and len(now.pairs) == 4


def test_an_evaluation_that_was_killed_is_refused_with_the_command_that_goes_on(
    compared: tuple[Path, Comparison], tmp_path: Path
) -> None:
    killed = shutil.copytree(compared[0] / "b", tmp_path / "kil led")
    (killed / "summary.json").unlink()
    run = compared[0].parent / "second"
    for one, other in ((killed, run), (run, killed)):
        with pytest.raises(ConfigError) as raised:
            compare_runs(one, other, tmp_path / "c", OPTIONS)
        assert f"{killed} holds an evaluation that is not finished" in str(raised.value)
        assert f"`lsplat evaluate {run} --output '{killed}'`" in str(raised.value)
    assert not (tmp_path / "c").exists()


def test_what_is_wrong_with_the_second_run_shows_before_the_first_is_evaluated(
    compared: tuple[Path, Comparison], tmp_path: Path
) -> None:
    first = compared[0].parent / "first"
    lost = write_run_on(tmp_path / "absent", tmp_path / "lost", 0)
    with pytest.raises(LsplatError, match="absent"):
        compare_runs(first, lost, tmp_path / "c", OPTIONS)
    assert not (tmp_path / "c").exists()


def test_what_shares_no_entry_or_is_no_evaluation_is_refused(compared: tuple[Path, Comparison], tmp_path: Path) -> None:
    output, _ = compared
    with pytest.raises(ConfigError, match="holds no evaluation; make one with lsplat evaluate"):
        Comparison.of(output / "b", tmp_path)
    empty = shutil.copytree(output / "b", tmp_path / "empty")
    (empty / "results.jsonl").write_text("")
    with pytest.raises(ConfigError, match="share no entry"):
        Comparison.of(output / "b", empty)
    with pytest.raises(ConfigError, match="holds an evaluation; choose another folder"):
        compare_runs(output / "a", output / "b", output / "b", OPTIONS)
