"""Trading time for memory in training: results that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


class Recomputable(nn.Module):
    """A module that can save memory: where ``recompute`` is set, it keeps the inputs of its large parts only."""

    recompute = False

    def recomputed(self, part: Callable[..., T], *inputs: object) -> T:
        """``part(*inputs)``. With ``recompute``, what it computes on the way is forgotten until the backward pass.

        The part may draw no random numbers. Gradients are the same.
        """
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
        return part(*inputs)


def set_recomputation(network: nn.Module, recompute: bool) -> None:
    """Switch it on or off for all parts of a network that can."""
    for module in network.modules():
        if isinstance(module, Recomputable):
            module.recompute = recompute
