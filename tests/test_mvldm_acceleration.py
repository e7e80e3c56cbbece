"""Faster generation shows the same views, and does nothing where there is no GPU."""

from __future__ import annotations

import time

import pytest
import torch

from lsplat_ns.diffusion.guidance import Conditioning, predict_guided_noise
from lsplat_ns.diffusion.multiview_unet import MultiViewUNet, MultiViewUNetConfig
from lsplat_ns.diffusion.sampler import GroupNoise, SamplingConfig
from lsplat_ns.diffusion.schedule import SolverConfig
from lsplat_ns.diffusion.view_plan import ViewGroup
from lsplat_ns.errors import ConfigError
from lsplat_ns.evaluation.metrics import psnr
from lsplat_ns.mvldm import MultiViewDiffusionConfig, tiny_multi_view_diffusion
from lsplat_ns.mvldm_acceleration import (
    CompiledForFewShapes,
    accelerate_generation,
    fuse_layers,
    lower_precision,
    prepare_denoiser_training,
)
from lsplat_ns.plugin.bench_generation import _views, build, counted_tflop, run_generation_benchmark, sample

SOLVER = SolverConfig("ddim", 10)


def generated(model, device: str = "cpu") -> torch.Tensor:
    return sample(model, _views(32, torch.device(device)), SOLVER)


def test_on_a_cpu_nothing_changes() -> None:
    model = build(tiny_multi_view_diffusion(), torch.device("cpu"))
    before = generated(model)
    accelerate_generation(model, compiled=True)
    assert model.fast_denoiser is None and torch.equal(generated(model), before)


def test_lower_precision_stays_35_db_from_float32() -> None:
    exact = generated(build(tiny_multi_view_diffusion(), torch.device("cpu")))
    model = build(tiny_multi_view_diffusion(), torch.device("cpu"))
    lower_precision(model)
    model.autoencoder_dtype = torch.bfloat16  # CPUs convolve no float16
    kinds = {name.split(".")[1]: value.dtype for name, value in model.denoiser.named_parameters()}
    assert kinds["conv_in"] == kinds["time_embedding"] == kinds["conv_out"] == torch.float32
    assert kinds["down_blocks"] == kinds["mid_block"] == kinds["up_blocks"] == torch.bfloat16
    assert psnr(generated(model), exact).min() >= 35


def test_fewer_larger_products_give_the_same_noise() -> None:
    torch.manual_seed(0)
    config = MultiViewUNetConfig((32, 64), 1, (True, False), attention_heads=(1, 2), text_channels=(8, 8))
    denoiser = MultiViewUNet(config, 11, 4).eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    told = Conditioning(torch.randn(1, 2, 4, 8, 8), torch.randn(1, 5, 6, 8, 8))
    inputs = torch.randn(1, 3, 4, 8, 8), torch.tensor([700]), told, 3.0
    with torch.no_grad():
        before = predict_guided_noise(denoiser, *inputs)
        products = sum(isinstance(module, torch.nn.Linear) for module in denoiser.modules())
        fuse_layers(denoiser)
        torch.testing.assert_close(predict_guided_noise(denoiser, *inputs), before, rtol=1e-4, atol=1e-4)
    assert sum(isinstance(module, torch.nn.Linear) for module in denoiser.modules()) < 0.6 * products


def test_first_and_last_layers_keep_their_float32_weights() -> None:
    model = build(tiny_multi_view_diffusion(), torch.device("cpu"))
    weight = model.denoiser.unet.conv_in.weight.clone()
    lower_precision(model)
    assert torch.equal(model.denoiser.unet.conv_in.layer.weight, weight)  # not rounded on the way


def test_an_autoencoder_that_overflows_goes_on_in_float32() -> None:
    model = build(tiny_multi_view_diffusion(), torch.device("cpu"))
    latents = torch.randn(1, 2, *model.latent_shape((32, 32)), generator=torch.Generator().manual_seed(0))
    exact, decode = model.decode(latents), model.autoencoder.decode
    model.autoencoder_dtype = torch.bfloat16

    def overflowing(part: torch.Tensor) -> torch.Tensor:
        return decode(part) + (torch.inf if torch.is_autocast_enabled("cpu") else 0)

    model.autoencoder.decode = overflowing
    assert torch.equal(model.decode(latents), exact) and model.autoencoder_dtype is None


