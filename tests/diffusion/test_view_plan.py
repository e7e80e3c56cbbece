"""Claims about view plans, for any number of frames. No network is involved."""

import random

import pytest
from mvldm_recordings import recorded_plans

from lsplat_ns.diffusion.view_plan import ViewGroup, ViewPlanConfig, plan_views
from lsplat_ns.errors import ConfigError


def plan(count: int, mode: str = "anchored", anchors: int | None = None, given: int = 1) -> tuple[ViewGroup, ...]:
    config = ViewPlanConfig(mode, anchors)
    return plan_views(range(given), range(given, given + count), config)


def check(groups: tuple[ViewGroup, ...], given: tuple[int, ...], requested: tuple[int, ...], most: int) -> None:
    """Every frame once, context known before it is used, the reference is context, no group too large."""
    known = set(given)
    for group in groups:
        assert group.targets and set(group.context) <= known and group.reference in group.context
        assert len(set(group.context)) == len(group.context) and set(given) <= set(group.context)
        assert len(group.context) + len(group.targets) <= most
        assert not known & set(group.targets)
        known |= set(group.targets)
    generated = [frame for group in groups for frame in group.targets]
    assert sorted(generated) == sorted(requested)


@pytest.mark.parametrize("mode", ["anchored", "autoregressive", "single"])
def test_every_requested_frame_is_generated_exactly_once_from_frames_known_by_then(mode: str) -> None:
    numbers = random.Random(0)
    for _ in range(3000):
        count = numbers.choice([numbers.randint(1, 12), numbers.randint(1, 300)])
        views = numbers.randint(3, 9)
        given = tuple(numbers.sample(range(10**6, 10**6 + 50), numbers.randint(1, views - 2)))
        requested = tuple(numbers.sample(range(1000), count))
        anchors = numbers.choice([None, numbers.randint(1, count)]) if mode == "anchored" else None
        config = ViewPlanConfig(mode, anchors, views)
        most = count + len(given) if mode == "single" else views
        check(plan_views(given, requested, config), given, requested, most)


def test_every_small_case_is_complete() -> None:
    for count in range(1, 40):
        for anchors in (None, *range(1, count + 1)):
            check(plan(count, anchors=anchors), (0,), tuple(range(1, count + 1)), 5)
        check(plan(count, "autoregressive"), (0,), tuple(range(1, count + 1)), 5)


def usable_recordings() -> list[dict]:
    """The original confuses frames where there are more than 4 anchors, and drops the first of 4 frames."""
    return [e for e in recorded_plans() if e["mode"] == "autoregressive" or (e["anchors"] == 4 and e["frames"] > 4)]


def test_groups_are_the_original_s_and_what_it_drops_is_added() -> None:
    entries = usable_recordings()
    assert len(entries) == 20
    for entry in entries:
        requested = list(range(1, 1 + (entry["limit_frames"] or entry["frames"])))
        requested += [frame for frame in entry["context"][1:] if frame not in requested]
        groups = plan_views(entry["context"][:1], requested, ViewPlanConfig(entry["mode"]))
        recorded = [
            ViewGroup(tuple(g["context"]), tuple(g["target"]), g["context"][g["reference_view"]])
            for g in entry["groups"]
        ]
        assert groups[: len(recorded)] == tuple(recorded)
        added = [frame for group in groups[len(recorded) :] for frame in group.targets]
        assert added == sorted(set(requested) - {frame for group in recorded for frame in group.targets})
        assert len(groups) <= len(recorded) + 1


def test_anchors_beyond_the_first_group_come_from_the_last_anchor() -> None:
    groups = plan(40, anchors=9)
    assert groups[0] == ViewGroup((0,), (5, 9, 13, 17), 0)
    assert groups[1:3] == (ViewGroup((0, 17), (21, 25, 29), 17), ViewGroup((0, 29), (33, 37), 29))
    assert all(group.reference in (5, 9, 13, 17, 21, 25, 29, 33, 37) for group in groups[3:])


def test_a_sequence_of_one_group_needs_no_anchors() -> None:
    for count in (1, 2, 3, 4):
        assert plan(count) == plan(count, "autoregressive") == plan(count, "single")
    assert plan(4) == (ViewGroup((0,), (1, 2, 3, 4), 0),)


def test_a_single_anchor_is_the_last_frame() -> None:
    groups = plan(8, anchors=1)
    assert groups[0] == ViewGroup((0,), (8,), 0) and {group.reference for group in groups[1:]} == {8}


def test_short_groups_come_last() -> None:
    assert [len(group.targets) for group in plan(9, "autoregressive")] == [4, 3, 2]
    sizes = [len(group.targets) for group in plan(23)[1:]]
    assert all(size == 3 for size in sizes[:-1]) and 1 <= sizes[-1] <= 3


def test_all_given_views_are_context_of_every_group_and_groups_stay_of_the_trained_size() -> None:
    groups = plan(10, given=2)
    assert groups[0].context == (0, 1) and len(groups[0].targets) == 3
    assert all(group.context[:2] == (0, 1) and len(group.targets) <= 2 for group in groups[1:])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: plan(3, anchors=4), "4 anchors for 3 frames; ask for at most as many as frames"),
        (lambda: plan(0), "at least one given and one requested"),
        (lambda: plan(3, given=0), "at least one given and one requested"),
        (lambda: plan_views([0], [1, 2, 1], ViewPlanConfig()), "stated twice"),
        (lambda: plan_views([0], [0, 1], ViewPlanConfig()), "stated twice"),
        (lambda: plan(9, given=4), "4 given views leave no room in groups of 5"),
        (lambda: ViewPlanConfig("spiral"), "no view plan 'spiral'"),
        (lambda: ViewPlanConfig(anchors=0), "1 anchor or more, not 0"),
    ],
)
def test_impossible_plans_are_one_clear_line(act, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)
