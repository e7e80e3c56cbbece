"""The trainer: its steps are those of a plain loop, and neither bad numbers nor being stopped cost what was learned."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import BIN, Run, call
from torch import Tensor, nn

from lsplat_ns.encoder.encoder import EncoderConfig
from lsplat_ns.errors import CheckpointMismatch, ConfigError, LsplatError, SceneDataError
from lsplat_ns.latentsplat import LatentSplatConfig
from lsplat_ns.losses import AdversarialConfig, LossSchedule, LossTerm
from lsplat_ns.losses.objective import step_losses
from lsplat_ns.plugin import datamanager, optimizers
from lsplat_ns.plugin import trainer as module
from lsplat_ns.plugin.model import LatentSplatModelConfig
from lsplat_ns.plugin.optimizers import AdamWConfig, GuardedOptimizers
from lsplat_ns.plugin.recipes import tiny_trainer
from lsplat_ns.plugin.trainer import (
    LatentSplatTrainer,
    LatentSplatTrainerConfig,
    checkpoint_steps,
    newest_whole_checkpoint,
)

ALL_LOSSES = LossSchedule(
    gaussian=(LossTerm("kl", 0.01),),
    render_image=(LossTerm("mse", 10.0),),
    combined=(LossTerm("l1", 1.0, 2),),
    adversarial=AdversarialConfig(starts_at_step=4),
)


@pytest.fixture(autouse=True)
def _quiet_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """nerfstudio's log is a global of the process; what is put into it here is dropped."""
    monkeypatch.setattr(optimizers.writer, "EVENT_STORAGE", [])


def config_of(rooms: Path, folder: Path, device: str = "cpu", **model: object) -> LatentSplatTrainerConfig:
    config = deepcopy(tiny_trainer("latentsplat-tiny"))
    config.pipeline.datamanager.data = rooms
    config.output_dir, config.experiment_name, config.timestamp = folder, "x", "t"
    config.vis, config.machine.device_type = "tensorboard", device
    config.pipeline.model = replace(config.pipeline.model, schedule=ALL_LOSSES, **model)
    return config


def trainer_of(config: LatentSplatTrainerConfig, rank: int = 0, world_size: int = 1) -> LatentSplatTrainer:
    """A trainer that is set up but for its log."""
    torch.manual_seed(0)
    trainer = config.setup(local_rank=rank, world_size=world_size)
    trainer.pipeline = config.pipeline.setup(
        device=trainer.device, test_mode="val", world_size=world_size, local_rank=rank, grad_scaler=trainer.grad_scaler
    )
    trainer.optimizers = trainer.setup_optimizers()
    trainer.pipeline.train()
    return trainer


def iterate(trainer: LatentSplatTrainer, step: int) -> dict[str, Tensor]:
    """One step as nerfstudio's loop runs it; its metrics."""
    trainer.pipeline.model.update_to_step(step)
    return trainer.train_iteration(step)[2]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


# ----------------------------------------------------------------------------------------------------- the steps


@pytest.mark.slow
def test_ten_steps_equal_a_plain_loop_of_alternating_generator_and_discriminator_steps(
    rooms: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(config_of(rooms, tmp_path))
    network = deepcopy(trainer.pipeline.model.network)
    stream = trainer.pipeline.datamanager.stream
    for step in range(10):
        iterate(trainer, step)

    encoder, autoencoder = list(network.encoder.parameters()), list(network.autoencoder.parameters())
    generator = torch.optim.Adam(
        [{"params": encoder, "lr": 1e-3}, {"params": autoencoder, "lr": 1e-3, "betas": (0.9, 0.999)}]
    )
    discriminator = torch.optim.Adam(network.discriminator.parameters(), lr=1e-4, betas=(0.5, 0.9))
    for step in range(10):
        for group in generator.param_groups:
            group["lr"] = 1e-3 * (0.02 + 0.98 * step / 50)
        draws = torch.Generator().manual_seed(stream.noise_seed(step))
        losses = step_losses(network, stream[step].to("cpu"), ALL_LOSSES, step, generator=draws).losses
        judging = [loss for name, loss in losses.items() if "discriminator" in name]
        generating = [loss for name, loss in losses.items() if "discriminator" not in name]
        generator.zero_grad()
        sum(generating).backward()
        nn.utils.clip_grad_norm_([*encoder, *autoencoder], 0.5)
        generator.step()
        assert bool(judging) == (step >= 4)
        if judging:
            discriminator.zero_grad()
            sum(judging).backward()
            discriminator.step()
    wanted = network.state_dict()
    for name, value in trainer.pipeline.model.network.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)


