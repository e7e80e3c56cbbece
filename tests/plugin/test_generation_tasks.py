"""What ``lsplat generate`` generates: scenes by id or number, given frames, scale, photos, paths."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tyro
from demo_captures import room, write_capture
from PIL import Image

from lsplat_ns.cli import Command
from lsplat_ns.data.view_sampling import read_evaluation_index
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.geometry.trajectories import PathConfig
from lsplat_ns.plugin.generated_folder import in_order
from lsplat_ns.plugin.generation_tasks import PhotoRequest, SceneRequest, _resolve

SIZE = (32, 32)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "room.png"
    Image.fromarray(room().frame(0).image).save(file)
    return file


def test_scene_ids_stay_words_on_the_command_line() -> None:
    words = ["generate", "--checkpoint", "r", "--output", "o", "--data", "d", "--scene"]
    for scene in ("2e3", "25", "2d3f982ada31489c", "0012"):
        assert tyro.cli(Command, args=[*words, scene]).scene == scene


def test_numbers_count_the_evaluation_index_and_ids_go_first() -> None:
    source = SimpleNamespace(scenes=["b", "a", "2e3", "1", "7"])
    dataparser = SimpleNamespace(config=SimpleNamespace(data=Path("d"), scene_split="test"), split=lambda _: source)
    listed = ("a", "2e3", "absent", "b")
    assert [_resolve(s, dataparser, listed) for s in ("0", "3", "2e3", "1", "7")] == ["a", "b", "2e3", "1", "7"]
    assert _resolve("0", dataparser, ()) == "b"
    with pytest.raises(SceneDataError, match="scene 2 is absent, which is in the evaluation index, but not in d/test"):
        _resolve("2", dataparser, listed)
    with pytest.raises(SceneDataError, match="give a number from 0 to 3, or an id; the nearest is 2e3"):
        _resolve("2e35", dataparser, listed)
    with pytest.raises(ConfigError, match="--scene: a number from 0 to 3"):
        _resolve(None, dataparser, listed)


def test_one_given_frame_keeps_the_scale_where_the_index_knows_no_other(rooms: Path, tmp_path: Path) -> None:
    listed = read_evaluation_index(rooms / "evaluation_index.json")
    scene, (entry, *_) = next(iter(listed.items()))
    pair = SceneRequest(rooms, scene, context=entry.context).task(SIZE, None)
    alone = [SceneRequest(rooms, scene, context=context).task(SIZE, None) for context in (None, (entry.target[0],))]
    assert [len(task.given) for task in alone] == [1, 1]
    assert [task.scale for task in alone] == [pair.scale, pair.scale] and abs(pair.scale - 1) > 0.05
    # As in MV-LDM's published index of videos: the first frame is given, and nothing tells a scale.
    published = {scene: {"context": list(entry.context[:1]), "target": list(entry.target)}}
    (tmp_path / "index.json").write_text(json.dumps(published))
    assert SceneRequest(rooms, scene, tmp_path / "index.json").task(SIZE, None).scale == 1


def test_given_frames_are_one_apart_and_cameras_are_written_in_the_units_of_the_data(rooms: Path) -> None:
    one = SceneRequest(rooms, "0", context=(0,), scale=1.0).task(SIZE, None)
    two = SceneRequest(rooms, "0", context=(0, 9)).task(SIZE, None)
    assert (two.context.cameras.origins[0, 0] - two.context.cameras.origins[0, 1]).norm() == pytest.approx(1)
    shared = [frame for frame in one.frames if frame in two.frames]
    origins = [t.cameras.origins[0, [t.frames.index(frame) for frame in shared]] / t.scale for t in (one, two)]
    torch.testing.assert_close(*origins)
    numbers, cameras = in_order(two)  # as they are written: in the units of the data
    assert numbers == tuple(sorted((0, 9, *two.frames)))
    written = cameras.origins[0, [numbers.index(frame) for frame in shared]]
    torch.testing.assert_close(written, one.cameras.origins[0, [one.frames.index(frame) for frame in shared]])
    assert SceneRequest(rooms, "0", context=(0, 9), scale=3.0).task(SIZE, None).scale == 3
    assert len(SceneRequest(rooms, "0", limit_frames=2).task(SIZE, None).frames) == 2
    between = SceneRequest(rooms, "0", context=(0, 9)).task(SIZE, 3)
    assert between.given == (0, 4) and between.frames == (1, 2, 3)
    middle = between.context.cameras.origins[0].mean(0)
    torch.testing.assert_close(between.cameras.origins[0, 1], middle)


def test_a_capture_is_a_scene_too(tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "room", range(4))
    task = SceneRequest(capture).task(SIZE, None)
    assert task.given == (0,) and task.frames == (1, 2, 3)
    with pytest.raises(SceneDataError, match="it holds room alone"):
        SceneRequest(capture, "garden").task(SIZE, None)


def test_a_photo_is_cropped_like_the_data(photo: Path) -> None:
    task, report = PhotoRequest((photo,), 60.0).task(SIZE, PathConfig("pan", 2))
    intrinsics = task.context.cameras.intrinsics_norm[0, 0]
    assert intrinsics[0, 0] == pytest.approx(0.5 / np.tan(np.radians(30)) * 96 / 64, rel=1e-5)
    assert intrinsics[1, 1] == pytest.approx(float(intrinsics[0, 0])) and "(stated)" in report
    assert task.context.image.shape == (1, 1, 3, *SIZE) and task.given == (0,) and task.frames == (1, 2)


def test_two_photos_are_posed_and_joined_by_a_path(tmp_path: Path) -> None:
    scene, files = room((192, 288)), (tmp_path / "a.png", tmp_path / "b.png")
    for file, frame in zip(files, (0, 13), strict=True):
        Image.fromarray(scene.frame(frame).image).save(file)
    fov = float(np.degrees(2 * np.arctan(0.5 / scene.cameras[0].intrinsics_norm[0, 0])))
    task, report = PhotoRequest(files, fov).task(SIZE, 3)
    assert task.given == (0, 4) and task.frames == (1, 2, 3) and "agree on the camera motion" in report
    apart = torch.tensor(scene.cameras[0].world_from_camera).inverse() @ torch.tensor(
        scene.cameras[13].world_from_camera
    )
    direction = apart[:3, 3] / apart[:3, 3].norm()
    assert float(task.context.cameras.origins[0, 1].double() @ direction) > 0.97


def test_cameras_that_are_all_the_same_are_refused(photo: Path) -> None:
    task, _ = PhotoRequest((photo,), 60.0).task(SIZE, PathConfig("orbit", 9))
    with pytest.raises(SceneDataError, match="the 3 cameras of room are all the same; choose another trajectory"):
        replace(task, cameras=task.cameras.select([2, 2, 2]), frames=(1, 2, 3))


@pytest.mark.parametrize("count", [24, 26, 40])
def test_a_turn_on_the_spot_is_known_as_one_however_long_it_is(count: int, photo: Path) -> None:
    task, _ = PhotoRequest((photo,), 60.0).task(SIZE, PathConfig("pan", count))
    poses = task.cameras.world_from_camera.clone()
    poses[..., :3, 3] = task.context.cameras.world_from_camera[..., :3, 3] = torch.tensor([-2.1, 1.3, 4.7])
    assert replace(task, cameras=replace(task.cameras, world_from_camera=poses)).turns_on_the_spot
    poses[0, -1, 0, 3] += 1e-3
    assert not replace(task, cameras=replace(task.cameras, world_from_camera=poses)).turns_on_the_spot


def test_a_path_from_the_first_of_two_given_views_has_the_other_beside_it(rooms: Path) -> None:
    request = SceneRequest(rooms, "0", context=(0, 9))
    assert request.task(SIZE, PathConfig("truck", 3)).off_path == (1,)
    assert request.task(SIZE, 3).off_path == request.task(SIZE, None).off_path == ()


def test_frames_that_are_stated_twice_are_refused(rooms: Path, photo: Path) -> None:
    for trajectory in (None, PathConfig("truck", 3)):
        with pytest.raises(SceneDataError, match="frame 3 is stated twice"):
            SceneRequest(rooms, "0", context=(0, 3, 3), scale=1.0).task(SIZE, trajectory)
    task, _ = PhotoRequest((photo,), 60.0).task(SIZE, PathConfig("orbit", 3))
    with pytest.raises(SceneDataError, match="frame 0 is stated twice"):
        replace(task, frames=(0, 1, 2))


def test_no_given_frame_at_all_is_one_line(rooms: Path) -> None:
    with pytest.raises(ConfigError, match="--context takes the number of a given frame"):
        SceneRequest(rooms, "0", context=()).task(SIZE, None)


@pytest.mark.parametrize(
    "path",
    [PathConfig("dolly", 3, reach=1e38), PathConfig("dolly", 3, reach=1e300), PathConfig("orbit", 2, pivot=1e39)],
)
def test_cameras_out_of_reach_are_refused(path: PathConfig, photo: Path) -> None:
    with pytest.raises(SceneDataError, match=r"cameras of room are up to .* from the first given view") as caught:
        PhotoRequest((photo,), 60.0).task(SIZE, path)
    assert "\n" not in str(caught.value)


def test_every_given_frame_must_cover_the_views(tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "room", range(4))
    content = json.loads((capture / "transforms.json").read_text())
    lens = {name: content.pop(name) for name in ("w", "h", "fl_x", "fl_y", "cx", "cy")}
    for frame, share in zip(content["frames"], (1, 1, 0.25, 1), strict=True):
        frame |= {name: int(value * share) if name in "wh" else value * share for name, value in lens.items()}
        Image.open(capture / frame["file_path"]).resize((frame["w"], frame["h"])).save(capture / frame["file_path"])
    (capture / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(SceneDataError, match=r"frame 2 of scene room has 24x16 pixels.*or lower --size"):
        SceneRequest(capture, context=(0, 2)).task(SIZE, None)
