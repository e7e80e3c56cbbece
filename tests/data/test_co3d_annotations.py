"""Claims about annotation files: read piece by piece, kept as a table, refused in one line where they are broken."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from co3d_folders import annotations, viewpoint, write_annotations
from damage import cut_in_half

from lsplat_ns.data import atomic_files
from lsplat_ns.data import co3d_annotations as module
from lsplat_ns.data.co3d_annotations import TABLE_FILE, FrameTable, read_frame_table, read_viewpoint_quality
from lsplat_ns.errors import SceneDataError


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def category(tmp_path: Path) -> Path:
    frames = annotations("b", 4) + annotations("a", 3) + annotations("ünïcode", 2)
    write_annotations(tmp_path / "hydrant", frames[::-1])
    return tmp_path / "hydrant"


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Annotation files that have been parsed since the test began; what is in memory is forgotten before each read."""
    done, parse = [], module._parse_frames

    def counted(source: Path) -> FrameTable:
        done.append(source)
        return parse(source)

    monkeypatch.setattr(module, "_parse_frames", counted)
    return done


def read_anew(category: Path) -> FrameTable:
    """Read as another process would."""
    module._table_of.cache_clear()
    return read_frame_table(category)


def message(category: Path) -> str:
    with pytest.raises(SceneDataError) as caught:
        read_anew(category)
    assert "\n" not in str(caught.value) and str(category) in str(caught.value)
    return str(caught.value)


def test_rows_are_ordered_by_sequence_and_frame(category: Path) -> None:
    table = read_anew(category)
    rows = table.rows_of_sequences()
    assert list(rows) == ["a", "b", "ünïcode"]
    assert table.frame_number[rows["b"]].tolist() == [0, 1, 2, 3]
    assert [table.path(row) for row in range(7, 9)] == [f"hydrant/ünïcode/images/frame00000{i}.jpg" for i in (1, 2)]
    view = viewpoint(2 * np.pi * 2 / 4)
    expected = [*np.ravel(view["R"]), *view["T"], *view["focal_length"], *view["principal_point"]]
    np.testing.assert_allclose(table.camera[rows["b"]][2], expected, rtol=1e-6, atol=1e-7)


def test_records_may_straddle_the_pieces_of_the_file(category: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_anew(category)
    (category / TABLE_FILE).unlink()
    monkeypatch.setattr(module, "PIECE", 701)  # some records are longer than others, none as long as two pieces
    pieces = read_anew(category)
    np.testing.assert_array_equal(whole.camera, pieces.camera)
    np.testing.assert_array_equal(whole.paths, pieces.paths)


def test_the_text_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    frames = annotations("a", 3000)
    for frame in frames:
        frame["mask"]["path"] = "x" * 4000
    write_annotations(tmp_path / "hydrant", frames)
    text = len(json.dumps(frames))
    tracemalloc.start()
    table = read_anew(tmp_path / "hydrant")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert text > 13e6 and peak < text / 2
    assert sum(getattr(table, name).nbytes for name in FrameTable.__dataclass_fields__) < 150 * 3000


def test_a_second_reading_takes_the_table(category: Path, parses: list[Path]) -> None:
    first, second = read_anew(category), read_anew(category)
    assert len(parses) == 1 and (category / TABLE_FILE).is_file()
    for name in FrameTable.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_both_splits_share_one_table_in_memory(category: Path) -> None:
    assert read_anew(category) is read_frame_table(category)


def test_changed_annotations_are_read_anew(category: Path, parses: list[Path]) -> None:
    read_anew(category)
    write_annotations(category, annotations("c", 5))
    assert list(read_frame_table(category).rows_of_sequences()) == ["c"]  # even within one process
    later = time.time_ns() + 10**10
    os.utime(category / "frame_annotations.jgz", ns=(later, later))  # the same size, another time
    read_anew(category)
    assert len(parses) == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "pickle"])
def test_a_damaged_table_is_made_again_and_never_run(category: Path, parses: list[Path], damage: str) -> None:
    read_anew(category)
    place, marker = category / TABLE_FILE, category / "executed"
    if damage == "cut":
        cut_in_half(place)
    elif damage == "empty":
        place.write_bytes(b"")
    elif damage == "foreign":
        stamp = np.load(place)["stamp"]
        np.savez(place, stamp=stamp, **{name: np.zeros(3) for name in FrameTable.__dataclass_fields__})
    else:

        class Attack:
            def __reduce__(self):
                return (open, (str(marker), "w"))

        place.write_bytes(pickle.dumps(Attack()))
    assert len(read_anew(category).frame_number) == 9
    assert len(parses) == 2 and not marker.exists()


