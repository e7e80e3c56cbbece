"""Work beside the viewer's own threads: one thing at a time, with progress, and it can be cancelled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable


class JobCancelled(Exception):
    """The job was cancelled by whoever started it."""


class Lane:
    """Runs one piece of work at a time on a thread of its own. What a piece raises is logged, and the next one runs.

    viser calls back on a small pool of threads that messages of all browsers pass through: work that waits or computes
    there would stop them all.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._waiting: dict[str, Callable[[], None]] = {}  # by kind
        self._running = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return self._running

    def start(self, work: Callable[[], None]) -> bool:
        """Run work now, unless something else runs: then False is returned and nothing happens."""
        with self._lock:
            if self._running:
                return False
            self._begin(work)
            return True

    def start_latest(self, work: Callable[[], None], kind: str = "") -> None:
        """Run work as soon as what runs now is done. Of each kind of work only the latest waits; others are dropped."""
        with self._lock:
            if self._running:
                self._waiting.pop(kind, None)
                self._waiting[kind] = work
            else:
                self._begin(work)

    def finish(self, seconds: float) -> bool:
        """Drop what waits, wait for what runs, and say whether it ended in time."""
        with self._lock:
            self._waiting.clear()
            thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return not self._running

    def _begin(self, work: Callable[[], None]) -> None:
        self._running = True
        self._thread = threading.Thread(target=self._run, args=(work,), name=self.name, daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None] | None) -> None:
        while work is not None:
            try:
                work()
            except (Exception, SystemExit):
                logging.getLogger(__name__).exception("%s: not done", self.name)
            with self._lock:
                work = self._waiting.pop(next(iter(self._waiting))) if self._waiting else None
                self._running = work is not None


class Progress:
    """How far a job is. The job reports here, and is told here that it is no longer wanted.

    Args:
        show: Takes the share done, in [0, 1].
    """

    def __init__(self, show: Callable[[float], None]) -> None:
        self._show = show
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask the job to stop at its next report."""
        self._cancelled.set()

    def report(self, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` parts are finished. Raises JobCancelled if the job is no longer wanted."""
        if self._cancelled.is_set():
            raise JobCancelled
        self._show(done / total)
