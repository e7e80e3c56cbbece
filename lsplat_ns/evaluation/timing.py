"""Times that mean something: the device has finished when the clock is read.

# Differs from upstream: the originals read the clock without synchronising, so that the encoder's time ends up in the
# splatting's, and include the first call.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up wall-clock seconds by part."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block, synchronised before and after it."""
        self._synchronise()
        start = time.perf_counter()
        yield
        self._synchronise()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _synchronise(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
