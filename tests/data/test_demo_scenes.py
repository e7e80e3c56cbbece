"""Claims about the generated demo scenes: layouts, cameras, determinism, true parallax."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lsplat_ns.data.demo_scenes import DemoScene, MakeScenesConfig, build_demo_scene, make_scenes
from lsplat_ns.data.demo_scenes import generation as generation_module
from lsplat_ns.data.demo_scenes.camera_motion import glide, is_free
from lsplat_ns.data.demo_scenes.demo_scene import KIND_NUMBER
from lsplat_ns.data.demo_scenes.objects import build_subject
from lsplat_ns.data.demo_scenes.occlusion import Occluders
from lsplat_ns.data.demo_scenes.rooms import build_room
from lsplat_ns.data.demo_scenes.surfaces import ball, box, column
from lsplat_ns.data.demo_scenes.writers import Photographs, RealEstateWriter, glide_entries, orbit_entries
from lsplat_ns.errors import ConfigError, SceneDataError

SIZE = (36, 50)  # neither square nor a multiple of 8


def config_for(output: Path, **changes) -> MakeScenesConfig:
    """A small data set."""
    return replace(MakeScenesConfig(output, scenes=2, frames=4, size=SIZE, seed=3, workers=1), **changes)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two rooms."""
    return make_scenes(config_for(tmp_path_factory.mktemp("rooms") / "set"))


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two orbits."""
    return make_scenes(config_for(tmp_path_factory.mktemp("objects") / "set", kind="objects", seed=5))


@pytest.fixture(scope="module")
def room() -> DemoScene:
    """A room in memory, large enough to compare pixels."""
    return build_demo_scene("rooms", 0, 10, 46, (96, 128))


@pytest.fixture(scope="module")
def subject() -> DemoScene:
    """An orbit in memory."""
    return build_demo_scene("objects", 0, 4, 40, (96, 128))


def chunk(root: Path, split: str) -> list[dict]:
    """The only chunk of a split."""
    return torch.load(root / split / "000000.torch", weights_only=True)


def file_bytes(root: Path) -> dict[str, bytes]:
    """Contents of all files below a folder."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_chunks_load_safely_and_match_the_index(rooms: Path) -> None:
    seen = []
    for split in ("train", "test"):
        index = json.loads((rooms / split / "index.json").read_text())
        for example in chunk(rooms, split):
            assert index[example["key"]] == "000000.torch"
            assert set(example) == {"url", "timestamps", "cameras", "images", "key"}
            assert isinstance(example["url"], str)
            assert (example["timestamps"].dtype, example["timestamps"].shape) == (torch.int64, (4,))
            assert (example["cameras"].dtype, example["cameras"].shape) == (torch.float32, (4, 18))
            assert all(image.dtype == torch.uint8 and image.ndim == 1 for image in example["images"])
            pictures = [Image.open(io.BytesIO(image.numpy().tobytes())) for image in example["images"]]
            assert all(p.format == "JPEG" and p.size == SIZE[::-1] for p in pictures)
            seen.append(example["key"])
    assert seen == ["rooms_3_00000", "rooms_3_00001"]


def test_camera_rows_are_rigid_and_have_square_pixels(rooms: Path) -> None:
    rows = torch.cat([chunk(rooms, split)[0]["cameras"] for split in ("train", "test")]).double()
    fx, fy, cx, cy, zero_a, zero_b = rows[:, :6].T
    torch.testing.assert_close(fx * SIZE[1], fy * SIZE[0], rtol=1e-5, atol=0)
    assert (cx == 0.5).all() and (cy == 0.5).all() and (zero_a == 0).all() and (zero_b == 0).all()
    fov_y = torch.rad2deg(2 * torch.atan(0.5 / fy))
    assert (fov_y > 59).all() and (fov_y < 76).all()
    rotation = rows[:, 6:].reshape(-1, 3, 4)[:, :, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand_as(rotation), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(len(rows)).double(), rtol=0, atol=1e-6)


def test_written_camera_rows_are_those_that_rendered_the_pictures(rooms: Path) -> None:
    example, scene = chunk(rooms, "train")[0], build_demo_scene("rooms", 3, 0, 4, SIZE)
    for i, camera in enumerate(scene.cameras):
        to_camera = torch.eye(4, dtype=torch.float64)
        to_camera[:3] = example["cameras"][i, 6:].reshape(3, 4)
        world_from_camera = torch.linalg.inv(to_camera).numpy()
        np.testing.assert_allclose(world_from_camera, camera.world_from_camera, atol=1e-5)
        stored = np.asarray(Image.open(io.BytesIO(example["images"][i].numpy().tobytes())), dtype=float)
        own, other = (np.abs(stored - scene.frame(j).image).mean() for j in (i, (i + 2) % 4))
        assert own < 6 and own < other / 2


