"""Front-to-back blending of screen-space ellipses in plain PyTorch, with a backward pass of bounded memory.

The images are cut into blocks of 8 x 8 pixels. Each block has a list of the Gaussians that can reach it, ordered by
depth. Blocks are processed side by side: a step takes the next 32 Gaussians of up to 128 blocks, and a block leaves
as soon as all its pixels are opaque. What a step needs to run again, its Gaussians and the transmittance it began
with, is kept for the backward pass; per-pixel opacities are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, threshold

BLOCK = 8
STEP_GAUSSIANS = 32
STEP_BLOCKS = 128
LIST_LENGTH = 1 << 20
"""Entries of all block lists that exist at one time. More Gaussians are drawn in several rounds, front to back."""

FADED = -100.0
"""Logarithm of the opacity of the Gaussian that fills up short lists."""


@dataclass(frozen=True)
class RasterRules:
    """The constants in which 3DGS rasterisers differ. The defaults are those of gsplat's CUDA kernels (1.4.0)."""

    alpha_max: float = 0.999
    alpha_min: float = 1 / 255
    transmittance_min: float = 1e-4
    blur: float = 0.3  # added to the variances on screen, in px^2
    eigenvalue_floor: float = 0.01  # under the square root of the larger eigenvalue's formula, in px^4
    tile: int = 16  # a Gaussian reaches the square tiles that its 3-sigma square touches
    tile_inset: tuple[float, float] = (0.0, 0.0)  # px by which that square starts and ends further to the right (down)
    straight_through: bool = False  # gradients ignore that alpha was clamped; clamped x/z, y/z count as constants


GSPLAT_RULES = RasterRules()
ORIGINAL_RULES = RasterRules(alpha_max=0.99, eigenvalue_floor=0.1, tile_inset=(0.5, 1.5), straight_through=True)
"""latentSplat's own CUDA rasteriser."""


@dataclass(frozen=True)
class ScreenGaussians:
    """Gaussians as seen by cameras, nearest first. One entry per visible pair of view and Gaussian, M in all."""

    view: Tensor  # [M] int64
    source: Tensor  # [M] int64, index of the Gaussian
    means: Tensor  # [M, 2], px
    conics: Tensor  # [M, 3], (a, b, c) of the exponent -(a dx^2 + 2 b dx dy + c dy^2) / 2
    opacities: Tensor  # [M]
    depth_z: Tensor  # [M]
    reach: Tensor  # [M, 4] int64, first and last column, first and last row it may touch; inside the image


def composite(
    screen: ScreenGaussians, values: Tensor, view_count: int, size: tuple[int, int], rules: RasterRules, attached: int
) -> Tensor:
    """Blend value vectors front to back.

    Args:
        screen: The Gaussians, ordered by depth within each view.
        values: [M, C], what is blended.
        view_count: Number of images V.
        size: Height and width in pixels.
        rules: Constants of the blending.
        attached: Gradients of the first ``attached`` channels reach positions, shapes and opacities; the other
            channels' gradients reach the values alone.

    Returns:
        [V, C + 1, height, width]: sums of values weighted by alpha times transmittance, and the sum of weights, which
        counts as attached. Differentiable (once) to values, means, conics and opacities.
    """
    height, width = size
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    plan = _Plan(screen.view, screen.reach, (view_count, rows, columns), size, rules, attached)
    blocks = _Composite.apply(screen.means, screen.conics, screen.opacities, values, plan)
    images = blocks.unflatten(0, (view_count, rows, columns)).unflatten(-1, (BLOCK, BLOCK))
    images = images.permute(0, 3, 1, 4, 2, 5).reshape(view_count, -1, rows * BLOCK, columns * BLOCK)
    return images[..., :height, :width]


