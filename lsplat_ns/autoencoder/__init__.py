"""The image autoencoder that turns rendered latents into pictures, and the discriminator that sharpens them."""

from lsplat_ns.autoencoder.kl_autoencoder import (
    PRESETS,
    AutoencoderConfig,
    IdentityAutoencoder,
    KLAutoencoder,
    build_autoencoder,
    resize_antialiased,
)
from lsplat_ns.autoencoder.patch_discriminator import DiscriminatorConfig, PatchDiscriminator

__all__ = [
    "PRESETS",
    "AutoencoderConfig",
    "DiscriminatorConfig",
    "IdentityAutoencoder",
    "KLAutoencoder",
    "PatchDiscriminator",
    "build_autoencoder",
    "resize_antialiased",
]
