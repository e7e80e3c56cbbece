"""``lsplat reconstruct``: photos without poses become a run, or one line says why not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import BIN, call
from demo_captures import photo, room
from PIL import Image
from untrained_runs import write_untrained_run

from lsplat_ns.cli import Reconstruct
from lsplat_ns.data.photos import Photo, fov_from_focal, read_photo
from lsplat_ns.data.structure_from_motion import PosedPhotos
from lsplat_ns.errors import ConfigError, LsplatError, MissingExtra, SceneDataError
from lsplat_ns.geometry.conventions import opencv_from_opengl
from lsplat_ns.plugin import reconstructing
from lsplat_ns.plugin.reconstructing import pose_photos, reconstruct

SIZE = (192, 288)
FOV = fov_from_focal(room(SIZE).cameras[0].focal_norm[0])


@dataclass(frozen=True)
class Workplace:
    """A folder with two photos of a demo room, and a run beside them."""

    folder: Path
    run: Path

    @property
    def photos(self) -> tuple[Path, Path]:
        return self.folder / "left.png", self.folder / "right.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("photos")
    workplace = Workplace(folder, write_untrained_run(folder / "run"))
    for path, frame in zip(workplace.photos, (0, 12), strict=True):
        Image.fromarray(photo(frame, SIZE)).save(path)
    return workplace


@dataclass(frozen=True)
class Made:
    """A reconstruction, and what it said."""

    config: Path
    said: list[str]


@pytest.fixture(scope="module")
def made(place: Workplace) -> Made:
    said: list[str] = []
    config = reconstruct(place.photos, place.run, place.folder / "made", fov_degrees=FOV, say=said.append)
    return Made(config, said)


# ------------------------------------------------------------------------------------------------------ the run


def test_a_run_with_weights_and_a_capture_appears_and_the_report_is_said_once(place: Workplace, made: Made) -> None:
    folder = made.config.parent
    assert folder == place.folder / "made"
    assert len(list((folder / "nerfstudio_models").glob("step-*.ckpt"))) == 1
    assert sorted(path.name for path in (folder / "capture" / "images").iterdir()) == ["photo_001.jpg", "photo_002.jpg"]
    (report,) = made.said
    for words in ("left.png: 288x192 pixels", "(stated)", "matching points agree", "overlap"):
        assert words in report
    assert not [path for path in place.folder.iterdir() if path.name.startswith(".")]


def test_the_capture_holds_the_photos_with_the_poses_that_were_found(place: Workplace, made: Made) -> None:
    capture = made.config.parent / "capture"
    frames = json.loads((capture / "transforms.json").read_text())["frames"]
    posed = pose_photos(tuple(read_photo(path, FOV) for path in place.photos))
    for frame, source, pose, path in zip(frames, posed.photos, posed.world_from_camera, place.photos, strict=True):
        opengl = torch.tensor(frame["transform_matrix"], dtype=torch.float64)
        np.testing.assert_allclose(opencv_from_opengl(opengl), pose, atol=1e-5)
        assert (frame["w"], frame["h"]) == (SIZE[1], SIZE[0])
        assert frame["fl_x"] == frame["fl_y"] == pytest.approx(source.focal_px)
        stored = np.asarray(Image.open(capture / frame["file_path"])).astype(int)
        assert np.abs(stored - np.asarray(Image.open(path))).mean() < 2


def test_nerfstudio_opens_the_run_with_both_photos_as_context_and_the_pose_unchanged(made: Made) -> None:
    from nerfstudio.utils.eval_utils import eval_setup

    _, pipeline, _, _ = eval_setup(made.config, test_mode="inference")
    cameras = pipeline.datamanager.train_dataset.cameras
    assert len(cameras) == 2
    poses = opencv_from_opengl(cameras.camera_to_worlds).double()
    step = torch.linalg.inv(poses[0]) @ poses[1]
    frames = json.loads((made.config.parent / "capture" / "transforms.json").read_text())["frames"]
    found = opencv_from_opengl(torch.tensor([f["transform_matrix"] for f in frames])).double()
    expected = torch.linalg.inv(found[0]) @ found[1]
    np.testing.assert_allclose(step[:3, :3], expected[:3, :3], atol=1e-4)
    np.testing.assert_allclose(step[:3, 3] / step[:3, 3].norm(), expected[:3, 3], atol=1e-3)
    assert float(cameras.fx[0] / cameras.height[0]) == pytest.approx(frames[0]["fl_x"] / SIZE[0], rel=1e-2)
    picture = pipeline.model.get_outputs_for_camera(cameras[0:1])
    assert torch.isfinite(picture["rgb"]).all() and float(picture["accumulation"].mean()) > 0.1


def test_the_same_photos_make_the_same_run(place: Workplace, made: Made) -> None:
    again = reconstruct(place.photos, place.run, place.folder / "again", fov_degrees=FOV, say=lambda _: None)
    texts = [(config.parent / "capture" / "transforms.json").read_text() for config in (made.config, again)]
    assert texts[0] == texts[1]


# ----------------------------------------------------------------------------------------------------- bad input


def assert_refused(place: Workplace, tmp_path: Path, error: type[LsplatError], words: str, **changes) -> None:
    """The call is refused in one line, and writes nothing."""
    arguments = {"photos": place.photos, "run": place.run, "output": tmp_path / "out", "fov_degrees": FOV, **changes}
    before, said = sorted(tmp_path.rglob("*")), []
    with pytest.raises(error, match=words) as raised:
        reconstruct(**arguments, say=said.append)
    assert not said
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_photos_that_cannot_be_used_are_refused_and_nothing_is_written(place: Workplace, tmp_path: Path) -> None:
    left = place.photos[0]
    text, tiny, blank = tmp_path / "text.jpg", tmp_path / "tiny.png", tmp_path / "blank.png"
    text.write_text("no picture")
    Image.fromarray(photo(0, SIZE)).resize((72, 48)).save(tiny)
    Image.new("RGB", (288, 192), "white").save(blank)
    for photos, error, words in (
        ((left, tmp_path / "absent.jpg"), SceneDataError, "no photo at"),
        ((left, text), SceneDataError, "is not a picture"),
        ((left, tiny), SceneDataError, "has 72x48 pixels, but the network looks at 64x64"),
        ((left, left), SceneDataError, "no baseline between left"),
        ((left, blank), SceneDataError, "only 0 matching points"),
        ((left,), ConfigError, "needs two photos, but 1 was given"),
        ((), ConfigError, "needs two photos, but 0 were given"),
    ):
        assert_refused(place, tmp_path, error, words, photos=photos)
    assert_refused(place, tmp_path, ConfigError, "--fov is 400", fov_degrees=400.0)


def test_what_is_no_run_and_an_output_in_use_are_refused(place: Workplace, tmp_path: Path) -> None:
    assert_refused(place, tmp_path, ConfigError, "no run at", run=tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    assert_refused(place, tmp_path, ConfigError, "choose another with --output", output=mine)
    assert (mine / "thesis.txt").read_text() == "precious"


def test_three_photos_need_the_extra(place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    assert_refused(place, tmp_path, MissingExtra, "pycolmap", photos=(*place.photos, place.photos[0]))


def test_of_more_photos_all_that_show_something_new_are_fused(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = (0, 2, 4, 6)  # too little of the last one is seen by any other

    def known_poses(photos: tuple[Photo, ...]) -> PosedPhotos:
        return PosedPhotos(photos, np.stack([room(SIZE).cameras[f].world_from_camera for f in frames]), "placed")

    monkeypatch.setattr(reconstructing, "reconstruct_photos", known_poses)
    paths = tuple(tmp_path / f"{frame}.png" for frame in frames)
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(photo(frame, SIZE)).save(path)
    config = reconstruct(paths, place.run, tmp_path / "made", fov_degrees=FOV, say=lambda report: None)
    provenance = json.loads((config.parent / "provenance.json").read_text())
    assert provenance["context_frames"] == [0, 1, 2]
    assert len(provenance["gaussians_per_layer"]) == 2 and min(provenance["gaussians_per_layer"]) > 0


# --------------------------------------------------------------------------------------------------- the command


@pytest.mark.slow
def test_the_command_renders_a_fly_through_and_says_how_to_open_the_run(place: Workplace, tmp_path: Path) -> None:
    video, output = tmp_path / "fly.mp4", tmp_path / "my room"
    outcome = call(
        "lsplat", "reconstruct", *place.photos, "--checkpoint", place.run, "--output", output, "--fov", FOV,
        "--render", video, cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.output
    assert "matching points agree" in outcome.output
    assert f"ns-viewer --load-config '{output / 'config.yml'}'" in outcome.output
    assert "FutureWarning" not in outcome.output
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 24


def test_a_port_in_use_is_noticed_before_anything_is_written(place: Workplace, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is in use"):
            Reconstruct(place.photos, place.run, tmp_path / "out", port=port).run()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_refuses_in_one_line(place: Workplace, tmp_path: Path) -> None:
    left = place.photos[0]
    outcome = call(
        "lsplat", "reconstruct", left, left, "--checkpoint", place.run, "--output", "out", "--no-view", cwd=tmp_path
    )
    assert outcome.code == 1 and "Traceback" not in outcome.output
    (line,) = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
    assert "no baseline" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_while_the_network_looks_leaves_nothing(place: Workplace, tmp_path: Path) -> None:
    temporary, work = tmp_path / "tmp", tmp_path / "work"
    temporary.mkdir()
    work.mkdir()
    process = subprocess.Popen(
        [BIN / "lsplat", "reconstruct", *place.photos, "--checkpoint", place.run, "--output", "out", "--no-view"],
        cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("overlap"):  # the last line of the report
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 130, rest[-3000:]
    assert "Traceback" not in rest and "Interrupted" in rest
    assert not list(work.iterdir())
    assert not [path for path in temporary.iterdir() if path.name.startswith("lsplat")]