def test_an_autoencoder_that_waits_in_main_memory_gives_the_same_images() -> None:
    model = build(tiny_multi_view_diffusion(), torch.device("cpu"))
    image = torch.rand(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = model.decode(model.encode(image))
    moved = []
    model.autoencoder.to = lambda device: moved.append(str(device))
    model.offload_autoencoder()
    torch.testing.assert_close(model.decode(model.encode(image)), before, rtol=1e-4, atol=1e-5)
    assert moved == ["cpu", *["cpu", "cpu"] * 2]


def test_only_the_first_two_sizes_of_groups_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: lambda x: compiled.append(len(x)) or function(x))
    double = CompiledForFewShapes(lambda x: 2 * x, lambda x: x.shape)
    sizes = (4, 3, 3, 1, 4, 2, 3)  # the anchors, groups around them, a short one
    assert all(torch.equal(double(torch.ones(size)), torch.full((size,), 2.0)) for size in sizes)
    assert compiled == [4, 3, 3, 4, 3]


def test_compiled_training_is_refused_in_one_line_with_low_memory_and_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(tiny_multi_view_diffusion(), torch.device("cpu"))

    def refused(match: str, low_memory: bool = False) -> None:
        with pytest.raises(ConfigError, match=match) as caught:
            prepare_denoiser_training(model, low_memory, compiled=True)
        assert "\n" not in str(caught.value) and "--pipeline.model.compiled-training" in str(caught.value)
        assert model.denoiser_in_training is None and model.autoencoder.features_in_training is None

    refused("low-memory", low_memory=True)
    monkeypatch.setattr("lsplat_ns.acceleration.shutil.which", lambda name: None)
    refused("none is on the PATH")


def test_compiled_training_switched_off_again_leaves_no_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsplat_ns.acceleration.shutil.which", lambda name: name)
    model = build(tiny_multi_view_diffusion(), torch.device("cpu"))
    keys = list(model.state_dict())
    prepare_denoiser_training(model, low_memory=False, compiled=True)
    assert model.denoiser_in_training is not None and model.autoencoder.features_in_training is not None
    assert list(model.state_dict()) == keys
    prepare_denoiser_training(model, low_memory=False, compiled=False)
    assert model.denoiser_in_training is None and model.autoencoder.features_in_training is None


def test_the_counted_work_is_that_of_the_published_network() -> None:
    network, autoencoder = counted_tflop(MultiViewDiffusionConfig(), 256, 70)
    # By the spec 1.64 a step, less what both branches of guidance share; and 0.273 + 4 * 0.622.
    assert network == pytest.approx(108.1, abs=0.1) and autoencoder == pytest.approx(2.76, abs=0.01)


def test_the_benchmark_times_every_setting() -> None:
    rows = run_generation_benchmark(tiny_multi_view_diffusion(), 32, torch.device("cpu"), 1, (SolverConfig(steps=2),))
    assert [row.setting for row in rows] == ["float32", "mixed", "compiled"]
    assert all(row.seconds > 0 for row in rows) and rows[0].psnr is None


@pytest.mark.gpu
def test_on_a_gpu_progress_is_that_of_the_step_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tiny_multi_view_diffusion(), torch.device("cuda"))

    def slow_steps(predict, latents, config, prediction):
        for _ in range(config.steps):
            torch.cuda._sleep(100_000_000)  # some 50 ms
            yield latents

    monkeypatch.setattr("lsplat_ns.mvldm.solve", slow_steps)
    views, reported = _views(32, torch.device("cuda")), []
    noise = GroupNoise.draw(ViewGroup((0,), (1, 2, 3, 4), 0), 0, model.latent_shape(views.size), 0)
    for _ in range(2):  # the first is slow for other reasons
        reported.clear()
        model.sample(
            views.select([0]), views.cameras.select(slice(1, None)), noise, SamplingConfig(SOLVER),
            on_step=lambda _: reported.append(time.perf_counter()),
        )  # fmt: skip
    assert reported[-1] - reported[1] > 0.02 * (SOLVER.steps - 2)  # unpaced, all come at once


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_captured_generation_stays_35_db_from_float32_also_with_another_number_of_views(compiled: bool) -> None:
    exact = generated(build(tiny_multi_view_diffusion(), torch.device("cuda")), "cuda")
    model = build(tiny_multi_view_diffusion(), torch.device("cuda"))
    accelerate_generation(model, compiled)
    assert psnr(generated(model, "cuda"), exact).min() >= 35
    assert psnr(generated(model, "cuda"), exact).min() >= 35  # from the graph
