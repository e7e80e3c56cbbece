"""Trainer configurations of MV-LDM. Source of the published numbers: its spec, sections 2.5, 5.4 and 7.2."""

from nerfstudio.configs.base_config import LoggingConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig

from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.data.view_sampling import ViewSamplingConfig
from lsplat_ns.diffusion.sampler import SamplingConfig
from lsplat_ns.diffusion.schedule import SolverConfig
from lsplat_ns.mvldm import tiny_multi_view_diffusion
from lsplat_ns.plugin.datamanager import LatentSplatDataManagerConfig
from lsplat_ns.plugin.dataparsers import Re10kDataParserConfig
from lsplat_ns.plugin.mvldm_model import MvldmModelConfig
from lsplat_ns.plugin.mvldm_pipeline import MvldmPipelineConfig, MvldmTrainerConfig
from lsplat_ns.plugin.optimizers import AdamWConfig, LinearWarmupConfig

ACCUMULATED = 2
"""Steps per update; learning-rate warm-up is counted in steps here."""


def _sampling(min_gap: int, max_gap: int) -> ViewSamplingConfig:
    """Three different targets between two context views; no warm-up of the gaps."""
    return ViewSamplingConfig(
        num_target_views=3,
        without_replacement=True,
        min_gap=min_gap,
        max_gap=max_gap,
        initial_min_gap=min_gap,
        initial_max_gap=max_gap,
        target_margin=0,
        gap_warm_up_steps=0,
        margin_warm_up_steps=0,
    )


def published_mvldm_trainer(method_name: str) -> MvldmTrainerConfig:
    """The published training on RealEstate10k, from Stable Diffusion 2.1."""
    return MvldmTrainerConfig(
        method_name=method_name,
        max_num_iterations=ACCUMULATED * 5_000_001,
        steps_per_save=ACCUMULATED * 1000,
        steps_per_eval_batch=1000,
        steps_per_eval_image=10_000,
        steps_per_eval_all_images=0,
        gradient_accumulation_steps={"denoiser": ACCUMULATED},
        pipeline=MvldmPipelineConfig(
            datamanager=LatentSplatDataManagerConfig(
                dataparser=Re10kDataParserConfig(context_gap=100),
                sampling=_sampling(50, 180),
                batch_size=6,
                mirror=False,
                context_gap=100,
            ),
        ),
        optimizers={
            "denoiser": {
                "optimizer": AdamWConfig(),
                "scheduler": LinearWarmupConfig(warm_up_steps=ACCUMULATED * 200),
            }
        },
        logging=LoggingConfig(steps_per_log=10),
        vis="tensorboard",
    )


def tiny_mvldm_trainer(method_name: str) -> MvldmTrainerConfig:
    """A small model at 64x64: its autoencoder is trained first, then its denoiser."""
    config = published_mvldm_trainer(method_name)
    config.max_num_iterations = 6000
    config.steps_per_save = 500
    config.steps_per_eval_batch, config.steps_per_eval_image = 250, 500
    config.gradient_accumulation_steps = {}
    config.pipeline.datamanager = LatentSplatDataManagerConfig(
        dataparser=Re10kDataParserConfig(context_gap=8),
        preparation=PreparationConfig(image_size=(64, 64)),
        sampling=_sampling(5, 20),
        batch_size=4,
        num_workers=0,
        mirror=False,
        context_gap=8,
    )
    config.pipeline.model = MvldmModelConfig(
        network=tiny_multi_view_diffusion(),
        pretrained="none",
        autoencoder_steps=1500,
        ema_decay=0.995,
        sampling=SamplingConfig(solver=SolverConfig("dpm-solver++", 12)),
    )
    config.optimizers = {
        "denoiser": {
            "optimizer": AdamWConfig(lr=4e-4, max_norm=1.0),
            "scheduler": LinearWarmupConfig(warm_up_steps=100),
        },
        "autoencoder": {"optimizer": AdamOptimizerConfig(lr=1e-3, max_norm=1.0), "scheduler": None},
    }
    return config
