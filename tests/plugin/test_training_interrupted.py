"""Training that is stopped and goes on: what is saved, under which step, the exit code, and what a resumed run does.

Stopped by Ctrl-C, SIGTERM or a full disk, at any moment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import BIN
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils import writer
from plugin.test_training import (
    accumulating,
    config_of,
    cut_in_half,
    first_difference,
    iterate,
    saved,
    trainer_of,
)
from torch import nn

from lsplat_ns.errors import CheckpointMismatch
from lsplat_ns.plugin.trainer import LatentSplatTrainer, LatentSplatTrainerConfig, newest_whole_checkpoint

STEPS = 3


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def _quiet_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """nerfstudio's log is a global of the process; what is put into it here is dropped."""
    for name, value in (("EVENT_WRITERS", []), ("EVENT_STORAGE", []), ("GLOBAL_BUFFER", {})):
        monkeypatch.setattr(writer, name, value)


@pytest.fixture
def training(rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LatentSplatTrainer]:
    """Sets up trainings as ns-train does, but for their steps: those only count in :func:`learned`."""

    def learn(trainer: Trainer, step: int) -> tuple[torch.Tensor, dict, dict]:
        with torch.no_grad():
            learned(trainer.pipeline.model).fill_(step)
        return torch.zeros(()), {}, {}

    monkeypatch.setattr(Trainer, "train_iteration", learn)

    def set_up(timestamp: str = "t", **options: object) -> LatentSplatTrainer:
        config: LatentSplatTrainerConfig = config_of(rooms, tmp_path)
        config.timestamp, config.max_num_iterations, config.logging.local_writer.enable = timestamp, STEPS, False
        for name, value in options.items():
            setattr(config, name, value)
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        return trainer

    return set_up


def learned(model: nn.Module) -> torch.Tensor:
    """The parameter that holds the last step."""
    return model.get_parameter("network.autoencoder.model.encoder.conv_in.bias")


def assert_holds(trainer: LatentSplatTrainer, *steps: int) -> None:
    """The run's checkpoints are those of just these steps, each with what was learned in it, and nothing half."""
    names = {path.name for path in trainer.checkpoint_dir.glob("*")}
    assert names == {f"step-{step:09d}.ckpt" for step in steps}
    for step in steps:
        state = torch.load(trainer.checkpoint_dir / f"step-{step:09d}.ckpt", weights_only=True)
        name = "_model.network.autoencoder.model.encoder.conv_in.bias"
        assert state["step"] == step and bool((state["pipeline"][name] == step).all())
    assert not list(trainer.base_dir.rglob("*.partial"))


