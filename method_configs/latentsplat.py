"""latentSplat: the published models, and a tiny one for CPUs."""

from nerfstudio.plugins.types import MethodSpecification

from lsplat_ns.plugin.recipes import KL, TEDDYBEARS, co3d_trainer, published_trainer, tiny_trainer, variant

latentsplat = MethodSpecification(
    config=published_trainer("latentsplat"),
    description="latentSplat: two views to a 3D scene in one pass, with a generative decoder (ECCV 2024).",
)

latentsplat_co3d_hydrant = MethodSpecification(
    config=co3d_trainer("latentsplat-co3d-hydrant"),
    description="The published model for CO3D hydrants: dataset units, wide target margins.",
)

latentsplat_co3d_teddybear = variant(
    latentsplat_co3d_hydrant.config,
    "latentsplat-co3d-teddybear",
    "The published model for CO3D teddybears; differs from the one for hydrants in its data only.",
    TEDDYBEARS,
)

latentsplat_co3d_hydrant_kl = variant(
    latentsplat_co3d_hydrant.config,
    "latentsplat-co3d-hydrant-kl",
    "CO3D hydrants with a KL loss on the features of the Gaussians, which makes their uncertainty meaningful.",
    KL,
)

latentsplat_co3d_teddybear_kl = variant(
    latentsplat_co3d_teddybear.config,
    "latentsplat-co3d-teddybear-kl",
    "CO3D teddybears with a KL loss on the features of the Gaussians; clips gradients ten times harder.",
    {**KL, "optimizers.generator.optimizer.max_norm": 0.05},
)

latentsplat_tiny = MethodSpecification(
    config=tiny_trainer("latentsplat-tiny"),
    description="latentSplat with small networks at 64x64; trains on a CPU, nothing pretrained.",
)
