"""Attention over all views of a sample at once: where the views of a generated group learn of each other.

Views carry no number and no position: blocks are equivariant to their order and take any number of them. Module names
are those of the published checkpoint. Source: MV-LDM's ``SpatialTransformer3D`` and ``StandardTransformer``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

Sequences = tuple[tuple[int, int], ...]
"""How a flat batch of images divides into samples: (samples, views of each), in order. The two passes of guidance have
different numbers of views and are one batch."""


def image_count(sequences: Sequences) -> int:
    """Images of a flat batch."""
    return sum(samples * views for samples, views in sequences)


def across_views(function: Callable[..., Tensor], sequences: Sequences, *tokens: Tensor) -> Tensor:
    """Apply a function of token sequences [samples, views * tokens, c] to the images' tokens [images, tokens, c]."""
    counts = [samples * views for samples, views in sequences]
    joined = []
    for (samples, _), *parts in zip(sequences, *(each.split(counts) for each in tokens), strict=True):
        joined.append(function(*(part.reshape(samples, -1, part.shape[-1]) for part in parts)).reshape(parts[0].shape))
    return joined[0] if len(joined) == 1 else torch.cat(joined)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of every token of a sequence to all of it, [samples, tokens, c]."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class SequenceAttention:
    """How diffusers' ``Attention`` runs here: projections of all images are one product each, whatever attends to what.

    After ``Attention.fuse_projections`` those of queries, keys and values are one.
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        sequences: Sequences | None = None,
    ) -> Tensor:
        """Tokens [images, tokens, c] to the same shape.

        Args:
            attn: Holds the layers.
            hidden_states: Tokens of the images.
            encoder_hidden_states: Always None: tokens attend to each other.
            attention_mask: Always None.
            sequences: Images that see each other; None: each sees itself.
        """
        if attn.fused_projections:
            projected = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            projected = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        attention = partial(attend, heads=attn.heads)
        attended = attention(*projected) if sequences is None else across_views(attention, sequences, *projected)
        return attn.to_out[0](attended)


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
        for layer in self.transformer_blocks:
            layer.attn1.set_processor(SequenceAttention())
            layer.attn2.set_processor(SequenceAttention())
        self.proj_out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, maps: Tensor, sequences: Sequences) -> Tensor:
        """Feature maps [images, channels, h, w] to the same shape."""
        tokens = to_tokens(self.proj_in(self.norm(maps)))
        for layer in self.transformer_blocks:
            tokens = layer.attn1(layer.norm1(tokens), sequences=sequences) + tokens
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
        tokens = across_views(self._transform, sequences, to_tokens(maps))
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
        return self.to_out(attend(*self.to_qkv(tokens).chunk(3, dim=-1), self.heads))


class _FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        # The identity stands for the original's dropout of zero, which numbers the layers.
        self.net = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Identity(), nn.Linear(channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)
