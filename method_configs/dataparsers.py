"""Dataparsers that this package adds."""

from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from lsplat_ns.plugin.dataparsers import Co3dDataParserConfig, Re10kDataParserConfig

re10k = DataParserSpecification(
    config=Re10kDataParserConfig(),
    description="RealEstate10k chunks in pixelSplat's layout: many scenes, one shown at a time.",
)

co3d = DataParserSpecification(
    config=Co3dDataParserConfig(),
    description="CO3D v2 by category: many walks around objects, one shown at a time.",
)
