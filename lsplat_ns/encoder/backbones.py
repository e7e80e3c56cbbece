"""Image features per view. The published models use a DINO ViT-B/8 that is trained along with the rest.

Images are the raw [0, 1] values: the original does not apply ImageNet's mean and deviation, and its weights expect
that. A backbone returns features on its own grid and says how large a block of the feature grid each of its cells
fills, because what follows (a ReLU and a linear layer per pixel) gives the same on the coarse grid at 1/64 of the cost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsplat_ns.errors import ConfigError, MissingExtra, ShapeMismatch
from lsplat_ns.recomputation import Recomputable

RESNET_STRIDE = 2
RESNET_REDUCTION = 4
HUGGING_FACE_EPSILON = 1e-12
DINO_EPSILON = 1e-6


@dataclass(frozen=True)
class BackboneConfig:
    """Which network looks at the images, and its size. The defaults are those of all published models."""

    kind: Literal["dino", "vit", "resnet"] = "dino"
    """dino: the ViT of facebookresearch/dino. vit: as Hugging Face builds it. resnet: a convolutional pyramid."""
    width: int = 768
    """Channels of a ViT token."""
    depth: int = 12
    """Number of ViT blocks."""
    heads: int = 12
    """Attention heads of a ViT block."""
    mlp_ratio: int = 4
    """Hidden channels of a ViT block's MLP, as a multiple of the width."""
    patch_size: int = 8
    """Side of a ViT patch in pixels."""
    pretraining_grid: int = 28
    """Side of the token grid that the ViT's position embeddings were trained on: 28 for 224 pixels in patches of 8."""
    upscale: Literal["auto", "repeat", "interpolate"] = "auto"
    """How ViT tokens become pixels. auto: repeat for dino, interpolate (bilinear) for vit, as the original does."""
    resnet_stem: int = 64
    """Channels of the ResNet's first convolution."""
    resnet_widths: tuple[int, ...] = (256, 512, 1024, 2048)
    """Channels of the ResNet's stages."""
    resnet_depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks per stage of the ResNet."""
    resnet_first_pool: bool = False
    """Keep the max-pooling after the ResNet's first convolution."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"backbone width {self.width} must be a multiple of its {self.heads} heads")
        if len(self.resnet_widths) != len(self.resnet_depths):
            raise ConfigError("resnet_widths and resnet_depths must have one entry per stage each")

    @property
    def repeats_tokens(self) -> bool:
        """Whether each token covers a block of equal pixels."""
        return self.kind != "resnet" and self.upscale != "interpolate" and (self.kind, self.upscale) != ("vit", "auto")

    @property
    def size_multiple(self) -> int:
        """Both sides of an image must be multiples of this."""
        return RESNET_STRIDE ** (1 + len(self.resnet_widths)) if self.kind == "resnet" else self.patch_size


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class _Block(nn.Module):
    def __init__(self, config: BackboneConfig, epsilon: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=epsilon)
        self.attn = _Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=epsilon)
        self.mlp = _Mlp(config.width, config.mlp_ratio * config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class _PatchEmbedding(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


class VisionTransformer(Recomputable):
    """ViT with the state-dict names of facebookresearch/dino (a class token, no pooling, no dropout)."""

    def __init__(self, config: BackboneConfig, epsilon: float = DINO_EPSILON) -> None:
        super().__init__()
        self.grid = config.pretraining_grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, config.width))
        self.patch_embed = _PatchEmbedding(config)
        self.blocks = nn.ModuleList(_Block(config, epsilon) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=epsilon)
        self.apply(_initialise)
        for embedding in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(embedding, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised tokens [n, 1 + rows * columns, width] of images [n, 3, height, width], class token first."""
        patches = self.patch_embed(images)
        position = self._position_embedding(*patches.shape[-2:])
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + position
        for block in self.blocks:
            tokens = self.recomputed(block, tokens)
        return self.norm(tokens)

    def _position_embedding(self, rows: int, columns: int) -> Tensor:
        """Position embeddings [1, 1 + rows * columns, width], resampled unless the grid is that of the pretraining.

        The 0.1 keeps the size from being rounded down; it also shifts the sampling positions, which the checkpoints
        were trained with.
        """
        if rows == columns == self.grid:
            return self.pos_embed
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        # Contiguous: CUDA resamples the transposed view ten times more slowly.
        grid = rest.transpose(1, 2).contiguous().unflatten(-1, (self.grid, self.grid))
        scale = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", recompute_scale_factor=False)
        return torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _token_mlp(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


class _TokenBackbone(nn.Module):
    """A ViT, an MLP for its patch tokens and one for its class token, which is added everywhere."""

    def __init__(self, config: BackboneConfig, channels: int, scale: Fraction, name: str, epsilon: float) -> None:
        super().__init__()
        self.config, self.scale, self.transformer_name = config, scale, name
        repeat = config.patch_size * scale
        if config.repeats_tokens and repeat.denominator != 1:
            raise ConfigError(
                f"patches of {config.patch_size} pixels cover {repeat} feature pixels, not a whole number: "
                "raise supersampling or use upscale=interpolate"
            )
        self.repeat = int(repeat) if config.repeats_tokens else 1
        self.add_module(name, VisionTransformer(config, epsilon))
        self.global_token_mlp = _token_mlp(config.width, channels)
        self.local_token_mlp = _token_mlp(config.width, channels)

    def forward(self, images: Tensor, trace: dict[str, Tensor] | None = None) -> Tensor:
        height, width = images.shape[-2:]
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise ShapeMismatch("images of the backbone", f"[n, 3, multiple of {patch}, same]", images.shape)
        tokens = getattr(self, self.transformer_name)(images)
        shared, local = self.global_token_mlp(tokens[:, 0]), self.local_token_mlp(tokens[:, 1:])
        features = local.transpose(1, 2).unflatten(-1, (height // patch, width // patch))
        if not self.config.repeats_tokens:
            features = _resize(features, height, width, self.scale)
        if trace is not None:
            trace.update(dino_tokens=tokens, global_token=shared, local_tokens=local)
        return features + shared[:, :, None, None]


class DinoBackbone(_TokenBackbone):
    """The published backbone: the ViT of DINO, tokens repeated over their patches. Source: latentSplat section 3.1."""

    def __init__(self, config: BackboneConfig, channels: int, scale: Fraction) -> None:
        super().__init__(config, channels, scale, "dino", DINO_EPSILON)


class VitBackbone(_TokenBackbone):
    """The same network with Hugging Face's normalisation epsilon.

    Loads weights under the names of ``transformers`` 4 and 5, and saves them under those of DINO.
    """

    # Differs from upstream: not built on transformers, whose version 5 resamples position embeddings differently.

    def __init__(self, config: BackboneConfig, channels: int, scale: Fraction) -> None:
        super().__init__(config, channels, scale, "model", HUGGING_FACE_EPSILON)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        _rename_hugging_face_keys(state_dict, f"{prefix}model.")
        super()._load_from_state_dict(state_dict, prefix, *rest)


_HUGGING_FACE_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.": "blocks.",
    "layers.": "blocks.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layernorm.": "norm.",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "attention.attention.": "attn.",
    "attention.": "attn.",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
}
"""Parts of Hugging Face's names and of DINO's, applied in this order."""


def _rename_hugging_face_keys(state: dict[str, Tensor], prefix: str) -> None:
    """Give Hugging Face's ViT weights DINO's names, and join queries, keys and values."""
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        for theirs, ours in _HUGGING_FACE_NAMES.items():
            name = name.replace(theirs, ours)
        state[prefix + name] = state.pop(key)
    for key in [key for key in state if key.startswith(prefix) and ".attn.query." in key]:
        parts = [key.replace(".attn.query.", f".attn.{part}.") for part in ("query", "key", "value")]
        if all(part in state for part in parts):
            state[key.replace(".attn.query.", ".attn.qkv.")] = torch.cat([state.pop(part) for part in parts])


class ResnetBackbone(nn.Module):
    """A bottleneck ResNet with instance normalisation; stem and stages are projected, resized and summed.

    Needs ``transformers``. The original cannot be constructed; this is what it was meant to be.
    """

    repeat = 1

    def __init__(self, config: BackboneConfig, channels: int, scale: Fraction) -> None:
        super().__init__()
        try:
            from transformers import ResNetConfig
            from transformers.models.resnet.modeling_resnet import ResNetBackbone as HuggingFaceResnet
        except ImportError as error:
            raise MissingExtra("the resnet backbone needs transformers: pip install transformers") from error
        self.scale = scale
        stages = len(config.resnet_widths)
        self.model = HuggingFaceResnet(
            ResNetConfig(
                embedding_size=config.resnet_stem,
                hidden_sizes=list(config.resnet_widths),
                depths=list(config.resnet_depths),
                layer_type="bottleneck",
                out_features=["stem", *(f"stage{index + 1}" for index in range(stages))],
            )
        )
        _replace_batch_norm(self.model)
        if not config.resnet_first_pool:
            self.model.embedder.pooler = nn.Identity()
        widths = (config.resnet_stem, *config.resnet_widths)
        self.projections = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)

    def forward(self, images: Tensor, trace: dict[str, Tensor] | None = None) -> Tensor:
        """Features [n, channels, h, w] of images [n, 3, height, width]."""
        height, width = images.shape[-2:]
        levels = zip(self.projections, self.model(images).feature_maps, strict=True)
        return torch.stack([_resize(project(level), height, width, self.scale) for project, level in levels]).sum(0)


def _replace_batch_norm(module: nn.Module) -> None:
    """Replace every batch by an instance normalisation without weights or statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.InstanceNorm2d(child.num_features))
        else:
            _replace_batch_norm(child)


