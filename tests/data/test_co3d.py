"""Claims about reading CO3D: cameras, images, splits, and what broken folders are answered with."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from co3d_folders import RADIUS, SIZE, color_of, write_annotations, write_category, write_list, write_set_list
from damage import cut_in_half, without_permission
from parity import PARITY
from PIL import Image

from lsplat_ns.data.batches import PreparationConfig, make_example
from lsplat_ns.data.co3d import Co3dOptions, Co3dSplit
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.streams import StreamConfig, TrainingStream
from lsplat_ns.data.view_sampling import FrameChoice, ViewSamplingConfig
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.geometry.rays import project

UNITS_KEPT = PreparationConfig(baseline_to_one=False)
RECORDED = PARITY / "golden" / "data" / "co3d"


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Hydrants: three sequences to train on, two to test."""
    data = write_category(tmp_path / "co3d", {"a": 12, "b": 12, "c": 9, "d": 12, "e": 12})
    write_list(data, "train", {"a": list(range(12)), "b": list(range(12)), "c": list(range(9))})
    write_list(data, "eval", {name: list(range(12)) for name in "ed"})
    return data


def message(root: Path, split: str = "train", options: Co3dOptions | None = None) -> str:
    """What opening is refused with, which is one line."""
    with pytest.raises(SceneDataError) as caught:
        Co3dSplit.open(root, split, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def broken_reason(root: Path) -> SceneDataError:
    """Why the sequence ``bad`` is skipped, while ``good`` is read."""
    split, told = Co3dSplit.open(root, "train"), []
    used = [video.scene for shard in split.shards for video in split.read_shard(shard, told.append)]
    assert used == ["good"] and len(told) == 1
    assert "bad" in str(told[0]) and "\n" not in str(told[0])
    with pytest.raises(SceneDataError):
        next(split.read_shard("bad"))
    return told[0]


def write_good_and_bad(tmp_path: Path, edit) -> Path:
    """Two training sequences; ``edit`` changes frame 1 of the sequence ``bad``."""

    def edit_one(frame: dict) -> None:
        if (frame["sequence_name"], frame["frame_number"]) == ("bad", 1):
            edit(frame)

    data = write_category(tmp_path / "co3d", {"good": 5, "bad": 5, "other": 5}, edit=edit_one)
    write_list(data, "train", {"good": list(range(5)), "bad": list(range(5))})
    return data


# ------------------------------------------------------------------------------------------------------- reading


def test_cameras_stand_on_their_circle_and_see_its_centre_where_annotated(root: Path) -> None:
    video = Co3dSplit.open(root, "train").read_scene("a")
    assert len(video) == 12 and video.circular
    centres = video.world_from_camera[:, :3, 3]
    torch.testing.assert_close(centres.norm(dim=-1), torch.full((12,), RADIUS))
    steps = (centres - centres.roll(1, 0)).norm(dim=-1)
    torch.testing.assert_close(steps, steps[:1].expand(12))  # also from the last frame to the first
    seen, _ = project(torch.zeros(1, 3), video.world_from_camera[:, None], video.intrinsics_norm[:, None])
    height, width = SIZE
    principal = torch.tensor([0.5 - 0.05 * height / 2 / width, 0.5 + 0.1 / 2])
    torch.testing.assert_close(seen[:, 0], principal.expand(12, 2))


def test_frames_are_read_in_order_and_only_when_asked_for(root: Path) -> None:
    split = Co3dSplit.open(root, "train")
    video = split.read_scene("a")
    for frame in (0, 3, 11):
        assert abs(int(video.read_image(frame)[20, 20, 0]) - color_of(frame)) <= 2
        assert video.read_size(frame) == SIZE
        assert np.array_equal(np.asarray(video.read_picture(frame)), video.read_image(frame))
    shutil.rmtree(root / "hydrant" / "a" / "images")
    (root / "hydrant" / "a" / "images").mkdir()
    assert len(Co3dSplit.open(root, "train").read_scene("a")) == 12


def test_scaled_copies_of_the_images_will_do_but_crops_will_not(root: Path) -> None:
    folder = root / "hydrant" / "a" / "images"
    Image.new("RGB", (24, 20)).save(folder / "frame000001.jpg")
    Image.new("RGB", (40, 40)).save(folder / "frame000002.jpg")
    video = Co3dSplit.open(root, "train").read_scene("a")
    assert video.read_size(0) == (20, 24)
    with pytest.raises(SceneDataError, match="another shape than the annotated 48x40") as caught:
        video.read_size(1)
    assert caught.value.reason == "image size"


def test_every_intrinsics_format_of_the_dataset_gives_the_same_camera(tmp_path: Path) -> None:
    height, width = SIZE

    def other_units(frame: dict) -> None:
        view, half = frame["viewpoint"], min(SIZE)
        view["focal_length"] = [2.2 * half / width, 2.2 * half / height]
        view["principal_point"] = [0.05 * half / width, -0.1 * half / height]
        if frame["frame_number"] % 2:
            view["intrinsics_format"] = "ndc_norm_image_bounds"
        else:
            del view["intrinsics_format"]  # which means the same

    isotropic = write_category(tmp_path / "i", {"a": 4, "b": 4})
    bounds = write_category(tmp_path / "b", {"a": 4, "b": 4}, edit=other_units)
    first, second = (Co3dSplit.open(data, "train").read_scene("b") for data in (isotropic, bounds))
    torch.testing.assert_close(first.intrinsics_norm, second.intrinsics_norm)
    torch.testing.assert_close(first.intrinsics_norm[0, 0, 0], torch.tensor(2.2 * height / 2 / width))


def test_training_views_cross_the_seam_of_a_turntable_unless_told_otherwise(root: Path) -> None:
    sampling = ViewSamplingConfig(
        num_target_views=2, min_gap=3, max_gap=4, initial_min_gap=3, initial_max_gap=4, target_margin=0,
        gap_warm_up_steps=0, margin_warm_up_steps=0,
    )  # fmt: skip

    def crossings(circular: bool) -> int:
        source = Co3dSplit.open(root, "train", Co3dOptions(circular=circular))
        stream = TrainingStream(source, StreamConfig(PreparationConfig((32, 32)), sampling))
        pairs = [stream[step].frames[0, :2] for step in range(30)]
        return sum(bool(left > right) for left, right in pairs)

    assert crossings(True) > 0
    assert crossings(False) == 0


def test_the_demo_objects_are_turntables(objects: Path) -> None:
    for name in ("train", "test"):
        split = Co3dSplit.open(objects, name)
        assert split.notes == () and len(split.scenes) == 1
        video = split.read_scene(split.scenes[0])
        centres, forward = video.world_from_camera[:, :3, 3], video.world_from_camera[:, :3, 2]
        # The point nearest to all optical axes is the object's: every camera looks at it.
        across = torch.eye(3) - forward[:, :, None] * forward[:, None, :]
        middle = torch.linalg.solve(across.sum(0), (across @ centres[..., None]).sum(0))[:, 0]
        towards = torch.nn.functional.normalize(middle - centres, dim=-1)
        assert ((towards * forward).sum(-1) > 0.97).all()
        assert video.circular
        steps = (centres - centres.roll(1, 0)).norm(dim=-1)
        assert steps.max() < 3 * steps.min()
        assert video.read_image(0).std() > 10


def test_a_reader_process_can_be_handed_a_split(root: Path) -> None:
    split = Co3dSplit.open(root, "train")
    again = pickle.loads(pickle.dumps(split))
    torch.testing.assert_close(again.read_scene("a").world_from_camera, split.read_scene("a").world_from_camera)


# -------------------------------------------------------------------------------------------------------- splits


def test_published_lists_say_which_sequences_and_frames(root: Path) -> None:
    write_list(root, "train", {"c": [0, 2, 4, 6], "a": [5, 3, 1]})
    train, test = Co3dSplit.open(root, "train"), Co3dSplit.open(root, "test")
    assert train.scenes == ["c", "a"] and test.scenes == ["e", "d"]  # in the lists' order
    assert train.shards == ["a", "c"] and train.scenes_of("a") == ["a"]
    video = train.read_scene("a")  # indices count the listed frames, ordered by number
    assert [round(int(video.read_image(i)[0, 0, 0]) / 10) for i in range(3)] == [1, 3, 5]
    assert Co3dSplit.open(root, "val").scenes == test.scenes
    with pytest.raises(ConfigError, match="no split 'valid'"):
        Co3dSplit.open(root, "valid")


def test_lists_may_lie_elsewhere(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "lists"
    shutil.move(root / "dataset_splits", elsewhere)
    assert Co3dSplit.open(root, "test", Co3dOptions(split_lists=elsewhere)).scenes == ["e", "d"]
    (tmp_path / "assets").mkdir()
    shutil.move(elsewhere, tmp_path / "assets" / "dataset_splits")  # as in a checkout of the original
    assert Co3dSplit.open(root, "test").scenes == ["e", "d"]
    assert "no folder" in message(root, options=Co3dOptions(split_lists=elsewhere))


def test_a_training_list_that_was_never_published_is_what_the_other_one_leaves(root: Path) -> None:
    (root / "dataset_splits" / "co3d_hydrant_train.json").unlink()
    split = Co3dSplit.open(root, "train")
    assert split.scenes == ["a", "b", "c"]
    (note,) = split.notes
    assert "no co3d_hydrant_train.json" in note and "all that co3d_hydrant_eval.json leaves" in note
    assert "3 sequences" in note
    write_set_list(root, "fewview_test", {"train": [], "val": [], "test": ["b"]})  # its images are black
    split = Co3dSplit.open(root, "train")
    assert split.scenes == ["a", "c"] and "but for 1 of CO3D's hidden" in split.notes[0]


def test_without_lists_some_sequences_are_held_out(tmp_path: Path) -> None:
    names = [f"s{i:02d}" for i in range(41)]
    data = write_category(tmp_path / "co3d", dict.fromkeys(names, 3))
    train, test = Co3dSplit.open(data, "train"), Co3dSplit.open(data, "test")
    assert test.scenes == ["s00", "s20", "s40"] and sorted(train.scenes + test.scenes) == names
    assert "every 20th sequence" in train.notes[0] and "every 20th sequence" in test.notes[0]
    write_set_list(data, "fewview_dev", {"train": ["s03"], "val": [], "test": ["s03", "s05"]})
    train, test = Co3dSplit.open(data, "train"), Co3dSplit.open(data, "test")
    assert test.scenes == ["s03", "s05"] and sorted(train.scenes + test.scenes) == names
    assert "set_lists_fewview_dev.json" in test.notes[0]
    write_set_list(data, "fewview_dev", {"train": names, "val": [], "test": []})  # would leave nothing to train on
    train, test = Co3dSplit.open(data, "train"), Co3dSplit.open(data, "test")
    assert test.scenes == ["s00", "s20", "s40"] and sorted(train.scenes + test.scenes) == names


def test_a_single_sequence_is_in_both_splits_and_said_to_be(tmp_path: Path) -> None:
    data = write_category(tmp_path / "co3d", {"only": 5})
    for name in ("train", "test"):
        split = Co3dSplit.open(data, name)
        assert split.scenes == ["only"] and "too few to hold one out" in split.notes[0]


def test_lists_that_name_what_is_not_annotated_are_used_for_the_rest(root: Path) -> None:
    write_list(root, "train", {"a": [0, 1, 2, 99], "gone": [0, 1], "lost": [0]})
    split = Co3dSplit.open(root, "train")
    assert split.scenes == ["a"] and len(split.read_scene("a")) == 3
    assert any("names 2 sequences that the annotations lack (gone, ...)" in note for note in split.notes)
    assert any("names 1 frame that the annotations lack" in note for note in split.notes)
    write_list(root, "train", {"gone": [0, 1]})
    assert "no sequence of" in message(root)


def test_a_partial_download_is_used_as_far_as_it_goes(root: Path) -> None:
    shutil.rmtree(root / "hydrant" / "b")
    split = Co3dSplit.open(root, "train")
    assert split.scenes == ["a", "c"] and "1 of 3 sequences" in split.notes[0]
    for name in "ac":
        shutil.rmtree(root / "hydrant" / name)
    assert "no sequence of hydrant in the train split has images" in message(root)


def test_several_categories_are_read_together(root: Path) -> None:
    write_category(root, {"bear1": 4, "bear2": 4}, "teddybear")
    both = Co3dSplit.open(root, "train")
    assert set(both.scenes) == {"a", "b", "c", "bear2"} and set(both.tables) == {"hydrant", "teddybear"}
    assert len(both.read_scene("bear2")) == 4 and len(both.read_scene("a")) == 12
    assert Co3dSplit.open(root, "train", Co3dOptions(("teddybear",))).scenes == ["bear2"]
    write_category(root, {"a": 4, "z": 4}, "vase")
    write_list(root, "train", {"a": [0, 1, 2, 3]}, "vase")
    assert "sequence a of" in message(root)


def test_sequences_with_doubtful_cameras_can_be_left_out(root: Path) -> None:
    scores = [{"sequence_name": "a", "viewpoint_quality_score": 0.9}, {"sequence_name": "b"}]
    scores += [{"sequence_name": "c", "viewpoint_quality_score": 0.1}]
    write_annotations(root / "hydrant", scores, "sequence_annotations.jgz")
    split = Co3dSplit.open(root, "train", Co3dOptions(min_viewpoint_quality=0.5))
    assert split.scenes == ["a"] and any("2 sequences have a viewpoint quality" in note for note in split.notes)
    assert Co3dSplit.open(root, "train").scenes == ["a", "b", "c"]
    assert "lower min-viewpoint-quality" in message(root, options=Co3dOptions(min_viewpoint_quality=2.0))


# ---------------------------------------------------------------------------------------------------- bad folders


def test_wrong_folders_are_explained(root: Path, tmp_path: Path) -> None:
    assert "no data folder" in message(tmp_path / "absent")
    assert f"is the folder of one category; pass {root} with --data" in message(root / "hydrant")
    (tmp_path / "empty").mkdir()
    assert "make-scenes FOLDER --kind objects" in message(tmp_path / "empty")
    write_category(root, {"x": 3}, "vase")
    wrong = message(root, options=Co3dOptions(("hydrant", "teddybear")))
    assert "no category teddybear" in wrong and "hydrant, vase" in wrong


def test_a_folder_without_read_permission_is_named(root: Path) -> None:
    with without_permission(root):
        assert str(root) in message(root) and "ermission denied" in message(root)
    with without_permission(root / "hydrant"):
        assert "hydrant" in message(root) and "ermission denied" in message(root)


@pytest.mark.parametrize("content", ["not json", '{"a": 1}', "[1, 2]", '[["a"]]', '[["a", "x", "y"]]'])
def test_a_broken_split_list_is_named(root: Path, content: str) -> None:
    (root / "dataset_splits" / "co3d_hydrant_train.json").write_text(content)
    assert "co3d_hydrant_train.json is no" in message(root)


@pytest.mark.parametrize("content", ["not json", "[1, 2]", '{"train": 3}'])
def test_a_broken_set_list_is_named(tmp_path: Path, content: str) -> None:
    data = write_category(tmp_path / "co3d", {"a": 3, "b": 3})
    write_set_list(data, "fewview_dev", {})
    (data / "hydrant" / "set_lists" / "set_lists_fewview_dev.json").write_text(content)
    assert "set_lists_fewview_dev.json is no" in message(data)


def test_an_unknown_scene_is_answered_with_known_ones(root: Path) -> None:
    with pytest.raises(SceneDataError, match=r"no scene zzz in the train split of .*'a'"):
        Co3dSplit.open(root, "train").read_scene("zzz")


# -------------------------------------------------------------------------------------------------- bad sequences


def set_view(key: str, value: object):
    return lambda frame: frame["viewpoint"].update({key: value})


def scale_rotation(frame: dict) -> None:
    frame["viewpoint"]["R"] = (1.01 * np.array(frame["viewpoint"]["R"])).tolist()


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (set_view("T", [float("nan"), 0, 4]), "NaN"),
        (set_view("R", [[float("nan")] * 3] * 3), "NaN"),
        (set_view("focal_length", [1e400, 2.0]), "NaN"),
        (set_view("T", None), "NaN"),
        (set_view("R", [[1, 0, 0], [0, 1, 0]]), "NaN"),
        (lambda frame: frame.update(viewpoint=None), "NaN"),
        (set_view("R", [[0.0] * 3] * 3), "no rotation: its determinant is 0"),
        (scale_rotation, r"no rotation: its determinant is 1\.0303"),
        (set_view("R", [[1, 5, 0], [0, 1, 0], [0, 0, 1]]), "not rigid"),
        (set_view("focal_length", [-2.0, 2.0]), "focal length that is not positive"),
        (set_view("intrinsics_format", "pixels"), "intrinsics in a format other than"),
        (lambda frame: frame["image"].update(size=[0, 40]), "image size that is not positive"),
        (lambda frame: frame["image"].update(path="../../etc/passwd"), "outside the dataset"),
        (lambda frame: frame["image"].update(path="/etc/passwd"), "outside the dataset"),
        (lambda frame: frame["image"].update(path="hydrant\\..\\..\\x.jpg"), "outside the dataset"),
        (lambda frame: frame["image"].update(path=""), "outside the dataset"),
        (lambda frame: frame["image"].update(path="hydrant/a\0.jpg"), "outside the dataset"),
    ],
)
def test_a_broken_sequence_is_skipped_with_its_reason_and_the_rest_is_used(tmp_path: Path, edit, reason: str) -> None:
    error = broken_reason(write_good_and_bad(tmp_path, edit))
    assert re.search(reason, str(error)), error


