"""From a predicted scene and one camera to the pictures that nerfstudio's tools show.

nerfstudio takes tensors [height, width, channels] of the size it asked for: 3 channels in [0, 1] or one float channel.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.geometry.harmonics import C0, dc_from_rgb
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.scene import Cameras, Gaussians

LATENT_TO_COLOR = ((0.30, 0.19, 0.21), (0.19, 0.29, 0.17), (-0.16, 0.19, 0.26), (-0.18, -0.27, -0.30))
"""A fixed map of four latent channels to colour; a fitted one (PCA) would flicker from frame to frame."""


LONGEST_SIDES = 4
"""A picture is decoded at this many times the shorter training side at most."""
OUTPUTS = ("rgb", "depth", "accumulation", "rgb_splat", "uncertainty", "latent")
"""What a camera sees, in the order of nerfstudio's menus."""
DIFFERENCE = "difference"
"""One more output where two draws are compared: the mean absolute difference of their colours."""
PHOTO_TINT, GENERATED_TINT, TINT_SHARE = (0.25, 0.45, 1.0), (1.0, 0.5, 0.1), 0.5
"""Colours that tell Gaussians of photos from those of generated views, and how much of the colour they replace."""
SMALLEST_LETTERS, LARGEST_LETTERS, MESSAGE_COLUMNS = 10.0, 28.0, 24
"""Heights of letters in pixels, and how many of them are as much as a picture is wide, in between."""
PICTURES = ("rgb", "rgb_splat", "latent")
"""Outputs that are colours; the others have one channel."""


@dataclass(frozen=True)
class ViewOptions:
    """What a viewer may change about a view; the defaults change nothing."""

    temperature: float = 1.0
    """Factor of the latent noise where nothing is covered; 0 shows the mode there."""
    least_confidence: float = 0.0
    """Pixels whose confidence (1 - uncertainty) lies below show the background."""
    on_stage: Callable[[str], None] | None = None
    """Called with "splat" and "decode" when that is done, for timing."""


def decoding_size(size: tuple[int, int], short_side: int, multiple: int) -> tuple[int, int]:
    """The size at which a picture of ``size`` (height, width) is decoded: near ``short_side``, in whole multiples.

    Intrinsics are normalised, so a slightly different aspect ratio is undone exactly by resizing.
    """
    # A sliver, as nerfstudio asks for in its first moments, would become a huge picture.
    factor = min(short_side / min(size), LONGEST_SIDES * short_side / max(size))
    return tuple(max(multiple, round(length * factor / multiple) * multiple) for length in size)


def view_outputs(
    network: LatentSplat,
    shown: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    *,
    short_side: int,
    decode: bool,
    seed: int | None,
    units_per_network_unit: float,
    background: Tensor,
    options: ViewOptions | None = None,
) -> dict[str, Tensor]:
    """Splat once, decode if asked, and lay everything out for nerfstudio.

    Args:
        network: The model.
        shown: The scene [1, G] from :func:`with_spread`.
        cameras: [1, 1] in the network's frame.
        size: (height, width) of the outputs.
        short_side: Shorter side at which the picture is decoded.
        decode: Whether to run the decoder; otherwise ``rgb`` is the splatted colour at full size (moving camera).
        seed: Seed of the latent noise, the same in every frame; None shows the mode.
        units_per_network_unit: Depth in nerfstudio's units per unit of the network's frame.
        background: Colour [3] behind the splats.
        options: See :class:`ViewOptions`.
    """
    options = options or ViewOptions()
    on_stage = options.on_stage or (lambda stage: None)
    inner = decoding_size(size, short_side, network.size_multiple) if decode else size
    rendering = network.render(shown, cameras, inner)
    alpha = rendering.alpha[0, 0]
    mean, spread = rendering.features[:, :, :-1], rendering.features[0, 0, -1]
    rendering = replace(rendering, features=mean)
    on_stage("splat")

    behind = background.to(alpha)[:, None, None]
    image = splat = rendering.color[0, 0] + (1 - alpha) * behind
    if decode:
        latent = mean
        if seed is not None:
            latent = network.latent_distribution(rendering).sample(noise=_noise(mean, seed, options.temperature))
        image = network.decode(rendering, latent)[0, 0]
        on_stage("decode")
    covered = alpha.clamp_min(1e-3)
    depth_z = torch.where(alpha > 1e-3, rendering.depth_z[0, 0] / covered, cameras.far[0, 0])
    # Undo the renderer's offset (+1/2 per unit of alpha); what nothing covers is uncertain by 1.
    uncertainty = spread - network.config.splatting.feature_offset * alpha + (1 - alpha)
    if options.least_confidence > 0:
        image, splat = (_where_sure(colour, behind, uncertainty, options.least_confidence) for colour in (image, splat))
    maps = {
        "rgb": image.clamp(0, 1),
        "depth": depth_z[None] * units_per_network_unit,
        "accumulation": alpha[None],
        "rgb_splat": splat.clamp(0, 1),
        "uncertainty": uncertainty[None],
        "latent": _latent_preview(mean[0, 0], alpha),
    }
    return {name: _resized(value, size).permute(1, 2, 0).contiguous() for name, value in maps.items()}


