"""Functions captured as CUDA graphs."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import ref

import torch
from torch import Tensor

from lsplat_ns.scene import map_tensors

T = TypeVar("T")
U = TypeVar("U")

WARM_UP_CALLS = 3
PLAIN_CALLS = 2
"""Calls with the same tensors before a graph is worth its capture, which takes as long as five calls."""
MOST_REPEATED = 4
"""Graphs of repeated calls that are kept, each with its memory: 50 MB for one view of the published model."""


class CapturedCall:
    """A function of (nested values of) tensors as a CUDA graph: its launches cost one call instead of hundreds.

    What the function reads besides its inputs is read in place at every call, and must stay where it is.
    """

    def __init__(self, function: Callable[[T], U], inputs: T) -> None:
        self._inputs = map_tensors(inputs, torch.clone)
        with uninterrupted():
            self._capture(function)

    def _capture(self, function: Callable[[T], U]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                function(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = function(self._inputs)

    def __call__(self, inputs: T) -> U:
        """The function of inputs of the same shapes; the result is the caller's own."""
        return map_tensors(self.borrow(inputs), torch.clone)

    def borrow(self, inputs: T) -> U:
        """The same without copying the result, which the next call overwrites."""
        for static, given in zip(_tensors(self._inputs), _tensors(inputs), strict=True):
            static.copy_(given)
        self._graph.replay()
        return self._output


class RepeatedCalls:
    """Functions that read the same large tensors again and again: captured as CUDA graphs that read them in place.

    A graph is used for as long as these very tensors live, whatever is written into them; they are not kept alive.
    """

    def __init__(self) -> None:
        self._calls: dict[tuple, _RepeatedCall] = {}  # the latest one is last
        self._lock = threading.Lock()

    @contextmanager
    def result(self, tensors: tuple[Tensor, ...], kind: Hashable, function: Callable[[T], U], inputs: T) -> Iterator[U]:
        """The function of its inputs, in memory that may be used inside of the ``with`` block only.

        Args:
            tensors: On a CUDA device; what the function reads besides its inputs.
            kind: Equal only for functions that do the same with the same tensors, and inputs of the same shapes.
            function: Of (nested values of) tensors; must not wait for the GPU.
            inputs: Small: they are copied at every call.
        """
        key = (kind, *map(id, tensors))
        with self._lock:
            call = self._calls.pop(key, None)
            if call is None or not call.reads(tensors):
                call = _RepeatedCall(tensors)
                self._forget_some()
            self._calls[key] = call
            yield call(function, inputs)

    def _forget_some(self) -> None:
        """Make room for one more; what reads tensors that are gone goes first."""
        self._calls = {key: call for key, call in self._calls.items() if call.alive}
        while len(self._calls) >= MOST_REPEATED:
            del self._calls[next(iter(self._calls))]


class _RepeatedCall:
    """One function of certain tensors: called as it is at first, then as a graph."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = [ref(tensor) for tensor in tensors]
        self._plain_calls = 0
        self._graph: CapturedCall | None = None
        self._refused = False

    @property
    def alive(self) -> bool:
        """Whether all of its tensors are."""
        return all(tensor() is not None for tensor in self._tensors)

    def reads(self, tensors: tuple[Tensor, ...]) -> bool:
        """Whether these are its tensors, and not others that took the place of dead ones."""
        return all(own() is tensor for own, tensor in zip(self._tensors, tensors, strict=True))

    def __call__(self, function: Callable[[T], U], inputs: T) -> U:
        if self._graph is None and not self._refused and self._plain_calls >= PLAIN_CALLS:
            try:
                self._graph = CapturedCall(function, inputs)
            except RuntimeError:  # out of memory, too: the call itself may still fit
                logging.getLogger(__name__).info("%s cannot be captured as a CUDA graph", function, exc_info=True)
                self._refused = True
        self._plain_calls += 1
        return function(inputs) if self._graph is None else self._graph.borrow(inputs)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Suspend a thread's trace function, by which nerfstudio's viewer ends a picture between any two lines.

    Ended between the beginning of a capture and the block that ends it, the thread would go on capturing for ever.
    """
    trace = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(trace)


def _tensors(value: object) -> list[Tensor]:
    """All tensors of a nested value, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, note)
    return found
