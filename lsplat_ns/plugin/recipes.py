"""Trainer configurations: what each method is made of, as functions from a name to a full nerfstudio config.

Source of the published numbers: spec sections 0, 2.4, 3 and 7.
"""

from nerfstudio.configs.base_config import LoggingConfig, ViewerConfig

from lsplat_ns.autoencoder import AutoencoderConfig, DiscriminatorConfig
from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.data.view_sampling import ViewSamplingConfig
from lsplat_ns.encoder.backbones import BackboneConfig
from lsplat_ns.encoder.depth_head import DepthHeadConfig
from lsplat_ns.encoder.encoder import EncoderConfig
from lsplat_ns.encoder.epipolar_transformer import EpipolarTransformerConfig, ImageSelfAttentionConfig
from lsplat_ns.encoder.gaussian_head import GaussianHeadConfig
from lsplat_ns.latentsplat import LatentSplatConfig
from lsplat_ns.losses import LossSchedule, LossTerm
from lsplat_ns.losses.adversarial import AdversarialConfig
from lsplat_ns.plugin.datamanager import LatentSplatDataManagerConfig
from lsplat_ns.plugin.dataparsers import Re10kDataParserConfig
from lsplat_ns.plugin.model import LatentSplatModelConfig
from lsplat_ns.plugin.optimizers import LinearWarmupConfig, ScaledAdamConfig, TwoRateAdamConfig
from lsplat_ns.plugin.pipeline import LatentSplatPipelineConfig
from lsplat_ns.plugin.trainer import LatentSplatTrainerConfig


def published_trainer(method_name: str) -> LatentSplatTrainerConfig:
    """The RealEstate10k experiment of the paper."""
    return LatentSplatTrainerConfig(
        method_name=method_name,
        max_num_iterations=200_001,
        steps_per_save=2500,
        steps_per_eval_batch=250,
        steps_per_eval_image=250,
        steps_per_eval_all_images=0,
        save_only_latest_checkpoint=False,
        pipeline=LatentSplatPipelineConfig(
            datamanager=LatentSplatDataManagerConfig(dataparser=Re10kDataParserConfig()),
            model=LatentSplatModelConfig(),
        ),
        optimizers={
            "generator": {"optimizer": TwoRateAdamConfig(), "scheduler": LinearWarmupConfig()},
            "discriminator": {"optimizer": ScaledAdamConfig(), "scheduler": None},
        },
        viewer=ViewerConfig(),
        logging=LoggingConfig(steps_per_log=10),
        vis="viewer+tensorboard",
    )


def tiny_networks() -> LatentSplatConfig:
    """Small networks with every part of the published ones; about one million parameters."""
    return LatentSplatConfig(
        encoder=EncoderConfig(
            backbone=BackboneConfig(width=96, depth=4, heads=3, patch_size=8, pretraining_grid=8),
            d_backbone=96,
            d_feature=48,
            epipolar_transformer=EpipolarTransformerConfig(
                self_attention=ImageSelfAttentionConfig(
                    patch_size=4, octaves=6, layers=1, heads=2, d_token=48, d_dot=32, d_mlp=96
                ),
                octaves=6,
                layers=2,
                heads=2,
                samples=16,
                d_dot=32,
                d_mlp=64,
                downscale=4,
            ),
            depth=DepthHeadConfig(num_depth_buckets=32),
            gaussians=GaussianHeadConfig(gaussians_per_pixel=2),
            autoencoder_downscale=4,
            supersampling=4,
        ),
        autoencoder=AutoencoderConfig(block_out_channels=(32, 64, 64), layers_per_block=1, norm_groups=8),
        discriminator=DiscriminatorConfig(width=16, halvings=2),
    )


def tiny_trainer(method_name: str) -> LatentSplatTrainerConfig:
    """A model that learns something visible within minutes on two cores: every loss starts early, rates are high."""
    config = published_trainer(method_name)
    config.max_num_iterations = 3000
    config.steps_per_save = 250
    config.save_only_latest_checkpoint = True
    config.pipeline.datamanager = LatentSplatDataManagerConfig(
        dataparser=Re10kDataParserConfig(context_gap=20),
        preparation=PreparationConfig(image_size=(64, 64)),
        sampling=ViewSamplingConfig(
            num_target_views=2,
            min_gap=5,
            max_gap=20,
            initial_min_gap=5,
            initial_max_gap=20,
            target_margin=0,
            gap_warm_up_steps=0,
            margin_warm_up_steps=0,
        ),
        batch_size=1,
        num_workers=0,
        context_gap=8,
    )
    config.pipeline.model = LatentSplatModelConfig(
        network=tiny_networks(),
        schedule=LossSchedule(
            render_image=(LossTerm("mse", 10.0),),
            combined=(LossTerm("l1", 1.0),),
            adversarial=AdversarialConfig(starts_at_step=2000),
        ),
        perceptual="none",
    )
    config.optimizers = {
        "generator": {
            "optimizer": TwoRateAdamConfig(lr=1e-3, fine_tuned_lr=1e-3, fine_tuned_betas=(0.9, 0.999)),
            "scheduler": LinearWarmupConfig(warm_up_steps=50, initial_factor=0.02),
        },
        "discriminator": {"optimizer": ScaledAdamConfig(lr=1e-4), "scheduler": None},
    }
    return config
