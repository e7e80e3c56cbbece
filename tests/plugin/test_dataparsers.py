"""The dataparsers of datasets with many scenes, as nerfstudio's commands use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from co3d_folders import write_category, write_list
from conftest import call

from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.errors import SceneDataError
from lsplat_ns.plugin import dataparsers as module
from lsplat_ns.plugin.dataparsers import Co3dDataParserConfig, Re10kDataParserConfig, dataparser_for
from lsplat_ns.plugin.recipes import co3d_trainer

SMALL = PreparationConfig(image_size=(32, 32), baseline_to_one=False)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hydrants with an evaluation list only, and bears without any list."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = write_category(tmp_path / "co3d", {"h1": 12, "h2": 12})
    write_list(data, "eval", {"h2": list(range(12))})
    return write_category(data, {"bear1": 6, "bear2": 6}, "teddybear")


def test_a_scene_of_the_asked_category_is_shown_with_the_entry_of_its_published_index(root: Path) -> None:
    entry = {"context": [10, 1], "target": [11, 0]}  # across the seam
    (root / "co3d_hydrant_extra.json").write_text(json.dumps({"h2": [entry], "not-here": [entry]}))
    parser = Co3dDataParserConfig(data=root, category=("hydrant",)).setup()
    scene = parser.active_scene(SMALL)
    assert scene.name == "h2" and scene.video.circular
    assert (scene.choice.context, scene.choice.target) == ((10, 1), (11, 0))
    assert scene.context.image.shape == (1, 2, 3, 32, 32)
    outputs = scene.dataparser_outputs(scene.choice.target)
    assert len(outputs.cameras) == 2 and torch.isfinite(outputs.cameras.camera_to_worlds).all()


def test_entries_that_a_network_of_two_views_cannot_show_are_passed_over(root: Path) -> None:
    good = {"context": [2, 4], "target": [3]}
    unusable = [{"context": [2], "target": [3]}, {"context": [2, 99], "target": [3]}, {"context": [2, 4], "target": []}]
    index = root / "co3d_hydrant_extra.json"
    for entries, shown in (([*unusable, good], (2, 4)), (unusable, (0, 11))):
        index.write_text(json.dumps({"h2": entries}))
        assert (
            Co3dDataParserConfig(data=root, category=("hydrant",)).setup().active_scene(SMALL).choice.context == shown
        )


def test_every_category_that_is_there_is_read_unless_one_is_asked_for(root: Path) -> None:
    assert set(Co3dDataParserConfig(data=root).setup().split("train").scenes) == {"h1", "bear2"}
    bears = Co3dDataParserConfig(data=root, category=("teddybear",)).setup()
    assert bears.scene_ids() == ["bear1"] and bears.published_sets() == ("co3d_teddybear",)
    with pytest.raises(SceneDataError, match=r"no category vase .* among hydrant, teddybear"):
        Co3dDataParserConfig(data=root, category=("vase",)).setup().split("train")


def test_a_category_that_is_not_there_stops_training_before_it_starts(root: Path) -> None:
    (root / "teddybear" / "frame_annotations.jgz").unlink()
    config = co3d_trainer("any")
    config.pipeline.datamanager.data = root
    config.pipeline.datamanager.dataparser.category = ("teddybear",)
    with pytest.raises(SceneDataError, match="no category teddybear"):
        config._check()
    config.pipeline.datamanager.dataparser.category = ("hydrant",)  # which is found; its pictures are small
    with pytest.raises(SceneDataError, match="48x40 is smaller than the 256x256"):
        config._check()


def test_options_reach_the_reader(root: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "co3d_hydrant_eval.json").write_text(json.dumps([["h1", i, ""] for i in range(5)]))
    options = {"split_lists": tmp_path / "lists", "circular": False, "category": ("hydrant",)}
    video = Co3dDataParserConfig(data=root, **options).setup().read_scene("h1")
    assert len(video) == 5 and not video.circular


def test_a_derived_split_is_said_to_be_one_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module.CONSOLE, "print", lambda text, **_: said.append(text))
    module._say_once.cache_clear()
    for _ in range(2):
        Co3dDataParserConfig(data=root, category=("hydrant",)).setup().split("train")
    (line,) = said
    assert "no co3d_hydrant_train.json" in line and "all that co3d_hydrant_eval.json leaves" in line


def test_imported_runs_look_at_co3d_through_the_options_of_their_method(root: Path, rooms: Path) -> None:
    hydrants = co3d_trainer("any").pipeline.datamanager.dataparser
    assert dataparser_for(root, hydrants) == Co3dDataParserConfig(data=root, category=("hydrant",))
    assert dataparser_for(root, Re10kDataParserConfig()) == Co3dDataParserConfig(data=root)
    assert dataparser_for(rooms, hydrants) == Re10kDataParserConfig(data=rooms)


@pytest.mark.slow
def test_ns_train_and_ns_eval_work_on_turntables(objects: Path, tmp_path: Path) -> None:
    trained = call(
        "ns-train", "latentsplat-tiny", "--data", objects, "--max-num-iterations", 2, "--vis", "tensorboard",
        "--experiment-name", "objects", "--timestamp", "first", "co3d-data", "--category", "hydrant", cwd=tmp_path,
    )  # fmt: skip
    assert trained.code == 0, trained.output[-3000:]
    assert "Scene objects_3_00001" in trained.output
    config = tmp_path / "outputs" / "objects" / "latentsplat-tiny" / "first" / "config.yml"
    scored = call("ns-eval", "--load-config", config, "--output-path", tmp_path / "eval.json", cwd=tmp_path)
    assert scored.code == 0, scored.output[-3000:]
    index = json.loads((objects / "evaluation_index.json").read_text())
    entries = sum(map(len, index.values()))
    assert json.loads((tmp_path / "eval.json").read_text())["results"]["entries"] == entries > 1
