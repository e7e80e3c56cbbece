"""How viser's widgets behave where its own way does not fit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from viser import GuiButtonGroupHandle

VISER_NERFSTUDIO_SCALE_RATIO = 10.0
"""nerfstudio draws its world ten times larger in viser."""
SECONDS_TO_CORRECT = 0.1


def by_a_person(act: Callable[[Any], None]) -> Callable[[Any], None]:
    """A callback for changes that come from a browser, not for those that the panel itself makes."""
    return lambda event: act(event) if event.client is not None else None


def correct(handle: Any, value: Any) -> None:
    """Set a field that a person has just changed.

    viser passes a tab's change on to the other tabs after all callbacks, and that message would replace an earlier one
    of the same field: the correction has to come later.
    """
    threading.Timer(SECONDS_TO_CORRECT, setattr, (handle, "value", value)).start()


def repeatable(group: GuiButtonGroupHandle) -> GuiButtonGroupHandle:
    """A button group that hears the same button twice; viser takes the second click for no change."""
    group._impl.is_button = True
    return group