def test_rates_of_autoencoder_and_discriminator_are_per_example_of_the_effective_batch(
    rooms: Path, tmp_path: Path
) -> None:
    config = config_of(rooms, tmp_path)
    config.pipeline.datamanager.batch_size = 2
    config.optimizers["generator"] = {**config.optimizers["generator"], "scheduler": None}
    trainer = trainer_of(config)
    trainer.pipeline.world_size = 3  # of all machines
    made = trainer.setup_optimizers().optimizers
    encoder, autoencoder = made["generator"].param_groups
    (discriminator,) = made["discriminator"].param_groups
    assert (encoder["lr"], autoencoder["lr"], discriminator["lr"]) == pytest.approx((1e-3, 6e-3, 6e-4))
    assert (autoencoder["betas"], discriminator["betas"]) == ((0.9, 0.999), (0.5, 0.9))


def test_compiled_inference_never_touches_training(
    rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch.compile", "lsplat_ns.plugin.model.accelerate"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("compiled"))
    trainer = trainer_of(config_of(rooms, tmp_path, acceleration="compiled"))
    keys = set(trainer.pipeline.state_dict())
    iterate(trainer, 4)
    config = config_of(rooms, tmp_path, acceleration="compiled")
    config.load_dir, config.timestamp = saved(trainer, 4), "u"
    resumed = trainer_of(config)
    resumed._load_checkpoint()
    iterate(resumed, 5)
    assert resumed.pipeline.model.network.fast is None
    assert set(resumed.pipeline.state_dict()) == keys and not [key for key in keys if "_orig_mod" in key]


@pytest.mark.parametrize("compiled_first", [False, True])
def test_a_run_goes_on_from_its_checkpoint_with_compiled_training_switched_on_or_off(
    compiled_first: bool, rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def watched(function: Callable[..., object], dynamic: bool) -> Callable[..., object]:
        return lambda *inputs, **options: used.append(function) or function(*inputs, **options)

    monkeypatch.setattr(torch, "compile", watched)
    monkeypatch.setattr("lsplat_ns.acceleration.shutil.which", lambda name: name)
    whole = trainer_of(config_of(rooms, tmp_path, compiled_training=compiled_first))
    iterate(whole, 4)
    assert bool(used) == compiled_first
    config = config_of(rooms, tmp_path, compiled_training=not compiled_first)
    config.load_dir, config.timestamp = saved(whole, 4), "u"
    iterate(whole, 5)

    used.clear()
    resumed = trainer_of(config)
    resumed._load_checkpoint()
    iterate(resumed, 5)
    assert bool(used) != compiled_first
    used.clear()
    resumed.pipeline.get_eval_loss_dict(5)
    resumed.pipeline.get_eval_image_metrics_and_images(5)
    assert not used
    assert first_difference(dict(resumed.pipeline.state_dict()), dict(whole.pipeline.state_dict())) is None


def test_compiled_training_with_low_memory_ends_with_one_line(rooms: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"leave out --pipeline\.model\.compiled-training, or low-memory"):
        trainer_of(config_of(rooms, tmp_path, compiled_training=True, low_memory=True))


def test_frozen_parts_keep_weights_and_statistics_and_the_others_learn(rooms: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(rooms, tmp_path, frozen=("autoencoder", "discriminator")))
    before = weights(trainer.pipeline.model.network)
    for step in (3, 4, 5):
        iterate(trainer, step)
    changed = {n.split(".")[0] for n, v in weights(trainer.pipeline.model.network).items() if not v.equal(before[n])}
    assert changed == {"encoder"}


def test_freezing_all_that_could_learn_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is left to train"):
        LatentSplatModelConfig(frozen=("encoder", "autoencoder"))


def test_nerfstudios_mixed_precision_is_refused_with_what_to_take_instead(rooms: Path, tmp_path: Path) -> None:
    config = config_of(rooms, tmp_path)
    config.mixed_precision = True
    with pytest.raises(SystemExit, match=r"take --pipeline\.model\.training-precision bfloat16"):
        config.save_config()
    assert not list(tmp_path.rglob("config.yml"))


def test_a_training_of_no_steps_is_refused(rooms: Path, tmp_path: Path) -> None:
    config = config_of(rooms, tmp_path)
    config.max_num_iterations = 0
    with pytest.raises(SystemExit, match="--max-num-iterations is 0"):
        config.save_config()


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((100, 100), "are 96 96 and 112 112"),
        ((64, 100), "are 64 96 and 64 112"),
        ((17, 64), "are 16 64 and 32 64"),
    ],
)
def test_an_image_size_that_the_networks_cannot_take_is_refused_with_the_nearest_ones(
    size: tuple[int, int], nearest: str, rooms: Path, tmp_path: Path
) -> None:
    config = config_of(rooms, tmp_path, network=LatentSplatConfig())
    config.pipeline.datamanager.preparation.image_size = size
    option = r"^error: --pipeline\.datamanager\.preparation\.image-size is "
    with pytest.raises(
        SystemExit, match=rf"{option}{size[0]} {size[1]}.* multiples of 16 only; the nearest {nearest}$"
    ):
        config.save_config()
    assert list(tmp_path.iterdir()) == []
    config.pipeline.datamanager.preparation.image_size = (64, 64)
    config.save_config()


