"""Faster generation of views on a GPU: both branches of guidance as one CUDA graph of bfloat16 kernels."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lsplat_ns.acceleration import check_compiler
from lsplat_ns.cuda_graphs import CapturedCall
from lsplat_ns.diffusion.guidance import Conditioning, predict_guided_noise
from lsplat_ns.diffusion.multiview_attention import SequenceAttention
from lsplat_ns.diffusion.multiview_unet import MultiViewUNet, NoText
from lsplat_ns.mvldm import MultiViewDiffusion
from lsplat_ns.recomputation import set_recomputation

DENOISER_DTYPE = torch.bfloat16
AUTOENCODER_DTYPE = torch.float16
"""The autoencoder needs the mantissa more than the range, as latentSplat's does."""
IN_FLOAT32 = ("conv_in", "time_embedding", "conv_out")
"""Layers of the denoiser that stay float32: latents, rays and noise levels need its precision."""


MOST_COMPILED = 2
"""Sizes of groups that are compiled: a sequence's first one and the others. A short last one is not worth minutes."""

T = TypeVar("T")


class _InFloat32(nn.Module):
    """A float32 layer between layers of another type."""

    def __init__(self, layer: nn.Module, output: torch.dtype) -> None:
        super().__init__()
        self.layer, self.output = layer, output

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.float()).to(self.output)


class _NoiseLevels(nn.Module):
    """The embedding of noise levels as all ResNet blocks add it: [images, their channels one after another]."""

    def __init__(self, embedding: nn.Module, projections: list[nn.Linear]) -> None:
        super().__init__()
        self.embedding = embedding
        with torch.device("meta"):  # both tensors are replaced
            self.projection = nn.Linear(projections[0].in_features, sum(each.out_features for each in projections))
        self.projection.weight, self.projection.bias = (
            nn.Parameter(torch.cat([getattr(each, name).data for each in projections])) for name in ("weight", "bias")
        )

    def forward(self, levels: Tensor) -> Tensor:
        return self.projection(functional.silu(self.embedding(levels)))


class _Columns(nn.Module):
    """One block's part of that."""

    def __init__(self, start: int, width: int) -> None:
        super().__init__()
        self.start, self.width = start, width

    def forward(self, embedded: Tensor) -> Tensor:
        return embedded[:, self.start : self.start + self.width]


class CompiledForFewShapes:
    """A function compiled for the first kinds of inputs that it meets; others run as they are.

    Args:
        function: What to compile.
        kind: Of its inputs: a hashable value that tells for which of them code can be shared.
    """

    def __init__(self, function: Callable[..., T], kind: Callable[..., Hashable]) -> None:
        self._function, self._kind = function, kind
        self._compiled = torch.compile(function, dynamic=False)
        self._kinds: set[Hashable] = set()

    def __call__(self, *inputs: object) -> T:
        """The function of the inputs."""
        kind = self._kind(*inputs)
        if len(self._kinds) < MOST_COMPILED:
            self._kinds.add(kind)
        return self._compiled(*inputs) if kind in self._kinds else self._function(*inputs)


def _kind_of_group(denoiser: nn.Module, noisy: Tensor, levels: Tensor, told: Conditioning, scale: float) -> Hashable:
    return noisy.shape, told.context_count, scale


class FastDenoiser:
    """``predict_guided_noise`` of a denoiser, as one CUDA graph per shape and strength of guidance.

    Args:
        denoiser: Prepared by :func:`accelerate_generation`.
        compiled: Fuse kernels by torch.compile, for the groups that matter (:data:`MOST_COMPILED`).
    """

    def __init__(self, denoiser: nn.Module, compiled: bool) -> None:
        self._denoiser = denoiser
        self._predict = predict_guided_noise
        if compiled:
            self._predict = CompiledForFewShapes(predict_guided_noise, _kind_of_group)
        self._calls: dict[tuple, Callable[[tuple], Tensor]] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, noisy: Tensor, levels: Tensor, conditioning: Conditioning, guidance: float) -> Tensor:
        """Noise in latents [b, t, c, h, w] at noise levels [b], float32."""
        key = (noisy.shape, conditioning.context_count, guidance)
        inputs = (noisy, levels, conditioning)
        with self._lock:
            if key not in self._calls:
                self._calls = {}  # one at a time: a graph keeps its memory
                self._calls[key] = self._captured(partial(self._call, guidance), inputs)
            return self._calls[key](inputs)

    def _captured(self, predict: Callable[..., Tensor], inputs: tuple) -> Callable[[tuple], Tensor]:
        try:
            return CapturedCall(predict, inputs)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:  # what a graph cannot hold, and running out of memory while it is recorded
            logging.getLogger(__name__).info("the denoiser cannot be captured as a CUDA graph", exc_info=True)
            return predict

    def _call(self, guidance: float, inputs: tuple[Tensor, Tensor, Conditioning]) -> Tensor:
        noisy, levels, conditioning = inputs
        return self._predict(self._denoiser, noisy, levels, conditioning, guidance).float()


