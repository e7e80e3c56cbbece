"""A model between latentsplat-tiny and the published one: 128x128, about 20 million parameters, nothing pretrained.

What the claims about learning are shown with on a GPU: ``python tests/mid_size.py DATA OUTPUT --steps 5000`` trains it
as ns-train would, into OUTPUT/rooms/mid-size/first. DATA are rooms of at least 40 frames of 128x128.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nerfstudio.scripts.train import main

from lsplat_ns.autoencoder import AutoencoderConfig, DiscriminatorConfig
from lsplat_ns.encoder.backbones import BackboneConfig
from lsplat_ns.encoder.encoder import EncoderConfig
from lsplat_ns.encoder.epipolar_transformer import EpipolarTransformerConfig, ImageSelfAttentionConfig
from lsplat_ns.latentsplat import LatentSplatConfig
from lsplat_ns.losses import LossSchedule, LossTerm
from lsplat_ns.losses.adversarial import AdversarialConfig
from lsplat_ns.plugin.recipes import tiny_trainer
from lsplat_ns.plugin.trainer import LatentSplatTrainerConfig

SIDE = 128
RATE = 5e-4


def mid_size_networks() -> LatentSplatConfig:
    """Networks with every part of the published ones, a quarter to half as wide."""
    self_attention = ImageSelfAttentionConfig(
        patch_size=4, octaves=10, layers=2, heads=4, d_token=64, d_dot=64, d_mlp=128
    )
    return LatentSplatConfig(
        encoder=EncoderConfig(
            backbone=BackboneConfig(width=384, depth=6, heads=6, patch_size=8, pretraining_grid=16),
            d_backbone=256,
            d_feature=64,
            epipolar_transformer=EpipolarTransformerConfig(
                self_attention=self_attention,
                octaves=10,
                layers=2,
                heads=4,
                samples=32,
                d_dot=64,
                d_mlp=128,
                downscale=4,
            ),
            autoencoder_downscale=4,
            supersampling=4,
        ),
        autoencoder=AutoencoderConfig(block_out_channels=(64, 128, 128), layers_per_block=1),
        discriminator=DiscriminatorConfig(width=32, halvings=2),
    )


def mid_size_trainer(steps: int, batch_size: int = 4) -> LatentSplatTrainerConfig:
    """Training of the demo model's kind: the decoder soon, the GAN for the last part, rates that fall to the end."""
    config = tiny_trainer("mid-size")
    config.max_num_iterations, config.steps_per_save, config.vis = steps, 1000, "tensorboard"
    data, model = config.pipeline.datamanager, config.pipeline.model
    data.preparation.image_size = (SIDE, SIDE)
    data.sampling.num_target_views, data.batch_size, data.num_workers = 4, batch_size, 4
    data.sampling.max_gap = data.sampling.initial_max_gap = 30
    model.network = mid_size_networks()
    combined = tuple(LossTerm(name, weight, steps // 20) for name, weight in (("l1", 1.0), ("mse", 10.0)))
    adversarial = AdversarialConfig(generator_weight=0.1, starts_at_step=int(0.85 * steps))
    model.schedule = LossSchedule(render_image=(LossTerm("mse", 10.0),), combined=combined, adversarial=adversarial)
    generator = config.optimizers["generator"]
    generator["optimizer"].lr, generator["optimizer"].fine_tuned_lr = RATE, RATE / batch_size
    generator["scheduler"].warm_up_steps, generator["scheduler"].decay_steps = 200, steps
    return config


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--compiled", action="store_true", help="compile the training")
    options = parser.parse_args()
    chosen = mid_size_trainer(options.steps, options.batch_size)
    chosen.data, chosen.pipeline.model.training_precision = options.data, options.precision
    chosen.pipeline.model.compiled_training = options.compiled
    chosen.output_dir, chosen.experiment_name, chosen.timestamp = options.output, "rooms", "first"
    main(chosen)