def test_where_no_smaller_image_size_works_only_the_larger_is_named(rooms: Path, tmp_path: Path) -> None:
    config = config_of(rooms, tmp_path, network=LatentSplatConfig(EncoderConfig(supersampling=1)))
    with pytest.raises(SystemExit, match=r"multiples of 128 only; the nearest is 128 128$"):
        config.save_config()


def test_a_foreign_file_among_checkpoints_is_none(tmp_path: Path) -> None:
    for name in ("step-000000004.ckpt", "step-best.ckpt", "step-000000012.ckpt"):
        (tmp_path / name).touch()
    assert checkpoint_steps(tmp_path) == [4, 12]


def test_every_parameter_groups_rate_is_logged(rooms: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(rooms, tmp_path))
    iterate(trainer, 0)
    rates = {e["name"]: e["event"] for e in optimizers.writer.EVENT_STORAGE if e["name"].startswith("learning_rate/")}
    assert rates.keys() == {f"learning_rate/{n}" for n in ("generator", "generator_fine_tuned", "discriminator")}
    assert rates["learning_rate/discriminator"] == 1e-4 and rates["learning_rate/generator"] == pytest.approx(3.96e-5)


def test_the_share_of_time_spent_waiting_for_data_is_logged_and_said_once_where_it_is_long(
    rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(module, "STEPS_TIMED", 2)
    trainer = trainer_of(config_of(rooms, tmp_path))
    seconds = {"now": 0.0, "loading": 50.0, "learning": 3.0}
    clock = SimpleNamespace(perf_counter=lambda: seconds["now"])
    read, learn = datamanager.training_batches, trainer.pipeline.model.forward

    def loading(*given: object, **options: object) -> Iterator[object]:
        for batch in read(*given, **options):
            seconds["now"] += seconds["loading"]
            yield batch

    def learning(*given: object, **options: object) -> object:
        seconds["now"] += seconds["learning"]
        return learn(*given, **options)

    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(datamanager, "time", clock)
    monkeypatch.setattr(datamanager, "training_batches", loading)
    monkeypatch.setattr(trainer.pipeline.model, "forward", learning)
    assert "data/waiting" not in iterate(trainer, 0)  # starting the loader is no waiting
    shares = []
    for step, loading_time in enumerate((1.0, 1.0, 0.0, 0.0), start=1):
        seconds["loading"] = loading_time
        shares.append(iterate(trainer, step)["data/waiting"])
    assert shares == pytest.approx([1 / 4, 1 / 4, 1 / 7, 0])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("Training waits for data 25% of its time") == said.count("waits for data") == 1


def test_a_held_out_view_that_cannot_be_read_is_said_once_and_training_goes_on(
    rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trainer = trainer_of(config_of(rooms, tmp_path))

    def broken(frame: int) -> Tensor:
        raise SceneDataError(f"scene [/x]: frame {frame} does not decode")

    scene = trainer.pipeline.datamanager.scene
    video = replace(scene.video, read_image=broken, read_picture=broken)
    trainer.pipeline.datamanager.scene = replace(scene, video=video)
    for step in (250, 500):
        trainer.eval_iteration(step)
    assert trainer.pipeline.model.training
    assert capsys.readouterr().out.count("does not decode") == 1


# ---------------------------------------------------------------------------------- gradients that are not finite


@pytest.fixture
def poisoned(rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LatentSplatTrainer]:
    """A trainer whose decoded images are NaN at steps 5 and up, so that the discriminator sees them as well."""
    trainer = trainer_of(config_of(rooms, tmp_path))
    network = trainer.pipeline.model.network
    decode = network.decode

    def broken(*maps: Tensor) -> Tensor:
        return decode(*maps) * (float("nan") if trainer.pipeline.model.step >= 5 else 1)

    monkeypatch.setattr(network, "decode", broken)
    yield trainer


def test_a_step_without_finite_gradient_changes_nothing_and_is_counted(
    poisoned: LatentSplatTrainer, capsys: pytest.CaptureFixture
) -> None:
    iterate(poisoned, 4)
    before = weights(poisoned.pipeline.model)
    moments = deepcopy(poisoned.optimizers.optimizers["generator"].state_dict()["state"])
    metrics = iterate(poisoned, 5)
    assert metrics["skipped_steps"] == 1
    for name, value in poisoned.pipeline.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for key, state in poisoned.optimizers.optimizers["generator"].state_dict()["state"].items():
        assert all(torch.equal(state[name], moments[key][name]) for name in state)
    assert "Skipped step 5: loss combined/l1" in " ".join(capsys.readouterr().out.split())


def test_training_that_only_skips_gives_up_with_one_line(
    poisoned: LatentSplatTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_SKIPPED_IN_A_ROW", 3)
    iterate(poisoned, 5)
    iterate(poisoned, 6)
    with pytest.raises(LsplatError, match="3 steps in a row had to be skipped, at step 7"):
        iterate(poisoned, 7)


def test_steps_that_only_accumulate_gradients_do_not_hide_skipped_ones() -> None:
    weight, scaler = nn.Parameter(torch.ones(2)), torch.amp.GradScaler("cpu", enabled=False)
    guarded = GuardedOptimizers({"a": {"optimizer": AdamWConfig(), "scheduler": None}}, {"a": [weight]}, {"a": 2})
    for _ in range(2):
        weight.grad = torch.full((2,), float("nan"))
        guarded.optimizer_scaler_step_some(scaler, [])
        guarded.optimizer_scaler_step_some(scaler, ["a"])
    assert guarded.skipped_steps == guarded.skipped_in_a_row == 2 and bool((weight == 1).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_example_of_an_accumulated_step_leaves_no_trace_in_running_statistics(
    value: float, rooms: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(accumulating(rooms, tmp_path, {"generator": 2, "discriminator": 2}))
    data = trainer.pipeline.datamanager
    read = data.next_train

    def next_train(step: int) -> object:
        batch, skips = read(step)
        if step == 0:
            batch.target.image.fill_(value)
        return batch, skips

    data.next_train = next_train
    before = weights(trainer.pipeline.model)
    iterate(trainer, 0)
    for name, now in trainer.pipeline.model.state_dict().items():
        assert torch.equal(now, before[name]), name
    iterate(trainer, 1)
    assert trainer.optimizers.skipped_steps == 1
    assert all(bool(now.isfinite().all()) for now in trainer.pipeline.model.state_dict().values())


def accumulating(rooms: Path, folder: Path, counts: dict[str, int]) -> LatentSplatTrainerConfig:
    """A small training with all losses from the first step on, whose gradients are accumulated over some steps."""
    config = config_of(rooms, folder)
    config.gradient_accumulation_steps, config.save_only_latest_checkpoint = counts, False
    config.pipeline.datamanager.preparation.image_size = (32, 32)
    config.pipeline.model.schedule = replace(
        ALL_LOSSES, combined=(LossTerm("l1", 1.0, 0),), adversarial=AdversarialConfig(starts_at_step=0)
    )
    return config


# ------------------------------------------------------------------------------------ being stopped, and resuming


def saved(trainer: LatentSplatTrainer, *steps: int) -> Path:
    for step in steps:
        trainer.save_checkpoint(step)
    return trainer.checkpoint_dir


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_checkpoint_cut_in_half_is_passed_over_by_training_and_by_tools(
    rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = config_of(rooms, tmp_path)
    config.save_only_latest_checkpoint = False
    folder = saved(trainer_of(config), 3, 7)
    cut_in_half(folder / "step-000000007.ckpt")

    assert newest_whole_checkpoint(folder) == 3
    said = "".join(capsys.readouterr().out.split())  # lines are wrapped, anywhere in a long path
    assert "step-000000007.ckptiscutshortordamaged;takingtheonebefore" in said
    tool = deepcopy(config)
    tool.load_step = 7  # as a run says that was itself resumed with --load-step
    assert tool.get_checkpoint_dir() == folder and tool.load_step == 3

    resumed = config_of(rooms, tmp_path)
    resumed.load_dir, resumed.timestamp = folder, "u"
    trainer = trainer_of(resumed)
    trainer._load_checkpoint()
    assert trainer._start_step == 4 and resumed.load_step is None

    cut_in_half(folder / "step-000000003.ckpt")
    with pytest.raises(CheckpointMismatch, match="holds no whole checkpoint"):
        newest_whole_checkpoint(folder)


def test_a_full_disk_keeps_the_checkpoint_before_and_training_goes_on(
    rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trainer = trainer_of(config_of(rooms, tmp_path))
    folder = saved(trainer, 3)

    def fill_the_disk(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    trainer.save_checkpoint(7)
    assert [path.name for path in folder.iterdir()] == ["step-000000003.ckpt"]
    assert not list(tmp_path.rglob("*.partial"))
    assert "Could not save" in capsys.readouterr().out


LAST, LOOKED_AT = 11, 8
OPTIONS = (
    "--max-num-iterations", LAST + 1, "--steps-per-save", 1, "--save-only-latest-checkpoint", "False",
    "--vis", "tensorboard", "--experiment-name", "x", "--pipeline.datamanager.num-workers", 2,
    "--steps-per-eval-image", LOOKED_AT,
    "--pipeline.model.schedule.combined.0.starts-at-step", 2,
    "--pipeline.model.schedule.adversarial.starts-at-step", 4,
)  # fmt: skip


RUNS = Path("outputs") / "x" / "latentsplat-tiny"


@pytest.fixture(scope="module")
def never_stopped(rooms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short training through all stages, from beginning to end."""
    cwd = tmp_path_factory.mktemp("whole")
    outcome = call("ns-train", "latentsplat-tiny", "--data", rooms, *OPTIONS, "--timestamp", "whole", cwd=cwd)
    assert outcome.code == 0, outcome.output
    return Run(cwd, cwd / RUNS / "whole", outcome.output)


@pytest.mark.slow
def test_tensorboard_gets_every_loss_metric_and_rate_by_name_and_pictures_and_the_terminal_the_time_left(
    never_stopped: Run,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(never_stopped.folder))
    events.Reload()
    scalars, pictures = events.Tags()["scalars"], events.Tags()["images"]
    losses = {tag.removeprefix("Train Loss Dict/") for tag in scalars if tag.startswith("Train Loss Dict/")}
    assert losses == {
        "render_image/mse", "combined/l1", "combined/generator", "combined/discriminator_fake",
        "combined/discriminator_real",
    }  # fmt: skip
    metrics = {tag.removeprefix("Train Metrics Dict/") for tag in scalars if tag.startswith("Train Metrics Dict/")}
    assert {"psnr", "psnr_splat", "adaptive_weight", "skipped_steps", "skipped_examples"} <= metrics
    for name in ("generator", "generator_fine_tuned", "discriminator"):
        assert len(events.Scalars(f"learning_rate/{name}")) > LAST
    assert {picture.removeprefix("Eval Images/") for picture in pictures} == {"context", "img", "splat", "depth"}
    sizes = {picture.removeprefix("Eval Images/"): events.Images(picture)[0] for picture in pictures}
    assert [(sizes[name].width, sizes[name].height) for name in ("context", "img", "splat", "depth")] == [
        (128, 64), (128, 64), (64, 64), (64, 64),
    ]  # two context views; truth beside the decoded view  # fmt: skip
    assert events.Images("Eval Images/img")[0].step == LOOKED_AT
    assert re.search(r"ETA \(time\)", never_stopped.output) and re.search(r"\d+ ?s\b", never_stopped.output)
    assert not list(never_stopped.cwd.rglob("*wandb*"))


@pytest.mark.slow
def test_a_run_killed_at_any_step_and_resumed_is_bit_identical_to_one_never_stopped(
    rooms: Path, tmp_path: Path, never_stopped: Run
) -> None:
    common = ["ns-train", "latentsplat-tiny", "--data", rooms, *OPTIONS]
    runs = tmp_path / RUNS
    kill_after = random.Random(time.time_ns()).randrange(LAST - 2)
    for attempt in range(3):  # where this process had to wait for long, the other one came to its end meanwhile
        checkpoints = runs / f"killed-{attempt}" / "nerfstudio_models"
        kill_after_step(common, kill_after, checkpoints, tmp_path)
        if not (checkpoints / f"step-{LAST:09d}.ckpt").exists():
            break
    assert not (checkpoints / f"step-{LAST:09d}.ckpt").exists(), f"kill after step {kill_after} came too late"

    outcome = call(*common, "--timestamp", "resumed", "--load-dir", checkpoints, cwd=tmp_path)
    assert outcome.code == 0, outcome.output
    resumed, whole = (
        torch.load(folder / "nerfstudio_models" / f"step-{LAST:09d}.ckpt", weights_only=True)
        for folder in (runs / "resumed", never_stopped.folder)
    )
    difference = first_difference(resumed, whole)
    assert difference is None, f"killed after step {kill_after}: {difference} differs"


def kill_after_step(command: list[object], step: int, checkpoints: Path, cwd: Path) -> None:
    """Begin a training, and end it by force once the checkpoint of a step is there."""
    process = subprocess.Popen(
        [BIN / command[0], *map(str, command[1:]), "--timestamp", checkpoints.parent.name],
        cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    while not (checkpoints / f"step-{step:09d}.ckpt").exists() and process.poll() is None:
        time.sleep(0.005)
    with suppress(ProcessLookupError):  # it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (checkpoints / f"step-{step:09d}.ckpt").exists(), "the run ended before it could be killed"


def first_difference(first: object, second: object, path: str = "") -> str | None:
    """Where two nested values differ in a single bit, or None."""
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return f"{path} (keys)"
        found = (first_difference(first[key], second[key], f"{path}/{key}") for key in first)
        return next((place for place in found if place), None)
    if isinstance(first, (list, tuple)):
        return first_difference(dict(enumerate(first)), dict(enumerate(second)), path)
    same = torch.equal(first, second) if isinstance(first, Tensor) else first == second
    return None if same else path


# ------------------------------------------------------------------------------------------------- several ranks


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["CPU", pytest.param("two GPUs", marks=pytest.mark.gpu)])
def test_two_ranks_average_to_the_joint_batch_stay_equal_with_gan_and_stop_together(
    devices: str, rooms: Path, tmp_path: Path
) -> None:
    if devices == "two GPUs" and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    script = Path(__file__).resolve().parents[1] / "two_ranks.py"
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if devices == "CPU" else {}
    process = subprocess.run(
        [sys.executable, script, rooms, tmp_path], capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, **hidden, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    for claim in ("gradients agree", "parameters agree", "no example is read twice", "stopped after the same step"):
        assert claim in process.stdout, process.stdout + process.stderr
