from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from re10k_chunks import scene as stored_scene
from re10k_chunks import write as write_chunks
from rich.console import Console

from lsplat_ns.data.inspection import InspectionConfig, Problem, SceneFacts, SplitInspection, inspect_source
from lsplat_ns.data.inspection_report import print_report, write_contact_sheet
from lsplat_ns.data.survey import survey


def printed(splits: list[SplitInspection], most_items: int | None = 20) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=120)
    count = print_report(splits, console, most_items)
    return count, console.file.getvalue()


def split_with(*problems: Problem) -> SplitInspection:
    facts = [
        SceneFacts("a", 10, Counter({(360, 640): 10}), 60.2, 1.0),
        SceneFacts("b", 30, Counter({(256, 448): 30}), 75.1, 2.0),
    ]
    return SplitInspection("test", scenes=facts, problems=list(problems), notes=["an index is there"])


def test_the_table_tells_scenes_frames_and_sizes() -> None:
    count, text = printed([split_with()])
    assert count == 0 and "Nothing is wrong." in text
    for words in ("test", "10-20-30", "448x256, 640x360", "60-75°", "an index is there", "40"):
        assert words in text, words


def test_bad_items_are_counted_by_reason_and_listed_up_to_a_number() -> None:
    many = [Problem("broken scene", f"scene [bold]{i}[/bold] is broken") for i in range(5)]
    count, text = printed([split_with(*many, Problem("index", "x is missing"))], 3)
    assert count == 6
    assert "scene [bold]2[/bold] is broken" in text and "[bold]3" not in text and "3 more; list them with --all" in text
    assert "[bold]4" in printed([split_with(*many)], None)[1]


def test_a_split_without_a_readable_scene_is_a_row_too() -> None:
    count, text = printed([SplitInspection("train", problems=[Problem("broken split", "no list")])])
    assert count == 1 and "train: broken split: no list" in text


@pytest.fixture
def splits(tmp_path: Path) -> list[SplitInspection]:
    root = write_chunks(tmp_path / "d", {"0.torch": [stored_scene(f"t{i}") for i in range(6)]}, "train")
    write_chunks(root, {"0.torch": [stored_scene(f"e{i}") for i in range(2)]}, "test")
    (root / "evaluation_index.json").write_text('{"e1": [{"context": [0, 3], "target": [1]}]}')
    return [inspect_source(split, InspectionConfig(image_size=(32, 32))) for split in survey(root)]


def test_the_sheet_shows_scenes_with_entries_first(
    splits: list[SplitInspection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lsplat_ns.data import inspection_report

    drawn = []
    monkeypatch.setattr(inspection_report, "draw_contact_sheet", lambda rows, *_: drawn.extend(rows))
    assert write_contact_sheet(splits, tmp_path / "sheet.png", "title", 4) == 4
    assert drawn[0].video.scene == "e1" and drawn[0].choice.context == (0, 3)
    assert len({row.video.scene for row in drawn}) == 4 and {row.split for row in drawn} == {"test", "train"}


def test_without_scenes_there_is_no_sheet(tmp_path: Path) -> None:
    assert write_contact_sheet([SplitInspection("test")], tmp_path / "sheet.png", "title") == 0
    assert list(tmp_path.iterdir()) == []
