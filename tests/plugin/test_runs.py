"""Runs on disk: which checkpoint of which folder is opened, and what is no run of latentSplat."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from untrained_runs import write_untrained_run

from lsplat_ns.errors import CheckpointMismatch, ConfigError
from lsplat_ns.plugin.exporting import export_scene
from lsplat_ns.plugin.mvldm_pipeline import MvldmPipelineConfig, MvldmTrainerConfig
from lsplat_ns.plugin.runs import RunFolderConfig, StoredRun, where_it_lies


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_untrained_run(tmp_path / "run")


def rewritten(checkpoint: Path, change: float, step: int) -> Path:
    """Another checkpoint, whose weights differ by ``change``."""
    state = torch.load(checkpoint, weights_only=True)
    state["pipeline"] = {key: value + change for key, value in state["pipeline"].items()}
    path = checkpoint.with_name(f"step-{step:09d}.ckpt")
    torch.save({**state, "step": step}, path)
    return path


def a_weight(run: StoredRun) -> float:
    return float(next(value for value in run.pipeline_state.values() if value.numel()).flatten()[0])


def test_a_copied_run_is_read_where_the_copy_is(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = a_weight(StoredRun.open(run))
    rewritten(run / "nerfstudio_models" / "step-000000000.ckpt", 1.0, 5)  # training of the original goes on
    assert a_weight(StoredRun.open(copy / "config.yml")) == before
    assert a_weight(StoredRun.open(run)) == pytest.approx(before + 1)


def test_the_newest_whole_checkpoint_counts_as_in_every_tool(run: Path) -> None:
    first = run / "nerfstudio_models" / "step-000000000.ckpt"
    before = a_weight(StoredRun.open(run))
    rewritten(first, 1.0, 7)
    torn = rewritten(first, 2.0, 9)
    torn.write_bytes(torn.read_bytes()[:4000])
    opened = StoredRun.open(run)
    assert opened.steps_done == 8 and a_weight(opened) == pytest.approx(before + 1)
    torn.rename(first)
    (run / "nerfstudio_models" / "step-000000007.ckpt").unlink()
    with pytest.raises(CheckpointMismatch, match="no whole checkpoint"):
        StoredRun.open(run)


def test_a_moved_run_s_checkpoints_and_notes_are_those_beside_its_configs(run: Path, tmp_path: Path) -> None:
    config = StoredRun.open(run).config
    assert where_it_lies(tmp_path / "copy.yml", config) is config  # no checkpoints there: the run that it names
    moved = run.rename(tmp_path / "scenes")  # an unlucky name: that of the folder of saved scenes
    found = where_it_lies(moved / "config.yml", config)
    assert found.get_checkpoint_dir() == moved / "nerfstudio_models" and found.pipeline.datamanager.run_dir == moved
    assert found.pipeline.datamanager.layers is None
    config.pipeline.datamanager.layers = run / "scenes" / "room.layers.json"
    assert where_it_lies(moved / "config.yml", config).pipeline.datamanager.layers == config.pipeline.datamanager.layers
    (moved / "scenes").mkdir()
    (moved / "scenes" / "room.layers.json").write_text("[]")
    found = where_it_lies(moved / "scenes" / "room.yml", config)
    assert found.get_base_dir() == moved
    assert found.pipeline.datamanager.layers == moved / "scenes" / "room.layers.json"


def test_the_digest_of_a_run_s_weights_is_that_of_nothing_else(run: Path) -> None:
    first = StoredRun.open(run)
    checkpoint = run / "nerfstudio_models" / "step-000000000.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "step": 5, "optimizers": {"lr": 1.0}}, checkpoint.with_name("step-000000005.ckpt"))
    assert StoredRun.open(run).weights_sha256() == first.weights_sha256()
    rewritten(checkpoint, 1e-4, 6)
    assert StoredRun.open(run).weights_sha256() != first.weights_sha256()
    halves = {name: value.bfloat16() for name, value in first.pipeline_state.items()}
    assert replace(first, pipeline_state=halves).weights_sha256() != first.weights_sha256()


def test_a_run_made_of_another_one_does_not_ask_for_its_steps_and_folders(run: Path, tmp_path: Path) -> None:
    config = StoredRun.open(run).config
    config.load_step, config.load_dir = 3, run / "nerfstudio_models"
    config.pipeline.datamanager.run_dir = run
    made = RunFolderConfig.of(config, tmp_path / "made")
    assert made.load_step is None and made.load_dir is None and made.pipeline.datamanager.run_dir is None
    assert made.get_base_dir() == tmp_path / "made" and config.load_step == 3


def test_a_run_of_mv_ldm_is_no_run_of_latentsplat(tmp_path: Path) -> None:
    config = MvldmTrainerConfig(method_name="mvldm-tiny", pipeline=MvldmPipelineConfig())
    (tmp_path / "config.yml").write_text(yaml.dump(config))
    with pytest.raises(ConfigError, match="no run of a latentSplat method"):
        StoredRun.open(tmp_path)
    with pytest.raises(ConfigError, match="no run of a latentSplat method"):
        export_scene(tmp_path, tmp_path / "scene.ply")
