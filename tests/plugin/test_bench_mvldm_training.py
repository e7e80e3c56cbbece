"""The benchmark of MV-LDM's training runs whole steps in every setting, all of them the same step."""

from __future__ import annotations

import pytest
import torch

from lsplat_ns.mvldm import tiny_multi_view_diffusion
from lsplat_ns.plugin.bench_mvldm_training import SETTINGS, random_batch, run_mvldm_training_benchmark


def test_every_setting_times_the_same_step() -> None:
    batch = random_batch(1, 16, torch.device("cpu"))
    rows = run_mvldm_training_benchmark(tiny_multi_view_diffusion(), batch, repeats=1)
    assert [row.setting for row in rows] == [name for name in SETTINGS if "compiled" not in name]  # a GPU has all
    assert all(row.milliseconds > 0 and row.peak_gb is None for row in rows)
    assert rows[1].loss == pytest.approx(rows[0].loss, rel=0.02) and rows[2].loss == rows[1].loss
