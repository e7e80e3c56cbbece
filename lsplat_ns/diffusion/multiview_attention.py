"""Attention over all views of a sample at once: where the views of a generated group learn of each other.

Views carry no number and no position: blocks are equivariant to their order and take any number of them. Module names
are those of the published checkpoint. Source: MV-LDM's ``SpatialTransformer3D`` and ``StandardTransformer``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Sequences = tuple[tuple[int, int], ...]
"""How a flat batch of images divides into samples: (samples, views of each), in order. The two passes of guidance have
different numbers of views and are one batch."""


def image_count(sequences: Sequences) -> int:
    """Images of a flat batch."""
    return sum(samples * views for samples, views in sequences)


def across_views(function: Callable[[Tensor], Tensor], tokens: Tensor, sequences: Sequences) -> Tensor:
    """Apply a function of token sequences [samples, views * tokens, c] to the images' tokens [images, tokens, c]."""
    parts = tokens.split([samples * views for samples, views in sequences])
    joined = [
        function(part.reshape(samples, -1, part.shape[-1])).reshape(part.shape)
        for part, (samples, _) in zip(parts, sequences, strict=True)
    ]
    return joined[0] if len(joined) == 1 else torch.cat(joined)


def to_tokens(maps: Tensor) -> Tensor:
    """Maps [n, c, h, w] as tokens [n, h * w, c], row by row."""
    return maps.flatten(2).mT


class SpatialBlock(nn.Module):
    """Joint attention over all views, attention within each view, and a feed-forward, around a residual.

    Its last projection starts as zero: before training the block is the identity.

    Args:
        channels: Of the feature maps, a multiple of ``heads`` and of ``norm_groups``.
        heads: Attention heads.
        layers: Transformer layers.
        norm_groups: Groups of the group normalisation.
    """

    def __init__(self, channels: int, heads: int, layers: int, norm_groups: int) -> None:
        from diffusers.models.attention import BasicTransformerBlock

        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, heads, channels // heads, double_self_attention=True) for _ in range(layers)
        )
        self.proj_out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, maps: Tensor, sequences: Sequences) -> Tensor:
        """Feature maps [images, channels, h, w] to the same shape."""
        tokens = to_tokens(self.proj_in(self.norm(maps)))
        for layer in self.transformer_blocks:
            tokens = across_views(layer.attn1, layer.norm1(tokens), sequences) + tokens
            tokens = layer.attn2(layer.norm2(tokens)) + tokens
            tokens = layer.ff(layer.norm3(tokens)) + tokens
        return self.proj_out(tokens.mT.unflatten(-1, maps.shape[-2:])) + maps


class StandardBlock(nn.Module):
    """A plain transformer over the tokens of all views: an ablation of the original."""

    def __init__(self, channels: int, heads: int, layers: int) -> None:
        super().__init__()
        layer = nn.ModuleDict({"layers": nn.ModuleList(_standard_layer(channels, heads) for _ in range(layers))})
        self.transformer = layer

    def forward(self, maps: Tensor, sequences: Sequences) -> Tensor:
        """Feature maps [images, channels, h, w] to the same shape."""
        tokens = across_views(self._transform, to_tokens(maps), sequences)
        return tokens.mT.unflatten(-1, maps.shape[-2:])

    def _transform(self, tokens: Tensor) -> Tensor:
        for attention, feed_forward in self.transformer["layers"]:
            tokens = attention(tokens) + tokens
            tokens = feed_forward(tokens) + tokens
        return tokens


def _standard_layer(channels: int, heads: int) -> nn.ModuleList:
    parts = (_FusedAttention(channels, heads), _FeedForward(channels))
    return nn.ModuleList(_Normed(channels, part) for part in parts)


class _Normed(nn.Module):
    def __init__(self, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(channels), fn

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fn(self.norm(tokens))


class _FusedAttention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.to_qkv(tokens).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        # The identity stands for the original's dropout of zero, which numbers the layers.
        self.net = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Identity(), nn.Linear(channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)
