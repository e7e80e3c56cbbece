"""What is said of a transforms.json that nerfstudio could not read, or would read with a stack trace."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lsplat_ns.data.transforms_json import check_transforms
from lsplat_ns.errors import SceneDataError

MODELS = ("OPENCV", "PINHOLE")
CAMERA = {"fl_x": 50.0, "fl_y": 50.0, "cx": 48.0, "cy": 32.0, "w": 96, "h": 64}


def content() -> dict:
    frames = [{"file_path": f"images/{i}.jpg", "transform_matrix": np.eye(4).tolist()} for i in range(3)]
    return {**CAMERA, "frames": frames}


def write(folder: Path, meta: object) -> Path:
    file = folder / "transforms.json"
    file.write_text(meta if isinstance(meta, str) else json.dumps(meta))
    return file


def test_intrinsics_may_stand_at_the_top_or_in_every_frame(tmp_path: Path) -> None:
    check_transforms(write(tmp_path, content()), MODELS)
    frames = [{**frame, **CAMERA} for frame in content()["frames"]]
    check_transforms(write(tmp_path, {"camera_model": "PINHOLE", "frames": frames}), MODELS)


def test_poses_that_make_no_camera_are_left_to_those_who_use_them(tmp_path: Path) -> None:
    meta = content()
    meta["frames"][1]["transform_matrix"][0][0] = 7.0
    check_transforms(write(tmp_path, meta), MODELS)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"frames": []}', '{"frames": {}}', "\ufeff{}"])
def test_a_file_without_frames_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(SceneDataError, match=r"transforms\.json.*(no JSON|lists no frames)") as caught:
        check_transforms(write(tmp_path, text), MODELS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda meta: meta["frames"].__setitem__(1, None), "no file_path"),
        (lambda meta: meta["frames"][1].pop("file_path"), "no file_path"),
        (lambda meta: meta["frames"][1].pop("transform_matrix"), "4 rows of 4 numbers"),
        (lambda meta: meta["frames"][1]["transform_matrix"].pop(), "4 rows of 4 numbers"),
        (lambda meta: meta["frames"][1]["transform_matrix"][2].pop(), "4 rows of 4 numbers"),
        (lambda meta: meta["frames"][1].update(transform_matrix="identity"), "4 rows of 4 numbers"),
        (lambda meta: meta["frames"][1]["transform_matrix"][0].__setitem__(3, float("nan")), "NaN or infinite"),
    ],
    ids=["null", "no image", "no pose", "three rows", "ragged", "text", "NaN"],
)
def test_a_frame_that_lacks_something_is_named(tmp_path: Path, damage: Callable, words: str) -> None:
    meta = content()
    damage(meta)
    with pytest.raises(SceneDataError, match=f"frame 1 of the list: .*{re.escape(words)}"):
        check_transforms(write(tmp_path, meta), MODELS)


def test_missing_intrinsics_are_listed(tmp_path: Path) -> None:
    meta = content()
    del meta["fl_y"], meta["w"]
    with pytest.raises(SceneDataError, match="no fl_y, w, neither here nor for the whole capture"):
        check_transforms(write(tmp_path, meta), MODELS)
    with pytest.raises(SceneDataError, match="camera_angle_x alone is for blender-data"):
        check_transforms(write(tmp_path, {"camera_angle_x": 0.8, "frames": content()["frames"]}), MODELS)


@pytest.mark.parametrize("model", ["FULL_OPENCV", None, ["OPENCV"]])
def test_a_camera_model_that_nerfstudio_does_not_know_is_answered_with_those_it_does(
    tmp_path: Path, model: object
) -> None:
    with pytest.raises(SceneDataError, match=r"states the camera model .*; nerfstudio knows OPENCV, PINHOLE"):
        check_transforms(write(tmp_path, {**content(), "camera_model": model}), MODELS)