def test_same_seed_gives_same_bytes_with_any_number_of_workers_and_scenes(rooms: Path, tmp_path: Path) -> None:
    again = make_scenes(config_for(tmp_path / "again", workers=2))
    assert file_bytes(again) == file_bytes(rooms)
    alone = make_scenes(config_for(tmp_path / "alone", scenes=1))
    assert chunk(alone, "train")[0]["images"][3].equal(chunk(rooms, "train")[0]["images"][3])
    assert chunk(alone, "test")[0]["key"] == chunk(alone, "train")[0]["key"]


def test_another_seed_or_index_gives_another_scene(rooms: Path) -> None:
    first, second = (chunk(rooms, split)[0]["images"][0] for split in ("train", "test"))
    other = build_demo_scene("rooms", 4, 0, 4, SIZE).frame(0).image
    own = build_demo_scene("rooms", 3, 0, 4, SIZE).frame(0).image
    assert not first.equal(second)
    assert np.abs(own.astype(float) - other).mean() > 10


def reprojection_agreement(scene: DemoScene, source: int, target: int) -> tuple[float, float]:
    """Shares of source pixels: seen by the target frame too, and among those, with nearly the same colour."""
    height, width = scene.size
    first, second = scene.frame(source), scene.frame(target)
    row, column_index = np.mgrid[:height, :width]
    xy1 = np.stack([(column_index + 0.5) / width, (row + 0.5) / height, np.ones((height, width))], -1)
    camera_a, camera_b = scene.cameras[source], scene.cameras[target]
    points = (xy1 @ np.linalg.inv(camera_a.intrinsics_norm).T) * first.depth_z[..., None]
    points = points @ camera_a.world_from_camera[:3, :3].T + camera_a.world_from_camera[:3, 3]
    to_b = np.linalg.inv(camera_b.world_from_camera)
    local = points @ to_b[:3, :3].T + to_b[:3, 3]
    xy = (local / local[..., 2:]) @ camera_b.intrinsics_norm.T
    column_b, row_b = np.floor(xy[..., 0] * width).astype(int), np.floor(xy[..., 1] * height).astype(int)
    inside = (local[..., 2] > 0) & (column_b >= 0) & (column_b < width) & (row_b >= 0) & (row_b < height)
    column_b, row_b = np.clip(column_b, 0, width - 1), np.clip(row_b, 0, height - 1)
    depth_error = np.abs(second.depth_z[row_b, column_b] / local[..., 2] - 1)
    seen = inside & (depth_error < 0.02)
    difference = np.abs(second.image[row_b, column_b].astype(float) - first.image).max(-1)
    return float(seen.mean()), float((difference[seen] < 25).mean())


def test_reprojecting_a_room_by_depth_finds_the_same_colours(room: DemoScene) -> None:
    for target in (15, 30):
        seen, same = reprojection_agreement(room, 0, target)
        assert seen > 0.4
        assert same > 0.85


def test_reprojecting_an_orbit_by_depth_finds_the_same_colours(subject: DemoScene) -> None:
    seen, same = reprojection_agreement(subject, 0, 3)
    assert seen > 0.4
    assert same > 0.85


def test_depth_is_camera_z_within_the_room(room: DemoScene) -> None:
    frame = room.frame(0)
    diagonal = np.linalg.norm(room.place.size)
    assert frame.depth_z.shape == room.size and frame.depth_z.dtype == np.float32
    assert frame.depth_z.min() > 0.05
    assert np.median(frame.depth_z) < diagonal


@pytest.mark.parametrize("index", range(6))
def test_cameras_glide_smoothly_and_keep_clear_of_furniture_and_walls(index: int) -> None:
    rng = np.random.default_rng(index)
    place = build_room(rng)
    cameras = glide(place, 60, (64, 64), rng)
    poses = np.stack([camera.world_from_camera for camera in cameras])
    eyes = poses[:, :3, 3]
    assert is_free(place, eyes, 0.08)
    assert not Occluders(place.scene.solids).inside(eyes.astype(np.float32)).any()
    steps = np.linalg.norm(np.diff(eyes, axis=0), axis=1)
    assert 0.1 < steps.sum() < 3.2 and steps.max() < 0.06
    cosines = (poses[1:, :3, 2] * poses[:-1, :3, 2]).sum(-1)
    assert np.rad2deg(np.arccos(np.clip(cosines, -1, 1))).max() < 2.0
    across_45 = (poses[45:, :3, 2] * poses[:-45, :3, 2]).sum(-1)
    assert np.rad2deg(np.arccos(across_45)).max() < 45


