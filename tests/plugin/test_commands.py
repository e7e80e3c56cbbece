"""The five nerfstudio commands as real processes on a freshly trained run, and what they leave behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml
from conftest import BIN, Run, call
from parity import SHARED
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow


def logged(folder: Path, name: str) -> list[float]:
    """Scalars that training wrote for TensorBoard."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


def video_frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def assert_one_line(output: str, *parts: str) -> None:
    """The output names the problem and shows no stack trace."""
    assert "Traceback" not in output, output[-3000:]
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output[-3000:]
    for part in parts:
        assert part in lines[0], lines[0]


# --------------------------------------------------------------------------------------------------- training


def test_training_lowers_the_loss_and_leaves_config_and_checkpoint(trained: Run) -> None:
    losses = logged(trained.folder, "Train Loss")
    assert len(losses) == 20 and np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    assert trained.config.is_file()
    assert "training on the CPU" in trained.output


def test_a_checkpoint_holds_tensors_and_plain_python_only(trained: Run) -> None:
    state = torch.load(trained.checkpoints / "step-000000019.ckpt", weights_only=True)
    assert state["step"] == 19
    keys = state["pipeline"].keys()
    assert any(key.startswith("_model.network.encoder.") for key in keys)
    assert not any(
        "gauss_params" in key or "perceptual" in key for key in keys
    )  # scenes and metrics are no part of a model
    assert [path.name for path in trained.folder.glob("*partial*")] == []


def test_training_resumes_where_it_stopped(trained: Run, rooms: Path) -> None:
    outcome = call(
        "ns-train", "latentsplat-tiny", "--data", rooms, "--load-dir", trained.checkpoints, "--max-num-iterations", 5,
        "--vis", "tensorboard", "--logging.steps-per-log", 1, "--experiment-name", "rooms", "--timestamp", "second",
        cwd=trained.cwd,
    )  # fmt: skip
    assert outcome.code == 0, outcome.output
    folder = trained.folder.parent / "second"
    assert [path.name for path in (folder / "nerfstudio_models").iterdir()] == ["step-000000024.ckpt"]
    first, second = logged(trained.folder, "Train Loss"), logged(folder, "Train Loss")
    assert np.mean(second) < np.mean(first[:5])  # it goes on from what it had learned