def _resize(features: Tensor, height: int, width: int, scale: Fraction) -> Tensor:
    """Bilinearly resize to the feature grid of a (height, width) image."""
    size = (int(height * scale), int(width * scale))
    return F.interpolate(features, size, mode="bilinear", align_corners=True)


class EnsembleBackbone(nn.Module):
    """The sum of several backbones."""

    repeat = 1

    def __init__(self, components: list[nn.Module]) -> None:
        super().__init__()
        self.components = nn.ModuleList(components)

    def forward(self, images: Tensor, trace: dict[str, Tensor] | None = None) -> Tensor:
        """Features [n, channels, h, w] of images [n, 3, height, width]."""
        return torch.stack([expand_blocks(each(images, trace), each.repeat) for each in self.components]).sum(0)


_BACKBONES: dict[str, Callable[[BackboneConfig, int, Fraction], nn.Module]] = {
    "dino": DinoBackbone,
    "vit": VitBackbone,
    "resnet": ResnetBackbone,
}


def build_backbone(configs: list[BackboneConfig], channels: int, scale: Fraction) -> nn.Module:
    """One backbone, or the sum of several.

    A backbone maps images [n, 3, H, W], with sides that are multiples of its config's ``size_multiple``, to features
    [n, channels, h, w] on its own grid. Each cell of it fills ``repeat`` x ``repeat`` pixels of the feature grid.

    Args:
        configs: At least one.
        channels: Channels that each returns.
        scale: Side of the feature grid over side of the image.

    Raises:
        ConfigError: If patches do not cover whole feature pixels.
        MissingExtra: If a backbone's library is not installed.
    """
    built = [_BACKBONES[config.kind](config, channels, scale) for config in configs]
    return built[0] if len(built) == 1 else EnsembleBackbone(built)


def expand_blocks(features: Tensor, repeat: int) -> Tensor:
    """Repeat each cell of features [n, c, h, w] to a block: [n, c, h * repeat, w * repeat]."""
    if repeat == 1:
        return features
    return features.repeat_interleave(repeat, dim=-2).repeat_interleave(repeat, dim=-1)
