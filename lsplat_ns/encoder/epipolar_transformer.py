"""Lets every pixel look at what the other views show along its ray.

Source: latentSplat section 3.1 and appendix, after pixelSplat. Three peculiarities belong to the published weights: the
residual inside the feed-forward network starts from the normalised input, samples are not normalised, and rays that
the other view does not see keep the depth encoding of that view's corner.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsplat_ns.encoder.backbones import expand_blocks
from lsplat_ns.errors import ConfigError, ShapeMismatch
from lsplat_ns.geometry.epipolar import depth_of_closest_approach, project_rays
from lsplat_ns.geometry.rays import pixel_centers, relative_disparity_from_depth, world_rays
from lsplat_ns.recomputation import Recomputable
from lsplat_ns.scene import Cameras

CONV_KERNEL = 7


@dataclass(frozen=True)
class ImageSelfAttentionConfig:
    """Self-attention among patches of one feature map."""

    patch_size: int = 4
    """Side of a patch in pixels of the downscaled feature map."""
    octaves: int = 10
    """Frequencies of the encoding of a patch's position."""
    layers: int = 2
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    d_token: int = 128
    """Channels of a patch token."""
    d_dot: int = 128
    """Channels per attention head."""
    d_mlp: int = 256
    """Hidden channels of a layer's MLP."""

    def __post_init__(self) -> None:
        if min(self.patch_size, self.octaves, self.heads, self.d_dot) < 1:
            raise ConfigError("patch_size, octaves, heads and d_dot of the image self-attention must be at least 1")


@dataclass(frozen=True)
class EpipolarTransformerConfig:
    """Attention along epipolar lines."""

    self_attention: ImageSelfAttentionConfig = field(default_factory=ImageSelfAttentionConfig)
    """Attention within a view, part of each layer's feed-forward network."""
    octaves: int = 10
    """Frequencies of the depth encoding; 0 leaves it out."""
    layers: int = 2
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    samples: int = 32
    """Samples along each epipolar line."""
    d_dot: int = 128
    """Channels per attention head."""
    d_mlp: int = 256
    """Hidden channels of a layer's convolutions."""
    downscale: int = 4
    """The attention runs on a grid this many times coarser than the features; 1 for the same grid."""

    def __post_init__(self) -> None:
        if min(self.samples, self.heads, self.d_dot, self.downscale) < 1 or self.octaves < 0:
            raise ConfigError("samples, heads, d_dot and downscale of the epipolar transformer must be at least 1")

    @property
    def size_multiple(self) -> int:
        """Both sides of the feature grid must be multiples of this."""
        return self.downscale * self.self_attention.patch_size


