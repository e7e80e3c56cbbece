"""Files for other viewers show what our renderer shows."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lsplat_ns.checkpoints.exports import (
    ViewerGaussians,
    read_npz,
    read_ply,
    viewer_gaussians,
    write_npz,
    write_ply,
    write_splat,
)
from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.covariance import covariances_from_scales, rotation_from_quaternions
from lsplat_ns.geometry.similarity import Similarity
from lsplat_ns.rendering.rasterization import Ellipsoids, pixel_cameras
from lsplat_ns.rendering.reference import rasterize_in_pytorch
from lsplat_ns.rendering.splatting import SplattingConfig, splat
from lsplat_ns.scene import Cameras, VariationalGaussians

SIZE = (48, 64)
SIMILARITY = Similarity(
    0.37, rotation_from_quaternions(torch.tensor([0.3, -0.5, 0.2, 0.8])), torch.tensor([1.0, -2, 3])
)


def scene(count: int = 400, seed: int = 0) -> VariationalGaussians:
    """Gaussians in front of the origin, with strong view dependence; some of them faint."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, count, *shape, generator=generator)

    return VariationalGaussians(
        means=draw(3) * 0.6 + torch.tensor([0.0, 0.0, 3.0]),
        covariances=covariances_from_scales(draw(3).exp() * 0.05, draw(4)),
        opacities=draw().sigmoid() ** 3,
        color_harmonics=draw(3, 25) * 0.4,
        features=DiagonalGaussian(draw(4, 9), draw(4, 9)),
    )


def cameras(count: int = 2) -> Cameras:
    poses = torch.eye(4).repeat(1, count, 1, 1)
    poses[0, 1, :3, :3] = rotation_from_quaternions(torch.tensor([0.0, 0.1, 0.05, 1.0]))
    poses[0, 1, :3, 3] = torch.tensor([-0.5, 0.2, 0.1])
    intrinsics = torch.tensor([[1.0, 0, 0.5], [0, 1.3, 0.5], [0, 0, 1]]).repeat(1, count, 1, 1)
    return Cameras(poses, intrinsics, torch.full((1, count), 0.1), torch.full((1, count), 100.0))


def inria_basis(d: Tensor) -> Tensor:
    """The 16 functions of 3D Gaussian splatting, written out from its viewers' shaders."""
    x, y, z = d.unbind(-1)
    c0, c1 = 0.28209479177387814, 0.4886025119029199
    return torch.stack([
        torch.full_like(x, c0), -c1 * y, c1 * z, -c1 * x,
        1.0925484305920792 * x * y, -1.0925484305920792 * y * z, 0.31539156525252005 * (2 * z * z - x * x - y * y),
        -1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y),
        -0.5900435899266435 * y * (3 * x * x - y * y), 2.890611442640554 * x * y * z,
        -0.4570457994644658 * y * (4 * z * z - x * x - y * y),
        0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y),
        -0.4570457994644658 * x * (4 * z * z - x * x - y * y), 1.445305721320277 * z * (x * x - y * y),
        -0.5900435899266435 * x * (x * x - 3 * y * y),
    ], -1)  # fmt: skip


def as_a_viewer_draws(splats: ViewerGaussians, view: Cameras) -> Tensor:
    """Colour [t, 3, h, w] from nothing but what the file says."""
    x, y, z, w = splats.quaternions_wxyz[:, [1, 2, 3, 0]].unbind(-1)
    covariances = covariances_from_scales(splats.scales, torch.stack([x, y, z, w], -1))
    directions = torch.nn.functional.normalize(splats.means - view.origins[0][:, None], dim=-1)
    basis = inria_basis(directions)[..., : splats.harmonics.shape[-1]]
    colors = (torch.einsum("vgk,gck->vgc", basis, splats.harmonics) + 0.5).clamp_min(0)
    pixels = pixel_cameras(view, SIZE, "centred", 0.2).select(0, slice(None))
    ellipsoids = Ellipsoids(splats.means, covariances, splats.opacities)
    return rasterize_in_pytorch(ellipsoids, colors, pixels, SIZE).values


def psnr(left: Tensor, right: Tensor) -> float:
    return float(-10 * (left - right).square().mean().log10())


@pytest.mark.parametrize("similarity", [None, SIMILARITY], ids=["same frame", "other frame"])
def test_a_ply_read_back_draws_the_splatted_colour(similarity: Similarity | None, tmp_path: Path) -> None:
    gaussians, view = scene().mode(), cameras()
    expected = splat(gaussians, view, SIZE, SplattingConfig(backend="reference")).color[0]
    assert expected.std() > 0.1
    path = tmp_path / "sub" / "scene.ply"
    written = write_ply(path, gaussians, similarity)
    splats = read_ply(path)
    faint = gaussians.opacities[0] < 1 / 255
    assert 0 < faint.sum() and written == splats.count == int((~faint).sum())
    if similarity is not None:
        poses = similarity.apply_to_poses(view.world_from_camera)
        view = Cameras(poses, view.intrinsics_norm, view.near * similarity.scale, view.far * similarity.scale)
    assert psnr(as_a_viewer_draws(splats, view), expected) > 60
    assert [file.name for file in path.parent.iterdir()] == ["scene.ply"]


