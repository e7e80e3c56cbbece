"""diffusers' decoder blocks, made to keep a third of what their own forward pass keeps for the backward pass.

A residual block is two times normalise, activate, convolve. Only what goes into the normalisation is kept: normalising
and activating once more in the backward pass takes far fewer operations than the convolution, which is not repeated.
Values and gradients are bitwise those of diffusers' blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


def keep_less(decoder: nn.Module) -> None:
    """Give the blocks of a decoder of ``AutoencoderKL`` their lean forward pass. Weights and their names stay."""
    lean = {ResnetBlock2D: LeanResnetBlock, Upsample2D: LeanUpsample}
    for module in decoder.modules():
        if type(module) in lean:
            module.__class__ = lean[type(module)]


class LeanResnetBlock(ResnetBlock2D):
    """A residual block without time embedding, of constant size."""

    def forward(self, input_tensor: Tensor, temb: None = None) -> Tensor:
        """The map [n, channels_out, h, w] of one [n, channels, h, w]; diffusers names the arguments."""
        x = _forgetful(_activated_and_convolved, input_tensor, *_parameters(self.norm1, self.conv1))
        x = _forgetful(_activated_and_convolved, x, *_parameters(self.norm2, self.conv2))
        if self.conv_shortcut is None:
            return input_tensor + x
        # As diffusers does in training: the gradient of a 1x1 kernel then has the strides of the kernel.
        return self.conv_shortcut(input_tensor.contiguous() if self.training else input_tensor) + x


class LeanUpsample(Upsample2D):
    """Nearest neighbours, then a convolution."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The map [n, channels_out, 2 h, 2 w] of one [n, channels, h, w]; diffusers names the argument."""
        return _forgetful(_doubled_and_convolved, hidden_states, self.conv.weight, self.conv.bias)


def _parameters(norm: nn.GroupNorm, convolution: nn.Conv2d) -> tuple[int, float, Tensor, Tensor, Tensor, Tensor]:
    """Read at each call, since ``torch.func.functional_call`` replaces them for the time of a call."""
    return norm.num_groups, norm.eps, norm.weight, norm.bias, convolution.weight, convolution.bias


def _activated_and_convolved(
    x: Tensor, groups: int, eps: float, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    activated = functional.silu(functional.group_norm(x, groups, scale, shift, eps))
    return functional.conv2d(activated, weight, bias, padding=1)


def _doubled_and_convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(functional.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def _forgetful(part: Callable[..., Tensor], *inputs: object) -> Tensor:
    """``part(*inputs)``, of which only the inputs are kept. Its last convolution is not computed again: torch stops as
    soon as it has what goes into it."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # the compiler itself chooses what to keep
        return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
    return part(*inputs)
