"""Image metrics as latentSplat's evaluation computes them, and where they stand on this machine.

Source: spec section 8.3. PSNR and SSIM need no weights. LPIPS and DISTS need those of VGG16 and are reported as
unavailable without them; the others then run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from lsplat_ns.checkpoints.pretrained import WEIGHTS_FOLDER_VARIABLE, weight_folders
from lsplat_ns.errors import CheckpointMismatch, LsplatError, MissingExtra, MissingWeights
from lsplat_ns.losses import PerceptualDistance
from lsplat_ns.losses.perceptual import BACKBONE_FILE, BACKBONE_URL, locate_backbone

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
"""Side of the Gaussian window in pixels (images must be at least as large), and its standard deviation."""
SMALLEST_FOR_VGG = 16
"""Pixels along the shorter side below which VGG16 has nothing left after its poolings."""

ImageMetric = Callable[[Tensor, Tensor], Tensor]
"""Of (prediction, target) [t, 3, height, width] in [0, 1], one number per image [t]."""


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is written."""

    label: str
    higher_is_better: bool
    digits: int
    definition: str


METRICS = {
    "psnr": MetricInfo(
        "PSNR", True, 2, "dB, of the mean squared error over an image, values in [0, 1]; identical images are left out."
    ),
    "ssim": MetricInfo("SSIM", True, 3, "scikit-image's: 11x11 Gaussian window, σ 1.5, sample covariance, no border."),
    "lpips": MetricInfo("LPIPS", False, 3, "Version 0.1, VGG16, images in [0, 1] mapped to [-1, 1]."),
    "dists": MetricInfo("DISTS", False, 3, "torchmetrics' network and weights, the same as dists-pytorch's."),
    "fid": MetricInfo(
        "FID", False, 2, "torchmetrics and torch-fidelity's Inception, images resized bilinearly as by pytorch-fid."
    ),
    "kid": MetricInfo("KID", False, 4, "The same features, cubic kernel, mean over random subsets of 1000 images."),
}


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB [...] of images [..., 3, height, width], both clipped to [0, 1].

    Infinite for identical images.
    """
    error = (prediction.clamp(0, 1) - target.clamp(0, 1)).square().mean((-3, -2, -1))
    return -10 * error.log10()


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity [n] of images [n, 3, height, width], both clipped to [0, 1].

    The number of scikit-image's ``structural_similarity(win_size=11, gaussian_weights=True, data_range=1)``, which the
    original calls: Gaussian window, sample covariance, mean over channels and over pixels at least 5 from the border.
    Computed here on the images' device; torchmetrics' SSIM differs (population covariance). NaN for images smaller than
    the window.
    """
    if min(prediction.shape[-2:]) < SSIM_WINDOW:
        return torch.full((len(prediction),), float("nan"), device=prediction.device)
    x, y = (image.double().clamp(0, 1).flatten(0, 1)[:, None] for image in (prediction, target))
    offsets = torch.arange(SSIM_WINDOW, device=x.device, dtype=x.dtype) - SSIM_WINDOW // 2
    weights = (-offsets.square() / (2 * SSIM_SIGMA**2)).exp()
    weights = weights / weights.sum()

    def blurred(maps: Tensor) -> Tensor:
        rows = functional.conv2d(maps, weights.view(1, 1, -1, 1))
        return functional.conv2d(rows, weights.view(1, 1, 1, -1))

    mean_x, mean_y = blurred(x), blurred(y)
    sample = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    variances = sample * (blurred(x * x) - mean_x**2 + blurred(y * y) - mean_y**2)
    covariance = sample * (blurred(x * y) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return similarity.mean((-3, -2, -1)).view(len(prediction), -1).mean(1).float()


def find_image_metrics(wanted: tuple[str, ...] = ("psnr", "ssim", "lpips", "dists")) -> FoundMetrics:
    """The metrics of single images that can be computed on this machine, and why the others cannot."""
    builders: dict[str, Callable[[], ImageMetric]] = {
        "psnr": lambda: psnr,
        "ssim": lambda: ssim,
        "lpips": lambda: PerceptualDistance(backbone=_vgg()).per_image,
        "dists": lambda: Dists(_vgg()),
    }
    available, unavailable = {}, {}
    for name in wanted:
        try:
            available[name] = builders[name]()
        except LsplatError as error:
            unavailable[name] = str(error)
    return FoundMetrics(available, unavailable)


def _vgg() -> Path:
    """The file of VGG16's weights. Raises MissingWeights with a message about measuring, not about training."""
    try:
        return locate_backbone()
    except MissingWeights:
        raise MissingWeights(
            f"needs {BACKBONE_FILE} ({BACKBONE_URL}): put it into {weight_folders()[0]}, or name its folder in "
            f"${WEIGHTS_FOLDER_VARIABLE}"
        ) from None


@dataclass(frozen=True)
class FoundMetrics:
    """Metrics by name."""

    available: dict[str, ImageMetric]
    unavailable: dict[str, str]  # name -> why, and where to put what is missing

    def measure(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """All available metrics of images [t, 3, height, width]: name -> [t] on the CPU, NaN where one is undefined.

        PSNR is infinite where a picture is its own target, as a copied context view may be.
        """
        measured = {}
        for name, metric in self.available.items():
            too_small = name in ("lpips", "dists") and min(target.shape[-2:]) < SMALLEST_FOR_VGG
            values = torch.full((len(target),), float("nan")) if too_small else metric(prediction, target)
            measured[name] = values.detach().float().cpu()
        return measured


class Dists:
    """Deep image structure and texture similarity, a distance, of images in [0, 1].

    torchmetrics' network with its own channel weights, on the VGG16 that LPIPS uses.

    Args:
        backbone: File of the VGG16 weights.

    Raises:
        MissingExtra: On construction, if torchmetrics is too old to have it.
        CheckpointMismatch: If the file is not VGG16's.
    """

    def __init__(self, backbone: Path) -> None:
        try:
            from torchmetrics.functional.image import dists
        except ImportError:
            raise MissingExtra("needs torchmetrics 1.8 or later: pip install -U 'torchmetrics[image]'") from None
        # torchmetrics would fetch VGG16 from the network and unpickle it; it is handed the file's tensors instead.
        with mock.patch.object(dists, "vgg16", lambda weights: _Backbone(backbone)):
            self._network = dists.DISTSNetwork()

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Distance of each pair of images [t, 3, height, width], [t]."""
        network = self._network.to(target.device)
        return network(prediction, target).reshape(len(target))


class _Backbone:
    """What torchvision's VGG16 is to torchmetrics: something with layers called ``features``."""

    def __init__(self, path: Path) -> None:
        from torchvision.models import vgg16

        with torch.device("meta"):
            layers = vgg16(weights=None).features
        self.features = layers.to_empty(device="cpu").eval()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            kept = {key.removeprefix("features."): state[key] for key in state if key.startswith("features.")}
            self.features.load_state_dict(kept)
        except Exception as error:  # torch reports a broken archive by many types
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointMismatch(f"{path} is not torchvision's VGG16 ({reason}): fetch the file again") from None