def prepare_denoiser_training(model: MultiViewDiffusion, low_memory: bool, compiled: bool) -> None:
    """Choose how a model trains, in place. Weights stay float32, and checkpoints the same, with every choice.

    Args:
        model: Not accelerated.
        low_memory: Compute large results again in the backward pass instead of keeping them.
        compiled: Fuse kernels by torch.compile: of the autoencoder's decoder, and of the denoiser where it is told of
            context views.

    Raises:
        ConfigError: If nothing can be compiled here, or both options are set.
    """
    set_recomputation(model.denoiser, low_memory)
    model.denoiser_in_training = model.autoencoder.features_in_training = None
    if compiled:
        check_compiler(next(model.denoiser.parameters()).device.type, low_memory)
        # Of the method, since a compiled module would become a part of the model.
        model.denoiser_in_training = torch.compile(model.denoiser.forward, dynamic=False)
        model.autoencoder.features_in_training = torch.compile(model.autoencoder.decoded_features, dynamic=False)


def accelerate_generation(model: MultiViewDiffusion, compiled: bool = False) -> None:
    """Make generation faster, in place and for good. Does nothing on a CPU.

    The denoiser's weights become bfloat16 (half the memory), but for :data:`IN_FLOAT32`. The autoencoder runs in
    float16.

    Args:
        model: In eval mode.
        compiled: Also use torch.compile; the first groups of two sizes then take minutes longer.
    """
    if next(model.denoiser.parameters()).device.type != "cuda":
        return
    fuse_layers(model.denoiser)
    lower_precision(model)
    if compiled:
        model.to(memory_format=torch.channels_last)
        for part in ("encode", "decode"):
            function = getattr(model.autoencoder, part)
            setattr(model.autoencoder, part, CompiledForFewShapes(function, lambda tensor: tensor.shape))
    model.fast_denoiser = FastDenoiser(model.denoiser, compiled)


@torch.no_grad()
def fuse_layers(denoiser: MultiViewUNet) -> None:
    """Make fewer and larger matrix products of the same numbers, up to rounding. In place and for good; any device.

    Queries, keys and values of an attention become one product, as do the noise level's projections in all ResNet
    blocks. What attention to no text adds moves into the bias before it.
    """
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    blocks = [module for module in denoiser.modules() if isinstance(module, BasicTransformerBlock)]
    for block in blocks:
        if isinstance(block.attn2.processor, NoText):
            block.attn1.to_out[0].bias += block.attn2.to_out[0].bias
            block.attn2 = None
        for attention in filter(None, (block.attn1, block.attn2)):
            attention.fuse_projections()
            del attention.to_q, attention.to_k, attention.to_v
            attention.set_processor(SequenceAttention())
    resnets = [module for module in denoiser.unet.modules() if isinstance(module, ResnetBlock2D)]
    projections = [resnet.time_emb_proj for resnet in resnets]
    denoiser.unet.time_embedding = _NoiseLevels(denoiser.unet.time_embedding, projections)
    start = 0
    for resnet, projection in zip(resnets, projections, strict=True):
        resnet.time_emb_proj = _Columns(start, projection.out_features)
        resnet.skip_time_act = True  # the activation comes before the common projection
        start += projection.out_features


def lower_precision(model: MultiViewDiffusion) -> None:
    """The part of :func:`accelerate_generation` that rounds; works on any device."""
    unet = model.denoiser.unet
    exact = {name: getattr(unet, name) for name in IN_FLOAT32}
    for name in exact:
        setattr(unet, name, nn.Identity())  # out of the way of the conversion
    model.denoiser.to(DENOISER_DTYPE)
    for name, layer in exact.items():
        setattr(unet, name, _InFloat32(layer, torch.float32 if name == "conv_out" else DENOISER_DTYPE))
    model.autoencoder_dtype = AUTOENCODER_DTYPE