def test_furniture_does_not_overlap(room: DemoScene) -> None:
    tall = room.place.footprints
    for i, (x0, y0, x1, y1, _) in enumerate(tall):
        for a0, b0, a1, b1, _ in tall[i + 1 :]:
            assert x1 <= a0 or a1 <= x0 or y1 <= b0 or b1 <= y0


def test_pictures_have_light_and_shade_everywhere(room: DemoScene, subject: DemoScene) -> None:
    for scene in (room, subject):
        image = scene.frame(0).image.astype(float)
        assert 70 < image.mean() < 215
        assert image.std() > 25
        assert (image.max(-1) == 0).mean() < 0.02


def test_co3d_annotations_project_the_object_near_the_image_centre(objects: Path) -> None:
    frames = json.loads(gzip.decompress((objects / "hydrant" / "frame_annotations.jgz").read_bytes()))
    assert len(frames) == 8
    for index in range(2):
        place = build_subject(np.random.default_rng([5, KIND_NUMBER["objects"], index]))
        for frame in (f for f in frames if f["sequence_name"] == f"objects_5_{index:05d}"):
            view, (height, width) = frame["viewpoint"], frame["image"]["size"]
            assert view["intrinsics_format"] == "ndc_isotropic"
            rotation, translation = np.array(view["R"]), np.array(view["T"])
            rotation[:, :2] *= -1
            translation[:2] *= -1
            assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-8)
            local = rotation.T @ place.centre + translation
            half = min(height, width) / 2
            focal, principal = np.array(view["focal_length"]), np.array(view["principal_point"])
            xy = (focal * half * local[:2] / local[2] + np.array([width, height]) / 2 - principal * half) / (
                width,
                height,
            )
            assert local[2] > place.radius
            np.testing.assert_allclose(xy, 0.5, atol=0.05)


def test_co3d_files_lists_and_sequences_agree(objects: Path) -> None:
    frames = json.loads(gzip.decompress((objects / "hydrant" / "frame_annotations.jgz").read_bytes()))
    sequences = json.loads(gzip.decompress((objects / "hydrant" / "sequence_annotations.jgz").read_bytes()))
    lists = json.loads((objects / "hydrant" / "set_lists" / "set_lists_demo.json").read_text())
    assert {f["sequence_name"] for f in frames} == {s["sequence_name"] for s in sequences}
    for frame in frames:
        with Image.open(objects / frame["image"]["path"]) as picture:
            assert list(picture.size[::-1]) == frame["image"]["size"]
    for name, split in (("train", "train"), ("eval", "test")):
        listed = json.loads((objects / "dataset_splits" / f"co3d_hydrant_{name}.json").read_text())
        assert listed == lists[split]
        assert all((objects / path).is_file() for _, _, path in listed)
    assert not {entry[0] for entry in lists["train"]} & {entry[0] for entry in lists["test"]}


def test_an_orbit_closes_after_one_turn(subject: DemoScene) -> None:
    eyes = np.stack([camera.world_from_camera[:3, 3] for camera in subject.cameras])
    angles = np.unwrap(np.arctan2(*(eyes - subject.place.centre)[:, 1::-1].T))
    steps = np.diff(angles)
    np.testing.assert_allclose(np.abs(steps), 2 * np.pi / len(eyes), atol=1e-6)
    assert np.linalg.norm(eyes[0] - eyes[-1]) < 3 * np.linalg.norm(eyes[0] - eyes[1])


@pytest.mark.parametrize("frames", [4, 5, 24, 60, 200])
def test_evaluation_entries_are_valid_frames(frames: int) -> None:
    inner, *outer = glide_entries(frames)
    (left, right) = inner["context"]
    assert 0 <= left < right < frames and right - left <= 45
    assert inner["target"] and all(left < t < right for t in inner["target"])
    assert all(0 <= t < left or right < t < frames for entry in outer for t in entry["target"])
    for entry in orbit_entries(frames):
        assert entry["target"] and not set(entry["target"]) & set(entry["context"])
        assert all(0 <= t < frames for t in entry["context"] + entry["target"])


