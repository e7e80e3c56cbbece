"""Files that appear whole or not at all, and what killed processes leave of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsplat_ns.data.atomic_files import is_leftover, remove_leftovers, replacing
from lsplat_ns.errors import SceneDataError


def test_a_file_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"picture")
    with pytest.raises(SceneDataError, match=r"cannot write .*photo\.png/x/note\.json: Not a directory"):
        with replacing(tmp_path / "photo.png" / "x" / "note.json") as partial:
            partial.write_text("{}")
    assert (tmp_path / "photo.png").read_bytes() == b"picture"


def test_an_error_in_between_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "note.json"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(file) as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["note.json"] and file.read_text() == "old"


def test_leftovers_are_told_from_other_files_and_removed(tmp_path: Path) -> None:
    kept = ["note.json", ".hidden", ".note.json.partial-draft", "note.partial-12"]
    for name in (*kept, ".note.json.partial-12"):
        (tmp_path / name).write_text("")
    assert [path.name for path in tmp_path.iterdir() if is_leftover(path)] == [".note.json.partial-12"]
    (tmp_path / ".lifted.partial-13").mkdir()  # another process may be at it
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, ".lifted.partial-13"])
    remove_leftovers(tmp_path / "nowhere")
