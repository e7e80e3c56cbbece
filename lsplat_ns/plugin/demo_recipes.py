"""The demo models: the scenes they learn from, those they are measured on, and their training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Dict, Literal, Optional

import torch

from lsplat_ns.data.demo_scenes import MakeScenesConfig
from lsplat_ns.diffusion.objective import TrainingConfig
from lsplat_ns.losses import LossSchedule, LossTerm
from lsplat_ns.losses.adversarial import AdversarialConfig
from lsplat_ns.mvldm import MultiViewDiffusionConfig
from lsplat_ns.plugin.mvldm_pipeline import MvldmTrainerConfig
from lsplat_ns.plugin.mvldm_recipes import tiny_mvldm_trainer
from lsplat_ns.plugin.optimizers import LinearWarmupConfig
from lsplat_ns.plugin.recipes import tiny_trainer
from lsplat_ns.plugin.trainer import LatentSplatTrainerConfig

System = Literal["latentsplat", "mvldm"]
METHODS: Dict[System, str] = {"latentsplat": "latentsplat-tiny", "mvldm": "mvldm-tiny"}
"""The method of each demo model."""
STEPS: Dict[System, int] = {"latentsplat": 7_500, "mvldm": 12_000}
"""Training steps that are done by default."""
SIDE = 128
"""Sides of their images in pixels."""
DEMO_GUIDANCE = 1.5
"""Guidance that suits mvldm-tiny: with the published 3, views are 0.4 dB farther from the true ones and agree less."""

_ROOMS = MakeScenesConfig(output=Path(), kind="rooms", frames=30, size=(SIDE, SIDE))
TRAINING_SCENES = replace(_ROOMS, scenes=641, test_scenes=1, seed=11)
"""What the demo models learn from."""
HELD_OUT_SCENES = replace(_ROOMS, scenes=21, test_scenes=20, seed=2024)
"""What their quality is measured on: rooms of a seed that no training has seen."""
SHOWN_SCENES = replace(HELD_OUT_SCENES, scenes=6, test_scenes=5)
"""The first of these, which ``lsplat demo`` shows."""

# Shares of the training. The splatted colour comes first, as in the published schedule: the decoder sees it.
DECODER_STARTS, DISCRIMINATOR_STARTS = 0.2, 0.85
AUTOENCODER_SHARE = 0.2


def demo_trainer(steps: int, continued: bool = False) -> LatentSplatTrainerConfig:
    """latentsplat-tiny for a GPU: larger images, larger batches, rates that fall to the end of training.

    Args:
        steps: Length of the training.
        continued: Start from trained weights, so that the decoder need not wait for the splatted colour.
    """
    config = tiny_trainer(METHODS["latentsplat"])
    _for_a_gpu(config, steps)
    datamanager = config.pipeline.datamanager
    datamanager.batch_size = 8
    datamanager.sampling = replace(
        datamanager.sampling,
        num_target_views=3,
        max_gap=24,
        initial_max_gap=24,
        target_margin=3,
        initial_target_margin=3,
    )
    decoder_starts = 0 if continued else int(DECODER_STARTS * steps)
    config.pipeline.model.schedule = LossSchedule(
        render_image=(LossTerm("mse", 10.0),),
        # Squares as well: with absolute differences alone the decoded colour stayed behind the splatted one.
        combined=tuple(LossTerm(kind, weight, decoder_starts) for kind, weight in (("l1", 1.0), ("mse", 10.0))),
        adversarial=AdversarialConfig(generator_weight=0.1, starts_at_step=int(DISCRIMINATOR_STARTS * steps)),
    )
    if torch.cuda.is_available():
        config.pipeline.model.training_precision = "bfloat16"
    generator, discriminator = config.optimizers["generator"], config.optimizers["discriminator"]
    rate = 8e-4
    generator["optimizer"] = replace(generator["optimizer"], lr=rate, fine_tuned_lr=rate / datamanager.batch_size)
    generator["scheduler"] = LinearWarmupConfig(warm_up_steps=300, initial_factor=0.01, decay_steps=steps)
    discriminator["optimizer"] = replace(discriminator["optimizer"], lr=5e-5)
    return config


def demo_mvldm_trainer(steps: int, continued: Optional[MultiViewDiffusionConfig] = None) -> MvldmTrainerConfig:
    """mvldm-tiny for a GPU: larger images, larger batches, rates that fall to the end of training.

    Args:
        steps: Length of the training.
        continued: The network whose trained weights it starts from; the autoencoder then stays as it is.
    """
    config = tiny_mvldm_trainer(METHODS["mvldm"])
    _for_a_gpu(config, steps)
    datamanager = config.pipeline.datamanager
    datamanager.batch_size = 16
    datamanager.sampling = replace(datamanager.sampling, max_gap=24, initial_max_gap=24)
    model = config.pipeline.model
    model.training = TrainingConfig(relative_poses=1.0, drop_context=0.1)
    model.ema_decay = 0.999
    model.training_precision = "bfloat16"
    if continued is None:
        model.autoencoder_steps = int(AUTOENCODER_SHARE * steps)
        config.optimizers["autoencoder"]["scheduler"] = LinearWarmupConfig(
            warm_up_steps=100, decay_steps=model.autoencoder_steps
        )
    else:
        model.network, model.autoencoder_steps = continued, 0
    config.optimizers["denoiser"]["scheduler"] = LinearWarmupConfig(warm_up_steps=100, decay_steps=steps)
    return config


def _for_a_gpu(config: LatentSplatTrainerConfig, steps: int) -> None:
    config.max_num_iterations = steps
    config.steps_per_save = 1000
    config.steps_per_eval_batch = config.steps_per_eval_image = 0
    config.vis = "tensorboard"
    config.logging.local_writer.enable = False
    config.viewer.quit_on_train_completion = True
    datamanager = config.pipeline.datamanager
    datamanager.preparation = replace(datamanager.preparation, image_size=(SIDE, SIDE))
    datamanager.num_workers = 8
    config.pipeline.model.compiled_training = torch.cuda.is_available()
