"""Faster generation shows the same views, and does nothing where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from lsplat_ns.diffusion.schedule import SolverConfig
from lsplat_ns.evaluation.metrics import psnr
from lsplat_ns.mvldm import tiny_multi_view_diffusion
from lsplat_ns.mvldm_acceleration import accelerate_generation, lower_precision
from lsplat_ns.plugin.bench_generation import _time, _views, build, run_generation_benchmark

SOLVER = SolverConfig("ddim", 10)


def generated(model, device: str = "cpu") -> torch.Tensor:
    return _time(model, _views(64, torch.device(device)), SOLVER, "", 1, None)[1]


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


def test_the_benchmark_times_every_setting() -> None:
    rows = run_generation_benchmark(tiny_multi_view_diffusion(), 32, torch.device("cpu"), 1, (SolverConfig(steps=2),))
    assert [row.setting for row in rows] == ["float32", "mixed", "compiled"]
    assert all(row.seconds > 0 for row in rows) and rows[0].psnr is None


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_captured_generation_stays_35_db_from_float32_also_with_another_number_of_views(compiled: bool) -> None:
    exact = generated(build(tiny_multi_view_diffusion(), torch.device("cuda")), "cuda")
    model = build(tiny_multi_view_diffusion(), torch.device("cuda"))
    accelerate_generation(model, compiled)
    assert psnr(generated(model, "cuda"), exact).min() >= 35
    assert psnr(generated(model, "cuda"), exact).min() >= 35  # from the graph
