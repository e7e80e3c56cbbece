"""Claims about the demo: what the package ships is what is shown, and as good as the README says."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file, save_file

from lsplat_ns.checkpoints import demo_weights
from lsplat_ns.errors import CheckpointMismatch, LsplatError, MissingWeights
from lsplat_ns.plugin import demo
from lsplat_ns.plugin import train_demo as training
from lsplat_ns.plugin.demo import draw_strip, generator_run, prediction_run
from lsplat_ns.plugin.demo_recipes import HELD_OUT_SCENES, METHODS, SHOWN_SCENES, TRAINING_SCENES, demo_trainer
from lsplat_ns.plugin.evaluating import EvaluationOptions, evaluate_run
from lsplat_ns.plugin.runs import StoredRun
from lsplat_ns.plugin.trainer import LatentSplatTrainer

ROOT = Path(__file__).parents[2]
SCORES = json.loads((demo_weights.FOLDER / "demo_scores.json").read_text())
WEIGHTS = demo_weights.FOLDER / "latentsplat-tiny.safetensors"
TOLERANCE_DB = 0.1
"""Kernels of other processors round differently."""


@pytest.fixture
def run(shipped: Run) -> Path:
    return shipped.folder


def test_shown_and_measured_scenes_were_never_trained_on() -> None:
    assert HELD_OUT_SCENES.seed != TRAINING_SCENES.seed
    assert replace(SHOWN_SCENES, scenes=21, test_scenes=20) == HELD_OUT_SCENES


def test_shipped_weights_are_small_and_tell_where_they_come_from() -> None:
    weights, provenance = demo_weights.read_demo_weights(WEIGHTS)
    assert WEIGHTS.stat().st_size <= 12e6
    assert all(value.dtype == torch.float16 for value in load_file(WEIGHTS).values())
    assert provenance["method"] == "latentsplat-tiny" and "train-demo" in provenance["command"]
    assert provenance["parameters"] == sum(value.numel() for value in weights.values())
    assert {"device", "seed", "data_seed", "training_scenes", "steps_done"} <= provenance.keys()


def test_the_demo_s_run_holds_the_shipped_weights_and_is_made_once(run: Path, unseen_rooms: Path) -> None:
    stored = StoredRun.open(run)
    weights, provenance = demo_weights.read_demo_weights(WEIGHTS)
    assert stored.steps_done == provenance["steps_done"] == SCORES["steps"]
    for key, value in weights.items():
        assert torch.equal(stored.pipeline_state[f"_model.network.{key}"], value), key
    before = (run / "config.yml").stat()
    assert prediction_run(run, unseen_rooms) == run / "config.yml"
    assert (run / "config.yml").stat().st_mtime_ns == before.st_mtime_ns


def test_a_folder_of_other_weights_is_kept_aside(tmp_path: Path, unseen_rooms: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    prediction_run(tmp_path / "run", unseen_rooms)
    assert (tmp_path / "run.old-0" / "mine.txt").read_text() == "precious"


@pytest.mark.slow
def test_held_out_scenes_score_what_the_package_says(run: Path, tmp_path: Path) -> None:
    summary = evaluate_run(run, tmp_path / "scores", EvaluationOptions(illustrated=0, distances=False))
    found = {scene: values["psnr"] for scene, values in summary["scenes"].items()}
    assert len(found) == 2
    for scene, value in found.items():
        assert value == pytest.approx(SCORES["scenes"][scene]["psnr"], abs=TOLERANCE_DB), scene


def test_the_readme_s_table_is_the_measured_one() -> None:
    readme = (ROOT / "README.md").read_text()
    for what in ("prediction", "splatted colour", "nearest context view", "mean of the context views"):
        between, outside = (SCORES["metrics"][kind][what] for kind in ("interpolation", "extrapolation"))
        cells = " | ".join(f"{values['psnr']:.1f} / {values['ssim']:.2f}" for values in (between, outside))
        assert f"| {cells} |" in readme, what
    for command in SCORES["command"]:
        assert command in readme


def test_the_prediction_is_well_above_what_needs_no_network() -> None:
    between = {what: values["psnr"] for what, values in SCORES["metrics"]["interpolation"].items()}
    yardstick = max(between["nearest context view"], between["mean of the context views"])
    assert between["prediction"] >= yardstick + 4


def test_the_strip_shows_photos_view_depth_and_uncertainty_and_what_a_generator_makes(
    run: Path, tmp_path: Path, mvldm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setattr(demo, "QUICK_STEPS", 1)
    widths = []
    for generator in (None, mvldm):
        draw_strip(run / "config.yml", tmp_path / "strip.png", generator=generator)
        with Image.open(tmp_path / "strip.png") as strip:
            widths.append(strip.width)
            assert strip.width > 4 * strip.height
    tile = widths[1] - widths[0]
    assert widths[0] == pytest.approx(5 * tile, abs=tile / 10)
    with Image.open(demo_weights.FOLDER / "demo_strip.png") as shipped:
        assert abs(shipped.width - widths[(demo_weights.FOLDER / "mvldm-tiny.safetensors").is_file()]) <= 1


def test_damaged_weights_are_named_in_one_line(
    tmp_path: Path, unseen_rooms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_weights, "FOLDER", tmp_path)
    with pytest.raises(MissingWeights, match="ships no latentsplat-tiny"):
        prediction_run(tmp_path / "run", unseen_rooms)
    damaged = tmp_path / WEIGHTS.name
    damaged.write_bytes(WEIGHTS.read_bytes()[:100_000])
    with pytest.raises(CheckpointMismatch, match=str(damaged)) as caught:
        prediction_run(tmp_path / "run", unseen_rooms)
    assert len(str(caught.value).splitlines()) == 1
    save_file({"a": torch.zeros(1)}, damaged)
    with pytest.raises(CheckpointMismatch, match="no provenance"):
        prediction_run(tmp_path / "run", unseen_rooms)
    assert not (tmp_path / "run").exists()


def test_weights_that_half_precision_cannot_hold_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(LsplatError, match="float16 cannot hold 1 weight, such as b"):
        demo_weights.write_demo_weights(tmp_path / "w.safetensors", {"a": torch.ones(1), "b": torch.tensor([1e6])}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("system", ["latentsplat", "mvldm"])
def test_train_demo_trains_writes_weights_and_goes_on(
    system: str, tmp_path: Path, rooms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("demo_trainer", "demo_mvldm_trainer"):
        monkeypatch.setattr(training, name, on_a_cpu(getattr(training, name)))
    monkeypatch.setattr(training, "scenes_in", lambda folder, config: rooms)
    path = training.train_demo(system, tmp_path, 2)
    weights, provenance = demo_weights.read_demo_weights(path)
    assert provenance["steps_done"] == 2 and not any(key.startswith("discriminator.") for key in weights)
    if system == "mvldm":
        monkeypatch.setattr(demo_weights, "FOLDER", tmp_path)
        assert (generator_run(tmp_path / "generator") / "mvldm.safetensors").is_file()
    again, provenance = demo_weights.read_demo_weights(training.train_demo(system, tmp_path, 3))
    assert provenance["steps_done"] == 3
    assert any(not torch.equal(again[key], value) for key, value in weights.items())
    started = weights_before_training(monkeypatch, system, tmp_path / "other", path)
    trained = [key for key in started if system == "latentsplat" or key.startswith("autoencoder.")]
    assert trained and all(torch.equal(started[key], again[key]) for key in trained)


@pytest.mark.slow
def test_ctrl_c_in_train_demo_keeps_weights_to_start_from(
    tmp_path: Path, rooms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "demo_trainer", on_a_cpu(training.demo_trainer))
    monkeypatch.setattr(training, "scenes_in", lambda folder, config: rooms)
    iterate = LatentSplatTrainer.train_iteration

    def interrupted_in_the_second(trainer: LatentSplatTrainer, step: int) -> object:
        if step == 1:
            trainer._on_signal(signal.SIGINT, None)
        return iterate(trainer, step)

    monkeypatch.setattr(LatentSplatTrainer, "train_iteration", interrupted_in_the_second)
    with pytest.raises(SystemExit) as caught:
        training.train_demo("latentsplat", tmp_path, 9)
    assert caught.value.code == 0 and not (tmp_path / "latentsplat-tiny.safetensors").exists()
    _, provenance = demo_weights.read_demo_weights(tmp_path / "latentsplat-tiny-2-steps.safetensors")
    assert provenance["steps_done"] == 2 and provenance["command"] == "lsplat train-demo latentsplat --steps 9"


def weights_before_training(
    monkeypatch: pytest.MonkeyPatch, system: str, folder: Path, initial: Path
) -> dict[str, torch.Tensor]:
    """What a training that starts from given weights begins with, in half precision."""
    with monkeypatch.context() as patched:
        patched.setattr(LatentSplatTrainer, "train", lambda self: None)
        path = training.train_demo(system, folder, 1, initial)
    weights, provenance = demo_weights.read_demo_weights(path)
    assert provenance["initial_weights"]["steps_done"] == 3 and provenance["command"].endswith(initial.name)
    return weights


def test_weights_of_the_other_system_are_refused_before_scenes_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "scenes_in", lambda folder, config: pytest.fail("scenes were made"))
    with pytest.raises(CheckpointMismatch, match="holds weights of latentsplat-tiny, not of mvldm-tiny"):
        training.train_demo("mvldm", tmp_path, 2, WEIGHTS)


@pytest.mark.parametrize("said", [{}, {"network": {"layers": 3}}, {"network": {"denoiser": 3}}])
def test_weights_that_state_no_network_are_refused_in_one_line(
    said: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "scenes_in", lambda folder, config: pytest.fail("scenes were made"))
    file = tmp_path / "some.safetensors"
    demo_weights.write_demo_weights(file, {"a": torch.zeros(2)}, {"method": "mvldm-tiny", **said})
    with pytest.raises(CheckpointMismatch, match=r"some\.safetensors states no network that can be built"):
        training.train_demo("mvldm", tmp_path, 2, file)


def on_a_cpu(recipe):
    """The recipe with little work per step."""

    def changed(steps: int, continued: object = None):
        config = recipe(steps) if continued is None else recipe(steps, continued)
        config.machine.device_type = "cpu"
        datamanager = config.pipeline.datamanager
        datamanager.batch_size, datamanager.num_workers = 1, 0
        datamanager.preparation = replace(datamanager.preparation, image_size=(64, 64))
        datamanager.sampling = replace(datamanager.sampling, max_gap=8, initial_max_gap=8)
        return config

    return changed


def test_the_schedule_of_the_demo_s_training_keeps_the_published_order() -> None:
    schedule = demo_trainer(1000).pipeline.model.schedule
    assert [schedule.active_groups(step) for step in (0, 199, 200)] == [
        ("render_image",), ("render_image",), ("render_image", "combined")
    ]  # fmt: skip
    assert not schedule.adversarial.is_active(849) and schedule.adversarial.is_active(850)
    continued = demo_trainer(1000, continued=True).pipeline.model.schedule
    assert continued.active_groups(0) == ("render_image", "combined")
    assert METHODS == {"latentsplat": "latentsplat-tiny", "mvldm": "mvldm-tiny"}
