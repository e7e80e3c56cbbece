"""LPIPS with VGG features, version 0.1: the perceptual distance that latentSplat trains with.

Source: Zhang et al. 2018 (the metric); the backbone is torchvision's VGG16, the learned channel weights ship with
torchmetrics. Nothing is downloaded. torchmetrics' own class has no public way to be given a local backbone file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lsplat_ns.errors import CheckpointMismatch, MissingWeights

BACKBONE_FILE = "vgg16-397923af.pth"
BACKBONE_URL = f"https://download.pytorch.org/models/{BACKBONE_FILE}"
WEIGHTS_FOLDER_VARIABLE = "LSPLAT_WEIGHTS"

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG16's convolutions; features are taken after each stage, a 2x2 max-pooling stands between."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Per-channel statistics of images in [-1, 1]."""
NORM_EPSILON = 1e-8


def locate_backbone() -> Path:
    """Path of the VGG16 weights, in the folder of ``LSPLAT_WEIGHTS`` or in torch.hub's checkpoints.

    Raises:
        MissingWeights: The file is in neither folder.
    """
    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    if os.environ.get(WEIGHTS_FOLDER_VARIABLE):
        folders.insert(0, Path(os.environ[WEIGHTS_FOLDER_VARIABLE]).expanduser())
    for folder in folders:
        if (folder / BACKBONE_FILE).is_file():
            return folder / BACKBONE_FILE
    raise MissingWeights(
        f"the perceptual loss needs {BACKBONE_FILE} ({BACKBONE_URL}): put it into {folders[0]}, or name its folder in "
        f"${WEIGHTS_FOLDER_VARIABLE}, or train without it by --pipeline.model.perceptual none"
    )


def _locate_channel_weights() -> Path:
    spec = find_spec("torchmetrics")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("torchmetrics")
    path = folder / "functional" / "image" / "lpips_models" / "vgg.pth"
    if not path.is_file():
        raise MissingWeights(f"the perceptual loss needs {path}, a part of torchmetrics: pip install torchmetrics")
    return path


@dataclass(frozen=True)
class _Network:
    """Plain tensors instead of a module, so that no state dict, optimiser or training mode can ever reach them."""

    convolutions: tuple[tuple[tuple[Tensor, Tensor], ...], ...]  # per stage, per layer: weight and bias
    channel_weights: tuple[Tensor, ...]  # per stage [1, channels, 1, 1], not negative
    shift: Tensor  # [3, 1, 1]
    scale: Tensor  # [3, 1, 1]

    @classmethod
    def load(cls, backbone: Path, device: torch.device) -> _Network:
        """Read both files onto a device."""
        heads_path = _locate_channel_weights()
        vgg, heads = (torch.load(path, map_location="cpu", weights_only=True) for path in (backbone, heads_path))
        stages, layer, inputs = [], 0, 3
        for widths in STAGES:
            convolutions = []
            for width in widths:
                shape = (width, inputs, 3, 3)
                weight = _entry(vgg, f"features.{layer}.weight", shape, backbone)
                bias = _entry(vgg, f"features.{layer}.bias", (width,), backbone)
                convolutions.append((weight.to(device), bias.to(device)))
                layer, inputs = layer + 2, width  # torchvision counts the activation after each convolution
            stages.append(tuple(convolutions))
            layer += 1  # and the pooling after each stage
        channel_weights = tuple(
            _entry(heads, f"lin{stage}.model.1.weight", (1, widths[-1], 1, 1), heads_path).to(device)
            for stage, widths in enumerate(STAGES)
        )
        shift, scale = (torch.tensor(values, device=device)[:, None, None] for values in (SHIFT, SCALE))
        return cls(tuple(stages), channel_weights, shift, scale)

    def features(self, image: Tensor) -> list[Tensor]:
        """Unit-length features [n, channels, h, w] of each stage, of images [n, 3, height, width] in [0, 1]."""
        x = (2 * image - 1 - self.shift) / self.scale
        outputs = []
        for stage, convolutions in enumerate(self.convolutions):
            x = functional.max_pool2d(x, 2) if stage else x
            for weight, bias in convolutions:
                x = functional.relu(functional.conv2d(x, weight, bias, padding=1))
            exact = x.float()
            outputs.append(exact / (exact.square().sum(1, keepdim=True) + NORM_EPSILON).sqrt())
        return outputs


def _entry(state: Mapping[str, Tensor], key: str, shape: tuple[int, ...], path: Path) -> Tensor:
    if key not in state or state[key].shape != shape:
        found = list(state[key].shape) if key in state else "nothing"
        raise CheckpointMismatch(f"{path}: {key} must have shape {list(shape)}, found {found}: fetch the file again")
    return state[key].detach()


class PerceptualDistance:
    """LPIPS v0.1 between images in [0, 1], averaged over images. Frozen, and no part of any state dict.

    The network is read on the first call, once per device. Values outside [0, 1] are not clamped, as in the original.

    Args:
        dtype: Type that the convolutions run in (by autocast); None is float32, as for measuring.
        backbone: File of the VGG16 weights; by default it is looked for.

    Raises:
        MissingWeights: On construction, so that a long training does not find out at the step that needs the weights.
    """

    def __init__(self, dtype: torch.dtype | None = None, backbone: Path | None = None) -> None:
        self._backbone = backbone or locate_backbone()
        self._dtype = dtype
        self._networks: dict[torch.device, _Network] = {}

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean distance [] of images [..., 3, height, width], at least 16 pixels wide and high.

        Differentiable to both.
        """
        return self.per_image(prediction, target).mean()

    def per_image(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Distance of each pair of images, [...]."""
        network = self._network(prediction.device)
        with torch.autocast(prediction.device.type, self._dtype, enabled=self._dtype is not None):
            ours, theirs = (network.features(image.reshape(-1, *image.shape[-3:])) for image in (prediction, target))
        distances = [
            (weights * (a - b).square()).sum(1).mean((-2, -1))
            for weights, a, b in zip(network.channel_weights, ours, theirs, strict=True)
        ]
        return torch.stack(distances).sum(0).reshape(prediction.shape[:-3])

    def _network(self, device: torch.device) -> _Network:
        if device not in self._networks:
            self._networks[device] = _Network.load(self._backbone, device)
        return self._networks[device]
