"""Everything that talks to viser directly: the one folder to check when nerfstudio moves to another viser.

A panel holds parts; each is a folder of widgets. What they do without viser lies outside: looking (``viewing``,
``exploring``), taking away (``taking_away``, ``baking``), generating (``scene_generation``, ``generated_layers``).
"""

from lsplat_ns.plugin.viewer_panel.panel import ViewerPanel

__all__ = ["ViewerPanel"]
