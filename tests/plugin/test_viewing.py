"""How a scene is looked at: draws, context as typed, picture sizes, times, and work on threads of its own."""

from __future__ import annotations

import threading

import pytest
import torch

from lsplat_ns.errors import ConfigError
from lsplat_ns.plugin.jobs import JobCancelled, Lane, Progress
from lsplat_ns.plugin.viewing import Draw, FramePacer, FrameTimes, parse_context, plain_message

PATIENCE = 60.0
"""Seconds to wait for another thread at most."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", None), ("  ", None), ("auto", "auto"), ("AUTO", "auto"), ("1, 11", (1, 11)), ("3;4 5", (3, 4, 5))],
)
def test_context_views_are_understood_as_typed(text: str, expected: object) -> None:
    assert parse_context(text) == expected


@pytest.mark.parametrize("text", ["1", "2 2", "one two", "-1 3", "1.5 2", "auto 3", "²3 4", "9999999999 1"])
def test_what_is_no_context_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_context(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values", [("other", 0, 1.0), ("sample", -1, 1.0), ("sample", 0, 3.0), ("mode", 0, float("nan"))]
)
def test_impossible_draws_are_refused(values: tuple) -> None:
    with pytest.raises(ConfigError):
        Draw(*values)


def test_pictures_shrink_while_drawing_is_slow_but_never_to_a_stamp_and_grow_again() -> None:
    pacer = FramePacer()
    for _ in range(100):
        pacer.took(3.0)
    assert pacer.moving_size(1.5, 512) == (FramePacer.SHORTEST, 144)
    for _ in range(100):
        pacer.took(0.01)
    assert pacer.moving_size(1.5, 512) == (341, 512)
    assert pacer.resting_size(0.5, 512) == (512, 256)


@pytest.mark.parametrize("aspect", [0.0, float("nan"), float("inf"), -1.0, 1e-9, 1e9])
def test_windows_without_a_shape_get_a_picture_all_the_same(aspect: float) -> None:
    height, width = FramePacer().moving_size(aspect, 512)
    assert 1 <= height <= 512 and 1 <= width <= 512


def test_the_line_tells_stages_gaussians_and_size() -> None:
    times = FrameTimes(torch.device("cpu"))
    times.stage("splat")
    assert times.line(1234, (30, 40)).endswith("not decoded · 1,234 Gaussians · 40x30")
    times.stage("decode")
    assert "decode" in times.line(1, (1, 1)) and times.total() >= 0


def test_messages_are_for_people() -> None:
    assert plain_message(torch.cuda.OutOfMemoryError("CUDA out of memory")).startswith("Out of memory")
    assert plain_message(ConfigError("choose another")) == "choose another"
    assert plain_message(OSError(28, "No space left on device", "/x")) == "No space left on device: /x"
    assert "terminal" in plain_message(ZeroDivisionError("division"))


def test_a_lane_does_one_thing_at_a_time_and_of_what_waits_only_the_latest() -> None:
    lane, release, done = Lane("test"), threading.Event(), []
    finished = threading.Event()
    lane.start_latest(lambda: (release.wait(PATIENCE), done.append("first")))
    assert lane.busy and not lane.start(lambda: done.append("refused"))
    lane.start_latest(lambda: done.append("dropped"))
    lane.start_latest(lambda: (done.append("latest"), finished.set()))
    release.set()
    assert finished.wait(PATIENCE)
    assert done == ["first", "latest"]


def test_of_each_kind_the_latest_waits_in_a_lane() -> None:
    lane, release, done, finished = Lane("test"), threading.Event(), [], threading.Event()
    lane.start_latest(lambda: (release.wait(PATIENCE), lane.start_latest(lambda: done.append("sent"), "send")), "draw")
    lane.start_latest(lambda: done.append("dropped"), "draw")
    lane.start_latest(lambda: done.append("latest"), "draw")
    lane.start_latest(finished.set, "last")
    release.set()
    assert finished.wait(PATIENCE)
    while lane.busy:
        threading.Event().wait(0.01)
    assert done == ["latest", "sent"]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_lane_goes_on_after_an_error_also_with_what_waits(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    lane, release, waited, finished = Lane("test"), threading.Event(), threading.Event(), threading.Event()

    def fail() -> None:
        release.wait(PATIENCE)
        raise error

    lane.start_latest(fail)
    lane.start_latest(waited.set)
    release.set()
    assert waited.wait(PATIENCE)
    while lane.busy:
        threading.Event().wait(0.01)
    assert lane.start(finished.set) and finished.wait(PATIENCE)
    assert "test: not done" in caplog.text  # in the terminal


def test_progress_is_told_and_cancels_at_the_next_report() -> None:
    shares: list[float] = []
    progress = Progress(shares.append)
    progress.report(1, 4)
    progress.cancel()
    with pytest.raises(JobCancelled):
        progress.report(2, 4)
    assert shares == [0.25]


def test_a_lane_finishes_what_runs_and_drops_what_waits() -> None:
    lane, release, done = Lane("test"), threading.Event(), []
    assert lane.finish(PATIENCE)

    def first() -> None:
        release.wait(PATIENCE)
        while lane._waiting:  # until what waits is dropped
            threading.Event().wait(0.01)
        done.append("first")

    lane.start_latest(first)
    lane.start_latest(lambda: done.append("dropped"))
    release.set()
    assert lane.finish(PATIENCE)
    assert done == ["first"]
