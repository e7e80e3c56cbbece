"""A capture as a run, without training."""

from nerfstudio.plugins.types import MethodSpecification

from lsplat_ns.plugin.encoding import CaptureEncoderConfig

latentsplat_encode = MethodSpecification(
    config=CaptureEncoderConfig(method_name="latentsplat-encode"),
    description="latentSplat on a capture without training: the networks of a trained or imported run (--run).",
)
