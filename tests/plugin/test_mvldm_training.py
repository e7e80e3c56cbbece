"""``ns-train mvldm``: the published training in nerfstudio's trainer, and a tiny one from nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import call
from nerfstudio.cameras.cameras import Cameras, CameraType
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from lsplat_ns.checkpoints import stable_diffusion
from lsplat_ns.checkpoints.mvldm_runs import load_mvldm
from lsplat_ns.errors import CheckpointMismatch, MissingWeights
from lsplat_ns.mvldm import MultiViewDiffusion
from lsplat_ns.plugin import optimizers
from lsplat_ns.plugin.bench_mvldm_training import random_batch
from lsplat_ns.plugin.mvldm_pipeline import MvldmTrainer, MvldmTrainerConfig, _save_images
from lsplat_ns.plugin.mvldm_recipes import published_mvldm_trainer, tiny_mvldm_trainer


@pytest.fixture(autouse=True)
def _quiet_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers.writer, "EVENT_STORAGE", [])


def config_of(rooms: Path, folder: Path, autoencoder_steps: int = 2) -> MvldmTrainerConfig:
    config = deepcopy(tiny_mvldm_trainer("mvldm-tiny"))
    config.pipeline.datamanager.data, config.pipeline.datamanager.batch_size = rooms, 1
    config.pipeline.datamanager.preparation.image_size = (32, 32)
    config.pipeline.model.autoencoder_steps = autoencoder_steps
    config.output_dir, config.experiment_name, config.timestamp = folder, "x", "t"
    config.vis, config.machine.device_type = "tensorboard", "cpu"
    config.gradient_accumulation_steps = {"denoiser": 2}
    return config


def trainer_of(config: MvldmTrainerConfig, rank: int = 0, world_size: int = 1) -> MvldmTrainer:
    torch.manual_seed(0)
    trainer = config.setup(local_rank=rank, world_size=world_size)
    trainer.pipeline = config.pipeline.setup(device="cpu", test_mode="val", world_size=world_size, local_rank=rank)
    trainer.optimizers = trainer.setup_optimizers()
    trainer.pipeline.train()
    return trainer


def iterate(trainer: MvldmTrainer, *steps: int) -> list[dict[str, torch.Tensor]]:
    """Steps as nerfstudio's loop runs them; their losses."""
    from nerfstudio.engine.callbacks import TrainingCallbackAttributes

    attributes = TrainingCallbackAttributes(
        optimizers=trainer.optimizers, grad_scaler=trainer.grad_scaler, pipeline=trainer.pipeline, trainer=trainer
    )
    before, after = trainer.pipeline.model.get_training_callbacks(attributes)
    losses = []
    for step in steps:
        before.func(step)
        losses.append(trainer.train_iteration(step)[1])
        after.func(step)
    return losses


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_published_training_is_the_papers() -> None:
    config = published_mvldm_trainer("mvldm")
    data, model, denoiser = config.pipeline.datamanager, config.pipeline.model, config.optimizers["denoiser"]
    sampling = data.sampling
    assert (data.batch_size, sampling.num_target_views, sampling.min_gap, sampling.max_gap) == (6, 3, 50, 180)
    assert sampling.gap_limits(0, "train") == (50, 180) and sampling.margin(0, "train") == 0
    assert sampling.without_replacement and not data.mirror and data.preparation.baseline_to_one
    assert (model.training.relative_poses, model.training.drop_context, model.ema_decay) == (0.5, 0.1, None)
    assert (model.sampling.solver.kind, model.sampling.solver.steps, model.sampling.guidance) == ("ddim", 70, 3.0)
    optimizer, warm_up = denoiser["optimizer"], denoiser["scheduler"].setup()
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (2e-5, (0.9, 0.999), 0.01)
    assert optimizer.eps == 1e-8 and optimizer.max_norm == 0.1
    assert config.gradient_accumulation_steps == {"denoiser": 2} and config.max_num_iterations == 2 * 5_000_001
    assert warm_up.factor(0) == 5e-4 and warm_up.factor(400) == 1 == warm_up.factor(10_000)


