"""latentSplat (arXiv 2403.16292) on one page.

     context Views [b, 2]                                             target Cameras [b, t]
            |                                                                 |
         encode            ViT features -> epipolar attention -> depth        |
            |              distribution and Gaussian parameters per pixel     |
     VariationalGaussians                                                     |
            |  sample | mode                                                  |
        Gaussians  ---------------------------- splat ------------------------+
                                                  |
                                Rendering: colour, features, alpha, depth
                                                  |
                latent = N(features, 1 - alpha)   |   uncovered pixels become noise for the decoder to fill
                                                  |
                                               decode        downsampled latent through a VAE decoder,
                                                  |          with colour and latent as skip inputs
                                                image

Plain PyTorch: no nerfstudio, no logging, no optimizers. Read ``scene.py`` first.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional

from lsplat_ns.autoencoder import AutoencoderConfig, DiscriminatorConfig, PatchDiscriminator, build_autoencoder
from lsplat_ns.autoencoder.kl_autoencoder import KLAutoencoder, resize_antialiased
from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.encoder.encoder import Encoder, EncoderConfig
from lsplat_ns.errors import ConfigError, ShapeMismatch
from lsplat_ns.rendering.splatting import SplattingConfig, SplattingParts, splat
from lsplat_ns.scene import Cameras, Gaussians, Rendering, VariationalGaussians, Views


@dataclass
class LatentSplatConfig:
    """The networks. Defaults are the published model."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """From two views to variational Gaussians."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """From rendered latents to the image."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Judges decoded images during training."""
    splatting: SplattingConfig = field(default_factory=SplattingConfig)
    """How Gaussians are rendered."""

    def __post_init__(self) -> None:
        if self.encoder.autoencoder_downscale != self.autoencoder.downscale:
            raise ConfigError(
                f"encoder.autoencoder-downscale is {self.encoder.autoencoder_downscale}, but the autoencoder "
                f"downscales by {self.autoencoder.downscale}; make them equal"
            )

    @property
    def render_scale(self) -> Fraction:
        """Size of splatted maps relative to images."""
        return Fraction(self.encoder.supersampling, self.autoencoder.downscale)


@dataclass(frozen=True)
class DecodedView:
    """What the network shows of target cameras."""

    rendering: Rendering  # at render size
    latent: Tensor  # [b, t, channels, h_r, w_r], the drawn latent map
    image: Tensor  # [b, t, 3, height, width], nominally in [0, 1], not clamped


@dataclass(frozen=True)
class FastParts:
    """Functions that compute the same as the network's own parts, faster; None leaves a part as it is."""

    encoder: Callable[..., VariationalGaussians] | None = None  # as Encoder.forward
    decoder: Callable[[Tensor | None, Tensor], Tensor] | None = None  # as LatentSplat.decode_maps
    splatting: SplattingParts | None = None


