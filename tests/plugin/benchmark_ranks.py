"""Throughput of training on one and on several GPUs: ``python tests/plugin/benchmark_ranks.py DATA``.

Real training by nerfstudio's launcher and trainer, real examples from loader processes, the published model with
random weights in bfloat16: its image stage (mse and LPIPS) and its full stage (decoder and GAN). DATA are rooms of at
least 30 frames of 256x256. Prints examples per second, the speed-up, and whether all ranks hold the same parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed
from nerfstudio.scripts.train import launch

from lsplat_ns.checkpoints.pretrained import WEIGHTS_FOLDER_VARIABLE
from lsplat_ns.losses import LossSchedule, LossTerm
from lsplat_ns.plugin.bench_training import write_random_perceptual_weights
from lsplat_ns.plugin.recipes import published_trainer, tiny_trainer
from lsplat_ns.plugin.trainer import LatentSplatTrainer, LatentSplatTrainerConfig

STAGES = {
    "image": replace(LossSchedule(), render_image=(LossTerm("mse", 10.0), LossTerm("lpips", 0.5))),
    "full": LossSchedule().scaled(0),
}
"""From the first step on, what the published schedule has from step 50,000 and from 125,000 on."""
WARM_UP = 10


def measure(local_rank: int, world_size: int, config: LatentSplatTrainerConfig, global_rank: int = 0) -> None:
    """Train on this rank; the first one writes what it measured beside the run."""
    torch.manual_seed(config.machine.seed + global_rank)
    trainer = config.setup(local_rank=local_rank, world_size=world_size)
    trainer.setup()
    trainer.pipeline.train()
    times, on_gpu = [], trainer.device != "cpu"
    for step in range(config.max_num_iterations):
        started = time.perf_counter()
        trainer.pipeline.model.update_to_step(step)
        waiting = trainer.train_iteration(step)[2].get("data/waiting", 0.0)
        if on_gpu:
            torch.cuda.synchronize(trainer.device)
        times.append(time.perf_counter() - started)
    equal = all_ranks_agree(trainer)
    if global_rank == 0:
        timed = times[WARM_UP:]
        examples = world_size * config.pipeline.datamanager.batch_size * len(timed)
        found = {
            "milliseconds": 1000 * statistics.median(timed),
            "examples_per_second": examples / sum(timed),
            "waiting": waiting,
            "peak_gb": torch.cuda.max_memory_allocated(trainer.device) / 1e9 if on_gpu else None,
            "equal": equal,
        }
        (Path(config.output_dir) / "measured.json").write_text(json.dumps(found))


def all_ranks_agree(trainer: LatentSplatTrainer) -> bool:
    """Whether every parameter is the same on all ranks, bit for bit."""
    equal = torch.ones((), device=trainer.device)
    for parameter in trainer.pipeline.model.parameters():
        if trainer.world_size > 1:
            first = parameter.detach().clone()
            torch.distributed.broadcast(first, 0)
            equal *= float(torch.equal(first, parameter))
    if trainer.world_size > 1:
        torch.distributed.all_reduce(equal, torch.distributed.ReduceOp.MIN)
    return bool(equal)


def config_of(options: argparse.Namespace, stage: str, folder: Path) -> LatentSplatTrainerConfig:
    config = tiny_trainer("latentsplat-tiny") if options.tiny else published_trainer("latentsplat")
    config.output_dir, config.experiment_name, config.timestamp = folder, stage, "benchmark"
    config.max_num_iterations, config.vis = WARM_UP + options.steps, "tensorboard"
    config.logging.local_writer.enable, config.logging.profiler = False, "none"
    config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
    config.pipeline.datamanager.data = options.data
    stated = {"schedule": STAGES[stage], "perceptual": "lpips", "pretrained": "none", "training_precision": "bfloat16"}
    stated["compiled_training"] = options.compiled
    config.pipeline.model = replace(config.pipeline.model, **stated)
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=60, help="timed steps, after ten that are not")
    parser.add_argument("--compiled", action="store_true", help="compile the training")
    parser.add_argument("--tiny", action="store_true", help="latentsplat-tiny instead, to try this on a CPU")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as weights:
        write_random_perceptual_weights(Path(weights))
        os.environ[WEIGHTS_FOLDER_VARIABLE] = weights
        for stage in STAGES:
            for count in options.gpus:
                folder = Path(weights) / f"{stage}-{count}"
                config = config_of(options, stage, folder)
                launch(measure, count, config=config, device_type=config.machine.device_type)
                rows.append((stage, count, json.loads((folder / "measured.json").read_text())))
                print(*rows[-1], flush=True)
    print("\nstage  GPUs  ms/step  examples/s  speed-up  peak GB  waits for data  parameters")
    first = {stage: found["examples_per_second"] / count for stage, count, found in reversed(rows)}
    for stage, count, found in rows:
        speed, peak = found["examples_per_second"], "" if found["peak_gb"] is None else f"{found['peak_gb']:.1f}"
        equal = "equal" if found["equal"] else "DIFFER"
        print(
            f"{stage:<6} {count:>4} {found['milliseconds']:>8.1f} {speed:>11.2f} {speed / first[stage]:>9.2f} "
            f"{peak:>8} {found['waiting']:>15.0%} {equal:>11}"
        )


if __name__ == "__main__":
    main()
