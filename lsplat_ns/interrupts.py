"""Ctrl-C that cannot be lost, and SIGTERM that is cleaned up after.

Python raises KeyboardInterrupt wherever it happens to be, and libraries that catch everything while they load swallow
it there. The wish is therefore noted as well, and asked for before anything is written. Worker processes are spared.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_wished = threading.Event()


def note_interrupts() -> None:
    """From now on Ctrl-C is noted, besides raising KeyboardInterrupt as ever. For the main thread."""
    signal.signal(signal.SIGINT, _note)


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed, be it that somebody swallowed it."""
    if _wished.is_set():
        raise KeyboardInterrupt


@contextmanager
def children_leave_interrupts_to_us() -> Iterator[None]:
    """Processes that are started in the block never see Ctrl-C, which a terminal sends to all of them.

    Only the process that waits for them reacts to it; to one that comes meanwhile, after the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit this
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def termination_unwinds() -> Iterator[None]:
    """SIGTERM in the block raises SystemExit, with the usual exit code 143, so that all is cleaned up as on Ctrl-C.

    Only the first one counts: some launchers send it twice. Nothing changes where the program answers it already, and
    off the main thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def termination_waits() -> Iterator[None]:
    """SIGTERM in the block unwinds after it: processes that are started there would otherwise be lost half-way."""
    if signal.getsignal(signal.SIGTERM) is not _unwind:
        yield
        return
    came = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: came.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, _unwind)
        if came.is_set():
            signal.raise_signal(signal.SIGTERM)


def end_when_terminated() -> None:
    """From now on SIGTERM, and SIGHUP of a terminal that is closed, end the program as Ctrl-C does: cleaned up after.

    Nothing changes where the program answers a signal already, and off the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):  # the latter is not there on Windows
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _unwind)


def _unwind(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _note(number: int, frame: FrameType | None) -> None:
    _wished.set()
    raise KeyboardInterrupt
