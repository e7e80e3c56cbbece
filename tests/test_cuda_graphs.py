"""What is repeated with the same tensors becomes a CUDA graph, for as long as these tensors live."""

from __future__ import annotations

import threading

import pytest
import torch

from lsplat_ns import cuda_graphs
from lsplat_ns.cuda_graphs import MOST_REPEATED, PLAIN_CALLS, CapturedCall, RepeatedCalls


class Captured:
    """Stands in for the graph of a sum, without keeping what it adds; ``made`` lists the inputs of all captures."""

    made: list[torch.Tensor] = []

    def __init__(self, function, inputs):
        self.made.append(inputs)
        self.added = function(torch.zeros(()))

    def borrow(self, inputs):
        return self.added + inputs


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    monkeypatch.setattr(Captured, "made", [])
    monkeypatch.setattr(cuda_graphs, "CapturedCall", Captured)
    return Captured.made


def plus(calls: RepeatedCalls, large: torch.Tensor, small: float, kind: str = "plus") -> torch.Tensor:
    with calls.result((large,), kind, lambda given: large + given, torch.tensor(small)) as found:
        return found.clone()


def test_a_call_is_captured_when_it_was_made_before_and_answers_the_same(captures):
    calls, large = RepeatedCalls(), torch.arange(3.0)
    for small in range(6):
        assert torch.equal(plus(calls, large, small), large + small)
        assert len(captures) == (small >= PLAIN_CALLS)


def test_other_tensors_and_other_kinds_have_graphs_of_their_own(captures):
    calls, first, second = RepeatedCalls(), torch.zeros(2), torch.ones(2)
    for small in range(5):
        for large, kind in ((first, "a"), (second, "a"), (first, "b")):
            assert torch.equal(plus(calls, large, small, kind), large + small)
    assert len(captures) == 3


def test_a_tensor_in_the_place_of_a_dead_one_is_not_taken_for_it(captures):
    calls, key = RepeatedCalls(), torch.zeros(2)
    for small in range(4):
        plus(calls, key, small)
    ((old_key, call),) = calls._calls.items()
    other = torch.ones(2)
    calls._calls = {(old_key[0], id(other)): call}  # as if the new tensor had the address of the old one
    assert torch.equal(plus(calls, other, 1.0), other + 1)
    assert len(captures) == 1


def test_graphs_keep_no_tensors_alive_and_are_forgotten_with_them(captures):
    calls = RepeatedCalls()
    for _ in range(3):
        large = torch.rand(4)
        for small in range(4):
            plus(calls, large, small)
    assert sum(call.alive for call in calls._calls.values()) == 1
    assert len(calls._calls) <= 2


def test_few_graphs_are_kept_the_latest_ones(captures):
    calls, tensors = RepeatedCalls(), [torch.full((2,), float(i)) for i in range(MOST_REPEATED + 2)]
    for large in tensors:
        plus(calls, large, 0.0)
    assert len(calls._calls) == MOST_REPEATED
    assert all(call.reads((large,)) for call, large in zip(calls._calls.values(), tensors[2:], strict=True))


def test_what_no_graph_can_hold_goes_on_as_it_is(monkeypatch: pytest.MonkeyPatch):
    tried = []

    def refuse(function, inputs):
        tried.append(inputs)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs, "CapturedCall", refuse)
    calls, large = RepeatedCalls(), torch.ones(2)
    for small in range(6):
        assert torch.equal(plus(calls, large, small), large + small)
    assert len(tried) == 1


def test_nobody_overwrites_a_result_while_it_is_used_and_an_interrupt_frees_it(captures):
    calls, large, order = RepeatedCalls(), torch.ones(2), []

    def other() -> None:
        plus(calls, large, 2.0)
        order.append("other")

    thread = threading.Thread(target=other)
    with pytest.raises(InterruptedError), calls.result((large,), "plus", lambda given: large + given, large):
        thread.start()
        thread.join(0.2)
        order.append("used")
        raise InterruptedError  # as nerfstudio's viewer ends a picture
    thread.join(10)
    assert order == ["used", "other"]


@pytest.mark.gpu
def test_a_graph_reads_its_tensors_in_place():
    calls, large = RepeatedCalls(), torch.arange(3.0, device="cuda")
    small = torch.ones(3, device="cuda")

    def product(given: torch.Tensor) -> torch.Tensor:
        return large * given + 1

    for factor in range(6):
        with calls.result((large,), "product", product, factor * small) as found:
            assert torch.equal(found, large * factor + 1)
        large.add_(1)
    (call,) = calls._calls.values()
    assert isinstance(call._graph, CapturedCall)
