"""Claims about image metrics: the numbers of the libraries that the original calls; clear words without weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from lsplat_ns.evaluation.metrics import find_image_metrics, psnr, ssim
from lsplat_ns.losses.perceptual import BACKBONE_FILE, BACKBONE_URL
from lsplat_ns.plugin.bench_training import write_random_perceptual_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random numbers in a file like that of VGG16."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_random_perceptual_weights(folder)
    return folder


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No folder of this machine holds weights; the first one that is looked into."""
    monkeypatch.setenv("LSPLAT_WEIGHTS", str(tmp_path / "stated"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "stated"


def images(seed: int, size: tuple[int, int] = (32, 48), count: int = 3) -> Tensor:
    """Smooth pictures, as noise would make every window alike; beyond [0, 1] here and there."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    return 1.2 * smooth - 0.1 + 0.05 * torch.randn(count, 3, *size, generator=generator)


def as_array(image: Tensor) -> np.ndarray:
    return image.clamp(0, 1).numpy()


def test_psnr_and_ssim_are_those_of_scikit_image_on_clipped_images_with_the_originals_options() -> None:
    prediction, target = images(0), images(1)
    for i, (one, other) in enumerate(zip(prediction, target, strict=True)):
        wanted = peak_signal_noise_ratio(as_array(other), as_array(one), data_range=1)
        assert float(psnr(prediction, target)[i]) == pytest.approx(wanted, abs=1e-4)
        wanted = structural_similarity(
            as_array(other), as_array(one), win_size=11, gaussian_weights=True, channel_axis=0, data_range=1.0
        )
        assert float(ssim(prediction, target)[i]) == pytest.approx(wanted, abs=2e-6)


def test_what_is_undefined_is_no_number() -> None:
    found = find_image_metrics(("psnr", "ssim"))
    assert bool(found.measure(images(0), images(0))["psnr"].isinf().all())
    small = found.measure(images(0, (10, 40)), images(1, (10, 40)))
    assert bool(small["ssim"].isnan().all()) and bool(small["psnr"].isfinite().all())


def test_without_vggs_weights_the_message_says_what_where_from_and_where_to(no_weights: Path) -> None:
    found = find_image_metrics()
    assert set(found.available) == {"psnr", "ssim"} and set(found.unavailable) == {"lpips", "dists"}
    for why in found.unavailable.values():
        assert BACKBONE_FILE in why and BACKBONE_URL in why and str(no_weights) in why and "\n" not in why
        assert "train" not in why  # nobody does


def test_a_file_that_is_no_vgg_is_named(no_weights: Path) -> None:
    no_weights.mkdir()
    (no_weights / BACKBONE_FILE).write_bytes(b"no archive")
    assert (
        f"{no_weights / BACKBONE_FILE} is not torchvision's VGG16"
        in find_image_metrics(("dists",)).unavailable["dists"]
    )


def test_dists_is_torchmetrics_on_the_weights_of_the_file(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("torchmetrics.functional.image.dists")
    from torchvision.models import vgg16

    monkeypatch.setenv("LSPLAT_WEIGHTS", str(weights))
    found = find_image_metrics(("dists", "lpips"))
    assert not found.unavailable
    prediction, target = images(0).clamp(0, 1), images(1).clamp(0, 1)
    measured = found.measure(prediction, target)

    reference = vgg16(weights=None)
    reference.load_state_dict(torch.load(weights / BACKBONE_FILE, weights_only=True), strict=False)
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(library, "vgg16", lambda **_: reference)
        wanted = library.DISTSNetwork()(prediction, target)
    torch.testing.assert_close(measured["dists"], wanted, atol=1e-6, rtol=1e-5)
    itself = found.measure(target, target)
    torch.testing.assert_close(itself["dists"], torch.zeros(3), atol=1e-5, rtol=0)
    assert not bool(itself["lpips"].any()) and float(measured["lpips"].min()) > 0
    too_small = found.measure(images(0, (15, 40)), images(1, (15, 40)))
    assert all(bool(values.isnan().all()) for values in too_small.values())
