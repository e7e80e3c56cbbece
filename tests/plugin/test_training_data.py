"""The training half of the datamanager: from a step to the batch on the device, and what is said about skipped data."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from re10k_chunks import scene, write

from lsplat_ns.data.view_sampling import ViewSamplingConfig
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.plugin import datamanager as module
from lsplat_ns.plugin.datamanager import LatentSplatDataManager, LatentSplatDataManagerConfig, training_stream
from lsplat_ns.plugin.dataparsers import Re10kDataParserConfig
from lsplat_ns.plugin.recipes import tiny_trainer
from lsplat_ns.scene import SceneBatch

SAMPLING = ViewSamplingConfig(
    num_target_views=2, min_gap=2, max_gap=4, initial_min_gap=2, initial_max_gap=4, target_margin=0,
    gap_warm_up_steps=0, margin_warm_up_steps=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four good scenes and two that cannot be used to train on; one to look at."""
    root = tmp_path_factory.mktemp("data") / "d"
    write(root, {"0.torch": [scene(key) for key in "abc"], "1.torch": [scene("d"), scene("short", frames=2)]})
    return write(root, {"0.torch": [scene("shown")]}, "test")


def config_of(data: Path, **options: object) -> LatentSplatDataManagerConfig:
    config = deepcopy(tiny_trainer("latentsplat-tiny").pipeline.datamanager)
    preparation = replace(config.preparation, image_size=(32, 32))
    stated = {"data": data, "preparation": preparation, "sampling": SAMPLING, "num_workers": 0}
    return replace(config, **{**stated, **options})


def manager(data: Path, **options: object) -> LatentSplatDataManager:
    return config_of(data, **options).setup(device="cpu", test_mode="val")


def assert_same(first: SceneBatch, second: SceneBatch) -> None:
    assert first.scene == second.scene
    assert torch.equal(first.context.image, second.context.image)
    assert torch.equal(first.target.image, second.target.image)
    assert torch.equal(first.target.cameras.world_from_camera, second.target.cameras.world_from_camera)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_at_a_step_sees_what_an_uninterrupted_one_sees(data: Path, workers: int) -> None:
    whole, resumed = manager(data, num_workers=workers), manager(data, num_workers=workers)
    batches = [whole.next_train(step)[0] for step in range(6)]
    for step in (4, 5):
        assert_same(resumed.next_train(step)[0], batches[step])


def test_any_order_of_steps_is_answered(data: Path) -> None:
    made = manager(data)
    third, fourth = made.next_train(3)[0], made.next_train(4)[0]
    assert_same(made.next_train(3)[0], third)
    assert_same(made.next_train(4)[0], fourth)
    assert made.train_count == 4


def test_ranks_read_different_scenes(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene(key) for key in "abcd"]})
    write(root, {"0.torch": [scene("shown")]}, "test")
    drawn = []
    for rank in (0, 1):
        config = config_of(root, batch_size=2)
        made = config.setup(device="cpu", test_mode="val", world_size=2, local_rank=rank)
        drawn += made.next_train(0)[0].scene
    assert sorted(drawn) == ["a", "b", "c", "d"]