class LatentSplat(nn.Module):
    """Encoder, splatting, and decoder. State-dict keys are those of the released checkpoints.

    Args:
        config: Sizes of the networks.
        discriminator: Whether to hold a discriminator (training with adversarial losses).
    """

    def __init__(self, config: LatentSplatConfig | None = None, discriminator: bool = True) -> None:
        super().__init__()
        self.config = config or LatentSplatConfig()
        self.encoder = Encoder(self.config.encoder)
        self.autoencoder = build_autoencoder(self.config.autoencoder)
        self.fast: FastParts | None = None
        """Stand-ins used where no gradient is needed; see ``lsplat_ns.acceleration``."""
        self.fast_in_training: FastParts | None = None
        """Stand-ins used where gradients are needed: encoder and splatting, differentiable as the network's own."""
        self.decoder_dtype: torch.dtype | None = None
        """Type that the decoder runs in where it has no stand-in: of its weights too, or by autocast where it computes
        twice (``recompute``). None: float32."""
        self.discriminator = PatchDiscriminator(self.config.discriminator) if discriminator else None

    @property
    def _fast(self) -> FastParts:
        return (self.fast_in_training if torch.is_grad_enabled() else self.fast) or FastParts()

    def render_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of splatted maps for an image size."""
        return tuple(int(length * self.config.render_scale) for length in image_size)

    @property
    def size_multiple(self) -> int:
        """Image sides must be multiples of this to be decoded."""
        return self.config.autoencoder.downscale

    def encode(
        self,
        context: Views,
        *,
        step: int = 0,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
        depth_noise: Tensor | None = None,
    ) -> VariationalGaussians:
        """Predict the scene from its context views [b, v].

        Args:
            context: Views whose cameras carry the scene's near and far.
            step: Training step; the opacity mapping may depend on it.
            deterministic: Take the likeliest depth of each ray instead of samples.
            generator: Source of the depth samples.
            depth_noise: Recorded uniform numbers instead of draws, [b, v, rays, surfaces, samples].
        """
        if depth_noise is None and not deterministic:
            depth_noise = self.encoder.draw_depth_noise(context, generator)
        settled = self.config.encoder.depth.settled_step(step)  # code is compiled, or captured, for one step
        stand_in = None if settled is None else self._fast.encoder
        encoder = self.encoder if stand_in is None else stand_in  # compiled modules have no truth value
        step = step if settled is None else settled
        return encoder(context, step=step, deterministic=deterministic, depth_noise=depth_noise)

    def render(
        self,
        gaussians: Gaussians,
        cameras: Cameras,
        image_size: tuple[int, int],
        *,
        color: bool = True,
        features: bool = True,
    ) -> Rendering:
        """Splat Gaussians into maps of :meth:`render_size` for target cameras [b, t]."""
        size = self.render_size(image_size)
        return splat(
            gaussians, cameras, size, self.config.splatting, color=color, features=features, parts=self._fast.splatting
        )

    def latent_distribution(self, rendering: Rendering) -> DiagonalGaussian:
        """Distribution of the latent map [b, t, c, h_r, w_r]: the rendered features, with variance 1 - alpha.

        Pixels that no Gaussian covers become standard normal noise. The variance passes no gradient.
        """
        logvar = (1 - rendering.alpha.detach()).log()[:, :, None]
        return DiagonalGaussian(rendering.features, logvar.expand_as(rendering.features))

    def decode(self, rendering: Rendering, latent: Tensor) -> Tensor:
        """Images [b, t, 3, height, width], not clamped, from a drawn latent map and the rendered colour.

        Differentiable to the latent and the decoder; the colour is detached, as in the original.
        """
        color = rendering.color.detach() if self.config.autoencoder.color_in_skip else None
        if self._fast.decoder is not None:
            return self._fast.decoder(color, latent)
        dtype = self.decoder_dtype
        if dtype is not None and isinstance(self.autoencoder, KLAutoencoder) and not self.autoencoder.recompute:
            return self.decode_maps(color, latent, self.autoencoder.decoding_in(dtype)).float()
        with torch.autocast(latent.device.type, dtype, enabled=dtype is not None):
            return self.decode_maps(color, latent).float()

    def decode_maps(
        self, color: Tensor | None, latent: Tensor, decode: Callable[[Tensor, Tensor | None], Tensor] | None = None
    ) -> Tensor:
        """:meth:`decode` of bare tensors: colour [b, t, 3, h_r, w_r] (None where it is not used) and latent map.

        ``decode`` may stand in for the autoencoder's own.
        """
        skip = None
        if self.config.autoencoder.skip_connections:
            skip = latent if color is None else torch.cat([color, latent], 2)
        z = resize_antialiased(latent, Fraction(1, self.config.encoder.supersampling))
        return (decode or self.autoencoder.decode)(z, skip)

    def view(
        self,
        gaussians: Gaussians,
        cameras: Cameras,
        image_size: tuple[int, int],
        *,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
        latent_noise: Tensor | None = None,
    ) -> DecodedView:
        """Splat, draw the latent map and decode it: the novel views of target cameras [b, t].

        Args:
            gaussians: A sample or the mode of a prediction.
            cameras: Target cameras.
            image_size: (height, width), multiples of :attr:`size_multiple`.
            deterministic: Take the mean latent instead of a sample.
            generator: Source of the latent noise.
            latent_noise: Recorded noise instead of draws, [b, t, c, h_r, w_r].

        Raises:
            ShapeMismatch: A side of the image is not a multiple of :attr:`size_multiple`.
        """
        multiple = self.size_multiple
        if any(side % multiple for side in image_size):
            raise ShapeMismatch("views to decode", f"[b, t, 3, height and width multiples of {multiple}]", image_size)
        rendering = self.render(gaussians, cameras, image_size)
        latent = rendering.features  # the mode
        if not deterministic:
            latent = self.latent_distribution(rendering).sample(generator, latent_noise)
        return DecodedView(rendering, latent, self.decode(rendering, latent))

    @staticmethod
    def splat_to_image_size(maps: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Rendered maps [b, t, c, h_r, w_r] at image size, bilinearly (unchanged where sizes agree)."""
        if tuple(maps.shape[-2:]) == tuple(image_size):
            return maps
        flat = functional.interpolate(maps.flatten(0, 1), image_size, mode="bilinear", align_corners=False)
        return flat.unflatten(0, maps.shape[:2])
