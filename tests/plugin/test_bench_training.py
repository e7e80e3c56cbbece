"""The benchmark of training runs whole steps in every setting."""

from __future__ import annotations

import torch

from lsplat_ns.plugin.bench_training import SETTINGS, STAGES_OF_TRAINING, run_training_benchmark
from lsplat_ns.plugin.recipes import tiny_networks


def test_every_stage_is_timed_in_every_setting() -> None:
    rows = run_training_benchmark(tiny_networks(), 32, torch.device("cpu"), repeats=1)
    assert [(row.stage, row.setting) for row in rows] == [(a, b) for a in STAGES_OF_TRAINING for b in SETTINGS]
    assert all(row.milliseconds > 0 and row.peak_gb is None for row in rows)
    image, full = (min(row.milliseconds for row in rows if row.stage == stage) for stage in STAGES_OF_TRAINING)
    assert full > image  # a decoder and a discriminator more
