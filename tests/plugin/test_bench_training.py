"""The benchmark of training runs whole steps in every setting."""

from __future__ import annotations

import math

import torch

from lsplat_ns.plugin.bench_training import SETTINGS, STAGES_OF_TRAINING, run_training_benchmark
from lsplat_ns.plugin.recipes import tiny_networks


def test_every_stage_is_timed_in_every_setting() -> None:
    settings = [name for name in SETTINGS if "compiled" not in name]  # these are for a GPU
    quickest = dict.fromkeys(STAGES_OF_TRAINING, math.inf)
    for _ in range(4):  # a step that had to wait for something else says little
        rows = run_training_benchmark(tiny_networks(), 32, torch.device("cpu"), repeats=1)
        assert [(row.stage, row.setting) for row in rows] == [(a, b) for a in STAGES_OF_TRAINING for b in settings]
        assert all(row.milliseconds > 0 and row.peak_gb is None for row in rows)
        for row in rows:
            quickest[row.stage] = min(quickest[row.stage], row.milliseconds)
        image, full = quickest.values()
        if full > image:
            break
    assert full > image  # a decoder and a discriminator more