@pytest.mark.parametrize("step", [1, STEPS - 1])
@pytest.mark.parametrize("phase", ["train_iteration", "eval_iteration"])
def test_a_stop_saves_the_last_step_that_was_done_under_its_number(
    phase: str, step: int, training: Callable[..., LatentSplatTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = training(steps_per_save=1)
    run = getattr(trainer, phase)

    def stopped(now: int) -> object:
        if now == step:
            press_ctrl_c()
        return run(now)

    monkeypatch.setattr(trainer, phase, stopped)
    trainer.train()
    # Evaluation comes after the loop has asked whether to go on: one more step, where there is one.
    last = min(step + 1, STEPS - 1) if phase == "eval_iteration" else step
    assert_holds(trainer, last)
    assert trainer.step == last


def test_a_stop_before_the_first_step_saves_nothing_and_is_no_success(
    training: Callable[..., LatentSplatTrainer], capsys: pytest.CaptureFixture
) -> None:
    first = training()
    first.train()
    for trainer in (
        training("paused", start_paused=True),
        training("resumed", start_paused=True, load_dir=first.checkpoint_dir, max_num_iterations=9),
    ):
        timer = threading.Timer(0.3, press_ctrl_c)
        timer.start()
        with pytest.raises(SystemExit) as caught:
            trainer.train()
        assert caught.value.code == 130
        assert "Stopped; nothing was trained." in capsys.readouterr().out
        assert_holds(trainer)
    assert_holds(first, STEPS - 1)


def test_of_several_ranks_a_paused_one_takes_the_step_that_the_others_wait_in(
    training: Callable[..., LatentSplatTrainer],
) -> None:
    trainer = training(start_paused=True)
    trainer.world_size = 2
    trainer._on_signal(signal.SIGINT, None)
    assert trainer.interrupted and trainer.training_state == "training" and not trainer.stop_training


def signal_while_saving(monkeypatch: pytest.MonkeyPatch, number: int, times: int) -> None:
    """Send a signal a few times as soon as a file has been written, but has not got its name yet."""
    write = torch.save

    def save(state: object, path: Path) -> None:
        write(state, path)
        for _ in range(times):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(torch, "save", save)


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2)])
def test_a_signal_during_the_last_save_waits_for_it_and_then_ends_all(
    number: int, times: int, training: Callable[..., LatentSplatTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = training()
    monkeypatch.setattr(Trainer, "_train_complete_viewer", lambda _: pytest.fail("the viewer went on"))
    signal_while_saving(monkeypatch, number, times)
    trainer.train()
    assert_holds(trainer, STEPS - 1)


def test_a_second_ctrl_c_breaks_off_a_save_says_so_and_leaves_nothing_half(
    training: Callable[..., LatentSplatTrainer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trainer = training()
    trainer.save_checkpoint(0)
    signal_while_saving(monkeypatch, signal.SIGINT, 2)
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == 130
    assert "what was learned since the last checkpoint is lost" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000000.ckpt"]
    assert not list(trainer.base_dir.rglob("*.partial"))


def test_ctrl_c_in_the_viewer_after_training_is_success(
    training: Callable[..., LatentSplatTrainer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def serve(_: Trainer) -> None:
        press_ctrl_c()
        time.sleep(3)

    monkeypatch.setattr(Trainer, "_train_complete_viewer", serve)
    trainer = training()
    trainer.train()
    assert "Stopped." in capsys.readouterr().out
    assert_holds(trainer, STEPS - 1)


def test_a_full_disk_at_the_last_save_is_one_line_and_no_success(
    training: Callable[..., LatentSplatTrainer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trainer = training(steps_per_save=1)
    write = torch.save

    def fill_the_disk(state: dict, path: Path) -> None:
        if state["step"] != 1:
            raise RuntimeError("No space left on device")
        write(state, path)

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(SystemExit, match=r"^error: could not save .*step-000000002\.ckpt: No space left"):
        trainer.train()
    assert "Training Finished" not in capsys.readouterr().out
    assert_holds(trainer, 1)


def test_ctrl_c_before_training_is_one_line_and_no_success(
    rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    config = config_of(rooms, tmp_path)
    trainer = config.setup(local_rank=0, world_size=1)
    capsys.readouterr()
    monkeypatch.setattr(Trainer, "setup", interrupted)
    monkeypatch.setattr(Trainer, "__init__", interrupted)
    monkeypatch.setattr(LatentSplatTrainerConfig, "_check", interrupted)
    for begin in (config.save_config, config.setup, trainer.setup):
        with pytest.raises(SystemExit) as caught:
            begin()
        assert caught.value.code == 130
        assert capsys.readouterr().out == "Stopped; nothing was trained.\n"


def test_ctrl_c_while_ns_train_sets_up_ends_with_code_130(rooms: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [BIN / "ns-train", "latentsplat-tiny", "--data", rooms, "--vis", "tensorboard"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Saving checkpoints to" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=300)
    output = "".join(lines) + rest
    assert process.returncode == 130, output[-3000:]
    assert "Stopped; nothing was trained." in output and "Traceback" not in output, output[-3000:]


# ------------------------------------------------------------------------------------- going on from a checkpoint


def damage(path: Path) -> None:
    """Change a few numbers in the middle of a file, as torch reads them without complaint."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 16] = b"\xff" * 16
    path.write_bytes(content)


def test_a_checkpoint_damaged_in_its_middle_is_passed_over(rooms: Path, tmp_path: Path) -> None:
    config = config_of(rooms, tmp_path)
    config.save_only_latest_checkpoint = False
    folder = saved(trainer_of(config), 3, 7)
    damage(folder / "step-000000007.ckpt")
    torch.load(folder / "step-000000007.ckpt", weights_only=True)
    assert newest_whole_checkpoint(folder) == 3
    resumed = config_of(rooms, tmp_path)
    resumed.load_dir, resumed.timestamp = folder, "u"
    resumed.save_config()
    trainer = trainer_of(resumed)
    trainer._load_checkpoint()
    assert trainer._start_step == 4


def test_a_checkpoint_that_cannot_be_used_ends_in_one_line_before_anything_is_written(
    rooms: Path, tmp_path: Path
) -> None:
    config = config_of(rooms, tmp_path)
    config.save_only_latest_checkpoint = False
    folder = saved(trainer_of(config), 3, 7)
    torn, damaged, foreign = (tmp_path / f"{name}.ckpt" for name in ("torn", "damaged", "foreign"))
    for copy in (torn, damaged):
        copy.write_bytes((folder / "step-000000003.ckpt").read_bytes())
    cut_in_half(torn)
    damage(damaged)
    torch.save({"state_dict": {}}, foreign)
    for option, value, message in (
        ("load_checkpoint", torn, "is cut short or damaged"),
        ("load_checkpoint", damaged, "is cut short or damaged"),
        ("load_checkpoint", folder, r"is no file; .* --load-dir"),
        ("load_checkpoint", foreign, "is no checkpoint of a training"),
        ("load_step", 77, r"holds no checkpoint of step 77 \(--load-step\), but of 3, 7"),
    ):
        resumed = config_of(rooms, tmp_path)
        resumed.timestamp = "u"
        if option == "load_step":
            resumed.load_dir = folder
        setattr(resumed, option, value)
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            resumed.save_config()
        assert not resumed.get_base_dir().exists()


def test_optimizers_of_another_training_end_in_one_line(rooms: Path, tmp_path: Path) -> None:
    path = saved(trainer_of(config_of(rooms, tmp_path)), 3) / "step-000000003.ckpt"
    state = torch.load(path, weights_only=True)
    state["optimizers"]["generator"]["param_groups"].pop()
    torch.save(state, path)
    config = config_of(rooms, tmp_path)
    config.load_checkpoint, config.timestamp = path, "u"
    with pytest.raises(CheckpointMismatch, match=r"training cannot go on from .*step-000000003\.ckpt: ValueError"):
        trainer_of(config)._load_checkpoint()


def test_training_does_not_replace_the_checkpoints_of_another_one(rooms: Path, tmp_path: Path) -> None:
    folder = saved(trainer_of(config_of(rooms, tmp_path)), 3)
    elsewhere = config_of(rooms, tmp_path)
    elsewhere.timestamp = "elsewhere"
    other = saved(trainer_of(elsewhere), 1)
    for load_dir in (None, other):
        config = config_of(rooms, tmp_path)
        config.load_dir = load_dir
        with pytest.raises(SystemExit, match=rf"holds checkpoints of another training.*--load-dir {folder}, or"):
            config.save_config()
    assert not list(tmp_path.rglob("config.yml"))
    for option, value in (("load_dir", folder), ("load_checkpoint", folder / "step-000000003.ckpt")):
        config = config_of(rooms, tmp_path)
        setattr(config, option, value)
        config.save_config()  # the same training goes on


def test_rates_and_betas_of_a_resumed_run_are_those_of_its_options(rooms: Path, tmp_path: Path) -> None:
    first = trainer_of(config_of(rooms, tmp_path))
    for step in range(2):
        iterate(first, step)
    config = config_of(rooms, tmp_path)
    config.load_dir, config.timestamp = saved(first, 1), "u"
    unchanged = trainer_of(config)
    unchanged._load_checkpoint()
    for name, optimizer in first.optimizers.optimizers.items():
        assert first_difference(unchanged.optimizers.optimizers[name].state_dict(), optimizer.state_dict()) is None

    generator, discriminator = config.optimizers["generator"], config.optimizers["discriminator"]
    generator["optimizer"] = replace(generator["optimizer"], lr=1e-6, betas=(0.8, 0.9))
    discriminator["optimizer"] = replace(discriminator["optimizer"], lr=1e-7)
    lower = trainer_of(config)
    lower._load_checkpoint()

    def rates() -> list[float]:
        made = lower.optimizers.optimizers
        return [group["lr"] for name in ("generator", "discriminator") for group in made[name].param_groups]

    assert rates() == pytest.approx([1e-6 * 0.0592, 1e-3 * 0.0592, 1e-7])  # 0.02 + 0.98 * 2 / 50
    assert lower.optimizers.optimizers["generator"].param_groups[0]["betas"] == (0.8, 0.9)
    moments, kept = (t.optimizers.optimizers["generator"].state_dict()["state"] for t in (first, lower))
    assert first_difference(kept, moments) is None
    iterate(lower, 2)
    assert rates() == pytest.approx([1e-6 * 0.0788, 1e-3 * 0.0788, 1e-7])


@pytest.mark.parametrize("counts", [{"generator": 3}, {"generator": 3, "discriminator": 2}])
def test_a_run_stopped_between_accumulated_steps_and_resumed_is_bit_identical(
    counts: dict[str, int], rooms: Path, tmp_path: Path
) -> None:
    whole = trainer_of(accumulating(rooms, tmp_path, counts))
    for step in range(7):
        iterate(whole, step)
        whole.save_checkpoint(step)
    wanted = torch.load(whole.checkpoint_dir / "step-000000006.ckpt", weights_only=True)
    for stopped_after in (3, 4):
        config = accumulating(rooms, tmp_path, counts)
        config.load_checkpoint = whole.checkpoint_dir / f"step-00000000{stopped_after}.ckpt"
        config.timestamp = f"resumed-{stopped_after}"
        resumed = trainer_of(config)
        resumed._load_checkpoint()
        assert resumed._start_step == stopped_after + 1
        for step in range(resumed._start_step, 7):
            iterate(resumed, step)
        made = torch.load(saved(resumed, 6) / "step-000000006.ckpt", weights_only=True)
        assert first_difference(made, wanted) is None, stopped_after
