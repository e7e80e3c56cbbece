"""``lsplat evaluate`` of MV-LDM: what is generated and compared, that it goes on, and what it refuses."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from evaluation.scored_rooms import NASTY, SIZE, indexed_scenes, write_dataset
from PIL import Image
from untrained_runs import write_untrained_mvldm

from lsplat_ns.cli import Command, main
from lsplat_ns.data.batches import read_views
from lsplat_ns.errors import ConfigError, LsplatError
from lsplat_ns.evaluation.image_folders import scene_folder_name
from lsplat_ns.evaluation.metrics import psnr
from lsplat_ns.plugin import evaluating_generation
from lsplat_ns.plugin.evaluating_generation import evaluate_generation
from lsplat_ns.plugin.generated_folder import GeneratedFolder
from lsplat_ns.plugin.measuring_commands import Evaluate, ScoredGeneration

QUICK = ScoredGeneration(frames=3, steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and the run of a network without a config.yml, whose note says which size it was trained at."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_dataset(folder / "data")
    note = write_untrained_mvldm(folder / "run") / "provenance.json"
    note.write_text(json.dumps({"source": "random weights", "image_size": list(SIZE)}))
    return folder


def command(folder: Path, output: Path, generation: ScoredGeneration = QUICK, **options: object) -> Evaluate:
    return Evaluate(folder / "run", output, **{"data": folder / "data", "generation": generation, **options})


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> Path:
    evaluate_generation(command(folder, folder / "scores"))
    return folder / "scores"


@pytest.fixture(scope="module")
def summary(evaluated: Path) -> dict:
    return json.loads((evaluated / "summary.json").read_text())


def test_scores_are_those_of_the_stored_views_against_the_scene(evaluated: Path, summary: dict, folder: Path) -> None:
    assert summary["complete"] and summary["settings"]["image_size"] == list(SIZE)
    data = indexed_scenes(folder / "data")
    video = data.read_scene("late")
    for count, given in (("1", {0}), ("2", {0, 4})):
        stored = evaluated / f"from-{count}" / "late"
        assert {int(file.stem) for file in (stored / "images").iterdir()} == {1, 2, 3} | given
        truth = read_views(video, (1, 2, 3), SIZE).image[0]
        views = [np.asarray(Image.open(stored / "images" / f"{frame:06d}.png")) for frame in (1, 2, 3)]
        found = psnr(torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2) / 255, truth)
        assert summary["given"][count]["scenes"]["late"]["psnr"] == pytest.approx(float(found.mean()), abs=1e-3)
        assert (stored / "contact_sheet.png").is_file() and (stored / "transforms.json").is_file()


def test_cameras_are_in_the_units_of_training_whatever_is_given(evaluated: Path, folder: Path, tmp_path: Path) -> None:
    def scale(scores: Path, count: int) -> float:
        return json.loads((scores / f"from-{count}" / "late" / "generation.json").read_text())["request"]["scale"]

    centres = indexed_scenes(folder / "data").read_scene("late").world_from_camera[[0, 4], :3, 3]
    expected = 1 / float((centres[1] - centres[0]).norm())
    assert scale(evaluated, 1) == pytest.approx(expected) == scale(evaluated, 2) != 1
    wanted = command(folder, tmp_path / "scores", replace(QUICK, given=(1,), scale=1.0), most_entries=4)
    evaluate_generation(wanted)
    assert scale(tmp_path / "scores", 1) == 1


def test_every_scene_counts_once_and_what_is_left_out_is_named(evaluated: Path, summary: dict) -> None:
    assert all(set(found["scenes"]) == {"late", NASTY} for found in summary["given"].values())
    assert (evaluated / "from-2" / scene_folder_name(NASTY) / "scores.json").is_file()
    assert set(summary["skipped"]) == {"early", "short", "empty", "elsewhere"}
    assert "too few frames" in summary["skipped"]["early"]


def test_the_summary_says_the_command_that_makes_it(summary: dict, folder: Path) -> None:
    program, *words = shlex.split(summary["command"])
    assert program == "lsplat" and tyro.cli(Command, args=words) == command(folder, folder / "scores")
    assert str(folder) not in json.dumps({**summary, "command": ""})  # what is published tells nothing of the machine


def test_an_interrupted_evaluation_says_so_and_goes_on_to_the_same_numbers(
    folder: Path, tmp_path: Path, summary: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, wanted = GeneratedFolder.write_image, command(folder, tmp_path / "scores")

    def stop_at(number: int) -> Callable[..., None]:
        calls = []

        def write_image(self: GeneratedFolder, frame: int, image: torch.Tensor) -> None:
            calls.append(frame)
            if len(calls) == number:
                raise KeyboardInterrupt
            write(self, frame, image)

        return write_image

    for number, is_partial in ((3, False), (8, True)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(GeneratedFolder, "write_image", stop_at(number))
            evaluate_generation(wanted)
        assert (tmp_path / "scores" / "summary.json").is_file() == is_partial  # of nothing there is no summary
    assert not json.loads((tmp_path / "scores" / "summary.json").read_text())["complete"]
    assert "(partial)" in capsys.readouterr().out
    whole = evaluate_generation(wanted)
    assert whole["complete"] and whole["given"] == summary["given"]


def test_a_second_call_generates_nothing(folder: Path, evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating_generation, "generate_frames", None)
    assert evaluate_generation(command(folder, evaluated)) == json.loads((evaluated / "summary.json").read_text())
    with pytest.raises(ConfigError, match="holds an evaluation with steps 2, not 3"):
        evaluate_generation(command(folder, evaluated, replace(QUICK, steps=3)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": None}, "state with --data"),
        ({"generation": ScoredGeneration(given=(1, 1))}, "different numbers"),
        ({"generation": ScoredGeneration(given=(0,))}, "each 1 or more"),
        ({"generation": ScoredGeneration(given=(4,))}, "4 given views leave no room"),
        ({"generation": ScoredGeneration(scale=0.0)}, "positive factor"),
        ({"generation": ScoredGeneration(frames=1)}, "2 or more, not 1"),
        ({"generation": ScoredGeneration(steps=0)}, "1 to 1000 steps"),
        ({"generation": ScoredGeneration(given=(3,))}, "not 3; lower --given"),
        ({"most_entries": 0}, "--most-entries must be 1 or more, but is 0"),
        ({"most_entries": -1}, "--most-entries must be 1 or more, but is -1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    folder: Path, tmp_path: Path, options: dict, words: str
) -> None:
    with pytest.raises(LsplatError, match=words) as caught:
        evaluate_generation(command(folder, tmp_path / "scores", **options))
    assert len(str(caught.value).splitlines()) == 1


def test_a_home_folder_that_the_shell_left_is_the_home_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine").symlink_to(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    wanted = command(Path("~/mine"), Path("~/scores"), replace(QUICK, given=(1,)), most_entries=4)
    evaluate_generation(wanted)
    assert (tmp_path / "home" / "scores" / "summary.json").is_file()
    assert (tmp_path / "home" / "scores" / "from-1").is_dir() and not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("run", "option", "words"),
    [
        ("run", ("--video", "wobble"), "--video is for runs of latentSplat"),
        ("elsewhere", ("--steps", "3"), "--steps is for runs of MV-LDM"),
    ],
)
def test_options_of_the_other_system_are_refused(
    run: str, option: tuple[str, ...], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ["lsplat", "evaluate", str(folder / run), "--data", str(folder / "data"), "--output", "x", *option]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr("lsplat_ns.cli.note_interrupts", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1 and words in capsys.readouterr().err
