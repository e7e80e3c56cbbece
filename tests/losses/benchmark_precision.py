"""Loss curves in float32 and in bfloat16: ``python tests/losses/benchmark_precision.py DATA [--compiled]``.

Trains the mid-size model from several seeds in either precision, on the published schedule 625 times shorter, so that
all stages of training are passed: image losses, LPIPS (with random weights) from step 80, the decoder from 160, the GAN
from 200. A seed stands for the same weights, examples and draws in both. Prints, for each loss and stretch of steps,
both means over seeds of the stretch's median, and how far they lie apart as a fraction of the spread (largest minus
smallest) of the float32 runs: up to 1 is within what another seed does. Medians, because in either precision a few
steps of a thousand have a splatted colour that explodes: one step's error can be ten thousand times the others'.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mid_size import mid_size_trainer

from lsplat_ns.checkpoints.pretrained import WEIGHTS_FOLDER_VARIABLE
from lsplat_ns.losses import LossSchedule
from lsplat_ns.plugin.bench_training import write_random_perceptual_weights
from lsplat_ns.plugin.recipes import tiny_trainer
from lsplat_ns.plugin.trainer import LatentSplatTrainerConfig

PRECISIONS = ("float32", "bfloat16")
STRETCH = 50
SHORTER = 1 / 625
Curves = dict[str, np.ndarray]
"""By name of a loss, its value [steps] at every step; 0 before it counts."""


def train(config: LatentSplatTrainerConfig, seed: int, precision: str, compiled: bool, folder: Path) -> Curves:
    """One training; only its losses are kept."""
    config = deepcopy(config)
    config.output_dir, config.experiment_name, config.timestamp = folder, precision, str(seed)
    config.pipeline.datamanager.seed, config.pipeline.model.training_precision = seed, precision
    config.pipeline.model.compiled_training = compiled and precision != PRECISIONS[0]
    config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
    config.logging.local_writer.enable = False
    torch.manual_seed(seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.pipeline.train()
    steps = config.max_num_iterations
    curves: Curves = {}
    for step in range(steps):
        trainer.pipeline.model.update_to_step(step)
        losses = trainer.train_iteration(step)[1]
        for name, loss in losses.items():
            curves.setdefault(name, np.zeros(steps))[step] = float(loss.detach())
    return curves


def report(curves: dict[str, list[Curves]]) -> float:
    """Print the comparison; returns the largest distance in spreads."""
    exact, fast = (curves[precision] for precision in PRECISIONS)
    print(f"{'loss':<28} {'steps':>9} {'float32':>10} {'bfloat16':>10} {'spread':>9} {'apart / spread':>15}")
    largest = 0.0
    for name in exact[0]:
        count = len(exact[0][name])
        for start in range(0, count, STRETCH):
            found = slice(start, start + STRETCH)
            means = [np.array([np.median(run[name][found]) for run in runs]) for runs in (exact, fast)]
            if not means[0].any():
                continue
            spread, apart = np.ptp(means[0]), abs(means[0].mean() - means[1].mean())
            largest = max(largest, apart / spread)
            print(
                f"{name:<28} {start:>4}-{min(start + STRETCH, count) - 1:<4} {means[0].mean():>10.5f} "
                f"{means[1].mean():>10.5f} {spread:>9.5f} {apart / spread:>15.2f}"
            )
    print(f"largest: {largest:.2f} spreads ({'within' if largest <= 1 else 'NOT within'} the float32 runs' spread)")
    return largest


def load(path: Path | None) -> dict[str, list[Curves]]:
    """Curves that :func:`save` wrote; empty lists where there are none."""
    stored = json.loads(path.read_text()) if path is not None and path.is_file() else {}
    return {
        precision: [{name: np.array(values) for name, values in run.items()} for run in stored.get(precision, [])]
        for precision in PRECISIONS
    }


def save(curves: dict[str, list[Curves]], path: Path) -> None:
    """Write all curves as JSON."""
    plain = {p: [{n: v.tolist() for n, v in run.items()} for run in runs] for p, runs in curves.items()}
    path.write_text(json.dumps(plain))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="compile the training in bfloat16")
    parser.add_argument("--curves", type=Path, help="JSON file of curves: those in it are not trained again")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=PRECISIONS, help="what to train")
    parser.add_argument("--tiny", action="store_true", help="latentsplat-tiny instead, to try this on a CPU")
    options = parser.parse_args()
    config = tiny_trainer("latentsplat-tiny") if options.tiny else mid_size_trainer(options.steps, batch_size=2)
    config.max_num_iterations, config.vis = options.steps, "tensorboard"
    config.optimizers["generator"]["scheduler"].warm_up_steps = 50
    config.pipeline.datamanager.data = options.data
    config.pipeline.model.perceptual, config.pipeline.model.schedule = "lpips", LossSchedule().scaled(SHORTER)
    curves = load(options.curves)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        write_random_perceptual_weights(Path(folder))
        os.environ[WEIGHTS_FOLDER_VARIABLE] = folder
        for precision in options.precision:
            for seed in range(len(curves[precision]), options.seeds):
                curves[precision].append(train(config, seed, precision, options.compiled, Path(folder)))
                if options.curves is not None:
                    save(curves, options.curves)
    if all(curves.values()):
        sys.exit(report(curves) > 1)


if __name__ == "__main__":
    main()