def _where_sure(colour: Tensor, behind: Tensor, uncertainty: Tensor, least_confidence: float) -> Tensor:
    # In float32 the confidence of a covered pixel may come out a little under 1.
    sure = 1 - _resized(uncertainty[None], colour.shape[-2:]) >= least_confidence - 1e-3
    return torch.where(sure, colour, behind)


def _noise(like: Tensor, seed: int, temperature: float) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return temperature * torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def with_spread(gaussians: Gaussians, features: DiagonalGaussian) -> Gaussians:
    """A scene as :func:`view_outputs` draws it, made once per scene: with one more feature channel.

    The channel holds the mean standard deviation of a Gaussian's degree-0 features, the same from all directions.

    Args:
        gaussians: A draw or the mode, [1, G].
        features: The distribution that its features were drawn from.
    """
    channel = torch.zeros_like(gaussians.feature_harmonics[:, :, :1])
    channel[..., 0] = features.std[..., 0].mean(2, keepdim=True)
    return replace(gaussians, feature_harmonics=torch.cat([gaussians.feature_harmonics, channel], dim=2))


def tinted(gaussians: Gaussians, generated: Tensor) -> Gaussians:
    """A scene [1, G] in which what was predicted from generated views has another hue than what photos show.

    Args:
        gaussians: The scene.
        generated: Mask [1, G].
    """
    hues = gaussians.means.new_tensor([PHOTO_TINT, GENERATED_TINT])[generated.long()]
    harmonics = (1 - TINT_SHARE) * gaussians.color_harmonics
    harmonics[..., 0] += TINT_SHARE * dc_from_rgb(hues)
    return replace(gaussians, color_harmonics=harmonics)


def _latent_preview(latent: Tensor, alpha: Tensor) -> Tensor:
    weights = latent.new_tensor(LATENT_TO_COLOR)
    count = min(len(latent), len(weights))
    preview = torch.einsum("chw,cr->rhw", latent[:count] - 0.5 * alpha, weights[:count] / C0)
    return preview.sigmoid() * alpha


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return functional.interpolate(maps[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def message_outputs(
    message: str, size: tuple[int, int], device: torch.device, names: Sequence[str] = OUTPUTS
) -> dict[str, Tensor]:
    """Pictures of ``size`` (height, width) that show a message instead of a view, under the names of its outputs."""
    height, width = max(size[0], 1), max(size[1], 1)
    picture = Image.new("RGB", (width, height), (40, 42, 48))
    letter = min(max(SMALLEST_LETTERS, width / MESSAGE_COLUMNS), LARGEST_LETTERS)  # browsers scale pictures up
    text = "\n".join(textwrap.wrap(message, max(8, int(1.8 * width / letter))))
    place, font = (letter, letter), ImageFont.load_default(letter)
    ImageDraw.Draw(picture).multiline_text(place, text, fill=(240, 200, 90), font=font)
    rgb = torch.from_numpy(np.asarray(picture).copy()).to(device) / 255
    ones = torch.ones(height, width, 1, device=device)
    planes = {"depth": ones, "accumulation": ones}  # in front of everything, and opaque
    return {name: rgb.clone() if name in PICTURES else planes.get(name, 0 * ones) for name in names}


def backdrop_outputs(size: tuple[int, int], device: torch.device, names: Sequence[str] = OUTPUTS) -> dict[str, Tensor]:
    """Black pictures of ``size`` (height, width) for a scene that somebody else draws."""
    zeros = torch.zeros(max(size[0], 1), max(size[1], 1), 1, device=device)
    return {name: zeros.expand(-1, -1, 3) if name in PICTURES else zeros for name in names}
