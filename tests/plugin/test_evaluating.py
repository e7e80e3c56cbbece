"""``lsplat evaluate``: the report as a person opens it, videos, what a second call adds, and one line for mistakes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from demo_captures import write_capture
from evaluation.scored_rooms import NASTY, SIZE, write_dataset
from PIL import Image

from lsplat_ns.errors import ConfigError, LsplatError
from lsplat_ns.evaluation.illustration import depth_picture, difference_picture, uncertainty_picture
from lsplat_ns.evaluation.image_folders import scene_folder_name
from lsplat_ns.evaluation.report import ReportContext, write_report
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.plugin.evaluating import EvaluationOptions, evaluate_run
from lsplat_ns.plugin.evaluation_pictures import Illustrator
from lsplat_ns.plugin.recipes import tiny_trainer
from lsplat_ns.plugin.runs import RunFolderConfig, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
ILLUSTRATED = ("early", NASTY, "late")


def write_run_on(data: Path, folder: Path, seed: int = 0) -> Path:
    """A run of a tiny network with random weights on a dataset of small images."""
    config = RunFolderConfig.of(tiny_trainer("latentsplat-tiny"), folder)
    config.pipeline.datamanager.data = data
    config.pipeline.datamanager.preparation.image_size = SIZE
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LatentSplat(config.pipeline.model.network)
    state = {f"_model.network.{name}": value for name, value in network.state_dict().items()}
    write_run(config, {"_model.device_indicator_param": torch.empty(0), **state}, 1, {"source": "random weights"})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return write_run_on(write_dataset(folder / "data"), folder / "run")


@pytest.fixture(scope="module")
def evaluated(run: Path) -> Path:
    """The folder of an evaluation without videos."""
    evaluate_run(run, run.parent / "evaluation", EvaluationOptions(distances=False))
    return run.parent / "evaluation"


@contextmanager
def page_of(folder: Path, **options: Any) -> Iterator[Any]:
    """A browser's page. Fails on anything in its console, and on any request for what is not below ``folder``."""
    from playwright.sync_api import sync_playwright

    problems: list[str] = []

    def check(request: Any) -> None:
        if not request.url.startswith(("data:", folder.resolve().as_uri() + "/")):
            problems.append(request.url)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        page.on("request", check)
        yield page
        browser.close()
    assert not problems


