from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from damage import cut_in_half, plant_code
from re10k_chunks import scene, write

from lsplat_ns.data.batches import PreparationConfig, make_example
from lsplat_ns.data.re10k import Re10kSplit
from lsplat_ns.data.streams import StreamConfig, TrainingBatch, TrainingStream, training_batches
from lsplat_ns.data.view_sampling import FrameChoice, ViewSamplingConfig
from lsplat_ns.errors import ConfigError, SceneDataError

SAMPLING = ViewSamplingConfig(
    num_target_views=2, min_gap=2, max_gap=4, initial_min_gap=2, initial_max_gap=4, target_margin=0,
    gap_warm_up_steps=0, margin_warm_up_steps=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 scenes in 8 chunks."""
    scenes = [scene(f"s{i:02d}") for i in range(24)]
    return write(tmp_path_factory.mktemp("many") / "d", {f"{i}.torch": scenes[3 * i : 3 * i + 3] for i in range(8)})


def stream(root: Path, sampling: ViewSamplingConfig = SAMPLING, **options: object) -> TrainingStream:
    config = StreamConfig(PreparationConfig(image_size=(32, 32)), sampling, **options)
    return TrainingStream(Re10kSplit.open(root, "train"), config)


def assert_same(first: TrainingBatch, second: TrainingBatch) -> None:
    assert (first.step, first.scenes) == (second.step, second.scenes)
    assert torch.equal(first.images, second.images) and (first.frames == second.frames).all()
    for name, values in first.cameras.items():
        assert (values == second.cameras[name]).all(), name


def scenes_of_steps(made: TrainingStream, steps: range) -> list[str]:
    return [key for step in steps for key in made[step].scenes]


# ------------------------------------------------------------------------------- one function of seed, rank and step


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_resumed_stream_goes_on_as_if_it_had_not_stopped(many: Path, workers: int) -> None:
    made = stream(many, batch_size=2, lanes=max(1, workers), seed=5)
    uninterrupted = list(itertools.islice(training_batches(made, 0, num_workers=workers), 12))
    resumed = training_batches(made, 7, num_workers=workers)
    for expected in uninterrupted[7:]:
        assert_same(next(resumed), expected)


def test_loader_processes_give_what_indexing_gives(many: Path) -> None:
    made = stream(many, batch_size=2, lanes=2)
    for step, batch in enumerate(itertools.islice(training_batches(made, num_workers=2), 6)):
        assert_same(batch, made[step])


def test_a_far_step_costs_no_more_than_the_first(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stream(many, batch_size=2)
    read = []
    read_scene = Re10kSplit.read_scene
    monkeypatch.setattr(Re10kSplit, "read_scene", lambda self, key: read.append(key) or read_scene(self, key))
    assert made[10**9].step == 10**9
    assert len(read) == 2


def test_another_seed_or_rank_gives_other_examples(many: Path) -> None:
    def drawn(**options: object) -> list:
        made = stream(many, **options)
        return [(made[step].scenes, made[step].frames.tolist()) for step in range(6)]

    first = drawn(seed=1)
    assert drawn(seed=1) == first
    assert drawn(seed=2) != first
    assert drawn(seed=1, rank=1, world_size=2) != drawn(seed=1, rank=0, world_size=2)


def test_readers_of_one_scene_draw_frames_and_noise_of_their_own(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a")]})
    ranks = [stream(root, rank=rank, world_size=2) for rank in (0, 1)]
    first, second = ([made[step].frames.tolist() for step in range(8)] for made in ranks)
    lanes = stream(root, lanes=2)
    even, odd = ([lanes[2 * turn + lane].frames.tolist() for turn in range(8)] for lane in (0, 1))
    for one, other in ((first, second), (even, odd)):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 6
    assert len({made.noise_seed(step) for made in ranks for step in range(8)}) == 16


def test_a_stream_survives_the_way_into_a_spawned_process(many: Path) -> None:
    made = stream(many)
    expected = made[3]  # with an order of scenes in memory
    assert_same(pickle.loads(pickle.dumps(made))[3], expected)


# ------------------------------------------------------------------------------------------------ who reads what


@pytest.mark.parametrize(("world_size", "lanes"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_every_scene_is_read_once_per_epoch_by_all_readers_together(many: Path, world_size: int, lanes: int) -> None:
    per_rank = 24 // world_size
    for epoch in range(2):
        read = Counter()
        for rank in range(world_size):
            made = stream(many, rank=rank, world_size=world_size, lanes=lanes)
            read.update(scenes_of_steps(made, range(epoch * per_rank, (epoch + 1) * per_rank)))
        assert read == Counter({f"s{i:02d}": 1 for i in range(24)})


def test_epochs_differ_in_order(many: Path) -> None:
    made = stream(many)
    assert scenes_of_steps(made, range(24)) != scenes_of_steps(made, range(24, 48))


def test_one_reader_opens_each_chunk_once_per_epoch(many: Path) -> None:
    made = stream(many)
    chunks = [made.source.chunk_of_scene[key] for key in scenes_of_steps(made, range(24))]
    assert len(list(itertools.groupby(chunks))) == 8
    assert chunks[::3] != sorted(chunks[::3])


def test_with_fewer_scenes_than_readers_each_reads_all_in_an_order_of_its_own(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene(key) for key in "abc"]})
    orders = []
    for lane in range(4):
        made = stream(root, lanes=4)
        orders.append([made[4 * turn + lane].scenes[0] for turn in range(12)])
    for order in orders:
        assert all(sorted(order[i : i + 3]) == ["a", "b", "c"] for i in range(0, 12, 3))
    assert len({tuple(order) for order in orders}) > 1


def test_lanes_and_loader_processes_must_agree(many: Path) -> None:
    with pytest.raises(ConfigError, match="1 lane cannot be read by 2 processes"):
        next(training_batches(stream(many), num_workers=2))


# ------------------------------------------------------------------------------------------------ view sampling


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetched_batches_follow_the_curriculum_at_the_step_that_uses_them(many: Path, workers: int) -> None:
    sampling = replace(SAMPLING, initial_min_gap=1, initial_max_gap=1, min_gap=5, max_gap=5, gap_warm_up_steps=8)
    made = stream(many, sampling, lanes=max(1, workers))
    for first in (0, 3):
        for batch in itertools.islice(training_batches(made, first, num_workers=workers), 9):
            left, right = batch.frames[0, :2]
            assert right - left == sampling.gap_limits(batch.step, "train")[0]


def test_the_evaluation_sampler_takes_entries_of_the_index_only(many: Path) -> None:
    entries = {"s03": [FrameChoice((0, 4), (2,))], "s04": [FrameChoice((1, 5), (3,)), FrameChoice((0, 2), (1,))]}
    made = stream(many, ViewSamplingConfig(sampler="evaluation"), entries=entries)
    drawn = {(made[step].scenes[0], tuple(made[step].frames[0])) for step in range(20)}
    assert drawn == {("s03", (0, 4, 2)), ("s04", (1, 5, 3)), ("s04", (0, 2, 1))}
    with pytest.raises(SceneDataError, match="index"):
        stream(many, ViewSamplingConfig(sampler="evaluation"), entries={"elsewhere": entries["s03"]})


def test_reflected_and_plain_examples_alternate_at_random(many: Path) -> None:
    def differs(step: int) -> bool:
        return not torch.equal(stream(many)[step].images, stream(many, mirror=False)[step].images)

    assert {differs(step) for step in range(12)} == {True, False}


# ------------------------------------------------------------------------------------------------------- batches


def test_a_batch_on_its_device_equals_the_examples_it_was_made_of(many: Path) -> None:
    made = stream(many, batch_size=2, mirror=False)
    packed = made[0]
    batch = packed.to("cpu")
    assert packed.images.dtype == torch.uint8 and batch.context.image.dtype == torch.float32
    for i, key in enumerate(batch.scene):
        context, target = (tuple(views.frame[i].tolist()) for views in (batch.context, batch.target))
        video = made.source.read_scene(key)
        example = make_example(video, FrameChoice(context, target), made.config.preparation)
        torch.testing.assert_close(batch.target.image[i], example.target.image[0], rtol=0, atol=0)
        torch.testing.assert_close(batch.context.image[i], example.context.image[0], rtol=0, atol=0)
        torch.testing.assert_close(batch.target.cameras.near[i], example.target.cameras.near[0], rtol=0, atol=0)
        poses = batch.target.cameras.world_from_camera[i]
        torch.testing.assert_close(poses, example.target.cameras.world_from_camera[0], rtol=0, atol=0)


def test_ctrl_c_does_not_end_loader_processes(many: Path) -> None:
    batches = training_batches(stream(many, lanes=2), num_workers=2)
    for _ in range(2):  # one of each, which have begun then
        next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
    for _ in range(8):
        next(batches)
    assert all(worker.is_alive() for worker in workers)
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


# ------------------------------------------------------------------------------------------------------- bad data


def damaged_data(root: Path) -> Path:
    """Six scenes that cannot be used, each for its reason, a chunk cut in half, one with code, and two good scenes."""
    cut, wide, pixels = scene("cut"), scene("wide"), scene("pixels")
    cut["images"] = [image[: len(image) // 2] for image in cut["images"]]
    wide["cameras"][:, 0] = 0.3
    pixels["cameras"][:, :4] *= 64
    bad = [scene("short", frames=1), scene("still", step=0.0), scene("tiny", size=(20, 64)), wide, cut, pixels]
    good = [scene("good"), scene("fine")]
    write(root, {"0.torch": bad, "1.torch": good, "2.torch": [scene("lost")], "3.torch": [scene("coded")]})
    cut_in_half(root / "train" / "2.torch")
    plant_code(root / "train" / "3.torch", root / "executed")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_examples_are_counted_by_reason_and_the_rest_is_used(tmp_path: Path, workers: int) -> None:
    root = damaged_data(tmp_path / "d")
    made = stream(root, batch_size=3, lanes=max(1, workers))
    used, skipped = set(), Counter()
    for batch in itertools.islice(training_batches(made, num_workers=workers), 12):
        used |= set(batch.scenes)
        assert batch.skips.used == 3
        skipped.update(batch.skips.skipped)
    assert used == {"good", "fine"}
    assert set(skipped) == {"too short", "no baseline", "image size", "field of view", "broken"}
    assert not (root / "executed").exists()


def test_one_broken_frame_of_the_only_scene_is_passed_over(tmp_path: Path) -> None:
    only = scene("only", frames=8)
    only["images"][3] = only["images"][3][:60]
    made = stream(write(tmp_path / "d", {"0.torch": [only]}), mirror=False)
    batches = [made[step] for step in range(40)]
    assert all(3 not in batch.frames for batch in batches)
    passed_over = sum(batch.skips.total_skipped for batch in batches)
    assert 10 < passed_over < 200 and sum(batch.skips.used for batch in batches) == 40
    assert {reason for batch in batches for reason in batch.skips.skipped} == {"broken"}


def test_messages_name_scene_and_cause(tmp_path: Path) -> None:
    made = stream(damaged_data(tmp_path / "d"), batch_size=9)
    latest = {}
    for step in range(4):
        latest.update(made[step].skips.latest)
    assert latest["too short"] == "scene short has 1 frame, but context views 2 frames apart were asked for"
    assert "scene still are only 0 apart" in latest["no baseline"]
    assert latest["field of view"] == "scene wide has a field of view above 100 degrees"
    assert "64x20 is smaller than the 32x32" in latest["image size"]


@pytest.mark.parametrize("workers", [0, 2])
def test_data_without_a_usable_scene_end_in_one_line(tmp_path: Path, workers: int) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a", frames=2), scene("b", frames=2), scene("c", step=0.0)]})
    with pytest.raises(
        SceneDataError, match=r"no scene can be used.*2 too short.*has 2 frames.*1 no baseline"
    ) as caught:
        next(training_batches(stream(root, lanes=max(1, workers)), num_workers=workers))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_entries_that_do_not_fit_into_one_batch_end_in_one_line(many: Path, workers: int) -> None:
    entries = {"s03": [FrameChoice((0, 4), (2,))], "s04": [FrameChoice((1, 5), (3, 4))]}
    made = stream(many, ViewSamplingConfig(sampler="evaluation"), entries=entries, batch_size=2)
    with pytest.raises(ConfigError, match="batch-size 1") as caught:
        next(training_batches(made, num_workers=workers))
    assert "\n" not in str(caught.value)


def test_a_replacement_is_seldom_the_scene_whose_turn_is_next(tmp_path: Path) -> None:
    keys = [f"s{i}" for i in range(6)]
    root = write(tmp_path / "d", {"0.torch": [scene("short", frames=2), *(scene(key) for key in keys)]})
    made = stream(root)
    replaced = [step for step in range(140) if made[step].skips.total_skipped]
    assert len(replaced) == 20
    assert sum(made[step].scenes == made[step + 1].scenes for step in replaced) < 10
