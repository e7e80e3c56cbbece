"""``lsplat export``: whose weights, which scene, and one line where nothing can be written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from evaluation.scored_rooms import write_dataset
from plugin.test_evaluating import write_run_on

from lsplat_ns.checkpoints.exports import read_ply
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.plugin.active_scene import SIDECAR
from lsplat_ns.plugin.exporting import export_scene
from lsplat_ns.plugin.pipeline import LatentSplatPipeline
from lsplat_ns.plugin.runs import read_run_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d")


def exported(run: Path, output: Path, **options: object) -> torch.Tensor:
    """Where the Gaussians of an export stand."""
    export_scene(run, output, keep_faint=True, **options)
    return read_ply(output).means


def copy_with_scene(source: Path, scene: str, file: Path) -> Path:
    """A config of the run at ``source`` with a scene chosen, as the viewer saves it or a person writes it."""
    config = read_run_config(source)[1]
    config.pipeline.datamanager.dataparser.scene = scene
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.dump(config))
    return file


def test_a_renamed_or_copied_run_keeps_its_weights(data: Path, tmp_path: Path) -> None:
    run = write_run_on(data, tmp_path / "runs" / "m", seed=0)
    first = exported(run, tmp_path / "first.ply")
    copy_with_scene(run, "late", run / "scenes" / "late.yml")
    late = exported(run / "scenes" / "late.yml", tmp_path / "late.ply")
    old = run.rename(tmp_path / "runs" / "old")
    write_run_on(data, run, seed=9)
    assert torch.equal(exported(old, tmp_path / "old.ply"), first)
    assert torch.equal(exported(old / "scenes" / "late.yml", tmp_path / "old late.ply"), late)
    second = exported(run, tmp_path / "second.ply")
    assert not torch.equal(second, first) and not torch.equal(late, first)
    shutil.rmtree(run)
    assert torch.equal(exported(old, tmp_path / "alone.ply"), first)


def test_a_copy_of_a_config_elsewhere_takes_the_run_that_it_names(data: Path, tmp_path: Path) -> None:
    run = write_run_on(data, tmp_path / "run")
    copy = copy_with_scene(run, "late", tmp_path / "elsewhere" / "scenes" / "mine.yml")
    assert torch.equal(exported(copy, tmp_path / "a.ply"), exported(run, tmp_path / "b.ply", scene="late"))


def test_another_scene_is_exported_and_no_other_tool_follows(data: Path, tmp_path: Path) -> None:
    run = write_run_on(data, tmp_path / "run")
    shown = exported(run, tmp_path / "shown.ply")
    other = exported(run, tmp_path / "other.ply", scene="late")
    assert not torch.equal(other, shown) and not (run / SIDECAR).exists()
    assert torch.equal(exported(run, tmp_path / "again.ply"), shown)
    with pytest.raises(SceneDataError, match="no scene 'nowhere'"):
        export_scene(run, tmp_path / "x.ply", scene="nowhere")
    assert not (tmp_path / "x.ply").exists()


def test_what_cannot_be_written_is_one_line(data: Path, tmp_path: Path) -> None:
    run = write_run_on(data, tmp_path / "run")
    (tmp_path / "folder.ply").mkdir()
    with pytest.raises(ConfigError, match=r"folder.ply is a folder; name another file with --output"):
        export_scene(run, tmp_path / "folder.ply")
    (tmp_path / "x.npz").symlink_to(tmp_path)  # os.replace would put a file in its place
    with pytest.raises(ConfigError, match=r"x.npz is a folder"):
        export_scene(run, tmp_path / "x.npz")
    if Path("/proc").is_dir():
        with pytest.raises(SceneDataError, match=r"cannot write /proc/x.npz: No such file or directory"):
            export_scene(run, Path("/proc/x.npz"))


@pytest.mark.parametrize(("scene", "layers"), [("shown", ("now",)), ("other", ("noted",))])
def test_a_scene_is_found_with_its_own_generated_views(scene: str, layers: tuple[str, ...]) -> None:
    @dataclass(frozen=True)
    class Scene:
        name: str
        layers: tuple[str, ...] | None = ()

    datamanager = SimpleNamespace(scene=Scene("shown", ("now",)), find_scene=Scene, layers_of=lambda name: ("noted",))
    assert LatentSplatPipeline.find_scene(SimpleNamespace(datamanager=datamanager), scene) == Scene(scene, layers)
