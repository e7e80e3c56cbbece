"""Ctrl-C that cannot be lost.

Python raises KeyboardInterrupt wherever it happens to be, and libraries that catch everything while they load swallow
it there. The wish is therefore noted as well, and asked for before anything is written.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_wished = threading.Event()


def note_interrupts() -> None:
    """From now on Ctrl-C is noted, besides raising KeyboardInterrupt as ever. For the main thread."""
    signal.signal(signal.SIGINT, _note)


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed, be it that somebody swallowed it."""
    if _wished.is_set():
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    _wished.set()
    raise KeyboardInterrupt
