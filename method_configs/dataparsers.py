"""Dataparsers that this package adds."""

from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from lsplat_ns.plugin.dataparsers import Re10kDataParserConfig

re10k = DataParserSpecification(
    config=Re10kDataParserConfig(),
    description="RealEstate10k chunks in pixelSplat's layout: many scenes, one shown at a time.",
)