def test_harmonics_matter_for_that_claim(tmp_path: Path) -> None:
    gaussians, view = scene().mode(), cameras()
    expected = splat(gaussians, view, SIZE, SplattingConfig(backend="reference")).color[0]
    write_ply(tmp_path / "flat.ply", gaussians, degree=0)
    assert psnr(as_a_viewer_draws(read_ply(tmp_path / "flat.ply"), view), expected) < 30


def test_a_ply_has_the_columns_of_3dgs_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "scene.ply"
    splats = viewer_gaussians(scene(50).mode())
    write_ply(path, scene(50).mode(), keep="finite")
    header, _, body = path.read_bytes().partition(b"end_header\n")
    names = [line.split()[2] for line in header.decode().splitlines() if line.startswith("property float ")]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:54] == [f"f_rest_{i}" for i in range(45)]
    assert names[54:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    table = np.frombuffer(body, "<f4").reshape(50, 62)
    np.testing.assert_allclose(table[:, 9 + 15 + 2], splats.harmonics[:, 1, 3].numpy())  # green, fourth function
    np.testing.assert_allclose(1 / (1 + np.exp(-table[:, 54])), splats.opacities.numpy(), atol=2e-6)
    np.testing.assert_allclose(np.exp(table[:, 55:58]), splats.scales.numpy(), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(table[:, 58:], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(table[:, :3], scene(50).means[0].numpy())


def test_gaussians_with_numbers_that_are_not_finite_are_left_out() -> None:
    gaussians = scene(20).mode()
    gaussians.means[0, 3, 1], gaussians.opacities[0, 5] = float("nan"), float("inf")
    assert viewer_gaussians(gaussians).count == 18


@pytest.mark.parametrize("content", [b"", b"ply\nformat ascii 1.0\nend_header\n", b"\xff\xfe"])
def test_other_files_are_no_ply_of_gaussians(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.ply").write_bytes(content)
    with pytest.raises(SceneDataError, match="no PLY of Gaussians"):
        read_ply(tmp_path / "x.ply")


def test_a_ply_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ply"
    write_ply(path, scene(50).mode())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SceneDataError, match="no PLY of Gaussians"):
        read_ply(path)


def test_a_splat_file_holds_32_bytes_per_gaussian_most_visible_first(tmp_path: Path) -> None:
    path, gaussians = tmp_path / "scene.splat", scene(60).mode()
    count = write_splat(path, gaussians, SIMILARITY)
    assert path.stat().st_size == 32 * count
    records = np.fromfile(
        path, [("position", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)]
    )
    size = records["scale"].prod(1) * (records["color"][:, 3] / 255)
    assert size[0] > size[-1]
    splats = viewer_gaussians(gaussians, SIMILARITY, degree=0, keep="visible")
    first = int((splats.opacities * splats.scales.prod(-1)).argmax())
    np.testing.assert_allclose(records["position"][0], splats.means[first], rtol=1e-6)
    np.testing.assert_allclose(records["scale"][0], splats.scales[first], rtol=1e-6)
    rgb = (0.5 + 0.28209479177387814 * splats.harmonics[first, :, 0]).clamp(0, 1)
    np.testing.assert_allclose(records["color"][0, :3] / 255, rgb, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(
        (records["rotation"][0].astype(float) - 128) / 128, splats.quaternions_wxyz[first], atol=0.01
    )


def test_an_npz_gives_back_exactly_what_was_written(tmp_path: Path) -> None:
    path, original = tmp_path / "scene.npz", scene(30)
    assert write_npz(path, original, SIMILARITY) == 30
    again, similarity = read_npz(path)
    for name in ("means", "covariances", "opacities", "color_harmonics"):
        assert torch.equal(getattr(again, name), getattr(original, name))
    assert torch.equal(again.features.mean, original.features.mean)
    assert torch.equal(again.features.logvar, original.features.logvar)
    assert similarity.scale == SIMILARITY.scale
    assert torch.equal(similarity.rotation, SIMILARITY.rotation)
    assert torch.equal(similarity.translation, SIMILARITY.translation)


def test_an_npz_of_a_model_without_variance_has_none(tmp_path: Path) -> None:
    original = scene(5)
    plain = VariationalGaussians(
        original.means, original.covariances, original.opacities, original.color_harmonics,
        DiagonalGaussian(original.features.mean),
    )  # fmt: skip
    write_npz(tmp_path / "x.npz", plain)
    assert read_npz(tmp_path / "x.npz")[0].features.logvar is None


def test_other_npz_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", means=np.zeros(3))
    with pytest.raises(SceneDataError, match="no npz file of Gaussians"):
        read_npz(tmp_path / "x.npz")


def test_a_failed_write_leaves_the_file_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    write_npz(path, scene(5))
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(SceneDataError, match=r"cannot write .*x.npz: disk full; the old file is unchanged"):
        write_npz(path, scene(6))
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("ending", ["ply", "splat", "npz"])
def test_a_full_disk_is_one_line_and_leaves_nothing(ending: str, tmp_path: Path) -> None:
    write = {"ply": write_ply, "splat": write_splat, "npz": write_npz}[ending]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(SceneDataError, match=f"cannot write .*x.{ending}: File too large"):
            write(tmp_path / f"x.{ending}", scene(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_prediction_is_written_within_seconds(tmp_path: Path) -> None:
    gaussians = scene(393_216).mode()
    start = time.process_time()
    write_ply(tmp_path / "x.ply", gaussians, SIMILARITY)
    write_splat(tmp_path / "x.splat", gaussians, SIMILARITY)
    assert time.process_time() - start < 30