def test_evaluation_indices_name_the_test_scenes(rooms: Path, objects: Path) -> None:
    assert list(json.loads((rooms / "evaluation_index.json").read_text())) == ["rooms_3_00001"]
    assert list(json.loads((objects / "evaluation_index.json").read_text())) == ["objects_5_00001"]


def test_chunks_stay_below_their_limit(tmp_path: Path, room: DemoScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsplat_ns.data.demo_scenes.writers.CHUNK_BYTES", 2500)
    writer = RealEstateWriter(tmp_path)
    for i in range(5):
        writer.add(Photographs(f"s{i}", (8, 8), room.cameras[:1], (bytes(1000),)), ("train",))
    writer.finish()
    index = json.loads((tmp_path / "train" / "index.json").read_text())
    assert sorted(index.values()) == ["000000.torch"] * 2 + ["000001.torch"] * 2 + ["000002.torch"]
    for key, name in index.items():
        assert key in [e["key"] for e in torch.load(tmp_path / "train" / name, weights_only=True)]


def test_occupied_output_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SceneDataError, match="not an empty folder") as caught:
        make_scenes(config_for(tmp_path))
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_config: MakeScenesConfig, _index: int) -> Photographs:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation_module, "photograph", stop)
    with pytest.raises(KeyboardInterrupt):
        make_scenes(config_for(tmp_path / "set"))
    assert list(tmp_path.iterdir()) == []


ENDED = """
import sys
from pathlib import Path
from lsplat_ns import interrupts
from lsplat_ns.data.demo_scenes import MakeScenesConfig, make_scenes
if __name__ == "__main__":
    interrupts.note_interrupts()
    config = MakeScenesConfig(Path(sys.argv[1]), scenes=60, frames=4, size=(36, 50), workers=int(sys.argv[2]))
    make_scenes(config, on_scene=lambda scene: print(scene, flush=True))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_leaves_neither_a_folder_nor_a_process_behind(workers: int, tmp_path: Path) -> None:
    (tmp_path / "ended.py").write_text(ENDED)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "ended.py", tmp_path / "sets" / "set", str(workers)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline()
        process.terminate()
        process.terminate()  # as timeout(1) does
        process.communicate(timeout=60)  # until nobody has its output any more, so no worker either
        assert process.returncode == 143
        assert list((tmp_path / "sets").iterdir()) == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_every_scene_is_announced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: DemoScene) -> None:
    def blank(config: MakeScenesConfig, index: int) -> Photographs:
        return Photographs(f"scene{index}", config.size, room.cameras[: config.frames], (b"x",) * config.frames)

    monkeypatch.setattr(generation_module, "photograph", blank)
    announced: list[str] = []
    make_scenes(config_for(tmp_path / "set", scenes=11), announced.append)
    assert announced == [f"scene{i}" for i in range(11)]
    test_index = json.loads((tmp_path / "set" / "test" / "index.json").read_text())
    assert list(test_index) == ["scene9", "scene10"]


@pytest.mark.parametrize(
    "changes",
    [{"frames": 3}, {"size": (15, 64)}, {"scenes": 0}, {"test_scenes": 2}, {"kind": "gardens"}, {"workers": -1}],
)
def test_impossible_requests_are_refused(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(ConfigError):
        config_for(tmp_path / "set", **changes)


def test_rays_meet_solids_where_they_should() -> None:
    blank = lambda canvas: np.ones((canvas.height, canvas.width, 3), np.float32)  # noqa: E731
    solids = [box((1, 1, 1), (0, 0, 0), blank), ball(0.5, (3, 0, 0.5), blank), column((0.5, 0.25), 1, (6, 0, 0), blank)]
    origins = np.float32([[0, -3, 0.5], [3, -3, 0.5], [6, -3, 0.5], [6, 0, 5], [9, -3, 0.5]])
    directions = np.float32([[0, 1, 0], [0, 2, 0], [0, 1, 0], [0, 0, -1], [0, 1, 0]])
    distance, solid = Occluders(solids).first_hit(origins, directions)
    np.testing.assert_allclose(distance, [2.5, 1.25, 2.625, 4, np.inf], rtol=1e-5)
    assert solid.tolist() == [0, 1, 2, 2, -1]
    assert Occluders(solids).blocked(origins, directions, 2.55).tolist() == [True, True, False, False, False]