def keep(page: Any, name: str) -> None:
    """Take a screenshot to look at, where the environment says where to."""
    if folder := os.environ.get("LSPLAT_KEEP_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def texts(page: Any, selector: str) -> list[str]:
    return [" ".join(text.split()) for text in page.locator(selector).all_inner_texts()]


# ---------------------------------------------------------------------------------------------------- the report


@pytest.mark.browser
@in_browser
def test_the_report_opens_from_disk_with_published_rows_apart_and_sorts_and_finds_scenes(evaluated: Path) -> None:
    summary = json.loads((evaluated / "summary.json").read_text())
    psnr = f"{summary['metrics']['all']['prediction']['psnr']['mean']:.2f}"
    with page_of(evaluated) as page:
        page.goto((evaluated / "index.html").resolve().as_uri())
        keep(page, "report")
        ours = texts(page, "h2:has-text('Results') + div tbody.ours tr")
        assert [row.split("measured")[0].split(" ±")[0] for row in ours] == [
            f"latentsplat-tiny, this run {psnr}",
            *(
                f"{what} {summary['metrics']['all'][what]['psnr']['mean']:.2f}"
                for what in ("splatted colour", "nearest context view", "mean of the context views")
            ),
        ]
        assert all("measured here" in row for row in ours)
        published = texts(page, "tbody.published tr")
        assert any(row.startswith("latentSplat 22.62 0.777 0.196 0.109 2.79") for row in published)
        assert not any("measured here" in row or "this run" in row for row in published)
        assert sum("Not comparable with this evaluation" in row for row in published) == 2
        assert page.locator(".verdict").count() == 0  # nothing to be within or outside of
        assert page.locator(".plot svg").count() == 2
        left_out = page.locator("details").inner_text()
        page.locator("details summary").click()
        for name in ("empty", "elsewhere", "short (0, 2 → 1, 90)"):
            assert name in page.locator("details").inner_text(), left_out

        rows = "#scenes tbody tr:visible td:first-child"
        assert sorted(texts(page, rows)) == sorted(ILLUSTRATED)
        page.locator("#scenes th:has-text('PSNR')").click()
        values = [float(text) for text in texts(page, "#scenes tbody tr td:nth-child(3)")]
        assert values == sorted(values)
        page.get_by_label("Find a scene").fill("<B>")
        assert texts(page, rows) == [NASTY]


def test_the_report_speaks_of_one_and_of_several(evaluated: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(evaluated, tmp_path / "evaluation")
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"complete": False, "entries": 1, "targets_that_are_context_views": 1}

    def page(scenes: int, listed: int) -> str:
        values = next(iter(summary["scenes"].values()))
        counts = {"listed": {"entries": listed, "scenes": scenes}, "scenes": {f"s{i}": values for i in range(scenes)}}
        return write_report(folder, summary | counts, ReportContext("Evaluation", "ours", "rooms", ())).read_text()

    one, several = page(1, 1), page(4, 5)
    assert "of which 1 is a context view<" in one
    assert "interrupted: 1 of 1 entry." in one and "interrupted: 1 of 5 entries." in several
    assert "evenly spread" not in one and "3 of 4 scenes, evenly spread" in several


@pytest.mark.browser
@in_browser
def test_every_scene_has_a_page_with_all_pictures_and_its_cameras(evaluated: Path) -> None:
    with page_of(evaluated, color_scheme="dark") as page:
        page.goto((evaluated / "index.html").resolve().as_uri())
        assert texts(page, ".card p span:first-child") == list(ILLUSTRATED)
        page.locator(".card").first.click()
        for scene in ILLUSTRATED:
            page.wait_for_function(f"document.title === {json.dumps(scene)}")
            keep(page, f"scene-{scene_folder_name(scene)[:5]}")
            assert page.locator("h1").inner_text() == scene and page.locator("b").count() == 0
            targets = page.locator("section").first.locator("h3:has-text('Frame')").count()
            captions = texts(page, "section:first-of-type .row:not(.two) figcaption")
            assert captions == targets * [
                "truth", "prediction", "difference (black: none)", "splat", "depth (red: near)",
                "uncertainty (dark: unsure)",
            ]  # fmt: skip
            assert page.locator("section:first-of-type .row.two img").count() == 2
            assert page.locator("section:first-of-type .plot svg").count() == 1
            assert page.locator("img[alt='epipolar lines']").count() == 1
            widths = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
            assert min(widths) >= 32
            if scene != ILLUSTRATED[-1]:
                page.get_by_text("Next").click()
        page.get_by_text("All scenes").click()
        page.wait_for_function("document.title.startsWith('Evaluation of')")


def test_figures_as_papers_show_them_are_files_of_their_own(evaluated: Path) -> None:
    kinds = [path.stem.rsplit("_", 1)[1] for path in (evaluated / "figures").iterdir()]
    assert sorted(kinds) == 4 * ["comparison"] + 4 * ["epipolar"] + 4 * ["uncertainty"]  # one of each per entry
    strip = np.asarray(Image.open(evaluated / "figures" / "early_1_3_targets-0-5-3_comparison.png").convert("RGB"))
    height, width = strip.shape[:2]
    assert 0.45 < height / width < 0.6  # three rows, six columns
    assert strip[int(0.4 * height) :, : width // 3 - 10].min() == 255  # context views stand in the first row only
    assert min(part.std() for part in np.array_split(strip[:, width // 3 + 10 :], 3)) > 20


def test_colours_of_maps_say_what_the_captions_say() -> None:
    depth = depth_picture(np.array([1.0, 10.0]), np.log([1.0, 10.0]))
    assert depth[0, 0] > 100 > depth[0, 2] and depth[1, 2] > depth[1, 0]  # near is red, far is blue
    assert uncertainty_picture(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0]))[:, 0].tolist() == [255, 127, 0]
    black, grey = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 100, np.uint8)
    assert difference_picture(grey, grey).max() < 5 and difference_picture(grey, black).max() > 100


# ------------------------------------------------------------------------------------------- calls after the first


def test_videos_and_pages_asked_for_later_are_made_without_scoring_again(
    run: Path, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(evaluated, tmp_path / "e")
    shutil.rmtree(folder / "illustrations" / "early")
    before = (folder / "results.jsonl").read_bytes()
    options = EvaluationOptions(distances=False, illustrated=1, video=("interpolation",))
    evaluate_run(run, folder, options)
    assert (folder / "results.jsonl").read_bytes() == before
    for name in ("1_3_targets-2-2-1.json", "depth/000002.jpg", "uncertainty/000005.jpg", "splat/000000.jpg"):
        again, first = (root / "illustrations" / "early" / "1_3" / name for root in (folder, evaluated))
        assert again.read_bytes() == first.read_bytes()
    (video,) = (folder / "videos").iterdir()
    assert f'src="../videos/{video.name}"' in (folder / "scenes" / "early.html").read_text()
    with av.open(str(video)) as file:
        assert file.streams.video[0].average_rate == 30
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    height, width = SIZE
    assert len(frames) == 58 and {frame.shape for frame in frames} == {(height, 3 * width, 3)}
    for part in np.split(np.stack(frames).astype(float), 3, axis=2):  # picture, depth, uncertainty
        assert part.std() > 5
    there, end, back = (frames[i][:, :width].astype(float) for i in (1, 29, -1))  # seen from 1, 29, and 1 again
    assert np.abs(there - back).mean() < np.abs(there - end).mean()

    monkeypatch.setattr(Illustrator, "show", lambda *_: pytest.fail("nothing is missing"))
    evaluate_run(run, folder, options)


def test_ctrl_c_leaves_a_partial_report_and_the_same_command_goes_on(
    run: Path, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options, shown = EvaluationOptions(distances=False), []

    def show(*_: object) -> None:
        shown.append(1)
        if len(shown) in (1, 4):
            raise KeyboardInterrupt

    for done in (0, 2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Illustrator, "show", show)
            evaluate_run(run, tmp_path / "e", options)
        assert (tmp_path / "e" / "summary.json").exists() == (done > 0)  # of nothing there is no report
    page = (tmp_path / "e" / "index.html").read_text()
    assert "Partial." in page and "2 of 5 entries" in page
    assert "2 of 5 entries, 1 scene (partial)" in capsys.readouterr().out
    summary = evaluate_run(run, tmp_path / "e", options)
    said = capsys.readouterr()
    assert "2 entries are done" in " ".join(said.err.split())
    assert "Left out 3;" in said.out and "Not measured: FID and KID" in said.out
    assert summary["complete"] and "Partial." not in (tmp_path / "e" / "index.html").read_text()
    whole = json.loads((evaluated / "summary.json").read_text())
    assert summary["metrics"] == whole["metrics"] and summary["scenes"] == whole["scenes"]


def test_an_evaluation_of_other_weights_or_other_data_is_not_taken_for_this_one(tmp_path: Path) -> None:
    data, options = write_dataset(tmp_path / "data"), EvaluationOptions(distances=False, illustrated=0, most_entries=1)
    run, output = write_run_on(data, tmp_path / "run"), tmp_path / "e"
    first = evaluate_run(run, output, options)
    assert evaluate_run(run, output, options)["metrics"] == first["metrics"]  # the same goes on

    shutil.copytree(data, tmp_path / "moved" / "data")
    with pytest.raises(
        ConfigError, match=r"holds an evaluation with data_path '.*', not '.*moved/data'; choose another"
    ):
        evaluate_run(run, output, replace(options, data=tmp_path / "moved" / "data"))

    shutil.rmtree(run)
    write_run_on(data, run, seed=9)  # as many steps, at the same place
    with pytest.raises(ConfigError, match=r"holds an evaluation of other weights; choose another folder"):
        evaluate_run(run, output, options)


def test_a_folder_of_an_earlier_version_is_refused_with_one_line(run: Path, evaluated: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(evaluated, tmp_path / "e")
    settings = json.loads((folder / "settings.json").read_text())
    earlier = {name: value for name, value in settings.items() if name not in ("weights_sha256", "data_path")}
    (folder / "settings.json").write_text(json.dumps(earlier))
    with pytest.raises(ConfigError, match=r"does not note its weights .*choose another folder") as raised:
        evaluate_run(run, folder, EvaluationOptions(distances=False))
    assert "\n" not in str(raised.value)


# ----------------------------------------------------------------------------------------------------- other data


def test_a_capture_is_evaluated_on_its_own_views(run: Path, tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "room", range(0, 14, 2))
    summary = evaluate_run(run, tmp_path / "e", EvaluationOptions(data=capture, distances=False, illustrated=1))
    assert summary["complete"] and summary["entries"] == 1 and list(summary["scenes"]) == ["room"]
    assert set(summary["metrics"]) == {"all"}  # its frames are no path, so none lies between others
    assert (tmp_path / "e" / "scenes" / "room.html").is_file()
    with pytest.raises(ConfigError, match="--index is for datasets of many scenes"):
        evaluate_run(run, tmp_path / "f", EvaluationOptions(data=capture, index=tmp_path / "i.json"))


def test_another_index_is_taken_and_named(run: Path, tmp_path: Path) -> None:
    index = tmp_path / "mine.json"
    index.write_text(json.dumps({"other": {"context": [0, 2], "target": [1, 3]}}))  # an object, as pixelSplat has it
    summary = evaluate_run(run, tmp_path / "e", EvaluationOptions(index=index, distances=False, illustrated=0))
    assert summary["settings"]["index"] == "mine.json" and list(summary["scenes"]) == ["other"]
    assert not (tmp_path / "e" / "scenes").exists()
    with pytest.raises(ConfigError, match=r"holds an evaluation with index 'mine.json', not 'evaluation_index.json'"):
        evaluate_run(run, tmp_path / "e", EvaluationOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": Path("nowhere.json")}, "nowhere.json"),
        ({"data": Path("nowhere")}, "nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_a_folder_is_made(
    options: dict, message: str, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(LsplatError, match=message) as raised:
        evaluate_run(run, tmp_path / "e", EvaluationOptions(**options))
    assert "\n" not in str(raised.value) and not (tmp_path / "e").exists()


def test_data_without_an_index_are_refused_with_the_way_out(run: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d")
    (data / "evaluation_index.json").unlink()
    with pytest.raises(ConfigError, match=r"has no evaluation index; name one with --index, or draw one with"):
        evaluate_run(run, tmp_path / "e", EvaluationOptions(data=data))


@pytest.mark.parametrize(("name", "value"), [("sample", -1), ("illustrated", -1), ("most_entries", 0)])
def test_counts_that_mean_nothing_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} must be"):
        EvaluationOptions(**{name: value})
