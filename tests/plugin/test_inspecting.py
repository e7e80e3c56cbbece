from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from damage import cut_in_half
from demo_captures import write_capture
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from parity import SHARED
from PIL import Image, ImageColor
from re10k_chunks import scene as stored_scene
from re10k_chunks import write as write_chunks

from lsplat_ns.cli import main
from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.data.contact_sheet import CONTEXT
from lsplat_ns.plugin.captures import CaptureContextConfig, active_scene_from_dataparser


@pytest.fixture
def lsplat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command in this process, in an empty folder; returns its exit code."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["lsplat", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    return run


def test_demo_scenes_are_healthy_and_drawn(lsplat, rooms: Path, capsys: pytest.CaptureFixture) -> None:
    assert lsplat("inspect", rooms, "--size", "64x64", "--deep") == 0
    printed = capsys.readouterr().out
    assert "Nothing is wrong." in printed and "96x64" in printed and "Drew 4 scenes into contact_sheet.png" in printed
    with Image.open("contact_sheet.png") as sheet:
        assert sheet.width > 1500 and sheet.height > 1000


def test_frames_too_small_for_the_published_size_are_bad(lsplat, rooms: Path, capsys: pytest.CaptureFixture) -> None:
    assert lsplat("inspect", rooms, "--scenes", 0) == 1
    assert "image size" in capsys.readouterr().out
    assert not Path("contact_sheet.png").exists()


def test_bad_items_end_with_exit_code_1_and_one_line_each(
    lsplat, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    chunks = {f"{i}.torch": [stored_scene(f"s{i}")] for i in range(3)}
    root = write_chunks(tmp_path / "d", chunks, "test")
    cut_in_half(root / "test" / "1.torch")
    assert lsplat("inspect", root, "--size", "32x32", "--sheet", "made/sheet.png") == 1
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("test: broken chunk: ")]) == 1
    assert Path("made/sheet.png").is_file()


def test_captures_are_inspected_through_nerfstudio(lsplat, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    capture = write_capture(tmp_path / "capture")
    assert lsplat("inspect", capture, "--size", "64x64") == 0
    printed = capsys.readouterr().out
    chosen = re.search(r"the network is shown frames (\d+) and (\d+)", printed)
    assert chosen and Path("contact_sheet.png").is_file() and "Drew 1 scene into" in printed
    scene = active_scene_from_dataparser(
        NerfstudioDataParserConfig(data=capture).setup(), PreparationConfig(image_size=(64, 64)), CaptureContextConfig()
    )
    assert tuple(map(int, chosen.groups())) == scene.choice.context  # what ns-train latentsplat-encode would take
    with Image.open("contact_sheet.png") as sheet:
        colors = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
        assert (colors == ImageColor.getrgb(CONTEXT)).all(-1).sum() > 1000


def test_a_capture_of_two_photos_is_healthy(lsplat, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert lsplat("inspect", write_capture(tmp_path / "two", frames=(2, 9)), "--size", "64x64", "--scenes", 0) == 0
    assert "Nothing is wrong." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ("absent", [], "no data folder"),
        (".", [], "holds no dataset"),
        (".", ["--scenes", -1], "scenes must be 0 or more"),
        (".", ["--size", "big"], "HEIGHTxWIDTH"),
    ],
)
def test_what_cannot_be_inspected_is_refused_in_one_line(
    lsplat, data: str, options: list, words: str, capsys: pytest.CaptureFixture
) -> None:
    assert lsplat("inspect", data, *options) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("error: ") and words in line
    assert list(Path().iterdir()) == []


def test_a_broken_capture_is_refused_in_one_line(lsplat, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "transforms.json").write_text("{")
    assert lsplat("inspect", tmp_path) == 1
    assert "error: " in capsys.readouterr().err


def test_real_photographs_in_chunks_are_indexed_and_healthy(lsplat, capsys: pytest.CaptureFixture) -> None:
    real = SHARED / "data" / "llff_horns_re10k"
    if not real.is_dir():
        pytest.skip("no real chunk: ../shared/data is not beside this checkout")
    assert lsplat("index", real) == 0
    assert capsys.readouterr().out.count("already right") == 2
    assert lsplat("inspect", real, "--deep") == 0
    assert "640x360" in capsys.readouterr().out


@pytest.mark.slow
def test_objects_in_co3d_layout_are_inspected_and_get_an_evaluation_index(
    lsplat, capsys: pytest.CaptureFixture
) -> None:
    assert lsplat("make-scenes", "o", "--kind", "objects", "--scenes", 1, "--frames", 12, "--size", "40x40") == 0
    assert lsplat("inspect", "o", "--size", "32x32") == 0
    assert "Nothing is wrong." in capsys.readouterr().out
    assert lsplat("index", "o", "--evaluation", "--gap", 2, 5, "--output", "new.json") == 0
    assert "24 entries of 1 scene;" in capsys.readouterr().out
