"""MV-LDM's denoiser: a Stable Diffusion UNet for each view, joined by attention over all views at every level.

The blocks are diffusers'; the order in which they run is the original's ``MultiViewUNet`` (its quirks included, because
the published weights were trained with them). Built from constants: nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lsplat_ns.diffusion.multiview_attention import Sequences, SpatialBlock, StandardBlock, image_count
from lsplat_ns.errors import ConfigError, ShapeMismatch
from lsplat_ns.recomputation import Recomputable
from lsplat_ns.wording import counted


@dataclass(frozen=True)
class MultiViewUNetConfig:
    """Shape of the denoiser. The defaults are the published model's: Stable Diffusion 2.1."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of each level, finest first; every level after the first halves the resolution."""
    layers_per_block: int = 2
    """ResNet blocks per level on the way down; one more on the way up."""
    image_attention: tuple[bool, ...] = (True, True, True, False)
    """Which levels have transformers within each image on the way down."""
    mid_attention: bool = True
    """Whether the middle has one, between two ResNet blocks; else it is a single ResNet block."""
    up_attention: bool = False
    """Whether the levels of ``image_attention`` also have them on the way up. The original stores but skips these."""
    attention_heads: tuple[int, ...] = (5, 10, 20, 20)
    """Heads of these transformers, by level."""
    linear_projections: bool = True
    """Whether their projections are linear layers; else they are 1x1 convolutions."""
    text_channels: tuple[int, ...] = (1024, 1024, 1024, 1024)
    """Width of the text that each level could attend to. The text is empty; stored weights have this width."""
    norm_groups: int = 32
    """Groups of each group normalisation; must divide every entry of block_out_channels."""
    multiview: Literal["spatial", "standard"] = "spatial"
    """Attention over all views: "spatial" is the published one."""
    multiview_heads: int = 8
    """Its heads."""
    multiview_layers: int = 1
    """Its transformer layers, per level."""
    multiview_places: tuple[Literal["encoder", "mid", "decoder"], ...] = ("encoder", "mid", "decoder")
    """Where views see each other."""
    multiview_max_side: int = 32
    """Feature maps that are larger on a side have no attention over all views (the middle always has)."""

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        if levels < 1:
            raise ConfigError("the denoiser needs at least one level in block_out_channels")
        for name in ("image_attention", "attention_heads", "text_channels"):
            if len(getattr(self, name)) != levels:
                entries = counted(len(getattr(self, name)), "entry", "entries")
                raise ConfigError(f"{name} has {entries} for {counted(levels, 'level')} of the denoiser")
        bad = [c for c in self.block_out_channels if c % self.norm_groups or c % self.multiview_heads]
        if bad:
            raise ConfigError(
                f"denoiser channels {bad} must be multiples of norm_groups {self.norm_groups} and of multiview_heads "
                f"{self.multiview_heads}"
            )
        if self.multiview not in ("spatial", "standard"):
            raise ConfigError(f"no attention over views {self.multiview!r}; take spatial or standard")
        if not set(self.multiview_places) <= {"encoder", "mid", "decoder"}:
            raise ConfigError(f"multiview_places are encoder, mid and decoder, not {self.multiview_places}")


class NoText:
    """Cross-attention to no text: with zero keys and values only the output's bias remains, exactly."""

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *unused: object, **ignored: object) -> Tensor:
        """The bias, in the shape of the tokens."""
        return attn.to_out[0].bias.expand_as(hidden_states)