def test_a_sequence_of_one_frame_is_too_short(tmp_path: Path) -> None:
    data = write_category(tmp_path / "co3d", {"good": 5, "bad": 1})
    write_list(data, "train", {"good": list(range(5)), "bad": [0]})
    error = broken_reason(data)
    assert error.reason == "too short" and "1 of the 3 frames" in str(error)


def image_error(video: PosedVideo, frame: int) -> str:
    with pytest.raises(SceneDataError) as caught:
        video.read_image(frame)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_that_are_missing_or_broken_are_named_where_they_are_used(root: Path) -> None:
    folder = root / "hydrant" / "a" / "images"
    (folder / "frame000002.jpg").unlink()
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "frame000003.jpg", quality=95)  # most of the file is the picture
    cut_in_half(folder / "frame000003.jpg")
    (folder / "frame000004.jpg").write_text("not an image")
    (folder / "frame000005.jpg").write_bytes(b"")
    Image.new("L", SIZE[::-1], 77).save(folder / "frame000006.jpg")
    video = Co3dSplit.open(root, "train").read_scene("a")
    assert "frame 1 of scene a" in image_error(video, 1) and "is missing" in image_error(video, 1)
    assert "frame 2 of scene a" in image_error(video, 2) and "cut short" in image_error(video, 2)
    assert "not a readable image" in image_error(video, 3)
    assert "not a readable image" in image_error(video, 4)
    assert video.read_image(5).shape == (*SIZE, 3)  # grey pictures are pictures
    assert make_example(video, FrameChoice((0, 7), (9,)), PreparationConfig((32, 32))).scene == ("a",)
    with pytest.raises(SceneDataError, match="frame 1 of scene a"):
        make_example(video, FrameChoice((0, 7), (1,)), PreparationConfig((32, 32)))


def test_training_goes_on_past_broken_sequences_and_counts_them(root: Path) -> None:
    for path in (root / "hydrant" / "a" / "images").iterdir():
        path.unlink()
    sampling = ViewSamplingConfig(
        num_target_views=2, min_gap=3, max_gap=4, initial_min_gap=3, initial_max_gap=4, target_margin=0,
        gap_warm_up_steps=0, margin_warm_up_steps=0,
    )  # fmt: skip
    stream = TrainingStream(
        Co3dSplit.open(root, "train"), StreamConfig(PreparationConfig((32, 32)), sampling, batch_size=3)
    )
    batch = stream[0]
    assert set(batch.scenes) <= {"b", "c"} and batch.skips.skipped["broken"] >= 1
    assert "is missing" in batch.skips.reasons()


def test_links_to_category_folders_are_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    os.symlink(root / "hydrant", tmp_path / "datasets" / "hydrant")
    split = Co3dSplit.open(tmp_path / "datasets", "train")
    assert split.read_scene(split.scenes[0]).read_size(0) == SIZE
