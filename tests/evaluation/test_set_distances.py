"""Claims about FID and KID: formulas on given features, PNG files read in order, clear words without weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from torch import Tensor

from lsplat_ns.errors import CheckpointMismatch, MissingWeights, SceneDataError
from lsplat_ns.evaluation import set_distances as module
from lsplat_ns.evaluation.set_distances import (
    INCEPTION_FILES,
    INCEPTION_URL,
    Inception,
    frechet_distance,
    kernel_distance,
    set_distances,
)


def features(seed: int, count: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, 6)) + shift).astype(np.float32)


def test_fid_is_its_formula() -> None:
    real, fake = features(0, 200), features(1, 150, 0.3)
    means, covariances = [f.mean(0) for f in (real, fake)], [np.cov(f, rowvar=False) for f in (real, fake)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    wanted = np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(real, fake) == pytest.approx(wanted, rel=1e-4)


def unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a.astype(np.float64) @ b.T.astype(np.float64) / a.shape[1] + 1) ** 3

    def off_diagonal(k: np.ndarray) -> float:
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    return off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()


def test_kid_of_small_sets_is_the_unbiased_estimate_with_the_cubic_kernel() -> None:
    real, fake = features(0, 40), features(1, 40, 0.5)
    mean, std = kernel_distance(real, fake)
    assert mean == pytest.approx(unbiased_mmd(real, fake), rel=1e-6) and std == pytest.approx(0, abs=1e-9)


def test_kid_of_large_sets_is_a_mean_over_random_subsets_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (module.KID_SUBSETS, module.KID_SUBSET_SIZE) == (100, 1000)
    monkeypatch.setattr(module, "KID_SUBSET_SIZE", 30)
    real, fake = features(0, 200), features(1, 100, 0.5)
    mean, std = kernel_distance(real, fake)
    assert kernel_distance(real, fake) == (mean, std)
    assert std > 0 and mean == pytest.approx(unbiased_mmd(real, fake), abs=3 * std / 10)


def write_pictures(folder: Path, seed: int, count: int) -> list[Path]:
    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 255, (count, 8, 9, 3), dtype=np.uint8)
    paths = [folder / f"{i}.png" for i in range(count)]
    for path, picture in zip(paths, pixels, strict=True):
        Image.fromarray(picture).save(path)
    return paths


@pytest.mark.parametrize("content", [None, b"no picture", b"\x89PNG\r\n\x1a\n then nothing"])
def test_an_image_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    ours, theirs = write_pictures(tmp_path / "a", 0, 2), write_pictures(tmp_path / "b", 1, 2)
    ours[1].unlink()
    if content is not None:
        ours[1].write_bytes(content)
    with pytest.raises(SceneDataError, match=r"cannot read image .*1.png: .") as raised:
        set_distances(ours, theirs, lambda images: images.float().mean((2, 3)), tmp_path)
    assert "\n" not in str(raised.value)


def test_features_are_those_of_the_files_in_their_order_and_every_image_is_told(tmp_path: Path) -> None:
    ours, theirs = write_pictures(tmp_path / "a", 0, 21), write_pictures(tmp_path / "b", 1, 21)

    def features_of(images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 8, 9)
        return images.float().mean((2, 3)) / 255

    def features_alone(paths: list[Path]) -> np.ndarray:
        return np.stack([np.asarray(Image.open(path), np.float32).mean((0, 1)) / 255 for path in paths])

    told = []
    found = set_distances(ours, theirs, features_of, tmp_path, told.append)
    assert found.fid == pytest.approx(frechet_distance(features_alone(theirs), features_alone(ours)), rel=1e-3)
    assert found.kid == pytest.approx(unbiased_mmd(features_alone(theirs), features_alone(ours)), abs=1e-6)
    assert found.images == 21 and sum(told) == 42 and max(told) <= module.BATCH
    same = set_distances(ours, ours, features_of, tmp_path)
    assert same.fid == pytest.approx(0, abs=1e-4)


@pytest.fixture
def stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which weights are looked for."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("LSPLAT_WEIGHTS", str(tmp_path))
    return tmp_path


def test_without_inceptions_weights_the_message_says_what_where_from_and_where_to(stated: Path) -> None:
    with pytest.raises(MissingWeights) as raised:
        Inception()
    for part in (INCEPTION_FILES[0], INCEPTION_URL, str(stated)):
        assert part in str(raised.value)


def test_a_file_that_would_run_something_or_is_not_inceptions_is_refused(stated: Path) -> None:
    path = stated / INCEPTION_FILES[1]
    torch.save({"weights": Path("not a tensor")}, path)
    with pytest.raises(CheckpointMismatch, match=r"is not FID's Inception"):
        Inception()
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(CheckpointMismatch, match=r"is not FID's Inception"):
        Inception()


def test_inception_is_torch_fidelitys_network_with_the_weights_of_the_file(
    stated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    original = library.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(library.torch, "load", lambda *_, **__: {})
        patch.setattr(original, "load_state_dict", lambda *_, **__: None)
        network = original("random", ["2048"], "nowhere")
    torch.save(network.state_dict(), stated / INCEPTION_FILES[0])
    images = torch.randint(0, 255, (2, 3, 20, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        wanted = network(images)[0]
    found = Inception()(images)
    assert found.shape == (2, 2048) and not torch.equal(found[0], found[1])
    torch.testing.assert_close(found, wanted)
