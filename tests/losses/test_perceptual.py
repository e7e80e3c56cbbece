"""Claims about LPIPS: same numbers as torchmetrics, frozen, invisible to state dicts, clear when weights are absent.

The real VGG16 weights are not needed: a network of random weights, written in torchvision's file format, stands in.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lsplat_ns.errors import CheckpointMismatch, MissingWeights
from lsplat_ns.losses import PerceptualDistance
from lsplat_ns.losses.perceptual import BACKBONE_FILE, BACKBONE_URL, STAGES


@pytest.fixture(scope="module")
def backbone() -> dict[str, Tensor]:
    """Random weights under the keys of torchvision's ``vgg16().features``."""
    generator = torch.Generator().manual_seed(0)
    state, layer, inputs = {}, 0, 3
    for widths in STAGES:
        for width in widths:
            scale = (2 / (9 * inputs)) ** 0.5
            state[f"features.{layer}.weight"] = scale * torch.randn(width, inputs, 3, 3, generator=generator)
            state[f"features.{layer}.bias"] = 0.1 * torch.randn(width, generator=generator)
            layer, inputs = layer + 2, width
        layer += 1
    return state


@pytest.fixture(scope="module")
def saved(backbone: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.save(backbone, folder / BACKBONE_FILE)
    return folder


@pytest.fixture
def distance(saved: Path, monkeypatch: pytest.MonkeyPatch) -> PerceptualDistance:
    monkeypatch.setenv("LSPLAT_WEIGHTS", str(saved))
    return PerceptualDistance()


@pytest.fixture(scope="module")
def torchmetrics_lpips(backbone: dict[str, Tensor]) -> nn.Module:
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
    torchvision = pytest.importorskip("torchvision")
    with pytest.MonkeyPatch.context() as patch:
        with torch.device("meta"):
            features = torchvision.models.vgg16(weights=None).features
        features.to_empty(device="cpu").load_state_dict(
            {key.removeprefix("features."): value for key, value in backbone.items()}
        )
        patch.setattr(lpips, "_get_tv_model_features", lambda *_: features)
        return lpips._LPIPS(net="vgg", pnet_rand=True)


def _pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 2, 3, 32, 40, generator=generator), torch.rand(2, 2, 3, 32, 40, generator=generator)


def test_distance_equals_torchmetrics_with_the_same_weights(
    distance: PerceptualDistance, torchmetrics_lpips: nn.Module
) -> None:
    prediction, target = _pair()
    prediction = 1.4 * prediction - 0.2  # the decoder's output is not clamped
    expected = torchmetrics_lpips(prediction.flatten(0, 1), target.flatten(0, 1), normalize=True).view(2, 2)
    torch.testing.assert_close(distance.per_image(prediction, target), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(distance(prediction, target), expected.mean(), rtol=1e-5, atol=0)


def test_gradient_equals_torchmetrics_with_the_same_weights(
    distance: PerceptualDistance, torchmetrics_lpips: nn.Module
) -> None:
    prediction, target = (images[:1, 0] for images in _pair())
    ours, theirs = prediction.clone().requires_grad_(), prediction.clone().requires_grad_()
    distance(ours, target).backward()
    torchmetrics_lpips(theirs, target, normalize=True).mean().backward()
    assert (ours.grad - theirs.grad).norm() < 1e-4 * theirs.grad.norm()


def test_distance_of_an_image_to_itself_is_zero(distance: PerceptualDistance) -> None:
    image, other = (images[0, :1] for images in _pair())
    assert distance(image, image) == 0 and distance(image, other) > 0


def test_network_is_read_once_and_never_part_of_a_module(distance: PerceptualDistance) -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.perceptual = distance

    owner = Owner()
    image = torch.rand(1, 3, 16, 16)
    distance(image, image)
    network = distance._network(image.device)
    owner.perceptual(image, image)
    assert distance._network(image.device) is network
    assert not owner.state_dict() and not list(owner.parameters())
    assert not any(tensor.requires_grad for stage in network.convolutions for layer in stage for tensor in layer)


def test_weights_are_found_in_the_checkpoint_folder_of_torch_hub(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LSPLAT_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MissingWeights) as caught:
        PerceptualDistance()
    message = str(caught.value)
    folder = str(tmp_path / "checkpoints")
    for part in (BACKBONE_FILE, BACKBONE_URL, folder, "LSPLAT_WEIGHTS", "--pipeline.model.perceptual none"):
        assert part in message
    assert "\n" not in message

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / BACKBONE_FILE).symlink_to(saved / BACKBONE_FILE)
    image = torch.rand(1, 3, 16, 16)
    assert PerceptualDistance()(image, image) == 0


def test_a_wrong_file_is_named_with_its_first_wrong_entry(
    backbone: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSPLAT_WEIGHTS", str(tmp_path))
    image = torch.rand(1, 3, 16, 16)
    broken = {key: value for key, value in backbone.items() if key != "features.12.bias"}
    for state in (broken, broken | {"features.12.bias": torch.zeros(3)}):
        torch.save(state, tmp_path / BACKBONE_FILE)
        with pytest.raises(CheckpointMismatch, match=r"features\.12\.bias"):
            PerceptualDistance()(image, image)
