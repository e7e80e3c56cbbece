from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import cut_in_half, plant_code, without_permission
from re10k_chunks import scene as stored_scene
from re10k_chunks import write as write_chunks

from lsplat_ns.data.inspection import InspectionConfig, Problem, SplitInspection, inspect_source
from lsplat_ns.data.survey import survey
from lsplat_ns.errors import ConfigError, SceneDataError

SMALL = InspectionConfig(image_size=(32, 32))


def inspect(root: Path, config: InspectionConfig = SMALL) -> dict[str, SplitInspection]:
    return {split.name: inspect_source(split, config) for split in survey(root)}


def problems(root: Path, config: InspectionConfig = SMALL) -> list[Problem]:
    return [problem for split in inspect(root, config).values() for problem in split.problems]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two healthy chunks with an index and an evaluation index."""
    root = write_chunks(tmp_path / "re10k", {"0.torch": [stored_scene("a"), stored_scene("b", 9)]}, "train")
    write_chunks(root, {"1.torch": [stored_scene("c", size=(40, 60))]}, "test")
    (root / "evaluation_index.json").write_text('{"c": [{"context": [0, 3], "target": [1, 2]}], "absent": null}')
    return root


def test_a_healthy_dataset_has_no_problem_and_its_facts_are_right(dataset: Path) -> None:
    splits = inspect(dataset)
    assert not [problem for split in splits.values() for problem in split.problems]
    train, test = splits["train"], splits["test"]
    assert [facts.scene for facts in train.scenes] == ["a", "b"] and train.frames == 15
    assert test.sizes == {(40, 60): 6}
    assert train.scenes[1].span == pytest.approx(0.8)
    assert train.scenes[0].fov_degrees == pytest.approx(2 * 32.005, abs=0.01)
    assert any("1 scene with entries, 1 of them here" in note for note in test.notes)
    assert list(test.entries) == ["c"] and not train.entries


def _broken(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Damage one scene of the training chunk."""

    def damage(root: Path) -> None:
        path = root / "train" / "0.torch"
        scenes = torch.load(path, weights_only=True)
        change(scenes[0])
        torch.save(scenes, path)

    return damage


def _set_camera(columns: slice | int, value: float, frame: int = 2) -> Callable[[dict], None]:
    def change(scene: dict) -> None:
        scene["cameras"][frame, columns] = value

    return change


