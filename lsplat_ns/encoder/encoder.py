"""The encoder: posed images of a scene to one set of variational Gaussians."""

from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd, lcm

import torch
from torch import Tensor, nn

from lsplat_ns.encoder.backbones import BackboneConfig, build_backbone, expand_blocks
from lsplat_ns.encoder.depth_head import DepthDraw, DepthHead, DepthHeadConfig, opacity_from_probability
from lsplat_ns.encoder.epipolar_transformer import CONV_KERNEL, EpipolarTransformer, EpipolarTransformerConfig
from lsplat_ns.encoder.gaussian_head import GaussianHeadConfig, RawGaussians, place_gaussians
from lsplat_ns.errors import ConfigError, ShapeMismatch
from lsplat_ns.scene import VariationalGaussians, Views


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and switches of the encoder. The defaults are those of the published models."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The network that looks at each image."""
    more_backbones: tuple[BackboneConfig, ...] = ()
    """Networks whose features are added to those of the first. Not used by any published model."""
    d_backbone: int = 512
    """Channels that the backbone returns."""
    d_feature: int = 128
    """Channels of the features per ray."""
    use_epipolar_transformer: bool = True
    """Exchange information between views. Off is the paper's ablation."""
    epipolar_transformer: EpipolarTransformerConfig = field(default_factory=EpipolarTransformerConfig)
    """Attention along epipolar lines."""
    depth: DepthHeadConfig = field(default_factory=DepthHeadConfig)
    """Depth distribution and opacity."""
    gaussians: GaussianHeadConfig = field(default_factory=GaussianHeadConfig)
    """What is predicted per Gaussian."""
    autoencoder_downscale: int = 8
    """How many times smaller the autoencoder's latents are than its images."""
    supersampling: int = 8
    """Features and renderings have image size * supersampling / autoencoder_downscale."""

    def __post_init__(self) -> None:
        if min(self.d_backbone, self.d_feature, self.autoencoder_downscale, self.supersampling) < 1:
            raise ConfigError("d_backbone, d_feature, autoencoder_downscale and supersampling must be at least 1")

    @property
    def scale(self) -> Fraction:
        """Side of the feature grid over side of the image."""
        return Fraction(self.supersampling, self.autoencoder_downscale)

    @property
    def size_multiple(self) -> int:
        """Both sides of a context image must be multiples of this."""
        cells = self.epipolar_transformer.size_multiple if self.use_epipolar_transformer else 1
        cells *= self.scale.denominator
        backbones = (backbone.size_multiple for backbone in (self.backbone, *self.more_backbones))
        return lcm(*backbones, cells // gcd(cells, self.scale.numerator))


class Encoder(nn.Module):
    """Predicts a scene from two or more posed images.

    Source: latentSplat section 3; state-dict names are those of the released checkpoints without ``encoder.``.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.size_multiple = config.size_multiple
        self.network_dtype: torch.dtype | None = None
        """Type that the networks run in (by autocast); geometry, depths and opacities stay float32. None: float32."""
        features = config.d_feature
        self.backbone = build_backbone([config.backbone, *config.more_backbones], config.d_backbone, config.scale)
        self.backbone_projection = nn.Sequential(nn.ReLU(), nn.Linear(config.d_backbone, features))
        if config.use_epipolar_transformer:
            self.epipolar_transformer = EpipolarTransformer(config.epipolar_transformer, features)
        self.depth_predictor = DepthHead(config.depth, features)
        if config.gaussians.predict_opacity:
            self.to_opacity = nn.Sequential(nn.ReLU(), nn.Linear(features, 1))
        outputs = config.depth.num_surfaces * sum(config.gaussians.split_sizes)
        self.to_gaussians = nn.Sequential(nn.ReLU(), nn.Linear(features, outputs))
        if config.scale == 1:
            skip = nn.Conv2d(3, features, CONV_KERNEL, padding="same")
            self.high_resolution_skip = nn.Sequential(skip, nn.ReLU())

    def gaussian_count(self, views: int, size: tuple[int, int], *, deterministic: bool = False) -> int:
        """Number of Gaussians per scene for ``views`` images of ``size`` (height, width)."""
        height, width = self._grid(size)
        samples = 1 if deterministic else self.config.gaussians.gaussians_per_pixel
        return views * height * width * self.config.depth.num_surfaces * samples

    def draw_depth_noise(self, context: Views, generator: torch.Generator | None = None) -> Tensor:
        """The uniform numbers [b, v, rays, surfaces, samples] that :meth:`forward` would draw for ``context``."""
        height, width = self._grid(context.size)
        counts = height * width, self.config.depth.num_surfaces, self.config.gaussians.gaussians_per_pixel
        return torch.rand(*context.frame.shape, *counts, generator=generator, device=context.image.device)

    def forward(
        self,
        context: Views,
        *,
        step: int = 0,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
        depth_noise: Tensor | None = None,
        trace: dict[str, Tensor] | None = None,
    ) -> VariationalGaussians:
        """Encode context views [b, v].

        Args:
            context: Images with cameras whose near and far come from ``geometry.rays.bounds_from_baseline``.
            step: Training step, for the opacity mapping.
            deterministic: Use the most likely depth of each ray instead of drawing ``gaussians_per_pixel`` of them.
            generator: Source of the depth draws, on the device of the images; the global one when None.
            depth_noise: Use these uniform numbers [b, v, rays, surfaces, samples] instead.
            trace: Collects intermediate results by the names of the recordings, for tests and viewers. Costs memory.

        Returns:
            Gaussians in world space, ordered by view, ray (row by row), surface, sample. Differentiable to the weights
            and the images; feature noise is not drawn here.

        Raises:
            ShapeMismatch: If an image side is not a multiple of ``size_multiple``.
        """
        grid = self._grid(context.size)
        dtype = self.network_dtype
        with torch.autocast(context.image.device.type, dtype, enabled=dtype is not None):
            features = self._ray_features(context, trace)
        features = features.float()
        distribution = self.depth_predictor(features)
        if deterministic:
            draw = distribution.mode()
        else:
            draw = distribution.sample(self.config.gaussians.gaussians_per_pixel, generator, depth_noise)
        depth = draw.depth(context.cameras.near, context.cameras.far)
        raw = self.to_gaussians(features).unflatten(-1, (self.config.depth.num_surfaces, -1))
        if trace is not None:
            trace.update(features_to_depth=features, pdf=distribution.pdf, offset=distribution.offset)
            trace.update(index=draw.bucket, depth=depth, density=draw.probability, raw_gaussians=raw[..., None, 2:])
        return place_gaussians(
            RawGaussians.split(raw, self.config.gaussians),
            depth,
            self._opacities(features, draw, step),
            context.cameras,
            grid,
            self.config.gaussians,
            trace,
        )

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the feature grid for images of ``size``."""
        multiple = self.size_multiple
        if any(side % multiple for side in size):
            raise ShapeMismatch("context images", f"[b, v, 3, height and width multiples of {multiple}]", size)
        up, down = self.config.supersampling, self.config.autoencoder_downscale
        return size[0] * up // down, size[1] * up // down  # torch.compile cannot trace int(Fraction)

    def _ray_features(self, context: Views, trace: dict[str, Tensor] | None) -> Tensor:
        """Features [b, v, rays, channels]."""
        batch, views = context.image.shape[:2]
        images = context.image.flatten(0, 1)
        backbone = self.backbone(images, trace)
        projected = self.backbone_projection(backbone.movedim(1, -1))
        features = projected.movedim(-1, 1).unflatten(0, (batch, views))
        repeat = self.backbone.repeat
        if trace is not None:
            full = expand_blocks(features.flatten(0, 1), repeat).movedim(1, -1).unflatten(0, (batch, views))
            trace.update(backbone=expand_blocks(backbone, repeat), backbone_projection=full)
        if self.config.use_epipolar_transformer:
            features = self.epipolar_transformer(features, context.cameras, repeat, trace)
        else:
            features = expand_blocks(features.flatten(0, 1), repeat).unflatten(0, (batch, views))
        if self.config.scale == 1:
            skip = self.high_resolution_skip(images)
            features = features + skip.unflatten(0, (batch, views))
            if trace is not None:
                trace.update(high_resolution_skip=skip)
        return features.flatten(3).transpose(2, 3)

    def _opacities(self, features: Tensor, draw: DepthDraw, step: int) -> Tensor:
        """Opacities [b, v, rays, surfaces, samples], divided by ``gaussians_per_pixel`` in every mode."""
        opacities = opacity_from_probability(draw.probability, self.config.depth.opacity_exponent(step))
        opacities = opacities / self.config.gaussians.gaussians_per_pixel
        if self.config.gaussians.predict_opacity:
            opacities = opacities * self.to_opacity(features).sigmoid()[..., None]
        return opacities
