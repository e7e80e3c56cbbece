"""Claims about spherical harmonics and covariances: the original's numbers, and the properties behind them."""

import pytest
import torch
from parity import recording
from torch import Tensor
from torch.nn.functional import normalize

from lsplat_ns.errors import ShapeMismatch
from lsplat_ns.geometry import covariance
from lsplat_ns.geometry.covariance import (
    covariances_from_scales,
    quaternions_from_rotation,
    rotation_from_quaternions,
    scales_and_quaternions,
    unit_quaternions,
)
from lsplat_ns.geometry.harmonics import (
    C3,
    band_mask,
    dc_from_rgb,
    evaluate_harmonics,
    harmonic_basis,
    rgb_from_dc,
    rotate_harmonics,
    rotation_blocks,
    to_3dgs_harmonics,
)

HALF_TURN = torch.diag(torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64))


def random_rotations(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    quaternions = unit_quaternions(torch.randn(count, 4, generator=generator, dtype=torch.float64))
    matrices = rotation_from_quaternions(quaternions)
    left, _, right = torch.linalg.svd(matrices)
    return left @ right


def random_function(count: int, degree: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Coefficients without the irregular function 14, and directions."""
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(count, (degree + 1) ** 2, generator=generator, dtype=torch.float64)
    if degree >= 3:
        coefficients[:, 14] = 0
    return coefficients, normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=-1)


def test_regular_basis_is_orthonormal_on_the_sphere():
    index = torch.arange(20000, dtype=torch.float64)
    height = 1 - (2 * index + 1) / 20000
    angle = index * torch.pi * (3 - 5**0.5)
    ring = (1 - height**2).sqrt()
    basis = harmonic_basis(torch.stack([ring * angle.cos(), height, ring * angle.sin()], -1), 4, regular=True)
    gram = basis.mT @ basis * (4 * torch.pi / 20000)
    torch.testing.assert_close(gram, torch.eye(25, dtype=torch.float64), atol=1e-5, rtol=0)


def test_function_fourteen_keeps_the_slip_of_the_original():
    direction = torch.tensor([0.0, 0.6, 0.8])
    assert harmonic_basis(direction, 3)[14].item() == pytest.approx(C3[4] * 0.8 * 0.64)
    assert harmonic_basis(direction, 3, regular=True)[14].item() == pytest.approx(C3[4] * 0.6 * 0.64)


@pytest.mark.parametrize("degree", range(5))
def test_evaluation_and_rotation_equal_the_original(degree):
    case = recording("ls_sh")
    coefficients, directions = case.input(f"sh_{degree}"), case.input(f"dirs_{degree}")
    case.assert_close(f"eval/{degree}", evaluate_harmonics(coefficients, directions[:, None], degree), 2e-6)
    rotated = rotate_harmonics(coefficients, case.input("rotations")[:, None])
    case.assert_close(f"rotate/{degree}", rotated, 2e-5)


def test_rotation_blocks_equal_the_original():
    case = recording("ls_sh")
    blocks = rotation_blocks(case.input("rotations")[:4], 4)
    case.assert_close("rotation_matrix_deg4", blocks.mT, 5e-5)  # recorded with the rotated unit vectors in rows


@pytest.mark.parametrize("degree", range(5))
def test_rotating_then_evaluating_equals_evaluating_at_the_turned_back_direction(degree):
    rotation = random_rotations(16)
    coefficients, directions = random_function(16, degree)
    for consistent, turn in ((True, rotation), (False, HALF_TURN @ rotation @ HALF_TURN)):
        rotated = rotate_harmonics(coefficients, rotation, consistent=consistent)
        # Rotation mixes band 3 into function 14, so compare with the regular functions.
        actual = (rotated * harmonic_basis(directions, degree, regular=True)).sum(-1)
        turned_back = (turn.mT @ directions[..., None])[..., 0]
        torch.testing.assert_close(actual, evaluate_harmonics(coefficients, turned_back, degree), atol=1e-12, rtol=0)


def test_rotations_compose_and_the_identity_does_nothing():
    first, second = random_rotations(2)
    product = rotation_blocks(first, 4) @ rotation_blocks(second, 4)
    torch.testing.assert_close(product, rotation_blocks(first @ second, 4), atol=1e-12, rtol=0)
    identity = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(rotation_blocks(identity, 4), torch.eye(25, dtype=torch.float64), atol=1e-13, rtol=0)


def test_a_camera_rotation_that_is_not_quite_orthonormal_is_accepted():
    rotation = random_rotations(1)[0]
    distorted = rotation + 1e-3 * torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, -0.5]], dtype=torch.float64)
    blocks = rotation_blocks(distorted, 3)
    torch.testing.assert_close(blocks @ blocks.mT, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(blocks, rotation_blocks(rotation, 3), atol=5e-3, rtol=0)


def test_one_rotation_per_camera_broadcasts_over_its_gaussians():
    rotations = random_rotations(6).float().reshape(2, 3, 1, 1, 3, 3)
    coefficients = torch.randn(2, 3, 5, 4, 9, generator=torch.Generator().manual_seed(3))
    expected = rotate_harmonics(coefficients, rotations.expand(2, 3, 5, 4, 3, 3))
    torch.testing.assert_close(rotate_harmonics(coefficients, rotations), expected)


def test_3dgs_harmonics_show_the_same_function_slip_included():
    generator = torch.Generator().manual_seed(5)
    coefficients = torch.randn(32, 25, generator=generator, dtype=torch.float64)
    directions = normalize(torch.randn(32, 3, generator=generator, dtype=torch.float64), dim=-1)
    usual_basis = harmonic_basis(directions[:, [1, 2, 0]], 3, regular=True)
    actual = (to_3dgs_harmonics(coefficients) * usual_basis).sum(-1)
    torch.testing.assert_close(actual, evaluate_harmonics(coefficients, directions, 3), atol=1e-12, rtol=0)
    x, y, z = directions.unbind(-1)
    torch.testing.assert_close(usual_basis[:, 1:4], 0.4886025119029199 * torch.stack([-y, z, -x], -1))
    torch.testing.assert_close(usual_basis[:, 4], 1.0925484305920792 * x * y)


def test_band_mask_and_constant_band():
    mask = band_mask(4)
    assert mask.shape == (25,)
    torch.testing.assert_close(mask[[0, 1, 4, 9, 16]], torch.tensor([1.0, 0.025, 0.00625, 0.0015625, 0.000390625]))
    rgb = torch.tensor([0.0, 0.3, 1.0])
    torch.testing.assert_close(rgb_from_dc(dc_from_rgb(rgb)), rgb)
    torch.testing.assert_close(evaluate_harmonics(dc_from_rgb(rgb)[:, None], torch.ones(3, 3), 0) + 0.5, rgb)


def test_wrong_coefficient_counts_are_refused():
    with pytest.raises(ShapeMismatch):
        evaluate_harmonics(torch.zeros(2, 9), torch.zeros(2, 3), 3)
    with pytest.raises(ShapeMismatch):
        rotate_harmonics(torch.zeros(2, 10), torch.eye(3))
    with pytest.raises(ValueError, match="degree 5"):
        harmonic_basis(torch.zeros(2, 3), 5)


def test_covariances_equal_the_original():
    case = recording("ls_sh")
    quaternions, scales = case.input("quaternion_xyzw"), case.input("scale")
    case.assert_close("quaternion_to_matrix", rotation_from_quaternions(quaternions), 2e-6)
    case.assert_close("build_covariance", covariances_from_scales(scales, quaternions), 2e-6)


def test_scales_and_quaternions_rebuild_the_covariance():
    generator = torch.Generator().manual_seed(7)
    scales = torch.rand(64, 3, generator=generator, dtype=torch.float64).mul(12).sub(9).exp()
    rotation = random_rotations(64)
    covariances = rotation * scales[:, None, :] ** 2 @ rotation.mT
    actual, quaternions_wxyz = scales_and_quaternions(covariances)
    torch.testing.assert_close(actual, scales.sort(-1).values, rtol=1e-5, atol=0)
    torch.testing.assert_close(quaternions_wxyz.norm(dim=-1), torch.ones(64, dtype=torch.float64))
    rebuilt = covariances_from_scales(actual, quaternions_wxyz[:, [1, 2, 3, 0]])
    error = (rebuilt - covariances).abs().amax((1, 2)) / covariances.abs().amax((1, 2))
    assert error.max() < 1e-7


def test_parts_of_many_covariances_are_decomposed_as_the_whole(monkeypatch: pytest.MonkeyPatch):
    covariances = covariances_from_scales(torch.rand(2, 5, 3) + 0.1, torch.randn(2, 5, 4))
    whole = scales_and_quaternions(covariances)
    monkeypatch.setattr(covariance, "DECOMPOSED_AT_ONCE", 3)
    for part, one in zip(scales_and_quaternions(covariances), whole, strict=True):
        assert torch.equal(part, one)
    scales, quaternions = scales_and_quaternions(torch.zeros(0, 3, 3))
    assert scales.shape == (0, 3) and quaternions.shape == (0, 4)


@pytest.mark.gpu
def test_on_a_gpu_as_many_covariances_as_a_scene_has_are_decomposed():
    count = 400_000
    covariances = covariances_from_scales(torch.rand(count, 3) + 0.1, torch.randn(count, 4)).cuda()
    scales, quaternions_wxyz = scales_and_quaternions(covariances)
    rebuilt = covariances_from_scales(scales, quaternions_wxyz[:, [1, 2, 3, 0]])
    torch.testing.assert_close(rebuilt, covariances, atol=1e-4, rtol=1e-3)


def test_flat_and_round_gaussians_have_finite_quaternions():
    flat = torch.diag(torch.tensor([1e-12, 0.0, 4.0]))
    scales, quaternions = scales_and_quaternions(torch.stack([flat, torch.eye(3), torch.zeros(3, 3)]))
    assert torch.isfinite(scales).all()
    assert torch.isfinite(quaternions).all()
    torch.testing.assert_close(scales[0, 2].item(), 2.0)


def test_quaternions_of_half_turns_are_exact():
    turns = torch.stack([torch.diag(torch.tensor(d)) for d in ([1.0, -1, -1], [-1.0, 1, -1], [-1.0, -1, 1])])
    torch.testing.assert_close(quaternions_from_rotation(turns), torch.eye(4)[1:])


def test_a_camera_rotation_turns_the_covariance():
    generator = torch.Generator().manual_seed(9)
    scales, quaternions = torch.rand(8, 3, generator=generator), torch.randn(8, 4, generator=generator)
    turn = random_rotations(1)[0].float()
    local = covariances_from_scales(scales, quaternions)
    torch.testing.assert_close(covariances_from_scales(scales, quaternions, turn), turn @ local @ turn.mT)
