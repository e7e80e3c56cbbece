"""Real spherical harmonics in latentSplat's basis: evaluation, rotation, band mask and conversion to 3DGS.

Coefficients are the last axis, (degree + 1)^2 of them, ordered by band l and within it by m = -l ... l. The polar axis
is y. The basis is the one of 3D Gaussian splatting evaluated at (z, x, y), with one slip in coefficient 14.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from lsplat_ns.errors import ShapeMismatch

MAX_DEGREE = 4
POLAR_STEPS = 6
"""Steps of Newton's iteration to the nearest rotation; two suffice for float32 rounding, six for errors of a fifth."""

C0 = 0.28209479177387814
C1 = 0.4886025119029199
C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)
C4 = (
    2.5033429417967046,
    1.7701307697799304,
    0.9461746957575601,
    0.6690465435572892,
    0.10578554691520431,
    0.47308734787878004,
    0.6258357354491761,
)


def coefficient_count(degree: int) -> int:
    """Number of coefficients of a degree."""
    return (degree + 1) ** 2


def harmonic_basis(directions: Tensor, degree: int, *, regular: bool = False) -> Tensor:
    """Basis functions at unit directions.

    Args:
        directions: [..., 3] unit vectors, from the camera centre towards the Gaussian, world axes.
        degree: 0 to 4.
        regular: Use y(z^2 - x^2) for function 14 instead of the z(z^2 - x^2) that the released networks were trained
            with. The regular functions are orthonormal.

    Returns:
        [..., (degree + 1)^2], differentiable to the directions.
    """
    return torch.stack(harmonic_functions(directions, degree, regular=regular), dim=-1)


def harmonic_functions(directions: Tensor, degree: int, *, regular: bool = False) -> list[Tensor]:
    """:func:`harmonic_basis` as a list of (degree + 1)^2 tensors [...]: compiled code need not store them."""
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"harmonics of degree {degree} were asked for, but only 0 to {MAX_DEGREE} exist")
    x, y, z = directions.unbind(-1)
    functions = [torch.full_like(x, C0)]
    if degree >= 1:
        functions += [-C1 * x, C1 * y, -C1 * z]
    if degree >= 2:
        xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
        zz_xx = zz - xx
        functions += [C2[0] * xz, -C2[0] * xy, C2[1] * (2 * yy - zz - xx), -C2[0] * yz, C2[2] * zz_xx]
    if degree >= 3:
        functions += [
            -C3[0] * x * (3 * zz - xx),
            C3[1] * xy * z,
            -C3[2] * x * (4 * yy - zz - xx),
            C3[3] * y * (2 * yy - 3 * zz - 3 * xx),
            -C3[2] * z * (4 * yy - zz - xx),
            C3[4] * (y if regular else z) * zz_xx,
            -C3[0] * z * (zz - 3 * xx),
        ]
    if degree >= 4:
        functions += [
            C4[0] * xz * zz_xx,
            -C4[1] * xy * (3 * zz - xx),
            C4[2] * xz * (7 * yy - 1),
            -C4[3] * xy * (7 * yy - 3),
            C4[4] * (35 * yy * yy - 30 * yy + 3),
            -C4[3] * yz * (7 * yy - 3),
            C4[5] * zz_xx * (7 * yy - 1),
            -C4[1] * yz * (zz - 3 * xx),
            C4[6] * (zz * (zz - 3 * xx) - xx * (3 * zz - xx)),
        ]
    return functions


def evaluate_harmonics(coefficients: Tensor, directions: Tensor, degree: int) -> Tensor:
    """Value of a function on the sphere, differentiable to coefficients and directions.

    Args:
        coefficients: [..., K] with K >= (degree + 1)^2; those of higher bands are ignored.
        directions: [..., 3] unit vectors. Leading axes broadcast against those of the coefficients.
        degree: Highest band to use, 0 to 4.

    Returns:
        [...], without the offset of 1/2.
    """
    count = coefficient_count(degree)
    if coefficients.shape[-1] < count:
        raise ShapeMismatch(f"coefficients of degree {degree}", f"[..., >= {count}]", coefficients.shape)
    return torch.einsum("...k,...k->...", coefficients[..., :count], harmonic_basis(directions, degree))


def rotation_blocks(rotation: Tensor, degree: int, *, consistent: bool = False) -> Tensor:
    """Block-diagonal matrix that rotates coefficients, one block per band.

    Block l is the D with Y_l(R d) = D Y_l(d) for the real harmonics Y_l with polar axis y and positive constants,
    integrated exactly in float64. Not differentiable to the rotation, which is orthonormalised first.

    Args:
        rotation: [..., 3, 3], world from camera.
        degree: 0 to 4.
        consistent: The released networks apply D(R) although the basis is Y_l(F d) with F = diag(-1, 1, -1); what
            turns is then F R F. True applies D(F R F), so that the function itself is rotated by R.

    Returns:
        [..., K, K] in the type of the rotation.
    """
    with torch.no_grad():
        matrix = _orthonormal(rotation.double())
        if not consistent:
            # Y(d) = B(F d), so D(R) in terms of B is the matrix of F R F.
            half_turn = matrix.new_tensor([-1.0, 1.0, -1.0])
            matrix = half_turn[:, None] * matrix * half_turn
        # D = integral of Y(R d) Y(d)^T over the sphere, since the Y are orthonormal.
        directions, weights = _quadrature(matrix)
        rotated = harmonic_basis(directions @ matrix.mT, degree, regular=True)
        still = weights[:, None] * harmonic_basis(directions, degree, regular=True)
        blocks = matrix.new_zeros(*matrix.shape[:-2], rotated.shape[-1], rotated.shape[-1])
        for band in range(degree + 1):
            span = slice(band**2, (band + 1) ** 2)
            blocks[..., span, span] = rotated[..., span].mT @ still[:, span]
        return blocks.to(rotation.dtype)