def _cut_frame(scene: dict) -> None:
    scene["images"][3] = scene["images"][3][: len(scene["images"][3]) // 2]


def _keep_frames(count: int, same_place: bool = False) -> Callable[[dict], None]:
    def change(scene: dict) -> None:
        scene["cameras"], scene["images"] = scene["cameras"][:count], scene["images"][:count]
        if same_place:
            scene["cameras"][:] = scene["cameras"][0].clone()
            scene["images"] = [scene["images"][0]] * count

    return change


def _set_entries(*entries: dict) -> Callable[[Path], object]:
    return lambda root: (root / "evaluation_index.json").write_text(json.dumps({"c": list(entries)}))


def _set_index(change: Callable[[dict], dict]) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        path = root / "train" / "index.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


DAMAGES = {
    "wrong camera row": (
        _broken(lambda s: s.update(cameras=s["cameras"][:, :17])), "broken scene", "x17 of float32"
    ),
    "NaN pose": (_broken(_set_camera(slice(6, None), float("nan"))), "broken scene", "NaN"),
    "not rigid": (_broken(_set_camera(6, 2.0)), "broken scene", "rigid"),
    "pixel intrinsics": (_broken(_set_camera(slice(0, 2), 500.0)), "broken scene", "pixels"),
    "no cameras": (_broken(lambda s: s.pop("cameras")), "broken scene", "lacks key, cameras or images"),
    "one frame": (_broken(_keep_frames(1)), "too short", "scene a: 1 frame;"),
    "two identical frames": (_broken(_keep_frames(2, same_place=True)), "no baseline", "no parallax"),
    "still camera": (_broken(_keep_frames(6, same_place=True)), "no baseline", "scene a"),
    "wide": (_broken(_set_camera(0, 0.3, frame=0)), "field of view", "scene a: 118 degrees"),
    "no image": (
        _broken(lambda s: s["images"].__setitem__(4, torch.zeros(9, dtype=torch.uint8))), "unreadable frame", "frame 4"
    ),
    "chunk cut in half": (lambda root: cut_in_half(root / "train" / "0.torch"), "broken chunk", "cut short"),
    "not a torch file": (
        lambda root: (root / "train" / "0.torch").write_text("404: not found"), "broken chunk", "torch.save"
    ),
    "empty chunk": (lambda root: torch.save([], root / "train" / "0.torch"), "broken chunk", "no scene of its own"),
    "chunk not in index": (
        lambda root: torch.save([stored_scene("new")], root / "train" / "2.torch"), "index", "2.torch is not in the"
    ),
    "chunk missing": (lambda root: (root / "train" / "0.torch").unlink(), "index", "names 0.torch for 2 scenes"),
    "index missing": (lambda root: (root / "train" / "index.json").unlink(), "index", "is missing"),
    "index broken": (lambda root: (root / "train" / "index.json").write_text("{"), "index", "is broken"),
    "index leaves folder": (_set_index(lambda i: {**i, "x": "../../x.torch"}), "index", "outside the folder"),
    "scene not in its chunk": (_set_index(lambda i: {**i, "x": "0.torch"}), "index", "1 scene into 0.torch that it"),
    "scene not in index": (_set_index(lambda i: {"a": "0.torch"}), "index", "leaves out 1 scene of 0.torch"),
    "repeated scene": (
        lambda root: torch.save([stored_scene("a"), stored_scene("n")], root / "train" / "1.torch"),
        "repeated scene", "scene a is in 0.torch, 1.torch",
    ),
    "entry beyond the end": (_set_entries({"context": [0, 9], "target": [1]}), "evaluation entry", "frame 9"),
    "evaluation index broken": (
        lambda root: (root / "evaluation_index.json").write_text("[]"), "evaluation index", "not an evaluation"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_reported_by_its_reason_in_one_line(dataset: Path, damage: str) -> None:
    inflict, reason, words = DAMAGES[damage]
    inflict(dataset)
    found = problems(dataset)
    assert any(problem.reason == reason and words in problem.detail for problem in found), found
    assert all("\n" not in problem.detail for problem in found)
    test = inspect(dataset)["test"]
    assert len(test.scenes) == 1  # the rest is looked at all the same


def test_a_frame_cut_in_half_is_found_by_decoding_alone(dataset: Path) -> None:
    _broken(_cut_frame)(dataset)
    assert problems(dataset) == []
    (problem,) = problems(dataset, InspectionConfig(image_size=(32, 32), deep=True))
    assert problem.reason == "unreadable frame" and "scene a: frame 3" in problem.detail


def test_code_in_a_chunk_is_refused_and_not_run(dataset: Path, tmp_path: Path) -> None:
    plant_code(dataset / "train" / "0.torch", tmp_path / "executed")
    assert any(p.reason == "broken chunk" and "never run" in p.detail for p in problems(dataset))
    assert not (tmp_path / "executed").exists()


def test_frames_below_the_size_of_the_method_are_reported_once_per_scene(dataset: Path) -> None:
    found = problems(dataset, InspectionConfig(image_size=(38, 60)))
    assert [p.reason for p in found] == ["image size", "image size"]
    assert "scene b: frames 0, 1, 2, 3 and 5 more below 60x38, the smallest 64x36" in found[1].detail


def test_contexts_without_a_baseline_are_reported(dataset: Path) -> None:
    _set_entries({"context": [2, 2], "target": [1]})(dataset)
    (problem,) = problems(dataset)
    assert problem.reason == "evaluation entry" and "0 apart" in problem.detail


def test_folders_that_hold_no_dataset_are_explained_in_one_line(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, words in ((tmp_path / "absent", "no data folder"), (tmp_path / "empty", "holds no dataset")):
        with pytest.raises(SceneDataError, match=words):
            survey(folder)
    (tmp_path / "transforms.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a capture"):
        survey(tmp_path)
    with without_permission(dataset / "train"), pytest.raises(SceneDataError, match="Permission denied"):
        survey(dataset)


def test_a_broken_split_of_co3d_is_reported(tmp_path: Path) -> None:
    (tmp_path / "hydrant").mkdir()
    (tmp_path / "hydrant" / "frame_annotations.jgz").write_bytes(b"")
    found = problems(tmp_path)
    assert {problem.reason for problem in found} == {"broken split"} and len(found) == 2
