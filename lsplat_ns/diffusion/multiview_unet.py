"""MV-LDM's denoiser: a Stable Diffusion UNet for each view, joined by attention over all views at every level.

The blocks are diffusers'; the order in which they run is the original's ``MultiViewUNet`` (its quirks included, because
the published weights were trained with them). Built from constants: nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lsplat_ns.diffusion.multiview_attention import Sequences, SpatialBlock, StandardBlock, image_count
from lsplat_ns.errors import ConfigError, ShapeMismatch


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
                raise ConfigError(f"{name} has {len(getattr(self, name))} entries for {levels} levels of the denoiser")
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


class _NoText:
    """Cross-attention to no text: with zero keys and values only the output's bias remains, exactly."""

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *unused: object, **ignored: object) -> Tensor:
        return attn.to_out[0].bias.expand_as(hidden_states)


class MultiViewUNet(nn.Module):
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

    def forward(self, images: Tensor, timesteps: Tensor, sequences: Sequences) -> Tensor:
        """Noise [images, out_channels, h, w] of a flat batch of views.

        Shapes and ``sequences`` decide everything that is not a tensor operation, so calls can be compiled or captured.
        Differentiable to the images.

        Args:
            images: [images, in_channels, h, w], the views of one sample after another.
            timesteps: Noise level of each image, int64 [images]; 0 for clean context.
            sequences: Which images belong to one sample.

        Raises:
            ShapeMismatch: If the batch does not divide as ``sequences`` says.
        """
        if len(images) != image_count(sequences) or timesteps.shape != images.shape[:1]:
            raise ShapeMismatch("views to denoise", f"[{image_count(sequences)}, channels, h, w]", images.shape)
        unet = self.unet
        embedding = unet.time_embedding(unet.time_proj(timesteps).to(images.dtype))
        x = unet.conv_in(images)
        skips = [x]
        for level, block in enumerate(unet.down_blocks):
            for index, resnet in enumerate(block.resnets):
                x = resnet(x, embedding)
                if hasattr(block, "attentions"):
                    x = block.attentions[index](x, return_dict=False)[0]
                skips.append(x)
            # After the level's last skip was taken: only what goes down has seen the other views.
            x = self._across_views(x, self.cross_attn_blocks_encoder, level, sequences)
            if block.downsamplers is not None:
                x = block.downsamplers[0](x)
                skips.append(x)
        x = self._middle(x, embedding, sequences)
        for level, block in enumerate(unet.up_blocks):
            for index, resnet in enumerate(block.resnets):
                x = resnet(torch.cat([x, skips.pop()], dim=1), embedding)
                if hasattr(block, "attentions"):
                    x = block.attentions[index](x, return_dict=False)[0]
            x = self._across_views(x, self.cross_attn_blocks_decoder, level, sequences)
            if block.upsamplers is not None:
                # Differs from upstream: it doubles, and fails where a size on the way down was odd.
                x = block.upsamplers[0](x, skips[-1].shape[-2:])
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))

    def _middle(self, x: Tensor, embedding: Tensor, sequences: Sequences) -> Tensor:
        middle = self.unet.mid_block
        x = middle.resnets[0](x, embedding)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = resnet(attention(x, return_dict=False)[0], embedding)
        for block in self.cross_attn_blocks_mid:
            x = block(x, sequences)
        return x

    def _across_views(self, x: Tensor, blocks: nn.ModuleList, level: int, sequences: Sequences) -> Tensor:
        if not len(blocks) or max(x.shape[-2:]) > self.config.multiview_max_side:
            return x
        return blocks[level](x, sequences)


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
            module.attn2.set_processor(_NoText())
    return unet
