"""MV-LDM: the published model, and a tiny one for CPUs."""

from nerfstudio.plugins.types import MethodSpecification

from lsplat_ns.plugin.mvldm_recipes import published_mvldm_trainer, tiny_mvldm_trainer

mvldm = MethodSpecification(
    config=published_mvldm_trainer("mvldm"),
    description="MV-LDM: generates views at given cameras from one or two images (MEt3R, CVPR 2025).",
)

mvldm_tiny = MethodSpecification(
    config=tiny_mvldm_trainer("mvldm-tiny"),
    description="MV-LDM with small networks at 64x64; trains on a CPU, nothing pretrained.",
)
