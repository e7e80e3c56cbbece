"""The patch discriminator of the adversarial loss: one logit per overlapping image patch.

Source: PatchGAN (Isola et al. 2017) as latent diffusion trains it; latentSplat section 3.4.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from lsplat_ns.errors import ConfigError, ShapeMismatch

KERNEL_SIZE, PADDING, NEGATIVE_SLOPE = 4, 1, 0.2


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Size of the discriminator. The defaults are the released ones."""

    width: int = 64
    """Channels of the first convolution; each further one doubles them."""
    max_widening: int = 8
    """Channels never exceed this multiple of the width."""
    halvings: int = 3
    """How many convolutions have stride 2."""

    def __post_init__(self) -> None:
        if min(self.width, self.max_widening, self.halvings) < 1:
            raise ConfigError(f"discriminator width, max_widening and halvings must be at least 1: {self}")


class PatchDiscriminator(nn.Module):
    """Convolutions that judge images patch by patch. State dict keys: ``main.*``.

    In training mode each call normalises with the statistics of its own batch and updates the running ones, so callers
    decide what shares a batch.
    """

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiscriminatorConfig()
        channels = [config.width * min(2**level, config.max_widening) for level in range(config.halvings + 1)]
        layers: list[nn.Module] = [self._convolution(3, channels[0], stride=2), nn.LeakyReLU(NEGATIVE_SLOPE)]
        for level in range(1, config.halvings + 1):
            stride = 2 if level < config.halvings else 1
            layers += [
                self._convolution(channels[level - 1], channels[level], stride, bias=False),
                nn.BatchNorm2d(channels[level]),
                nn.LeakyReLU(NEGATIVE_SLOPE),
            ]
        layers.append(self._convolution(channels[-1], 1, stride=1))
        self.main = nn.Sequential(*layers)

    @staticmethod
    def _convolution(inputs: int, outputs: int, stride: int, bias: bool = True) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, KERNEL_SIZE, stride, PADDING, bias=bias)

    @property
    def smallest_image(self) -> int:
        """Least height and width in pixels that leave one logit."""
        return 3 * 2**self.config.halvings

    def forward(self, image: Tensor) -> Tensor:
        """Logits [..., 1, h, w] of images [..., 3, height, width]; higher means more real.

        Images are about [0, 1] and are not rescaled. All leading axes form one batch. Differentiable to the image.

        Raises:
            ShapeMismatch: The images are not RGB, or smaller than ``smallest_image``.
        """
        if image.ndim < 4 or image.shape[-3] != 3 or min(image.shape[-2:]) < self.smallest_image:
            least = self.smallest_image
            raise ShapeMismatch("discriminator image", f"[..., 3, height >= {least}, width >= {least}]", image.shape)
        logits = self.main(image.flatten(0, -4))
        return logits.unflatten(0, image.shape[:-3])
