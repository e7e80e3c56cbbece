from __future__ import annotations

import pickle

from lsplat_ns.data.skips import SkipTally
from lsplat_ns.errors import SceneDataError


def tally(used: int, *errors: SceneDataError) -> SkipTally:
    made = SkipTally()
    for error in errors:
        made.note_skipped(error)
    for _ in range(used):
        made.note_used()
    return made


def test_tallies_add_up_by_reason_and_keep_the_latest_message() -> None:
    total = tally(3, SceneDataError("a has 2 frames", reason="too short"))
    total.add(tally(1, SceneDataError("b has 1 frame", reason="too short"), SceneDataError("c is damaged")))
    assert (total.used, total.total_skipped) == (4, 3)
    assert total.summary() == (
        "3 of 7 examples skipped: 2 too short (such as: b has 1 frame); 1 broken (such as: c is damaged)"
    )
    assert total.metrics() == {
        "skipped_examples": 3.0, "skipped_examples/too_short": 2.0, "skipped_examples/broken": 1.0,
    }  # fmt: skip


def test_nothing_skipped_is_a_number_too() -> None:
    assert tally(5).metrics() == {"skipped_examples": 0.0}


def test_the_reason_survives_the_way_from_a_loader_process() -> None:
    error = pickle.loads(pickle.dumps(SceneDataError("a has 2 frames", reason="too short")))
    assert (str(error), error.reason) == ("a has 2 frames", "too short")
