"""Faster inference: lower precision where it does no harm, compiled code, and captured CUDA graphs. Lighter training.

Geometry, opacities, rasterisation and losses stay float32 always.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import threading
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn

from lsplat_ns.cuda_graphs import CapturedCall, RepeatedCalls
from lsplat_ns.errors import ConfigError
from lsplat_ns.latentsplat import FastParts, LatentSplat
from lsplat_ns.recomputation import set_recomputation
from lsplat_ns.rendering.rasterization import matrices_in_pixels
from lsplat_ns.rendering.splatting import SplattingParts, values_seen_from
from lsplat_ns.scene import VariationalGaussians, Views, map_tensors

DECODER_DTYPE = torch.float16
"""The decoder's activations need the mantissa, not the range: float16 stays 15 dB closer to float32 than bfloat16."""
ENCODER_DTYPE = torch.bfloat16
MOST_DECODED_SHAPES = 8
"""CUDA graphs of the decoder that are kept, each with its memory: a window that is resized asks for dozens."""
ONE_KERNEL = {
    "realize_reads_threshold": 1000,
    "realize_opcount_threshold": 100_000,
    "realize_acc_reads_threshold": 1000,
}
"""Options of torch.compile: store no intermediate result. Harmonics are cheaper to compute again than to read."""


class FastDecoder:
    """``LatentSplat.decode`` by a copy of the decoder in float16, as one CUDA graph per (recent) input shape.

    Weights are copied on construction: make a new one when they change. Falls back to the float32 decoder for good if
    a result is not finite (float16 overflows beyond 65504).

    Args:
        network: Whose decoder to copy, on a CUDA device.
        compiled: Fuse kernels by torch.compile, anew for each shape (some 20 s, less when torch finds it in its cache).
    """

    def __init__(self, network: LatentSplat, compiled: bool) -> None:
        self._exact = network.decode_maps
        fast = copy.copy(network)  # shares everything but the autoencoder
        fast._modules = dict(network._modules)
        fast.autoencoder = copy.deepcopy(network.autoencoder).to(DECODER_DTYPE).eval()
        if compiled:  # without fused normalisation, channels last costs more than it saves
            fast.autoencoder = fast.autoencoder.to(memory_format=torch.channels_last)
        for unused in ("encoder", "quant_conv"):
            setattr(fast.autoencoder.model, unused, nn.Identity())
        # 1x1 convolutions as matrix products, whose results feed the additions and normalisations behind them.
        options = {"conv_1x1_as_mm": True}
        self._decode = fast.decode_maps
        if compiled:
            self._decode = torch.compile(fast.decode_maps, dynamic=False, options=options)
        self._calls: dict[tuple, CapturedCall] = {}
        self._lock = threading.Lock()
        self.overflowed = False

    @torch.no_grad()
    def __call__(self, color: Tensor | None, latent: Tensor) -> Tensor:
        """Images [b, t, 3, height, width] float32 of rendered colour and a drawn latent map."""
        inputs = (color, latent)
        key = tuple(None if part is None else part.shape for part in inputs)
        with self._lock:  # several browser tabs share the static buffers
            if key not in self._calls and not self.overflowed:
                while len(self._calls) >= MOST_DECODED_SHAPES:
                    del self._calls[next(iter(self._calls))]
                self._calls[key] = self._capture(inputs)
            if self.overflowed:
                return self._exact(color, latent)
            self._calls[key] = call = self._calls.pop(key)  # the latest one is last
            return call(inputs)

    def _capture(self, inputs: tuple[Tensor | None, Tensor]) -> CapturedCall:
        def decode(maps: tuple[Tensor | None, Tensor]) -> Tensor:
            return self._decode(*map_tensors(maps, lambda part: part.to(DECODER_DTYPE))).float()

        call = CapturedCall(decode, inputs)
        if not bool(torch.isfinite(call(inputs)).all()):
            self.overflowed = True
        return call


