"""FID and KID between two folders of images, by torchmetrics and torch-fidelity's Inception.

Neither original holds code for them, and latentSplat's paper does not name its tool; followers used pytorch-fid
(MVSplat360) and clean-fid (MV-LDM). This is torch-fidelity's network with pytorch-fid's weights, on 8-bit images
resized to 299x299 bilinearly, as pytorch-fid does; clean-fid resizes bicubically and differs by more. Below 2048 images
the covariance that FID needs has no full rank: such numbers compare with nothing but themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lsplat_ns.checkpoints.pretrained import WEIGHTS_FOLDER_VARIABLE, weight_folders
from lsplat_ns.errors import CheckpointMismatch, MissingExtra, MissingWeights, SceneDataError

INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""torch-fidelity's and pytorch-fid's names of the same file."""
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILES[0]}"
FEATURES = 2048
ENOUGH_IMAGES = 2048
"""From this many images on FID is what papers report."""
BATCH = 16
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000


@dataclass(frozen=True)
class SetDistances:
    """How far a set of predictions lies from the set of true images."""

    fid: float
    kid: float
    kid_std: float  # over subsets
    images: int


class Inception:
    """Features of images. Raises MissingWeights, MissingExtra or CheckpointMismatch on construction."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        path = locate_inception()
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3
        except ImportError:
            raise MissingExtra("needs torchmetrics: pip install 'torchmetrics[image]'") from None
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # the library itself would run what is in the file
            self._network = NoTrainInceptionV3("inception-v3-compat", [str(FEATURES)], str(path)).to(device)
        except ModuleNotFoundError:
            raise MissingExtra("needs torch-fidelity: pip install 'torchmetrics[image]'") from None
        except Exception as error:  # torch reports a broken archive by many types
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointMismatch(f"{path} is not FID's Inception ({reason}): fetch the file again") from None
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [n, 2048] on the CPU of images uint8 [n, 3, height, width]."""
        return self._network(images.to(self._device)).float().cpu()


def locate_inception() -> Path:
    """The file of Inception's weights. Raises MissingWeights where there is none."""
    for folder in weight_folders():
        for name in INCEPTION_FILES:
            if (folder / name).is_file():
                return folder / name
    raise MissingWeights(
        f"needs {INCEPTION_FILES[0]} ({INCEPTION_URL}): put it into {weight_folders()[0]}, or name its "
        f"folder in ${WEIGHTS_FOLDER_VARIABLE}"
    )


def set_distances(
    predictions: Sequence[Path],
    truths: Sequence[Path],
    features_of: Callable[[Tensor], Tensor],
    scratch: Path,
    on_images: Callable[[int], None] | None = None,
) -> SetDistances:
    """Compare the images of two sets of PNG files.

    Features lie in two files meanwhile, so that memory does not grow with the number of images.

    Args:
        predictions: At least two files, all images of one size.
        truths: The true views, as many.
        features_of: Of images uint8 [n, 3, height, width], features [n, channels]: an :class:`Inception`.
        scratch: Existing folder for the two files.
        on_images: Called with the number of images that were read, for progress.

    Raises:
        SceneDataError: If an image cannot be read.
    """
    fake, real = (
        _store_features(files, features_of, scratch / name, on_images)
        for files, name in ((predictions, "predictions.npy"), (truths, "truths.npy"))
    )
    kid, kid_std = kernel_distance(real, fake)
    return SetDistances(frechet_distance(real, fake), kid, kid_std, len(fake))


def _store_features(
    files: Sequence[Path],
    features_of: Callable[[Tensor], Tensor],
    path: Path,
    on_images: Callable[[int], None] | None,
) -> np.ndarray:
    stored = None
    for start in range(0, len(files), BATCH):
        batch = torch.stack([_read_image(file) for file in files[start : start + BATCH]])
        features = features_of(batch).numpy()
        if stored is None:
            stored = np.lib.format.open_memmap(path, "w+", np.float32, (len(files), features.shape[1]))
        stored[start : start + len(features)] = features
        if on_images is not None:
            on_images(len(features))
    return stored


def _read_image(file: Path) -> Tensor:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow reports broken files by all of them
        raise SceneDataError(f"cannot read image {file}: {getattr(error, 'strerror', None) or error}") from None


def _chunks(features: np.ndarray, size: int = 1024) -> Iterator[Tensor]:
    for start in range(0, len(features), size):
        yield torch.from_numpy(np.array(features[start : start + size]))


class _PassThrough(nn.Module):
    """Hands finished features to torchmetrics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_features = channels

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """FID of features [n, channels] and [m, channels], by torchmetrics' sums in double precision."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_PassThrough(real.shape[1]))
    for features, is_real in ((real, True), (fake, False)):
        for chunk in _chunks(features):
            metric.update(chunk, real=is_real)
    return float(metric.compute())


def kernel_distance(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """KID of features [n, channels] and [m, channels]: mean and standard deviation over random subsets.

    torchmetrics' estimator on its published settings (100 subsets of 1000); smaller sets give smaller subsets.
    """
    from torchmetrics.image.kid import poly_mmd

    size = min(KID_SUBSET_SIZE, len(real), len(fake))
    generator = np.random.default_rng(seed)

    def subset(features: np.ndarray) -> Tensor:
        rows = np.sort(generator.choice(len(features), size, replace=False))
        return torch.from_numpy(np.array(features[rows])).double()

    values = torch.stack([poly_mmd(subset(real), subset(fake)) for _ in range(KID_SUBSETS)])
    return float(values.mean()), float(values.std(unbiased=False))
