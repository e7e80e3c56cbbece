"""Furnished rooms and objects, built and photographed from a seed: data to learn from without downloading any.

``make_scenes`` writes data sets in the layouts of RealEstate10k and CO3D; ``build_demo_scene`` keeps one in memory.
The order of the stages: ``rooms`` / ``objects`` -> ``camera_motion`` -> ``lighting`` -> ``renderer`` -> ``writers``.
"""

from lsplat_ns.data.demo_scenes.demo_scene import DemoScene, build_demo_scene
from lsplat_ns.data.demo_scenes.generation import MakeScenesConfig, make_scenes

__all__ = ["DemoScene", "MakeScenesConfig", "build_demo_scene", "make_scenes"]
