"""Messages are right English for one of a thing."""

from __future__ import annotations

from lsplat_ns.wording import counted


def test_one_is_singular_and_every_other_number_plural() -> None:
    assert [counted(number, "frame") for number in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]
    assert (counted(1, "entry is", "entries are"), counted(2, "entry is", "entries are")) == (
        "1 entry is",
        "2 entries are",
    )
