"""The autoencoder of latent diffusion whose decoder is also guided by the rendered maps (skip connections).

Source: latentSplat section 3.3 and its ``autoencoder_kl``; the network itself is diffusers' ``AutoencoderKL``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.errors import ConfigError, ShapeMismatch
from lsplat_ns.recomputation import Recomputable


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of the autoencoder. The defaults are the released model's; ``PRESETS`` names the others."""

    kind: Literal["kl", "id"] = "kl"
    """"kl": the convolutional autoencoder; "id": latents are RGB pixels and nothing is learned."""
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Channels of each level, finest first; every level after the first halves the resolution."""
    attention_levels: int = 0
    """How many of the coarsest levels have self-attention, besides the middle block."""
    layers_per_block: int = 2
    """ResNet blocks per encoder level; decoder levels have one more."""
    latent_channels: int = 4
    """Channels of the latent map."""
    norm_groups: int = 32
    """Groups of each group normalisation; must divide every entry of block_out_channels."""
    skip_connections: bool = True
    """Feed the rendered maps to every decoder level."""
    skip_extra: bool = True
    """The skip input holds the rendered colour besides the latents."""
    skip_zero: bool = True
    """Skip connections start as zero, so that training starts from the plain autoencoder."""

    def __post_init__(self) -> None:
        if self.kind == "id":
            if self.latent_channels != 3 or self.skip_connections:
                raise ConfigError(
                    "the identity autoencoder has 3 latent channels and no skips: "
                    "set latent_channels to 3 and skip_connections to False"
                )
            return
        bad = [c for c in self.block_out_channels if c % self.norm_groups]
        if not self.block_out_channels or bad:
            raise ConfigError(
                f"autoencoder block_out_channels {self.block_out_channels} must not be empty and must be multiples of "
                f"norm_groups {self.norm_groups}: change one of the two"
            )
        if not 0 <= self.attention_levels <= len(self.block_out_channels):
            raise ConfigError(
                f"autoencoder attention_levels must be 0 to {len(self.block_out_channels)}, not {self.attention_levels}"
            )

    @property
    def downscale(self) -> int:
        """Image pixels per latent pixel, along each side."""
        return 1 if self.kind == "id" else 2 ** (len(self.block_out_channels) - 1)

    @property
    def skip_channels(self) -> int:
        """Channels of the skip input; 0 when there is none."""
        return self.latent_channels + (3 if self.skip_extra else 0) if self.skip_connections else 0

    @property
    def color_in_skip(self) -> bool:
        """Whether decoding needs rendered colour."""
        return self.skip_connections and self.skip_extra


RECOMPUTED_AT_ONCE = 4
"""Images that are decoded again together to save memory: enough of them for convolutions to be fast."""

PRESETS: dict[str, AutoencoderConfig] = {
    "f8": AutoencoderConfig(),
    "f16": AutoencoderConfig(
        block_out_channels=(128, 128, 256, 256, 512), attention_levels=1, latent_channels=16, skip_connections=False
    ),
    "f32": AutoencoderConfig(
        block_out_channels=(128, 128, 256, 256, 512, 512),
        attention_levels=2,
        latent_channels=64,
        skip_connections=False,
    ),
    "id": AutoencoderConfig(kind="id", latent_channels=3, skip_connections=False),
}
"""The published autoencoders by name. Only "f8" was released with skip connections."""


def resize_antialiased(image: Tensor, factor: Fraction | int) -> Tensor:
    """Scale maps [..., channels, height, width] bilinearly, with an antialiasing filter when shrinking.

    Same numbers as torchvision's ``resize(antialias=True)``: pixel centres at half-integers. Differentiable to the map.

    Raises:
        ShapeMismatch: The scaled height or width is not a whole number of pixels.
    """
    size = [length * Fraction(factor) for length in image.shape[-2:]]
    if any(length.denominator != 1 or length < 1 for length in size):
        raise ShapeMismatch(f"map to resize by {factor}", "[..., whole height, whole width] after scaling", image.shape)
    target = [int(length) for length in size]
    if target == list(image.shape[-2:]):
        return image
    flat = image.reshape(-1, *image.shape[-3:])
    flat = functional.interpolate(flat, target, mode="bilinear", align_corners=False, antialias=True)
    return flat.reshape(*image.shape[:-2], *target)


def _build_diffusers_model(config: AutoencoderConfig) -> nn.Module:
    """An ``AutoencoderKL`` of random weights."""
    from diffusers import AutoencoderKL

    from lsplat_ns.autoencoder.lean_blocks import keep_less

    plain = len(config.block_out_channels) - config.attention_levels
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * plain + ("AttnDownEncoderBlock2D",) * config.attention_levels,
        up_block_types=("AttnUpDecoderBlock2D",) * config.attention_levels + ("UpDecoderBlock2D",) * plain,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
    )
    keep_less(model.decoder)
    return model


class KLAutoencoder(Recomputable):
    """Variational autoencoder with an optional skip input to every decoder level.

    State dict keys: ``model.*`` as in diffusers, ``skip_convs.*``. Encoding touches only ``model.encoder`` and
    ``model.quant_conv``, decoding only the rest, so either half may be left out of a device or an optimiser.
    """

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AutoencoderConfig()
        self.features_in_training: Callable[[Tensor, Tensor | None], Tensor] | None = None
        """Stand-in for :meth:`decoded_features` where gradients are needed; see ``lsplat_ns.acceleration``."""
        if config.kind != "kl":
            raise ConfigError(f"KLAutoencoder needs kind 'kl', not {config.kind!r}: use build_autoencoder")
        self.model = _build_diffusers_model(config)
        self.skip_convs = nn.ModuleList()
        if config.skip_connections:
            coarse_to_fine = config.block_out_channels[::-1]
            # The last of these feeds no level. It stays because released checkpoints hold its weights.
            widths = (coarse_to_fine[0], *coarse_to_fine)
            self.skip_convs.extend(nn.Conv2d(config.skip_channels, width, 1) for width in widths)
            if config.skip_zero:
                for parameter in self.skip_convs.parameters():
                    nn.init.zeros_(parameter)

    @property
    def downscale(self) -> int:
        """Image pixels per latent pixel, along each side."""
        return self.config.downscale

    @property
    def skip_channels(self) -> int:
        """Channels of the skip input; 0 when there is none."""
        return self.config.skip_channels

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight whose gradients balance the adversarial loss (see ``losses.adversarial.adaptive_weight``)."""
        return self.model.decoder.conv_out.weight

    def encode(self, image: Tensor) -> DiagonalGaussian:
        """Latent distribution [..., latent_channels, h, w] of images [..., 3, h * downscale, w * downscale] in [0, 1].

        Latents are used as they are, without the scaling factor of latent diffusion. Differentiable to the image.

        Raises:
            ShapeMismatch: The images are not RGB or their size is no multiple of ``downscale``.
        """
        height, width = image.shape[-2:]
        if image.ndim < 4 or image.shape[-3] != 3 or height % self.downscale or width % self.downscale:
            raise ShapeMismatch("image to encode", f"[..., 3, n * {self.downscale}, m * {self.downscale}]", image.shape)
        moments = self.model.quant_conv(self.model.encoder(2 * image.flatten(0, -4) - 1))
        mean, logvar = moments.unflatten(0, image.shape[:-3]).chunk(2, dim=-3)
        return DiagonalGaussian(mean, logvar)

    def decode(self, z: Tensor, skip: Tensor | None = None) -> Tensor:
        """Images [..., 3, h * downscale, w * downscale] of latents, about [0, 1] and not clamped.

        Differentiable to both inputs. The caller detaches the colour: the published training sends no gradient
        through it, and none is cut here.

        Args:
            z: Latents [..., latent_channels, h, w].
            skip: Rendered maps [..., skip_channels, height, width] of any size: colour (if ``skip_extra``), then
                latents at render resolution. None stands for maps of zeros.

        Raises:
            ShapeMismatch: A tensor has the wrong number of channels, or the leading axes differ.
        """
        if z.ndim < 4 or z.shape[-3] != self.config.latent_channels:
            raise ShapeMismatch("latents to decode", f"[..., {self.config.latent_channels}, h, w]", z.shape)
        leading = z.shape[:-3]
        if skip is not None:
            if self.skip_channels == 0:
                raise ShapeMismatch("skip input", "None, for an autoencoder without skip connections", skip.shape)
            if skip.shape[:-2] != (*leading, self.skip_channels):
                raise ShapeMismatch("skip input", f"{[*leading, self.skip_channels]} + [height, width]", skip.shape)
            skip = skip.flatten(0, -4)
        elif self.skip_channels:
            # Differs from upstream: it fails without a skip input, which forbids decoding encoded images.
            skip = z.new_zeros(leading.numel(), self.skip_channels, 1, 1)
        return (self._decode_flat(z.flatten(0, -4), skip).unflatten(0, leading) + 1) / 2

    def decoding_in(self, dtype: torch.dtype) -> Callable[[Tensor, Tensor | None], Tensor]:
        """:meth:`decode` with everything in another type, normalisations too; differentiable to the float32 weights.

        Autocast would keep float32 copies of what goes into and out of every normalisation. Not for ``recompute``,
        which computes again when the cast weights are gone.
        """
        halves = ("model.decoder.", "model.post_quant_conv.", "skip_convs.")
        weights = {name: value.to(dtype) for name, value in self.named_parameters() if name.startswith(halves)}

        def decode(z: Tensor, skip: Tensor | None = None) -> Tensor:
            inputs = (z.to(dtype), None if skip is None else skip.to(dtype))
            with torch.autocast(z.device.type, enabled=False):
                return functional_call(self, weights, inputs)

        return decode

    def forward(self, z: Tensor, skip: Tensor | None = None) -> Tensor:
        """:meth:`decode`, as torch's functional call wants it named."""
        return self.decode(z, skip)

    def _decode_flat(self, z: Tensor, skip: Tensor | None) -> Tensor:
        if self.recompute:  # in parts, so that few images' activations exist at a time
            latents = z.split(RECOMPUTED_AT_ONCE)
            skips = [None] * len(latents) if skip is None else skip.split(RECOMPUTED_AT_ONCE)
            parts = zip(latents, skips, strict=True)
            features = torch.cat([self.recomputed(self.decoded_features, *part) for part in parts])
        elif self.features_in_training is not None and torch.is_grad_enabled():
            features = self.features_in_training(z, skip)
        else:
            features = self.decoded_features(z, skip)
        # Apart, because the adaptive weight differentiates to this layer alone.
        return self.model.decoder.conv_out(features)

    def decoded_features(self, z: Tensor, skip: Tensor | None) -> Tensor:
        """What the last convolution makes the image of, [n, channels, height, width], of a flat batch.

        diffusers' decoder, block by block, because its own forward has no place for the skip input.
        """
        decoder = self.model.decoder
        x = decoder.mid_block(decoder.conv_in(self.model.post_quant_conv(z)))
        for level, block in enumerate(decoder.up_blocks):
            if skip is not None:
                resized = functional.interpolate(skip, x.shape[-2:], mode="bilinear", align_corners=True)
                x = x + self.skip_convs[level](resized)
            x = block(x)
        return decoder.conv_act(decoder.conv_norm_out(x))


class IdentityAutoencoder(nn.Module):
    """No autoencoder: the latents are the RGB pixels. It has no weights and draws no random numbers."""

    downscale = 1
    skip_channels = 0
    last_layer = None

    def __init__(self, config: AutoencoderConfig = PRESETS["id"]) -> None:
        super().__init__()
        self.config = config

    def encode(self, image: Tensor) -> DiagonalGaussian:
        """The image itself [..., 3, height, width], with zero variance."""
        return DiagonalGaussian(image)

    def decode(self, z: Tensor, skip: Tensor | None = None) -> Tensor:
        """The latents themselves [..., 3, height, width].

        Raises:
            ShapeMismatch: A skip input was given.
        """
        if skip is not None:
            raise ShapeMismatch("skip input", "None, for the identity autoencoder", skip.shape)
        return z


def build_autoencoder(config: AutoencoderConfig) -> KLAutoencoder | IdentityAutoencoder:
    """The autoencoder of a config, with PyTorch's default initialisation (and zero skips if ``skip_zero``)."""
    return IdentityAutoencoder(config) if config.kind == "id" else KLAutoencoder(config)
