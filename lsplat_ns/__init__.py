"""latentSplat and MV-LDM for nerfstudio. Read ``scene.py`` first, then ``latentsplat.py``.

The Python API is :func:`load`, which gives a :class:`Predictor`, which predicts a :class:`Scene`, which renders a
:class:`RenderedView`. Importing the package loads none of it: nerfstudio imports every plugin on every command.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsplat_ns.plugin.predictor import Predictor, RenderedView, Scene, load

__all__ = ["Predictor", "RenderedView", "Scene", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lsplat_ns.plugin import predictor

    return getattr(predictor, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
