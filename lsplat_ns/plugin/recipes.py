"""Trainer configurations: what each method is made of, as functions from a name to a full nerfstudio config.

Source of the published numbers: spec sections 0, 2.4, 3 and 7.
"""

from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from typing import Any, Dict, Mapping

from nerfstudio.configs.base_config import LoggingConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from lsplat_ns.autoencoder import AutoencoderConfig, DiscriminatorConfig
from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.data.view_sampling import ViewSamplingConfig
from lsplat_ns.encoder.backbones import BackboneConfig
from lsplat_ns.encoder.depth_head import DepthHeadConfig
from lsplat_ns.encoder.encoder import EncoderConfig
from lsplat_ns.encoder.epipolar_transformer import EpipolarTransformerConfig, ImageSelfAttentionConfig
from lsplat_ns.encoder.gaussian_head import GaussianHeadConfig
from lsplat_ns.errors import ConfigError
from lsplat_ns.latentsplat import LatentSplatConfig
from lsplat_ns.losses import LossSchedule, LossTerm
from lsplat_ns.losses.adversarial import AdversarialConfig
from lsplat_ns.plugin.datamanager import LatentSplatDataManagerConfig
from lsplat_ns.plugin.dataparsers import Co3dDataParserConfig, Re10kDataParserConfig
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


def co3d_trainer(method_name: str) -> LatentSplatTrainerConfig:
    """The CO3D experiments of the paper: wide baselines around an object, in the units of the data. Hydrants."""
    config = published_trainer(method_name)
    config.pipeline.datamanager = LatentSplatDataManagerConfig(
        dataparser=Co3dDataParserConfig(category=("hydrant",)),
        preparation=PreparationConfig(baseline_to_one=False),
        sampling=ViewSamplingConfig(min_gap=16, max_gap=25, initial_min_gap=8, initial_max_gap=18, target_margin=100),
        context_gap=25,
    )
    return config


TEDDYBEARS: Dict[str, Any] = {"pipeline.datamanager.dataparser.category": ("teddybear",)}
"""Another category of CO3D."""
KL: Dict[str, Any] = {"pipeline.model.schedule.gaussian": (LossTerm("kl", 0.1),)}
"""Features are pulled towards the standard normal, from the first step."""
NO_GAN: Dict[str, Any] = {"pipeline.model.schedule.adversarial.loss": "none"}
"""No discriminator."""
NO_VAR: Dict[str, Any] = {"pipeline.model.network.encoder.gaussians.variational": "none"}
"""Plain features per Gaussian instead of distributions."""


def variant(base: LatentSplatTrainerConfig, name: str, why: str, changes: Mapping[str, Any]) -> MethodSpecification:
    """A method that differs from another one in the stated options only.

    Args:
        base: Left unchanged.
        name: Name of the new method.
        why: What it is for; its description.
        changes: New values by option, named as on the command line with dots ("pipeline.model.perceptual").

    Raises:
        ConfigError: If there is no such option.
    """
    config = deepcopy(base)
    for option, value in {"method_name": name, **changes}.items():
        config = _changed(config, option.split("."), value, option)
    return MethodSpecification(config=config, description=why)


def _changed(config: Any, path: list[str], value: Any, option: str) -> Any:
    """A copy of a configuration (nested dataclasses and dicts) with one option changed."""
    names = config if isinstance(config, Mapping) else {f.name for f in fields(config)} if is_dataclass(config) else ()
    first, *rest = path
    if first not in names:
        raise ConfigError(f"no option {option}: {type(config).__name__} has no {first}")
    if rest:
        inner = config[first] if isinstance(config, Mapping) else getattr(config, first)
        value = _changed(inner, rest, value, option)
    return {**config, first: value} if isinstance(config, Mapping) else replace(config, **{first: value})


def tiny_networks() -> LatentSplatConfig:
    """Small networks with every part of the published ones; 5.5 million parameters. At 128 pixels the ViT has the
    published grid of 32 x 32 tokens."""
    return LatentSplatConfig(
        encoder=EncoderConfig(
            backbone=BackboneConfig(width=128, depth=6, heads=4, patch_size=4, pretraining_grid=32),
            d_backbone=128,
            d_feature=64,
            epipolar_transformer=EpipolarTransformerConfig(
                self_attention=ImageSelfAttentionConfig(
                    patch_size=4, octaves=6, layers=1, heads=2, d_token=64, d_dot=32, d_mlp=128
                ),
                octaves=6,
                layers=2,
                heads=4,
                samples=24,
                d_dot=32,
                d_mlp=96,
                downscale=2,
            ),
            depth=DepthHeadConfig(num_depth_buckets=64),
            gaussians=GaussianHeadConfig(gaussians_per_pixel=2),
            autoencoder_downscale=2,
            supersampling=2,
        ),
        autoencoder=AutoencoderConfig(block_out_channels=(64, 96), layers_per_block=1, norm_groups=8),
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
        # Indoors nothing comes so close that it moves by three images; most depth buckets would lie before it all.
        preparation=PreparationConfig(image_size=(64, 64), near_disparity=1.2),
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
        pretrained="none",
    )
    config.optimizers = {
        "generator": {
            "optimizer": TwoRateAdamConfig(lr=1e-3, fine_tuned_lr=1e-3, fine_tuned_betas=(0.9, 0.999)),
            "scheduler": LinearWarmupConfig(warm_up_steps=50, initial_factor=0.02),
        },
        "discriminator": {"optimizer": ScaledAdamConfig(lr=1e-4), "scheduler": None},
    }
    return config