def test_ctrl_c_ends_the_step_saves_and_exits_0(rooms: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [BIN / "ns-train", "latentsplat-tiny", "--data", rooms, "--max-num-iterations", "100000",
         "--vis", "tensorboard", "--experiment-name", "x", "--timestamp", "t"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(r"^(\x1b\[[0-9;]*[A-Za-z])*\d+ \(\d", line):  # the first line of progress
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=300)
    output = "".join(lines) + rest
    assert process.returncode == 0, output[-3000:]
    assert "saving a checkpoint" in output and "Traceback" not in output, output[-3000:]
    run = tmp_path / "outputs" / "x" / "latentsplat-tiny" / "t"
    (checkpoint,) = (run / "nerfstudio_models").iterdir()
    assert torch.load(checkpoint, weights_only=True)["step"] >= 0


# ------------------------------------------------------------------------------------- evaluation and rendering


def test_ns_eval_scores_the_evaluation_index(trained: Run, rooms: Path) -> None:
    report = trained.folder / "eval.json"
    images = trained.folder / "eval_images"
    outcome = call(
        "ns-eval", "--load-config", trained.config, "--output-path", report, "--render-output-path", images,
        cwd=trained.cwd,
    )  # fmt: skip
    assert outcome.code == 0, outcome.output
    results = json.loads(report.read_text())["results"]
    index = json.loads((rooms / "evaluation_index.json").read_text())
    assert results["entries"] == sum(len(entries) for entries in index.values())
    assert 3 < results["psnr"] < 60 and -1 <= results["ssim"] <= 1 and results["psnr_std"] >= 0
    scene, entries = next(iter(index.items()))
    left, right = sorted(entries[0]["context"])
    for frame in entries[0]["target"]:
        assert Image.open(images / scene / f"{left}_{right}" / "color" / f"{frame:06d}.png").size == (64, 64)

    outcome = call("lsplat", "evaluate", trained.folder, "--output", "evaluated", "--illustrated", 0, cwd=trained.cwd)
    assert outcome.code == 0, outcome.output
    assert f"{results['psnr']:.2f}" in outcome.output and "Report: evaluated/index.html" in outcome.output
    summary = json.loads((trained.cwd / "evaluated" / "summary.json").read_text())
    assert {name: results[name] for name in ("metrics", "scenes", "skipped", "targets")} == {
        name: summary[name] for name in ("metrics", "scenes", "skipped", "targets")
    }
    assert results["psnr"] == summary["metrics"]["all"]["prediction"]["psnr"]["mean"]


def camera_path(run: Run, path: Path, frames: int = 4) -> Path:
    pose = np.eye(4)
    poses = []
    for i in range(frames):
        pose[0, 3] = 0.1 * i
        poses.append(
            {"camera_to_world": pose.astype(int if i == 0 else float).flatten().tolist(), "fov": 60, "aspect": 1.5}
        )
    content = {
        "camera_type": "perspective", "render_height": 66, "render_width": 98, "fps": 8, "seconds": 0.5,
        "camera_path": poses,
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("command", ["camera-path", "interpolate", "spiral"])
def test_ns_render_writes_a_video_without_a_system_ffmpeg(trained: Run, tmp_path: Path, command: str) -> None:
    video = tmp_path / "out.mp4"
    options = {
        "camera-path": ["--camera-path-filename", camera_path(trained, tmp_path / "path.json")],
        "interpolate": ["--interpolation-steps", 2],
        "spiral": ["--seconds", 0.5],
    }[command]
    only_python = str(BIN)
    assert shutil.which("ffmpeg", path=only_python) is None
    outcome = call(
        "ns-render", command, "--load-config", trained.config, "--output-path", video, *options,
        "--rendered-output-names", "rgb", "depth", "uncertainty", cwd=trained.cwd, path=only_python,
    )  # fmt: skip
    assert outcome.code == 0, outcome.output
    frames = video_frames(video)
    assert len(frames) >= 4
    if command == "camera-path":
        assert frames.shape[1:] == (66, 3 * 98, 3)
    assert frames[:, :, : frames.shape[2] // 3].std() > 2  # not a blank picture
    assert "Scene " in outcome.output and "context frames" in outcome.output


def test_ns_render_dataset_writes_every_output_of_every_target(trained: Run, rooms: Path, tmp_path: Path) -> None:
    outcome = call(
        "ns-render", "dataset", "--load-config", trained.config, "--output-path", tmp_path, "--image-format", "png",
        cwd=trained.cwd,
    )  # fmt: skip
    assert outcome.code == 0, outcome.output
    index = json.loads((rooms / "evaluation_index.json").read_text())
    targets = next(iter(index.values()))[0]["target"]
    for name in ("gt-rgb", "rgb", "rgb_splat", "depth", "accumulation", "uncertainty", "latent"):
        files = sorted(path.name for path in (tmp_path / "test" / name).iterdir())
        assert files == [f"{frame:06d}.png" for frame in sorted(targets)], name
        assert Image.open(tmp_path / "test" / name / files[0]).size == (64, 64)


def has_open3d() -> bool:
    probe = "import open3d"
    return subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(
    not has_open3d(), reason="nerfstudio's exporter imports open3d, which needs the system's libusb-1.0"
)
def test_ns_export_writes_a_gaussian_splat(trained: Run, tmp_path: Path) -> None:
    outcome = call(
        "ns-export", "gaussian-splat", "--load-config", trained.config, "--output-dir", tmp_path, cwd=trained.cwd
    )
    assert outcome.code == 0, outcome.output
    header, _, body = (tmp_path / "splat.ply").read_bytes().partition(b"end_header\n")
    text = header.decode()
    count = int(re.search(r"element vertex (\d+)", text)[1])
    names = re.findall(r"property float (\w+)", text)
    values = np.frombuffer(body, "<f4").reshape(count, len(names))
    assert count > 1000 and np.isfinite(values).all()
    quaternions = values[:, [names.index(f"rot_{i}") for i in range(4)]]
    np.testing.assert_allclose(np.linalg.norm(quaternions, axis=1), 1, atol=1e-4)


# ---------------------------------------------------------------------------------------------- the active scene


def test_every_tool_follows_sidecar_and_scene_config_and_says_so(trained: Run, rooms: Path, tmp_path: Path) -> None:
    scenes = list(json.loads((rooms / "train" / "index.json").read_text()))
    sidecar = trained.folder / "active_scene.json"
    test_scene = next(iter(json.loads((rooms / "test" / "index.json").read_text())))

    def shown(config: Path) -> str:
        outcome = call(
            "ns-render", "spiral", "--load-config", config, "--output-path", tmp_path / "s.mp4", "--seconds", 0.1,
            cwd=trained.cwd,
        )  # fmt: skip
        assert outcome.code == 0, outcome.output
        return outcome.output

    assert f"Scene {test_scene} (the first of test/)" in shown(trained.config)
    sidecar.write_text(json.dumps({"scene": test_scene, "context": [1, 9]}))
    try:
        assert "last chosen in the viewer" in shown(trained.config)
        config = yaml.load(trained.config.read_text(), Loader=yaml.Loader)
        config.pipeline.datamanager.dataparser.scene_split = "train"
        config.pipeline.datamanager.dataparser.scene = scenes[-1]
        explicit = tmp_path / "scene.yml"
        explicit.write_text(yaml.dump(config))
        output = shown(explicit)
        assert f"Scene {scenes[-1]} (from the options)" in output
        sidecar.write_text("{ broken")
        assert "Ignoring" in shown(trained.config)
    finally:
        sidecar.unlink()


# ------------------------------------------------------------------------------------------------ real captures


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not beside this checkout")
@pytest.mark.parametrize(
    ("data", "dataparser"), [("llff_horns_re10k", []), ("fox", ["nerfstudio-data"])], ids=["re10k chunk", "fox capture"]
)
def test_real_input_goes_through_the_same_chain(data: str, dataparser: list[str], tmp_path: Path) -> None:
    outcome = call(
        "ns-train", "latentsplat-tiny", "--data", SHARED / "data" / data, "--max-num-iterations", 6, "--vis",
        "tensorboard", "--experiment-name", "real", "--timestamp", "t", *dataparser, cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.output
    config = tmp_path / "outputs" / "real" / "latentsplat-tiny" / "t" / "config.yml"
    outcome = call("ns-eval", "--load-config", config, "--output-path", tmp_path / "eval.json", cwd=tmp_path)
    assert outcome.code == 0, outcome.output
    assert json.loads((tmp_path / "eval.json").read_text())["results"]["psnr"] > 3
    outcome = call(
        "ns-render", "interpolate", "--load-config", config, "--output-path", tmp_path / "v.mp4",
        "--interpolation-steps", 2, cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.output
    assert video_frames(tmp_path / "v.mp4").std() > 2


# ----------------------------------------------------------------------------------------------------- bad input


def test_unusable_data_ends_training_in_one_line_and_writes_nothing(rooms: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(rooms, broken)
    next((broken / "train").glob("*.torch")).unlink()
    work = tmp_path / "work"
    work.mkdir()
    for data, parts in (
        (tmp_path / "absent", ["no data folder", "absent"]),
        (empty, ["index.json is missing"]),
        (broken, ["names chunk", "which is not in"]),
    ):
        outcome = call("ns-train", "latentsplat-tiny", "--data", data, "--vis", "tensorboard", cwd=work)
        assert outcome.code == 1
        assert_one_line(outcome.output, *parts)
        assert list(work.iterdir()) == []


def test_missing_weights_end_training_in_one_line_and_write_nothing(rooms: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    common = ["ns-train", "latentsplat", "--data", rooms, "--vis", "tensorboard"]
    small = ["--pipeline.datamanager.preparation.image-size", 64, 64, "--pipeline.datamanager.sampling.min-gap", 5]
    small += ["--pipeline.datamanager.sampling.initial-min-gap", 5]
    for options, parts in (
        (small, ["dino_vitbase8_pretrain.pth", "--pipeline.model.pretrained none"]),
        ([*small, "--pipeline.model.pretrained", "none"], ["vgg16-397923af.pth", "--pipeline.model.perceptual none"]),
        (["--pipeline.model.pretrained", "none"], ["no scene can be used for training", "has 14 frames"]),
    ):
        outcome = call(*common, *options, cwd=work)
        assert outcome.code == 1
        assert_one_line(outcome.output, *parts)
        assert list(work.iterdir()) == []


def test_an_unreadable_capture_ends_training_in_one_line(tmp_path: Path) -> None:
    outcome = call(
        "ns-train",
        "latentsplat-tiny",
        "--data",
        tmp_path / "absent",
        "--vis",
        "tensorboard",
        "nerfstudio-data",
        cwd=tmp_path,
    )
    assert outcome.code == 1
    assert_one_line(outcome.output, "no data at", "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_checkpoint_is_named_in_one_line(trained: Run, tmp_path: Path) -> None:
    target = tmp_path / "outputs" / "rooms" / "latentsplat-tiny" / "first"
    target.mkdir(parents=True)
    shutil.copy(trained.config, target / "config.yml")
    for command in (["ns-eval"], ["ns-render", "spiral"], ["ns-viewer"]):
        outcome = call(*command, "--load-config", target / "config.yml", cwd=tmp_path)
        assert outcome.code == 1
        assert_one_line(outcome.output, "no checkpoint in", "train first")


def test_a_checkpoint_of_another_model_is_refused_in_one_line(trained: Run, rooms: Path, tmp_path: Path) -> None:
    outcome = call(
        "ns-train", "latentsplat-tiny", "--data", rooms, "--load-dir", trained.checkpoints, "--max-num-iterations", 2,
        "--vis", "tensorboard", "--pipeline.model.network.encoder.d-feature", 32, cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 1
    assert_one_line(outcome.output, "does not fit", "size mismatch")


def test_a_port_in_use_ends_viewer_and_training_in_one_line(trained: Run, rooms: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = call("ns-train", "latentsplat-tiny", "--data", rooms, "--viewer.websocket-port", port, cwd=tmp_path)
        assert outcome.code == 1
        assert_one_line(outcome.output, f"port {port} is in use")
        assert list(tmp_path.iterdir()) == []
        outcome = call(  # within its patience, and not serving for ever
            "ns-viewer", "--load-config", trained.config, "--viewer.websocket-port", port, cwd=trained.cwd
        )
        assert outcome.code == 1
        assert_one_line(outcome.output, f"port {port} is in use")
        outcome = call("lsplat", "demo", "--folder", tmp_path / "demo", "--port", port, cwd=tmp_path)
        assert outcome.code == 1
        assert_one_line(outcome.output, f"port {port} is in use")
        assert list(tmp_path.iterdir()) == []