@dataclass(frozen=True)
class _Plan:
    """The constant half of a blending: who may touch which block."""

    view: Tensor
    reach: Tensor
    grid: tuple[int, int, int]  # views, rows and columns of blocks
    size: tuple[int, int]
    rules: RasterRules
    attached: int

    def centres(self, like: Tensor) -> Tensor:
        """Block centres [blocks, 2] in px."""
        views, rows, columns = self.grid
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        return (torch.stack([x, y], -1).reshape(-1, 2).repeat(views, 1) * BLOCK + BLOCK / 2).to(like)

    def monomials(self, like: Tensor) -> Tensor:
        """1, x, y, x^2, xy, y^2 [6, pixels] of pixel centres relative to the block's."""
        offset = torch.arange(BLOCK) - (BLOCK - 1) / 2
        y, x = (axis.flatten() for axis in torch.meshgrid(offset, offset, indexing="ij"))
        return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y]).to(like)

    def inside(self, centres: Tensor, monomials: Tensor) -> Tensor:
        """Ones [blocks, pixels] where a pixel lies in the image, zeros in the padding of border blocks."""
        height, width = self.size
        x, y = (centres[:, axis, None] + monomials[1 + axis] for axis in (0, 1))
        return ((x < width) & (y < height)).to(centres.dtype)

    def rounds(self) -> Iterator[tuple[int, int]]:
        """Ranges of Gaussians whose block lists have a bounded total length."""
        x0, x1, y0, y1 = (self.reach // BLOCK).unbind(-1)
        total = ((x1 - x0 + 1) * (y1 - y0 + 1)).cumsum(0)
        if not len(total):
            return
        limits = torch.arange(0, int(total[-1]), LIST_LENGTH, device=total.device)[1:]
        bounds = [0, *torch.searchsorted(total, limits).tolist(), len(total)]
        yield from ((first, last) for first, last in pairwise(bounds) if first < last)

    def block_lists(self, first: int, last: int, open_blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Lists of the Gaussians first ... last - 1 that reach each open block, in their order.

        Returns:
            The lists one after the other, and the length [blocks] of each.
        """
        _, rows, columns = self.grid
        x0, x1, y0, y1 = (self.reach[first:last] // BLOCK).unbind(-1)
        across = x1 - x0 + 1
        corner = (self.view[first:last] * rows + y0) * columns + x0
        count = across * (y1 - y0 + 1)
        entry = torch.repeat_interleave(count)
        rank = torch.arange(len(entry), device=entry.device) - (count.cumsum(0) - count)[entry]
        down = torch.div(rank, across[entry], rounding_mode="floor")
        block = corner[entry] + down * (columns - across[entry]) + rank
        kept = open_blocks[block]
        block, order = block[kept].sort(stable=True)
        return entry[kept][order] + first, block.bincount(minlength=len(open_blocks))


class _Step(NamedTuple):
    """One step's inputs: n blocks, k Gaussians for each, and the transmittance in front of them."""

    blocks: Tensor  # [n]
    entries: Tensor  # [k, n]
    transmittance: Tensor  # [n, pixels]


class _Blend(NamedTuple):
    """One step's results, all [k, n, pixels] but the last."""

    unclamped: Tensor  # opacity times falloff
    alpha: Tensor  # clamped, 0 where skipped
    transmits: Tensor  # 1 - alpha
    weights: Tensor
    transmittance: Tensor  # [n, pixels] behind the step, running on where a pixel has stopped


class _Composite(torch.autograd.Function):
    """[blocks, C + 1, pixels] from per-Gaussian tensors."""

    @staticmethod
    def forward(ctx, means: Tensor, conics: Tensor, opacities: Tensor, values: Tensor, plan: _Plan) -> Tensor:
        table = _table(means, conics, opacities, values)
        centres, monomials = plan.centres(table), plan.monomials(table)
        transmittance = plan.inside(centres, monomials)
        image = table.new_zeros(len(centres), values.shape[1] + 1, BLOCK * BLOCK)
        steps = []
        for step in _steps(plan, transmittance, dummy=len(table) - 1):
            rows = table[step.entries]
            blend = _blend(rows, centres[step.blocks], monomials, step.transmittance, plan.rules)
            transmittance[step.blocks] = blend.transmittance
            image[step.blocks] += torch.bmm(rows[..., 6:].permute(1, 2, 0), blend.weights.permute(1, 0, 2))
            if any(ctx.needs_input_grad):
                steps.append(step)
        ctx.plan, ctx.steps = plan, steps
        ctx.save_for_backward(means, conics, opacities, values)
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx, image_gradient: Tensor):
        means, conics, opacities, values = ctx.saved_tensors
        plan: _Plan = ctx.plan
        table = _table(means, conics, opacities, values)
        centres, monomials = plan.centres(table), plan.monomials(table)
        attached = [*range(plan.attached), values.shape[1]]
        behind = table.new_zeros(len(centres), BLOCK * BLOCK)
        gradient = torch.zeros_like(table)
        for step in reversed(ctx.steps):
            rows, centre = table[step.entries], centres[step.blocks]
            blend = _blend(rows, centre, monomials, step.transmittance, plan.rules)
            outer = image_gradient[step.blocks]
            of_values = torch.bmm(blend.weights.permute(1, 0, 2), outer.mT).transpose(0, 1)
            of_weights = torch.bmm(rows[..., 6:][..., attached].transpose(0, 1), outer[:, attached]).transpose(0, 1)
            of_exponents, behind[step.blocks] = _exponent_gradient(blend, of_weights, behind[step.blocks], plan.rules)
            of_shapes = _shape_gradient(rows, centre, of_exponents @ monomials.mT)
            gradient.index_add_(0, step.entries.flatten(), torch.cat([of_shapes, of_values], -1).flatten(0, 1))
        gradient = gradient[:-1]
        of_opacities = gradient[:, 5] / opacities
        return gradient[:, :2], gradient[:, 2:5], of_opacities, gradient[:, 6:-1], None


def _table(means: Tensor, conics: Tensor, opacities: Tensor, values: Tensor) -> Tensor:
    """All that a step reads of a Gaussian in one row [M + 1, 6 + C + 1]; the last row is an invisible one."""
    ones = torch.ones_like(opacities)[:, None]
    table = pad(torch.cat([means, conics, opacities.log()[:, None], values, ones], 1), (0, 0, 0, 1))
    table[-1, 5] = FADED
    return table


def _steps(plan: _Plan, transmittance: Tensor, dummy: int) -> Iterator[_Step]:
    """The steps in drawing order. The caller updates ``transmittance`` [blocks, pixels] between them."""
    limit = plan.rules.transmittance_min
    for first, last in plan.rounds():
        open_blocks = transmittance.amax(1) >= limit
        if not open_blocks.any():
            return
        lists, lengths = plan.block_lists(first, last, open_blocks)
        starts = lengths.cumsum(0) - lengths
        by_length = lengths.argsort(descending=True)
        for group in by_length[: int((lengths > 0).sum())].split(STEP_BLOCKS):
            blocks, position = group, torch.arange(STEP_GAUSSIANS, device=lists.device)[:, None]
            while len(blocks):
                index = (starts[blocks] + position).clamp_max(len(lists) - 1)
                entries = lists[index].where(position < lengths[blocks], dummy)
                yield _Step(blocks, entries, transmittance[blocks])
                position = position + STEP_GAUSSIANS
                blocks = blocks[(lengths[blocks] > position[0]) & (transmittance[blocks].amax(1) >= limit)]


def _blend(rows: Tensor, centre: Tensor, monomials: Tensor, transmittance: Tensor, rules: RasterRules) -> _Blend:
    """Blend k Gaussians per block; ``rows`` [k, n, ...] of the table, ``transmittance`` [n, pixels] in front.

    A pixel stops before the Gaussian that would bring its transmittance under the limit. Transmittance never grows,
    so it may run on unstopped: every weight from there on is masked.
    """
    # The exponent is a polynomial in the pixel's position: one matrix product instead of many broadcasts.
    # Differs from upstream: a positive exponent is not skipped, since here it can only be rounding.
    unclamped = (_exponents(rows, centre) @ monomials).exp_()
    just_below = rules.alpha_min * (1 - 1e-7)
    alpha = threshold(unclamped.clamp_max(rules.alpha_max), just_below, 0.0)
    transmits = 1 - alpha
    running = alpha.new_empty(len(alpha) + 1, *transmittance.shape)
    running[0] = transmittance
    for step in range(len(alpha)):
        torch.mul(running[step], transmits[step], out=running[step + 1])
    weights = alpha * running[:-1]
    if running[-1].amin() < rules.transmittance_min:
        weights *= running[1:] >= rules.transmittance_min
    return _Blend(unclamped, alpha, transmits, weights, running[-1])


def _exponents(rows: Tensor, centre: Tensor) -> Tensor:
    """Coefficients [k, n, 6] of log(opacity) - (a dx^2 + 2 b dx dy + c dy^2) / 2 in the block's monomials."""
    x, y = (rows[..., :2] - centre).unbind(-1)
    a, b, c, log_opacity = rows[..., 2:6].unbind(-1)
    ax_by, bx_cy = a * x + b * y, b * x + c * y
    return torch.stack([log_opacity - 0.5 * (ax_by * x + bx_cy * y), ax_by, bx_cy, -0.5 * a, -b, -0.5 * c], -1)


def _exponent_gradient(blend: _Blend, of_weights: Tensor, behind: Tensor, rules: RasterRules) -> tuple[Tensor, Tensor]:
    """Gradient [k, n, pixels] to the exponents, and the sum of weight times its gradient from here to the back.

    With s_k the gradient of weight w_k: d/d alpha_k = T_k s_k - (sum of w_j s_j behind k) / (1 - alpha_k).
    """
    weighted = blend.weights * of_weights
    later = torch.empty_like(weighted)
    for step in reversed(range(len(weighted))):
        later[step] = behind
        behind = behind + weighted[step]
    gradient = weighted.addcmul_(later, blend.alpha / blend.transmits, value=-1)
    clamped = blend.unclamped > rules.alpha_max
    if clamped.any():
        passed = gradient * blend.unclamped / rules.alpha_max if rules.straight_through else 0.0
        gradient = torch.where(clamped, passed, gradient)
    return gradient, behind


def _shape_gradient(rows: Tensor, centre: Tensor, moments: Tensor) -> Tensor:
    """Gradient [k, n, 6] to means, conics and log opacities from the moments of the exponents' gradient."""
    x, y = (rows[..., :2] - centre).unbind(-1)
    a, b, c = rows[..., 2:5].unbind(-1)
    one, mx, my, mxx, mxy, myy = moments.unbind(-1)
    dx, dy = mx - x * one, my - y * one  # moments about the Gaussian's own mean
    dxx, dyy = mxx - x * (mx + dx), myy - y * (my + dy)
    dxy = mxy - x * my - y * dx
    return torch.stack([a * dx + b * dy, b * dx + c * dy, -0.5 * dxx, -dxy, -0.5 * dyy, one], -1)