class MultiViewUNet(Recomputable):
    """Predicts the noise in the latents of several views. State-dict keys are those of the published checkpoint.

    Args:
        config: Shape of the network.
        in_channels: Latent, mask and ray channels.
        out_channels: Latent channels.
    """

    def __init__(self, config: MultiViewUNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.config = config
        self.unet = _build_unet(config, in_channels, out_channels)
        widths = {"encoder": config.block_out_channels, "mid": config.block_out_channels[-1:]}
        widths["decoder"] = config.block_out_channels[::-1]
        for place in ("encoder", "mid", "decoder"):
            used = widths[place] if place in config.multiview_places else ()
            blocks = nn.ModuleList(_multiview_block(config, width) for width in used)
            setattr(self, f"cross_attn_blocks_{place}", blocks)

    def forward(
        self,
        images: Tensor,
        timesteps: Tensor,
        sequences: Sequences,
        repeated: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Noise [images, out_channels, h, w] of a flat batch of views.

        Shapes and ``sequences`` decide everything that is not a tensor operation, so calls can be compiled or captured.
        Differentiable to the images.

        Args:
            images: [images, in_channels, h, w], the views of one sample after another.
            timesteps: Noise level of each image, int64 [images]; 0 for clean context.
            sequences: Which images belong to one sample.
            repeated: Where samples have images (and noise levels) in common: makes the flat batch of the ``sequences``
                from a tensor of the different images. These are computed once up to where views first see each other.

        Raises:
            ShapeMismatch: If the batch does not divide as ``sequences`` says.
        """
        count = len(images if repeated is None else repeated(timesteps))
        if count != image_count(sequences) or timesteps.shape != images.shape[:1]:
            raise ShapeMismatch("views to denoise", f"[{image_count(sequences)}, channels, h, w]", images.shape)
        unet = self.unet
        embedding = unet.time_embedding(unet.time_proj(timesteps).to(images.dtype))
        x, embedding, skips = self._down(unet.conv_in(images), embedding, sequences, repeated)
        x = self._middle(x, embedding, sequences)
        for level, block in enumerate(unet.up_blocks):
            for index in range(len(block.resnets)):
                x = self._within_images(block, index, torch.cat([x, skips.pop()], dim=1), embedding)
            x = self._across_views(x, self.cross_attn_blocks_decoder, level, sequences)
            if block.upsamplers is not None:
                # Differs from upstream: it doubles, and fails where a size on the way down was odd.
                x = block.upsamplers[0](x, skips[-1].shape[-2:])
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))

    def _down(
        self, x: Tensor, embedding: Tensor, sequences: Sequences, repeated: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The way down: maps, embedding and skips of all images of the sequences."""
        skips = [x]
        for level, block in enumerate(self.unet.down_blocks):
            for index in range(len(block.resnets)):
                x = self._within_images(block, index, x, embedding)
                skips.append(x)
            if repeated is not None and self._see_each_other(x, self.cross_attn_blocks_encoder):
                x, embedding, *skips = (repeated(each) for each in (x, embedding, *skips))
                repeated = None
            # After the level's last skip was taken: only what goes down has seen the other views.
            x = self._across_views(x, self.cross_attn_blocks_encoder, level, sequences)
            if block.downsamplers is not None:
                x = block.downsamplers[0](x)
                skips.append(x)
        if repeated is not None:
            x, embedding, *skips = (repeated(each) for each in (x, embedding, *skips))
        return x, embedding, skips

    def _middle(self, x: Tensor, embedding: Tensor, sequences: Sequences) -> Tensor:
        middle = self.unet.mid_block
        x = self.recomputed(middle.resnets[0], x, embedding)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = self.recomputed(resnet, self._transformed(attention, x), embedding)
        for block in self.cross_attn_blocks_mid:
            x = self.recomputed(block, x, sequences)
        return x

    def _within_images(self, block: nn.Module, index: int, x: Tensor, embedding: Tensor) -> Tensor:
        """A ResNet block and, where the level has them, a transformer."""
        x = self.recomputed(block.resnets[index], x, embedding)
        return self._transformed(block.attentions[index], x) if hasattr(block, "attentions") else x

    def _transformed(self, transformer: nn.Module, x: Tensor) -> Tensor:
        def transform(maps: Tensor) -> Tensor:
            return transformer(maps, return_dict=False)[0]

        return self.recomputed(transform, x)

    def _across_views(self, x: Tensor, blocks: nn.ModuleList, level: int, sequences: Sequences) -> Tensor:
        return self.recomputed(blocks[level], x, sequences) if self._see_each_other(x, blocks) else x

    def _see_each_other(self, x: Tensor, blocks: nn.ModuleList) -> bool:
        """Whether feature maps of this size are looked at by other views."""
        return len(blocks) > 0 and max(x.shape[-2:]) <= self.config.multiview_max_side


def _multiview_block(config: MultiViewUNetConfig, width: int) -> nn.Module:
    if config.multiview == "standard":
        return StandardBlock(width, config.multiview_heads, config.multiview_layers)
    return SpatialBlock(width, config.multiview_heads, config.multiview_layers, config.norm_groups)


def _build_unet(config: MultiViewUNetConfig, in_channels: int, out_channels: int) -> nn.Module:
    """diffusers' UNet of random weights, used for its blocks; its own forward knows no views."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention import BasicTransformerBlock

    up_attention = [config.up_attention and has for has in config.image_attention[::-1]]
    unet = UNet2DConditionModel(
        in_channels=in_channels,
        out_channels=out_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in config.image_attention),
        mid_block_type="UNetMidBlock2DCrossAttn" if config.mid_attention else "UNetMidBlock2D",
        up_block_types=tuple("CrossAttnUpBlock2D" if has else "UpBlock2D" for has in up_attention),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.attention_heads,  # the number of heads, in spite of its name
        cross_attention_dim=config.text_channels,
        use_linear_projection=config.linear_projections,
        norm_num_groups=config.norm_groups,
    )
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock):
            module.attn2.set_processor(NoText())
    return unet
