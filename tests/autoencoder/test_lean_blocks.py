"""Decoder blocks that keep less for the backward pass, against diffusers' own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from lsplat_ns.autoencoder import PRESETS, AutoencoderConfig, build_autoencoder
from lsplat_ns.autoencoder.lean_blocks import LeanResnetBlock, LeanUpsample

SMALL = AutoencoderConfig(block_out_channels=(8, 16, 16), layers_per_block=1, norm_groups=4, skip_zero=False)


def own_blocks_of_diffusers(decoder: nn.Module) -> None:
    original = {LeanResnetBlock: ResnetBlock2D, LeanUpsample: Upsample2D}
    for module in decoder.modules():
        module.__class__ = original.get(type(module), type(module))


def kept_bytes(decode, *inputs: Tensor) -> int:
    """Bytes that autograd keeps of a call until the backward pass, inputs and weights aside."""
    kept, known = {}, {tensor.untyped_storage()._cdata for tensor in inputs}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not tensor.is_leaf and storage._cdata not in known:
            kept[storage._cdata] = tensor  # alive, so that no other storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = decode(*inputs)
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("attention_levels", [0, 1])
@pytest.mark.parametrize("cast", [False, True])
def test_values_and_gradients_are_those_of_diffusers(attention_levels: int, cast: bool) -> None:
    torch.manual_seed(0)
    autoencoder = build_autoencoder(replace(SMALL, attention_levels=attention_levels))
    z, skip = torch.randn(2, 4, 6, 8, requires_grad=True), torch.rand(2, 7, 24, 32)
    found = []
    for _ in range(2):
        decode = autoencoder.decoding_in(torch.bfloat16) if cast else autoencoder.decode
        image = decode(z, skip)
        parts = {"z": z, **dict(autoencoder.named_parameters())}
        gradients = torch.autograd.grad(image.float().square().sum(), list(parts.values()), allow_unused=True)
        found.append({"image": image, **dict(zip(parts, gradients, strict=True))})
        own_blocks_of_diffusers(autoencoder.model.decoder)
    lean, original = found
    assert sum(value is not None for value in lean.values()) > 40
    for name, value in original.items():
        assert (value is None) == (lean[name] is None), name
        assert value is None or torch.equal(lean[name], value), name


def test_the_published_decoder_keeps_less_than_half_of_what_diffusers_keeps() -> None:
    """At the size of the training that is measured: eight images of 256x256, in bfloat16."""
    with torch.device("meta"):
        autoencoder = build_autoencoder(PRESETS["f8"]).bfloat16()
        z = torch.zeros(8, 4, 32, 32, dtype=torch.bfloat16, requires_grad=True)
        skip = torch.zeros(8, 7, 256, 256, dtype=torch.bfloat16)
    lean = kept_bytes(autoencoder.decode, z, skip)
    own_blocks_of_diffusers(autoencoder.model.decoder)
    original = kept_bytes(autoencoder.decode, z, skip)
    assert lean < 0.42 * original and lean < 2.5e9, (lean, original)


def test_only_the_decoder_is_changed_and_its_keys_are_not() -> None:
    model = build_autoencoder(SMALL).model
    kinds = {type(module) for module in model.encoder.modules()}
    assert ResnetBlock2D in kinds and LeanResnetBlock not in kinds
    keys = list(model.state_dict())
    own_blocks_of_diffusers(model.decoder)
    assert list(model.state_dict()) == keys
