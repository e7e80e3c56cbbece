"""Generated views as a scene, without training."""

from nerfstudio.plugins.types import MethodSpecification

from lsplat_ns.plugin.lifting_method import ViewLifterConfig

mvldm_latentsplat = MethodSpecification(
    config=ViewLifterConfig(method_name="mvldm-latentsplat"),
    description="Views of MV-LDM (lsplat generate) as a latentSplat scene, without training (--run).",
)