def rotate_harmonics(coefficients: Tensor, rotation: Tensor, *, consistent: bool = False) -> Tensor:
    """Turn coefficients from camera to world axes, band by band.

    With ``consistent=False`` (the rule of the released checkpoints) evaluating the result at d equals evaluating the
    input at F R^T F d with F = diag(-1, 1, -1); with True, at R^T d. Both hold for all but coefficient 14.

    Args:
        coefficients: [..., K].
        rotation: [..., 3, 3], leading axes broadcast against those of the coefficients. One block matrix is built per
            rotation, so give it axes of size 1 where Gaussians share a camera.
        consistent: See :func:`rotation_blocks`.

    Returns:
        [..., K], differentiable to the coefficients only. Source: the original's e3nn rotation.
    """
    count = coefficients.shape[-1]
    degree = round(count**0.5) - 1
    if coefficient_count(degree) != count or degree > MAX_DEGREE:
        raise ShapeMismatch("harmonics to rotate", "[..., 1, 4, 9, 16 or 25]", coefficients.shape)
    blocks = rotation_blocks(rotation, degree, consistent=consistent).to(coefficients.dtype)
    return torch.einsum("...ij,...j->...i", blocks, coefficients)


def band_mask(degree: int, device: torch.device | str | None = None) -> Tensor:
    """Factors [K] on predicted coefficients: 1 for the mean colour, 0.1 * 0.25^l for band l >= 1."""
    factors = [1.0 if band == 0 else 0.1 * 0.25**band for band in range(degree + 1) for _ in range(2 * band + 1)]
    return torch.tensor(factors, device=device)


def to_3dgs_harmonics(coefficients: Tensor) -> Tensor:
    """Coefficients of the same function in the usual 3D Gaussian splatting basis, for PLY export.

    Exact up to degree 3, the slip of coefficient 14 included. Band 4, which the renderer never uses, is dropped.

    Args:
        coefficients: [..., K] in latentSplat's basis, K = 1, 4, 9, 16 or 25, world axes.

    Returns:
        [..., min(K, 16)] to be evaluated at world directions (x, y, z) with the formula of 3DGS.
    """
    count = min(coefficients.shape[-1], coefficient_count(3))
    if count not in {1, 4, 9, 16}:
        raise ShapeMismatch("harmonics to convert", "[..., 1, 4, 9, 16 or 25]", coefficients.shape)
    matrix = _to_3dgs_matrix(round(count**0.5) - 1).to(coefficients)
    return coefficients[..., :count] @ matrix.mT


def rgb_from_dc(dc: Tensor) -> Tensor:
    """Colour of the constant band alone, any shape."""
    return 0.5 + C0 * dc


def dc_from_rgb(rgb: Tensor) -> Tensor:
    """Constant coefficient that shows a colour, any shape."""
    return (rgb - 0.5) / C0


def _orthonormal(matrix: Tensor) -> Tensor:
    """Nearest rotation [..., 3, 3] to a matrix that is one but for rounding, by Newton's iteration (Higham 1986).

    A singular value decomposition gives the same, but on a GPU it waits for the result.
    """
    for _ in range(POLAR_STEPS):
        rows = matrix.unbind(-2)
        cofactors = torch.stack([torch.linalg.cross(rows[i - 2], rows[i - 1], dim=-1) for i in range(3)], -2)
        determinant = (cofactors[..., 0, :] * rows[0]).sum(-1)[..., None, None]
        matrix = 0.5 * (matrix + cofactors / determinant)
    return matrix


def _quadrature(like: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors [50, 3] and weights [50], float64: exact integrals over the sphere of polynomials up to degree 9.

    Gauss-Legendre nodes along the polar axis times equal steps around it.
    """
    near, far = (math.sqrt(5 + sign * 2 * math.sqrt(10 / 7)) / 3 for sign in (-1, 1))
    heights = like.new_tensor([-far, -near, 0.0, near, far], dtype=torch.float64)
    inner, outer = ((322 + sign * 13 * math.sqrt(70)) / 900 for sign in (1, -1))
    weights = like.new_tensor([outer, inner, 128 / 225, inner, outer], dtype=torch.float64)
    angles = torch.arange(10, device=like.device, dtype=torch.float64) * (2 * torch.pi / 10)
    height, angle = (part.flatten() for part in torch.meshgrid(heights, angles, indexing="ij"))
    ring = (1 - height.square()).sqrt()
    vectors = torch.stack([ring * angle.cos(), height, ring * angle.sin()], dim=-1)
    return vectors, weights.repeat_interleave(10) * (2 * torch.pi / 10)


@cache
def _to_3dgs_matrix(degree: int) -> Tensor:
    """Matrix [K, K] from latentSplat's to 3DGS coefficients: scalar products of the two bases."""
    directions, weights = _quadrature(torch.empty(0))
    # The regular functions at (x, y, z) are those of 3DGS at (z, x, y), hence the latter at e are the former at:
    usual = harmonic_basis(directions[:, [1, 2, 0]], degree, regular=True)
    return (weights[:, None] * usual).mT @ harmonic_basis(directions, degree)