class FourierEncoding(nn.Module):
    """Sines and cosines of scalars at frequencies 2 pi 2^k: [..., d] becomes [..., d * octaves * 2]."""

    def __init__(self, octaves: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * torch.pi * 2 ** torch.arange(octaves).float(), persistent=False)
        self.register_buffer("phases", torch.tensor([0.0, 0.5 * torch.pi]), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Numbers ordered by value, then frequency, then sine before cosine."""
        return torch.sin(values[..., None, None] * self.frequencies[:, None] + self.phases).flatten(-3)


class _PreNorm(nn.Module):
    """A function of the layer-normalised tokens."""

    def __init__(self, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fn = fn

    def forward(self, tokens: Tensor, *context: object) -> Tensor:
        return self.fn(self.norm(tokens), *context)


class _ResidualLayers(Recomputable):
    """Pairs of attention and feed-forward network, each added to its input."""

    def __init__(self, channels: int, pairs: list[tuple[nn.Module, nn.Module]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(_PreNorm(channels, fn) for fn in pair) for pair in pairs)

    def forward(self, tokens: Tensor, attention_context: tuple = (), feed_forward_context: tuple = ()) -> Tensor:
        for attention, feed_forward in self.layers:
            tokens = tokens + self.recomputed(attention, tokens, *attention_context)
            tokens = tokens + self.recomputed(feed_forward, tokens, *feed_forward_context)
        return tokens


def _output_projection(heads: int, d_dot: int, channels: int) -> nn.Module:
    """Linear layer back to ``channels``; a single head of that size needs none."""
    if heads == 1 and d_dot == channels:
        return nn.Identity()
    return nn.Sequential(nn.Linear(heads * d_dot, channels), nn.Identity())


class _SelfAttention(nn.Module):
    def __init__(self, config: ImageSelfAttentionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.to_qkv = nn.Linear(config.d_token, 3 * config.heads * config.d_dot, bias=False)
        self.to_out = _output_projection(config.heads, config.d_dot, config.d_token)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.to_qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.to_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)


class ImageSelfAttention(nn.Module):
    """Attention among the patches of feature maps [n, channels, h, w]; same shape out."""

    def __init__(self, config: ImageSelfAttentionConfig, channels: int) -> None:
        super().__init__()
        patch, token = config.patch_size, config.d_token
        self.positional_encoding = nn.Sequential(FourierEncoding(config.octaves), nn.Linear(4 * config.octaves, token))
        self.patch_embedder = nn.Sequential(nn.Conv2d(channels, token, patch, patch), nn.ReLU())
        pairs = [(_SelfAttention(config), _Mlp(token, config.d_mlp)) for _ in range(config.layers)]
        self.transformer = _ResidualLayers(token, pairs)
        self.resampler = nn.ConvTranspose2d(token, channels, patch, patch)

    def forward(self, features: Tensor) -> Tensor:
        """Differentiable to the features; their sides must be multiples of the patch size."""
        patches = self.patch_embedder(features)
        rows, columns = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = tokens + self.positional_encoding(pixel_centers(rows, columns, tokens))
        tokens = self.transformer(tokens)
        return self.resampler(tokens.transpose(1, 2).unflatten(-1, (rows, columns)))


class _ConvFeedForward(nn.Module):
    """Image self-attention, its residual, and two convolutions on tokens [n, rows * columns, channels]."""

    def __init__(self, config: EpipolarTransformerConfig, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, config.d_mlp, CONV_KERNEL, padding="same"),
            nn.GELU(),
            nn.Identity(),
            nn.Conv2d(config.d_mlp, channels, CONV_KERNEL, padding="same"),
        )
        self.self_attention = ImageSelfAttention(config.self_attention, channels)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        features = tokens.transpose(1, 2).unflatten(-1, grid)
        return self.layers(self.self_attention(features) + features).flatten(2).transpose(1, 2)


class _EpipolarAttention(nn.Module):
    """Attention of each token to the samples of its own ray.

    One query meets its own 32 samples, so projecting the samples to keys and values would cost far more than the
    attention itself. But q . (K z) = (K^T q) . z, and sum_i a_i (V z_i) = V (sum_i a_i z_i): the projections can act on
    the query and on the result, and the heads become queries that share the samples as keys and values.
    """

    def __init__(self, config: EpipolarTransformerConfig, channels: int) -> None:
        super().__init__()
        self.heads, self.d_dot = config.heads, config.d_dot
        inner = config.heads * config.d_dot
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_kv = nn.Linear(channels, 2 * inner, bias=False)
        self.to_out = _output_projection(config.heads, config.d_dot, channels)

    def forward(self, tokens: Tensor, samples: Tensor) -> Tensor:
        """Tokens [n, rays, c] and samples [n, rays, samples, c] to [n, rays, c]."""
        key, value = self.to_kv.weight.unflatten(0, (2, self.heads, self.d_dot))
        query = self.to_q(tokens).unflatten(-1, (self.heads, self.d_dot))
        query = torch.einsum("nrhd,hdc->nrhc", query, key)
        found = F.scaled_dot_product_attention(query, samples, samples, scale=self.d_dot**-0.5)
        return self.to_out(torch.einsum("nrhc,hdc->nrhd", found, value).flatten(-2))


@dataclass(frozen=True)
class EpipolarSamples:
    """What the other views show along the rays of each view; o = v - 1 counts the other views."""

    features: Tensor  # [b, v, o, rays, samples, channels], zero where the ray is not seen
    relative_disparity: Tensor  # [b, v, o, rays, samples], of the sample as seen from the ray's own camera
    points_xy: Tensor  # [b, v, o, rays, samples, 2], image points in the other view
    overlaps: Tensor  # [b, v, o, rays], bool
    origins: Tensor  # [b, v, rays, 3]
    directions: Tensor  # [b, v, rays, 3]


def other_views(views: int, device: torch.device) -> Tensor:
    """For each view the indices [v, v - 1] of all others, in order."""
    index = torch.arange(views - 1, device=device).expand(views, -1)
    return index + (index >= torch.arange(views, device=device)[:, None])


def sample_epipolar_lines(features: Tensor, cameras: Cameras, samples: int) -> EpipolarSamples:
    """Sample the features of all other views along the projection of each pixel's ray.

    Args:
        features: [b, v, c, h, w].
        cameras: [b, v], near and far as distances along rays.
        samples: Number of samples per ray and other view.

    The geometry is float32, even where the features are not, and rounds where the original does
    (``geometry.rays``): the depth encoding magnifies any difference in disparity by up to 2 pi 2^9.
    """
    batch, views, channels, height, width = features.shape
    other = other_views(views, features.device)
    pose, intrinsics = cameras.world_from_camera.float(), cameras.intrinsics_norm.float()
    points = pixel_centers(height, width, pose)
    origins, directions = world_rays(points, pose[:, :, None], intrinsics[:, :, None])
    rays = origins[:, :, None], directions[:, :, None]
    seen_by = pose[:, other][:, :, :, None], intrinsics[:, other][:, :, :, None]
    near, far = (bound.float()[:, :, None, None] for bound in (cameras.near, cameras.far))
    segments = project_rays(*rays, *seen_by, bounds=(near, far))
    points_xy = segments.sample(samples)
    depth = depth_of_closest_approach(
        *(part[..., None, :] for part in rays), points_xy, *(part[:, :, :, :, None] for part in seen_by)
    )
    near, far = near[..., None], far[..., None]
    depth = depth.maximum(near).minimum(far)
    maps = features[:, other].reshape(-1, channels, height, width)
    grid = (2 * points_xy - 1).reshape(len(maps), -1, samples, 2)
    sampled = F.grid_sample(maps.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    sampled = sampled.movedim(1, -1).unflatten(0, (batch, views, views - 1))
    return EpipolarSamples(
        features=sampled * segments.overlaps[..., None, None],
        relative_disparity=relative_disparity_from_depth(depth, near, far),
        points_xy=points_xy,
        overlaps=segments.overlaps,
        origins=origins,
        directions=directions,
    )


class EpipolarTransformer(Recomputable):
    """Replaces the features of each view by ones that know the other views."""

    def __init__(self, config: EpipolarTransformerConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        if config.octaves > 0:
            self.depth_encoding = nn.Sequential(
                FourierEncoding(config.octaves), nn.Linear(2 * config.octaves, channels)
            )
        pairs = [
            (_EpipolarAttention(config, channels), _ConvFeedForward(config, channels)) for _ in range(config.layers)
        ]
        self.transformer = _ResidualLayers(channels, pairs)
        if config.downscale > 1:
            self.downscaler = nn.Conv2d(channels, channels, config.downscale, config.downscale)
            self.upscaler = nn.ConvTranspose2d(channels, channels, config.downscale, config.downscale)
            self.upscale_refinement = nn.Sequential(
                nn.Conv2d(channels, 2 * channels, CONV_KERNEL, padding="same"),
                nn.GELU(),
                nn.Conv2d(2 * channels, channels, CONV_KERNEL, padding="same"),
            )

    def forward(
        self, features: Tensor, cameras: Cameras, repeat: int = 1, trace: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Features [b, v, c, h * repeat, w * repeat] that know the other views, differentiable to the features.

        Args:
            features: [b, v, c, h, w].
            cameras: [b, v] with the scene's near and far.
            repeat: Each cell of ``features`` stands for a block of repeat x repeat equal pixels.
            trace: Collects intermediate results.

        Raises:
            ShapeMismatch: For fewer than two views, or a grid that the patches do not tile.
        """
        batch, views = features.shape[:2]
        self._check(features.shape, repeat)
        features = self._downscale(features.flatten(0, 1), repeat)
        grid = tuple(features.shape[-2:])
        found = sample_epipolar_lines(features.unflatten(0, (batch, views)), cameras, self.config.samples)
        samples = found.features
        if self.config.octaves > 0:
            encoding = self.depth_encoding(found.relative_disparity[..., None])
            samples = samples + encoding
        # Differs from upstream: it fails for more than two views. Here the samples of all others are keys together.
        samples = samples.transpose(2, 3).flatten(3, 4).flatten(0, 1)
        tokens = self.transformer(features.flatten(2).transpose(1, 2), (samples,), (grid,))
        result = self._upscale(tokens.transpose(1, 2).unflatten(-1, grid))
        result = result.unflatten(0, (batch, views))
        if trace is not None:
            trace.update(
                epipolar_valid=found.overlaps,
                epipolar_xy_sample=found.points_xy,
                epipolar_sample_features=found.features,
                epipolar_origins=found.origins,
                epipolar_directions=found.directions,
                epipolar_relative_disparity=found.relative_disparity[..., None],
                epipolar_transformer_tokens=tokens,
                epipolar_features=result,
            )
            if self.config.octaves > 0:
                trace.update(epipolar_depth_encoding=encoding)
            if self.config.downscale > 1:
                trace.update(downscaler=features)
        return result

    def _check(self, shape: torch.Size, repeat: int) -> None:
        multiple = self.config.size_multiple
        if shape[1] < 2:
            raise ShapeMismatch("features of the epipolar transformer", "[batch, 2 or more views, ...]", shape)
        if any(side * repeat % multiple for side in shape[-2:]):
            grid = (*shape[:-2], shape[-2] * repeat, shape[-1] * repeat)
            raise ShapeMismatch(
                "features of the epipolar transformer", f"[b, v, c, multiple of {multiple}, same]", grid
            )

    def _downscale(self, features: Tensor, repeat: int) -> Tensor:
        """Strided convolution. On blocks of equal pixels it is a matrix: the kernel summed over its taps."""
        factor = self.config.downscale
        if factor == 1:
            return expand_blocks(features, repeat)
        if repeat % factor:
            return self.downscaler(expand_blocks(features, repeat))
        matrix = self.downscaler.weight.sum((-2, -1), keepdim=True)
        return expand_blocks(F.conv2d(features, matrix, self.downscaler.bias), repeat // factor)

    def _upscale(self, features: Tensor) -> Tensor:
        if self.config.downscale == 1:
            return features
        features = self.upscaler(features)
        return features + self.recomputed(self.upscale_refinement, features)
