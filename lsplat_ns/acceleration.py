"""Faster inference: lower precision where it does no harm, compiled code, and captured CUDA graphs.

Geometry, opacities and rasterisation stay float32 always. Training does not come here.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lsplat_ns.latentsplat import FastParts, LatentSplat
from lsplat_ns.rendering.splatting import values_seen_from

DECODER_DTYPE = torch.float16
"""The decoder's activations need the mantissa, not the range: float16 stays 15 dB closer to float32 than bfloat16."""
ENCODER_DTYPE = torch.bfloat16
WARM_UP_CALLS = 3


class FastDecoder:
    """A copy of the autoencoder's decoder in float16, with one CUDA graph per input shape.

    Weights are copied on construction: make a new one when they change. Falls back to the float32 decoder for good if
    a result is not finite (float16 overflows beyond 65504).

    Args:
        autoencoder: The float32 autoencoder, on a CUDA device.
        compiled: Fuse kernels by torch.compile (about 20 s at first use, less when torch finds it in its cache).
    """

    def __init__(self, autoencoder: nn.Module, compiled: bool) -> None:
        self._exact = autoencoder
        self._fast = copy.deepcopy(autoencoder).to(DECODER_DTYPE).eval()
        if compiled:  # without fused normalisation, channels last costs more than it saves
            self._fast = self._fast.to(memory_format=torch.channels_last)
        for unused in ("encoder", "quant_conv"):
            setattr(self._fast.model, unused, nn.Identity())
        self._decode = torch.compile(self._fast.decode, dynamic=True) if compiled else self._fast.decode
        self._graphs: dict[tuple, _CapturedCall] = {}
        self._lock = threading.Lock()
        self.overflowed = False

    @torch.no_grad()
    def __call__(self, z: Tensor, skip: Tensor | None = None) -> Tensor:
        """Images [..., 3, H, W] float32 of latents [..., c, h, w] and skip maps; same result as ``decode``."""
        inputs = (z,) if skip is None else (z, skip)
        key = tuple(tensor.shape for tensor in inputs)
        with self._lock:  # several browser tabs share the static buffers
            if key not in self._graphs and not self.overflowed:
                self._graphs[key] = self._capture(inputs)
            if self.overflowed:
                return self._exact.decode(z, skip)
            return self._graphs[key](inputs)

    def _capture(self, inputs: tuple[Tensor, ...]) -> _CapturedCall:
        call = _CapturedCall(lambda *tensors: self._decode(*tensors).float(), inputs, DECODER_DTYPE)
        if not bool(torch.isfinite(call(inputs)).all()):
            self.overflowed = True
        return call


class _CapturedCall:
    """A function of tensors as a CUDA graph: its launches cost one call instead of hundreds."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], dtype: torch.dtype) -> None:
        self._inputs = tuple(tensor.to(dtype, copy=True) for tensor in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = function(*self._inputs)

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for static, tensor in zip(self._inputs, inputs, strict=True):
            static.copy_(tensor)
        self._graph.replay()
        return self._output.clone()


def accelerate(network: LatentSplat, compiled: bool = False) -> None:
    """Make a network's inference faster, in place. Does nothing on a CPU.

    The encoder's networks run in bfloat16, the decoder as a :class:`FastDecoder`. Call again after weights changed.

    Args:
        network: In eval mode.
        compiled: Also use torch.compile; each part then takes up to half a minute longer at its first use.
    """
    if next(network.parameters()).device.type != "cuda":
        return
    network.encoder.network_dtype = ENCODER_DTYPE
    decoder = None
    if network.config.autoencoder.kind == "kl":
        decoder = FastDecoder(network.autoencoder, compiled)
    if compiled:
        encoder = torch.compile(network.encoder, dynamic=False)
        network.fast = FastParts(encoder, decoder, torch.compile(values_seen_from, dynamic=True))
    else:
        network.fast = FastParts(decoder=decoder)


def exact(network: LatentSplat) -> None:
    """Undo :func:`accelerate`: float32 everywhere."""
    network.encoder.network_dtype = None
    network.fast = None
