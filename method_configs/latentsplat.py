"""latentSplat: the published configuration, and a tiny one for CPUs."""

from nerfstudio.plugins.types import MethodSpecification

from lsplat_ns.plugin.recipes import published_trainer, tiny_trainer

latentsplat = MethodSpecification(
    config=published_trainer("latentsplat"),
    description="latentSplat: two views to a 3D scene in one pass, with a generative decoder (ECCV 2024).",
)

latentsplat_tiny = MethodSpecification(
    config=tiny_trainer("latentsplat-tiny"),
    description="latentSplat with small networks at 64x64; trains on a CPU, nothing pretrained.",
)
