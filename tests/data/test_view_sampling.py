from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from parity import recording

from lsplat_ns.data.view_sampling import (
    FrameChoice,
    ViewSamplingConfig,
    read_evaluation_index,
    sample_bounded,
    sample_views,
    spread_choice,
)
from lsplat_ns.errors import ConfigError, SceneDataError

PUBLISHED = {
    "re10k": ViewSamplingConfig(),
    "co3d_hydrant": ViewSamplingConfig(
        min_gap=16, max_gap=25, initial_min_gap=8, initial_max_gap=18, target_margin=100, initial_target_margin=0
    ),
}


def test_draws_equal_all_192_recorded_ones() -> None:
    for draw in recording("ls_view_samplers").meta["draws"]:
        generator = torch.Generator().manual_seed(draw["seed"])
        try:
            choice = sample_bounded(
                draw["num_views"],
                PUBLISHED[draw["sampler"]],
                step=draw["step"],
                stage=draw["stage"],
                circular=draw["sampler"].startswith("co3d"),
                generator=generator,
            )
        except SceneDataError:
            assert isinstance(draw["result"], str), draw
            continue
        context, target = draw["result"]
        assert list(choice.context) == context, draw
        if isinstance(target, dict):
            assert len(choice.target) == target["len"], draw
            assert list(choice.target[:4]) == target["first"] and list(choice.target[-4:]) == target["last"], draw
        else:
            assert list(choice.target) == target, draw


def test_arbitrary_draws_equal_the_recorded_ones() -> None:
    recorded = recording("ls_view_samplers").meta["arbitrary_seed0_n30_2ctx_3tgt"]
    config = ViewSamplingConfig(sampler="arbitrary", num_target_views=3)
    choice = sample_views(30, config, generator=torch.Generator().manual_seed(0))
    assert [list(choice.context), list(choice.target)] == recorded


def test_arbitrary_draws_without_replacement_equal_those_recorded_of_mvldm() -> None:
    examples = recording("mv_data_random").meta["examples"]
    config = ViewSamplingConfig(sampler="arbitrary", num_target_views=3, without_replacement=True)
    generator = torch.Generator().manual_seed(0)
    for example, frames in zip(examples, (34, 40, 12, 31), strict=True):  # lengths of the recorded scenes
        choice = sample_views(frames, config, generator=generator)
        assert [list(choice.context), list(choice.target)] == [example["context"], example["target"]]


def test_all_takes_every_frame_twice() -> None:
    assert sample_views(3, ViewSamplingConfig(sampler="all")) == FrameChoice((0, 1, 2), (0, 1, 2))


def test_evaluation_draws_among_the_entries_of_the_index() -> None:
    config = ViewSamplingConfig(sampler="evaluation")
    entries = [FrameChoice((0, 2), (1,)), FrameChoice((3, 5), (4,))]
    generator = torch.Generator().manual_seed(0)
    drawn = {sample_views(9, config, generator=generator, entries=entries) for _ in range(20)}
    assert drawn == set(entries)
    with pytest.raises(SceneDataError, match="no entry"):
        sample_views(9, config)


def test_the_bounded_sampler_follows_the_step() -> None:
    config = ViewSamplingConfig(gap_warm_up_steps=100, margin_warm_up_steps=100)
    for step, gap in ((0, 25), (50, 35), (100, 45), (10**6, 45)):
        left, right = sample_views(300, config, step=step).context
        assert right - left == gap


def test_frames_drawn_without_replacement_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    for sampler in ("bounded", "arbitrary"):
        config = ViewSamplingConfig(
            sampler=sampler, num_target_views=6, without_replacement=True, initial_min_gap=5, initial_max_gap=5
        )
        for _ in range(20):
            targets = sample_views(8, config, generator=generator).target
            assert len(set(targets)) == 6
        config.num_target_views = 9
        with pytest.raises(SceneDataError, match="different") as caught:
            sample_views(8, config, generator=generator)
        assert caught.value.reason == "too short"


def test_a_falling_ramp_falls_gradually() -> None:
    config = ViewSamplingConfig(initial_min_gap=30, initial_max_gap=40, min_gap=10, max_gap=20, gap_warm_up_steps=100)
    assert config.gap_limits(0, "train") == (30, 40)
    assert config.gap_limits(50, "train") == (20, 30)
    assert config.gap_limits(1000, "train") == (10, 20)


def test_impossible_gaps_are_refused() -> None:
    with pytest.raises(ConfigError, match="min-gap"):
        ViewSamplingConfig(min_gap=5, max_gap=4)


@pytest.mark.parametrize("frames", [3, 4, 12, 200])
def test_spread_pair_is_centred_and_every_other_frame_is_a_target(frames: int) -> None:
    choice = spread_choice(frames, 45)
    left, right = choice.context
    assert 0 <= left < right < frames and right - left <= 45
    assert abs(left - (frames - 1 - right)) <= 1
    assert sorted(choice.context + choice.target) == list(range(frames))


def test_two_frames_leave_no_target() -> None:
    with pytest.raises(SceneDataError, match="at least 3"):
        spread_choice(2, 45)


def test_index_entries_may_be_single_or_null(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"a": {"context": [0, 2], "target": [1]}, "b": None, "c": [], "d": [None]}))
    assert read_evaluation_index(path) == {"a": [FrameChoice((0, 2), (1,))]}


BROKEN_INDICES = (
    "not json",
    "[1, 2]",
    '{"a": 3}',
    '{"a": [{"context": [0, 1]}]}',
    '{"a": [{"context": [0, 1.5], "target": [1]}]}',
    '{"a": [{"context": [0, 1e999], "target": [1]}]}',
    '{"a": [{"context": "01", "target": [1]}]}',
    '{"a": [[[0, 2], [1]]]}',
)


@pytest.mark.parametrize("content", BROKEN_INDICES)
def test_a_broken_index_is_named_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "index.json"
    path.write_text(content)
    with pytest.raises(SceneDataError) as caught:
        read_evaluation_index(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_index_that_is_not_there_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SceneDataError, match=r"cannot read the evaluation index .*absent.json: No such file"):
        read_evaluation_index(tmp_path / "absent.json")
