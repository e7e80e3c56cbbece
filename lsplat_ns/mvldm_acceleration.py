"""Faster generation of views on a GPU: both branches of guidance as one CUDA graph of bfloat16 kernels."""

from __future__ import annotations

import threading
from functools import partial

import torch
from torch import Tensor, nn

from lsplat_ns.acceleration import CapturedCall
from lsplat_ns.diffusion.guidance import Conditioning, predict_guided_noise
from lsplat_ns.mvldm import MultiViewDiffusion

DENOISER_DTYPE = torch.bfloat16
AUTOENCODER_DTYPE = torch.float16
"""The autoencoder needs the mantissa more than the range, as latentSplat's does."""


class _InFloat32(nn.Module):
    """A layer that computes in float32 between layers that do not: rays and noise levels need its precision."""

    def __init__(self, layer: nn.Module, output: torch.dtype) -> None:
        super().__init__()
        self.layer, self.output = layer.float(), output

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.float()).to(self.output)


class FastDenoiser:
    """``predict_guided_noise`` of a denoiser, as one CUDA graph per shape and strength of guidance.

    Args:
        denoiser: Prepared by :func:`accelerate_generation`.
        compiled: Fuse kernels by torch.compile, anew for each shape.
    """

    def __init__(self, denoiser: nn.Module, compiled: bool) -> None:
        self._denoiser = denoiser
        self._predict = predict_guided_noise
        if compiled:
            self._predict = torch.compile(predict_guided_noise, dynamic=False)
        self._calls: dict[tuple, CapturedCall] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, noisy: Tensor, levels: Tensor, conditioning: Conditioning, guidance: float) -> Tensor:
        """Noise in latents [b, t, c, h, w] at noise levels [b], float32."""
        key = (noisy.shape, conditioning.context_count, guidance)
        inputs = (noisy, levels, conditioning)
        with self._lock:
            if key not in self._calls:
                predict = partial(self._call, guidance)
                self._calls = {key: CapturedCall(predict, inputs)}  # one at a time: a graph keeps its memory
            return self._calls[key](inputs)

    def _call(self, guidance: float, inputs: tuple[Tensor, Tensor, Conditioning]) -> Tensor:
        noisy, levels, conditioning = inputs
        return self._predict(self._denoiser, noisy, levels, conditioning, guidance).float()


def accelerate_generation(model: MultiViewDiffusion, compiled: bool = False) -> None:
    """Make generation faster, in place and for good. Does nothing on a CPU.

    The denoiser's weights become bfloat16 (half the memory); its first and last layer and the embedding of noise levels
    stay float32. The autoencoder runs in float16.

    Args:
        model: In eval mode.
        compiled: Also use torch.compile; the first group of each size then takes minutes longer.
    """
    if next(model.parameters()).device.type != "cuda":
        return
    lower_precision(model)
    if compiled:
        model.denoiser.to(memory_format=torch.channels_last)
    model.fast_denoiser = FastDenoiser(model.denoiser, compiled)


def lower_precision(model: MultiViewDiffusion) -> None:
    """The part of :func:`accelerate_generation` that changes numbers; works on any device."""
    unet = model.denoiser.to(DENOISER_DTYPE).unet
    unet.conv_in = _InFloat32(unet.conv_in, DENOISER_DTYPE)
    unet.time_embedding = _InFloat32(unet.time_embedding, DENOISER_DTYPE)
    unet.conv_out = _InFloat32(unet.conv_out, torch.float32)
    model.autoencoder_dtype = AUTOENCODER_DTYPE