def test_reading_starts_with_the_first_step_and_not_before(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    original = module.training_batches

    def noting(stream: object, step: int, **options: object):
        started.append(step)
        return original(stream, step, **options)

    monkeypatch.setattr(module, "training_batches", noting)
    made = manager(data)
    assert started == []
    for step in (70, 71, 72):
        made.next_train(step)
    assert started == [70]


@pytest.mark.parametrize("workers", [0, 2])
def test_skips_are_counted_over_loader_processes_and_said(
    data: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    made = manager(data, num_workers=workers)
    for step in range(20):
        _, metrics = made.next_train(step)
    assert metrics["skipped_examples"] == metrics["skipped_examples/too_short"] == made.skips.total_skipped > 3
    lines = [line for line in capsys.readouterr().out.splitlines() if "examples skipped" in line]
    assert "1 too short (such as: scene short has 2 frames" in lines[0].replace("\n", " ")
    assert 2 <= len(lines) <= made.skips.total_skipped.bit_length()


def test_skip_counts_are_training_metrics(tmp_path: Path) -> None:
    config = deepcopy(tiny_trainer("latentsplat-tiny")).pipeline
    root = write(tmp_path / "d", {"0.torch": [scene("a", size=(64, 64)), scene("short", frames=2)]})
    write(root, {"0.torch": [scene("shown", size=(64, 64))]}, "test")
    config.datamanager = config_of(root, preparation=config.datamanager.preparation)
    config.model.perceptual = "none"
    pipeline = config.setup(device="cpu", test_mode="val")
    for step in range(3):
        _, _, metrics = pipeline.get_train_loss_dict(step)
    assert metrics["skipped_examples"] == metrics["skipped_examples/too_short"] > 0


def test_several_folders_are_one_dataset(data: Path, tmp_path: Path) -> None:
    more = write(tmp_path / "more", {"0.torch": [scene("m"), scene("n")]})
    parser = Re10kDataParserConfig(data=data, more_data=(more,)).setup()
    assert parser.split("train").scenes == ["a", "b", "c", "d", "short", "m", "n"]
    assert parser.scene_ids() == ["shown"]  # the second folder has no test/
    config = config_of(data)
    config.dataparser = replace(config.dataparser, data=data, more_data=(more,))
    stream = training_stream(config, config.dataparser.setup())
    assert {key for step in range(12) for key in stream[step].scenes} == {"a", "b", "c", "d", "m", "n"}
    with pytest.raises(SceneDataError, match="scene a is in"):
        again = write(tmp_path / "again", {"0.torch": [scene("a")]})
        Re10kDataParserConfig(data=data, more_data=(again,)).setup().split("train")
    with pytest.raises(SceneDataError, match=r"no data folder .*absent"):
        Re10kDataParserConfig(data=data, more_data=(tmp_path / "absent",)).setup().split("train")


def test_samplers_that_do_not_suit_the_network_or_the_data_are_refused(data: Path) -> None:
    for sampler, expected in (("all", "takes two"), ("evaluation", "--evaluation-index")):
        config = config_of(data)
        config.sampling = replace(SAMPLING, sampler=sampler)
        config.dataparser.data = data
        with pytest.raises(ConfigError, match=expected):
            training_stream(config, config.dataparser.setup())


def test_arbitrary_and_evaluation_samplers_train(data: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text('{"b": [{"context": [1, 4], "target": [2, 3]}]}')
    config = config_of(data, batch_size=1)
    config.dataparser = replace(config.dataparser, data=data, evaluation_index=index)
    config.sampling = replace(SAMPLING, sampler="evaluation")
    batch = training_stream(config, config.dataparser.setup())[0].to("cpu")
    assert batch.scene == ("b",)
    assert (batch.context.frame.tolist(), batch.target.frame.tolist()) == ([[1, 4]], [[2, 3]])
    config.sampling = replace(SAMPLING, sampler="arbitrary")
    gaps = set()
    stream = training_stream(config, config.dataparser.setup())
    for step in range(20):
        left, right = stream[step].frames[0, :2]
        gaps.add(int(right - left))
    assert min(gaps) < 0 < max(gaps)


def test_gaps_that_no_video_will_fit_are_refused_before_training(data: Path) -> None:
    trainer = deepcopy(tiny_trainer("latentsplat-tiny"))
    trainer.pipeline.model.perceptual, trainer.vis = "none", "tensorboard"
    trainer.pipeline.datamanager = config_of(data)
    growing = replace(SAMPLING, min_gap=40, max_gap=40, gap_warm_up_steps=100)
    trainer.pipeline.datamanager.sampling = growing
    with pytest.raises(SceneDataError, match=r"at step 2999: .* too short .*40 frames apart"):
        trainer._check()
    trainer.max_num_iterations = 3
    trainer._check()