def test_the_autoencoder_is_trained_first_and_then_left_alone(rooms: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(rooms, tmp_path))
    network = trainer.pipeline.model.network
    denoiser, autoencoder = weights(network.denoiser), weights(network.autoencoder)
    first = iterate(trainer, 0, 1)
    assert all(set(losses) == {"autoencoder/l1", "autoencoder/kl"} for losses in first)
    assert changed(network.autoencoder, autoencoder) and not changed(network.denoiser, denoiser)
    autoencoder = weights(network.autoencoder)
    later = iterate(trainer, 2, 3)
    assert all(set(losses) == {"diffusion"} for losses in later)
    assert changed(network.denoiser, denoiser) and not changed(network.autoencoder, autoencoder)

    batch = trainer.pipeline.datamanager.next_train(2)[0]
    latents = network.encode(batch.context.concat(batch.target).image)
    assert float(latents.std()) == pytest.approx(1, rel=0.01)  # of the batch at which the autoencoder was done


def test_gradients_are_averaged_over_accumulated_steps_and_the_average_follows_updates(
    rooms: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(config_of(rooms, tmp_path, autoencoder_steps=0))
    model = trainer.pipeline.model
    seen = []
    step_of = trainer.optimizers.optimizers["denoiser"].step
    parameter = model.network.denoiser.unet.conv_out.weight

    def step() -> None:
        seen.append(parameter.grad.clone())
        step_of()

    trainer.optimizers.optimizers["denoiser"].step = step
    trainer.optimizers.config["denoiser"]["optimizer"].max_norm = None
    before = weights(model.network.denoiser)
    wanted = []
    for number in (0, 1):
        batch = trainer.pipeline.datamanager.stream[number].to("cpu")
        loss = model.diffusion_loss(batch, trainer.pipeline.datamanager.stream.noise_seed(number))
        wanted.append(torch.autograd.grad(loss, parameter)[0])
    iterate(trainer, 0)
    assert not changed(model.network.denoiser, before) and not seen
    iterate(trainer, 1)
    torch.testing.assert_close(seen[0], (wanted[0] + wanted[1]) / 2)
    assert int(model.averaged_updates) == 1 and not changed(model.averaged, weights(model.network.denoiser))
    average = weights(model.averaged)
    iterate(trainer, 2, 3)
    for name, value in model.network.denoiser.named_parameters():
        torch.testing.assert_close(model.averaged.state_dict()[name], (2 * average[name] + 9 * value) / 11)
    assert model.generating_network().denoiser is model.averaged
    model.averaged_updates.fill_(2000)  # after as many, the decay is the stated one
    average = weights(model.averaged)
    model.update_average()
    for name, value in model.network.denoiser.named_parameters():
        torch.testing.assert_close(model.averaged.state_dict()[name], 0.995 * average[name] + 0.005 * value)


def test_an_image_size_is_refused_before_training_exactly_if_the_autoencoder_cannot_take_it(
    rooms: Path, tmp_path: Path
) -> None:
    config = config_of(rooms, tmp_path, autoencoder_steps=0)
    config.pipeline.datamanager.preparation.image_size = (20, 34)
    with pytest.raises(SystemExit, match=r"image-size is 20 34, .* of 4 only; the nearest are 20 32 and 20 36$"):
        config.save_config()
    assert list(tmp_path.iterdir()) == []
    config.pipeline.datamanager.preparation.image_size = (20, 36)  # 5 x 9 latents, odd on every level
    config.save_config()
    (losses,) = iterate(trainer_of(config), 0)
    assert torch.isfinite(losses["diffusion"])


def test_a_checkpoint_in_the_middle_of_an_accumulation_holds_its_gradients(rooms: Path, tmp_path: Path) -> None:
    config = config_of(rooms, tmp_path, autoencoder_steps=0)
    whole = trainer_of(config)
    iterate(whole, 0, 1, 2)
    whole.save_checkpoint(2)
    iterate(whole, 3, 4, 5)

    again = deepcopy(config)
    again.load_dir, again.timestamp = whole.checkpoint_dir, "u"
    resumed = trainer_of(again)
    resumed._load_checkpoint()
    assert resumed._start_step == 3
    iterate(resumed, 3, 4, 5)
    for name, value in whole.pipeline.model.state_dict().items():
        assert torch.equal(value, resumed.pipeline.model.state_dict()[name]), name
    rates = [t.optimizers.optimizers["denoiser"].param_groups[0]["lr"] for t in (whole, resumed)]
    assert rates[0] == rates[1]


@pytest.mark.slow
def test_two_ranks_average_gradients_stay_equal_and_resume(rooms: Path, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "mvldm_two_ranks.py"
    process = subprocess.run(
        [sys.executable, script, rooms, tmp_path], capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    for claim in (
        "gradients are averaged",
        "networks, averages and scales agree",
        "a resumed run is the uninterrupted",
    ):
        assert claim in process.stdout, process.stdout + process.stderr


@pytest.mark.parametrize("low_memory", [False, True])
def test_options_of_training_change_numbers_by_rounding_only(low_memory: bool, rooms: Path, tmp_path: Path) -> None:
    config = config_of(rooms, tmp_path, autoencoder_steps=0)
    plain = iterate(trainer_of(config), 0)[0]["diffusion"]
    config.pipeline.model.training_precision, config.pipeline.model.low_memory = "bfloat16", low_memory
    trainer = trainer_of(config)
    assert trainer.pipeline.model.network.denoiser.recompute == low_memory
    assert iterate(trainer, 0)[0]["diffusion"].item() == pytest.approx(plain.item(), rel=0.02)


def test_compiled_training_stands_in_where_gradients_are_needed_and_gives_the_same_losses(
    rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def watched(function: Callable[..., torch.Tensor], dynamic: bool) -> Callable[..., torch.Tensor]:
        name = {"forward": "denoiser"}.get(function.__name__, function.__name__)
        return lambda *inputs: used.append(name) or function(*inputs)

    monkeypatch.setattr(torch, "compile", watched)
    monkeypatch.setattr("lsplat_ns.acceleration.shutil.which", lambda name: name)
    config = config_of(rooms, tmp_path, autoencoder_steps=1)
    plain = trainer_of(config)
    wanted = iterate(plain, 0, 1)
    assert not used
    config = deepcopy(config)
    config.pipeline.model.compiled_training = True
    trainer = trainer_of(config)
    assert iterate(trainer, 0) == wanted[:1] and used == ["decoded_features"]
    assert iterate(trainer, 1) == wanted[1:] and used == ["decoded_features", "denoiser"]
    trainer.pipeline.get_eval_loss_dict(2)
    trainer.pipeline.get_eval_image_metrics_and_images(2)
    assert len(used) == 2
    states = [each.pipeline.state_dict() for each in (plain, trainer)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_compiled_training_with_low_memory_ends_with_one_line(rooms: Path, tmp_path: Path) -> None:
    config = config_of(rooms, tmp_path)
    config.pipeline.model.low_memory = config.pipeline.model.compiled_training = True
    with pytest.raises(SystemExit, match=r"leave out --pipeline\.model\.compiled-training, or low-memory"):
        trainer_of(config)


def test_the_viewer_is_told_that_there_is_no_scene(rooms: Path, tmp_path: Path) -> None:
    model = trainer_of(config_of(rooms, tmp_path)).pipeline.model
    camera = Cameras(torch.eye(4)[None, :3], 50.0, 50.0, 40.0, 30.0, 80, 60, camera_type=CameraType.PERSPECTIVE)
    outputs = model.get_outputs_for_camera(camera)
    assert outputs["rgb"].shape == (60, 80, 3) and outputs["rgb"].std() > 0


# ------------------------------------------------------------------------------------- starting from published weights


@pytest.fixture
def weight_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LSPLAT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / stable_diffusion.FOLDER


def tiny_network() -> MultiViewDiffusion:
    return MultiViewDiffusion(tiny_mvldm_trainer("x").pipeline.model.network)


def write_stable_diffusion(folder: Path, network: MultiViewDiffusion) -> dict[str, torch.Tensor]:
    """Files as Stable Diffusion's, with its first and last layer of four channels, and attention on the way up."""
    unet = {key: torch.randn_like(value) for key, value in network.denoiser.unet.state_dict().items()}
    unet["conv_in.weight"], unet["conv_out.bias"] = torch.zeros(1, 4, 3, 3), torch.zeros(7)
    unet["up_blocks.1.attentions.0.norm.weight"] = torch.zeros(3)
    vae = {key: torch.randn_like(value) for key, value in network.autoencoder.model.state_dict().items()}
    for name, state in ((stable_diffusion.UNET, unet), (stable_diffusion.VAE, vae)):
        (folder / name).parent.mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in state.items()}, folder / name)
    return unet


def test_training_starts_from_stable_diffusion_but_for_the_layers_it_lacks(weight_folder: Path) -> None:
    network = tiny_network()
    before = weights(network.denoiser)
    unet = write_stable_diffusion(weight_folder, network)
    assert stable_diffusion.load_stable_diffusion(network) == weight_folder
    after = network.denoiser.state_dict()
    for key, value in before.items():
        name = key.removeprefix("unet.")
        taken = key.startswith("unet.") and not name.startswith(("conv_in.", "conv_out."))
        assert torch.equal(after[key], unet[name] if taken else value), key


def test_weights_of_another_model_are_refused(weight_folder: Path) -> None:
    network = tiny_network()
    write_stable_diffusion(weight_folder, network)
    save_file({"conv_in.weight": torch.zeros(3)}, weight_folder / stable_diffusion.UNET)
    with pytest.raises(CheckpointMismatch, match="missing"):
        stable_diffusion.load_stable_diffusion(network)


def test_absent_weights_are_one_line_before_anything_is_built(weight_folder: Path) -> None:
    config = published_mvldm_trainer("mvldm").pipeline.model
    with pytest.raises(
        MissingWeights, match=r"unet/diffusion_pytorch_model.safetensors.*--pipeline.model.pretrained none"
    ):
        config.check_weights(resuming=False)
    config.check_weights(resuming=True)
    config.pretrained = "none"
    config.check_weights(resuming=False)


def test_a_scene_id_cannot_lead_out_of_the_folder_of_evaluated_views(tmp_path: Path) -> None:
    batch = replace(random_batch(1, 16, torch.device("cpu")), scene=("../../outside",))
    views = batch.context.frame.shape[1] + batch.target.frame.shape[1]
    _save_images(batch, torch.rand(views - 1, 3, 16, 16), tmp_path / "a" / "views")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(list((tmp_path / "a" / "views").rglob("*.png"))) == views - 1


# ---------------------------------------------------------------------------------------------- as a user calls it


@pytest.mark.slow
def test_ns_train_mvldm_tiny_leaves_a_run_that_evaluates_and_generates(rooms: Path, tmp_path: Path) -> None:
    outcome = call(
        "ns-train", "mvldm-tiny", "--data", rooms, "--max-num-iterations", 6, "--pipeline.model.autoencoder-steps", 3,
        "--pipeline.datamanager.batch-size", 1, "--steps-per-eval-image", 5, "--steps-per-eval-batch", 5,
        "--pipeline.model.sampling.solver.steps", 2, "--experiment-name", "x", "--timestamp", "t", cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.output
    run = tmp_path / "outputs" / "x" / "mvldm-tiny" / "t"
    assert (run / "nerfstudio_models" / "step-000000005.ckpt").is_file()
    network = load_mvldm(run)
    stored = torch.load(run / "nerfstudio_models" / "step-000000005.ckpt", weights_only=True)["pipeline"]
    assert network.config.latent_scale == pytest.approx(float(stored["_model.latent_scale"]))
    name = "unet.conv_out.weight"
    assert torch.equal(network.denoiser.state_dict()[name], stored[f"_model.averaged.{name}"])

    outcome = call(
        "ns-eval", "--load-config", run / "config.yml", "--output-path", tmp_path / "eval.json",
        "--render-output-path", tmp_path / "views", cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.output
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert results["entries"] >= 1 and 0 < results["psnr"] < 60
    pictures = list((tmp_path / "views").rglob("*.png"))
    assert pictures and Image.open(pictures[0]).size == (64, 64)