class FastEncoder:
    """The encoder compiled, as one CUDA graph per input shape and mode: its many small launches cost one call."""

    def __init__(self, encoder: nn.Module) -> None:
        self._encode = torch.compile(encoder, dynamic=False)
        self._calls: dict[tuple, Callable[..., VariationalGaussians]] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(
        self, context: Views, *, step: int, deterministic: bool, depth_noise: Tensor | None
    ) -> VariationalGaussians:
        """As ``Encoder.forward``."""
        key = (context.image.shape, step, deterministic)
        inputs = (context, depth_noise)
        with self._lock:
            if key not in self._calls:

                def encode(given: tuple[Views, Tensor | None]) -> VariationalGaussians:
                    return self._encode(given[0], step=step, deterministic=deterministic, depth_noise=given[1])

                try:
                    self._calls[key] = CapturedCall(encode, inputs)
                except RuntimeError:  # some versions of torch compile constants into copies, which no graph can hold
                    logging.getLogger(__name__).info("the encoder cannot be captured as a CUDA graph", exc_info=True)
                    self._calls[key] = encode
            return self._calls[key](inputs)


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
    _set_convolution_format(network.encoder, torch.channels_last)
    decoder = None
    if network.config.autoencoder.kind == "kl":
        decoder = FastDecoder(network, compiled)
    if compiled:
        splatting = SplattingParts(
            torch.compile(values_seen_from, dynamic=True, options=ONE_KERNEL),
            torch.compile(matrices_in_pixels, dynamic=True),
            RepeatedCalls(),
        )
        network.fast = FastParts(FastEncoder(network.encoder), decoder, splatting)
    else:
        network.fast = FastParts(decoder=decoder)


def exact(network: LatentSplat) -> None:
    """Undo :func:`accelerate`: float32 everywhere."""
    network.encoder.network_dtype = network.decoder_dtype = None
    _set_convolution_format(network.encoder, torch.contiguous_format)
    network.fast = None


def prepare_training(network: LatentSplat, dtype: torch.dtype | None, low_memory: bool, compiled: bool = False) -> None:
    """Choose how a network trains, in place. Weights stay float32, and checkpoints the same, with every choice.

    Args:
        network: Not accelerated.
        dtype: Type that the encoder (by autocast) and the decoder run in, None for float32.
        low_memory: Compute large results again in the backward pass instead of keeping them.
        compiled: Fuse kernels by torch.compile, which itself chooses what to keep; not together with ``low_memory``.
            The first step of each stage then takes a minute or two longer.

    Raises:
        ConfigError: If nothing can be compiled here, or both options are set.
    """
    network.encoder.network_dtype = network.decoder_dtype = dtype
    set_recomputation(network, low_memory)
    network.fast_in_training = None
    decoder = network.autoencoder if network.config.autoencoder.kind == "kl" else None
    if decoder is not None:
        decoder.features_in_training = None
    if compiled:
        check_compiler(next(network.parameters()).device.type, low_memory)
        splatting = SplattingParts(torch.compile(values_seen_from, dynamic=False))
        network.fast_in_training = FastParts(torch.compile(network.encoder, dynamic=False), splatting=splatting)
        frozen = decoder is None or not decoder.last_layer.requires_grad
        if frozen and hasattr(functorch_config, "donated_buffer"):  # since torch 2.6
            # The adaptive weight then differentiates through compiled code, which must still be there afterwards.
            functorch_config.donated_buffer = False
        if decoder is not None:
            decoder.features_in_training = torch.compile(decoder.decoded_features, dynamic=False)


def check_compiler(device: str, low_memory: bool) -> None:
    """Refuse to compile training where it cannot be done, before the first step finds out.

    Raises:
        ConfigError: With one line that says why not.
    """
    off = "leave out --pipeline.model.compiled-training"
    if low_memory:
        raise ConfigError(f"compiled training chooses itself what to keep: {off}, or low-memory")
    stated, known = ("CC", ("cc", "gcc", "clang")) if device == "cuda" else ("CXX", ("g++", "clang++", "c++", "cl"))
    if not any(map(shutil.which, filter(None, (os.environ.get(stated), *known)))):
        raise ConfigError(f"compiled training needs a C++ compiler, and none is on the PATH: install g++, or {off}")
    if device == "cuda" and find_spec("triton") is None:
        raise ConfigError(f"compiled training needs triton on a GPU: pip install triton, or {off}")


def _set_convolution_format(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay out the weights of all convolutions; with channels last, cuDNN has tensor-core kernels for large ones."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=memory_format)