def test_a_read_only_folder_is_left_alone_and_the_users_cache_serves(
    category: Path, user_cache: Path, parses: list[Path]
) -> None:
    category.chmod(0o555)
    try:
        read_anew(category)
        read_anew(category)
    finally:
        category.chmod(0o755)
    assert len(parses) == 1 and not (category / TABLE_FILE).exists()
    assert [path.suffix for path in (user_cache / "lsplat_ns").iterdir()] == [".npz"]


def test_a_full_disk_costs_the_cache_alone(category: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert len(read_anew(category).frame_number) == 9
    assert sorted(path.name for path in category.iterdir()) == ["frame_annotations.jgz"]
    assert not list((user_cache / "lsplat_ns").iterdir())


def test_an_interrupted_reading_leaves_nothing(category: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic_files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_anew(category)
    assert sorted(path.name for path in category.iterdir()) == ["frame_annotations.jgz"]


def frame_without(*keys: str) -> dict:
    """An annotation that lacks the field at a path of keys."""
    frame = annotations("a", 1)[0]
    holder = frame
    for key in keys[:-1]:
        holder = holder[key]
    del holder[keys[-1]]
    return frame


def packed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)  # its bytes name tests, which must be the same in every process


GOOD = json.dumps(annotations("a", 400))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (packed(""), "is empty"),
        (packed("  \n"), "is empty"),
        (packed(GOOD)[: len(packed(GOOD)) // 2], "cut short or damaged"),
        (packed(GOOD)[:5], "cut short or damaged"),
        (packed(GOOD[: len(GOOD) // 2]), "is cut short or no JSON after 200 annotations"),
        (packed("[" + "[" * 100_000), "no JSON after 0"),
        (packed(GOOD.replace('"frame_number": 7,', '"frame_number": 7 7,')), "no JSON after 7 annotations"),
        (packed('{"frames": []}'), "does not hold a JSON list"),
        (packed('"text"'), "does not hold a JSON list"),
        (packed("[1, 2]"), "lists a int"),
        (packed("[null]"), "lists a NoneType"),
        (packed("[]"), "lists no frame"),
        (b"plain text, not packed", "is not a gzip file"),
        (gzip.compress(b"[\xff\xfe]", mtime=0), "does not hold text"),
        (packed(json.dumps([frame_without("sequence_name")])), "annotation 0 of"),
        (packed(json.dumps([frame_without("image", "path")])), "annotation 0 of"),
        (packed(json.dumps([frame_without("image")])), "annotation 0 of"),
        (packed(json.dumps([frame_without("frame_number")])), "annotation 0 of"),
        (packed(json.dumps([{**annotations("a", 1)[0], "frame_number": "7"}])), "annotation 0 of"),
        (packed(json.dumps([{**annotations("a", 1)[0], "frame_number": 10**30}])), "annotation 0 of"),
        (packed(json.dumps([{**annotations("a", 1)[0], "sequence_name": "\ud800"}])), "annotation 0 of"),
    ],
)
def test_broken_annotations_are_one_line_each(tmp_path: Path, content: bytes, reason: str) -> None:
    category = tmp_path / "hydrant"
    category.mkdir()
    (category / "frame_annotations.jgz").write_bytes(content)
    with pytest.raises(SceneDataError, match=reason) as caught:
        read_anew(category)
    assert "\n" not in str(caught.value) and str(category) in str(caught.value)
    assert sorted(path.name for path in category.iterdir()) == ["frame_annotations.jgz"]


def test_annotations_cut_in_half_on_disk_are_named(category: Path) -> None:
    cut_in_half(category / "frame_annotations.jgz")
    assert "download it again" in message(category)


def test_annotations_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "vase").mkdir()
    assert "No such file" in message(tmp_path / "vase")


def test_quality_scores_are_read_where_there_are_some(tmp_path: Path) -> None:
    records = [{"sequence_name": "a", "viewpoint_quality_score": 0.75}, {"sequence_name": "b"}]
    write_annotations(tmp_path, [*records, {"viewpoint_quality_score": None}], "sequence_annotations.jgz")
    assert read_viewpoint_quality(tmp_path) == {"a": 0.75}
    (tmp_path / "sequence_annotations.jgz").unlink()
    with pytest.raises(SceneDataError, match=r"cannot read .*sequence_annotations\.jgz"):
        read_viewpoint_quality(tmp_path)
