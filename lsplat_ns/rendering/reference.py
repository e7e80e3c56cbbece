"""The rasteriser in plain PyTorch: the path without a GPU, and the twin that gsplat is checked against."""

from __future__ import annotations

import torch
from torch import Tensor

from lsplat_ns.rendering.compositing import GSPLAT_RULES, RasterRules, ScreenGaussians, composite
from lsplat_ns.rendering.rasterization import Ellipsoids, Maps, PixelCameras

FIELD_MARGIN = 0.3
"""Means further than this fraction of the half field of view outside the image are projected from its margin."""


def rasterize_in_pytorch(
    ellipsoids: Ellipsoids,
    values: Tensor,
    cameras: PixelCameras,
    size: tuple[int, int],
    rules: RasterRules = GSPLAT_RULES,
    attached: int | None = None,
) -> Maps:
    """Splat one scene into V views on any device, with the semantics of gsplat's classic mode.

    Args:
        ellipsoids: G Gaussians in world space.
        values: [V, G, C], blended as they are.
        cameras: The views.
        size: Height and width in pixels.
        rules: Constants; ``ORIGINAL_RULES`` reproduces latentSplat's own rasteriser.
        attached: Only the first ``attached`` channels send gradients to the geometry (None: all). Depth and alpha
            always do.

    Returns:
        Maps, differentiable (once) to everything but the list of visible Gaussians. Gaussians with non-finite numbers
        are not drawn. Source: 3D Gaussian splatting (Kerbl et al. 2023), latentSplat's fork of its rasteriser.
    """
    screen = project(ellipsoids, cameras, size, rules)
    channels = values.shape[-1]
    attached = channels if attached is None else attached
    visible = values[screen.view, screen.source]
    blended = torch.cat([visible[:, :attached], screen.depth_z[:, None], visible[:, attached:]], 1)
    images = composite(screen, blended, len(cameras.z_min), size, rules, attached + 1)
    rest = torch.cat([images[:, :attached], images[:, attached + 1 : -1]], 1)
    return Maps(rest, images[:, attached], images[:, -1])


def project(
    ellipsoids: Ellipsoids, cameras: PixelCameras, size: tuple[int, int], rules: RasterRules
) -> ScreenGaussians:
    """Visible Gaussians of every view as 2D ellipses, nearest first; differentiable to geometry and cameras."""
    with torch.no_grad():
        depth_z = (
            ellipsoids.means @ cameras.camera_from_world[:, 2, :3, None]
            + cameras.camera_from_world[:, 2, 3, None, None]
        )
        in_front = depth_z[..., 0] > cameras.z_min[:, None].to(depth_z.device)
        view, source = in_front.nonzero().unbind(-1)
        means, covariances, _ = _ellipses(ellipsoids, cameras, view, source, size, rules)
        opacities = ellipsoids.opacities[source]
        reach, visible = _reach(means, covariances, opacities, size, rules)
        order = depth_z[..., 0][in_front][visible].argsort(stable=True)
        view, source, reach = view[visible][order], source[visible][order], reach[visible][order]
    # Only the survivors enter the graph: a Gaussian on the camera plane would turn its zero gradient into NaN.
    means, covariances, depth_z = _ellipses(ellipsoids, cameras, view, source, size, rules)
    xx, xy, yy = covariances.unbind(-1)
    conics = torch.stack([yy, -xy, xx], -1) / (xx * yy - xy * xy)[:, None]
    return ScreenGaussians(view, source, means, conics, ellipsoids.opacities[source], depth_z, reach)


def _ellipses(
    ellipsoids: Ellipsoids,
    cameras: PixelCameras,
    view: Tensor,
    source: Tensor,
    size: tuple[int, int],
    rules: RasterRules,
) -> tuple[Tensor, Tensor, Tensor]:
    """Means [M, 2] (px), blurred covariances (xx, xy, yy) [M, 3] (px^2) and camera z [M] of pairs (view, source)."""
    pose, intrinsics = cameras.camera_from_world[view], cameras.intrinsics_px[view]
    x, y, z = ((pose[:, :3, :3] * ellipsoids.means[source][:, None]).sum(-1) + pose[:, :3, 3]).unbind(-1)
    focal = (intrinsics[:, 0, 0], intrinsics[:, 1, 1])
    centre = (intrinsics[:, 0, 2], intrinsics[:, 1, 2])
    means, axes = [], []
    for axis, (position, length) in enumerate(((x, size[1]), (y, size[0]))):
        slope = position / z
        margin = FIELD_MARGIN * 0.5 * length / focal[axis]
        lowest, highest = -centre[axis] / focal[axis] - margin, (length - centre[axis]) / focal[axis] + margin
        bounded = torch.minimum(torch.maximum(slope, lowest), highest)
        if rules.straight_through:
            bounded = torch.where(bounded == slope, slope, (bounded * z).detach() / z)
        # One row of the projection's Jacobian in world axes.
        axes.append((focal[axis] / z)[:, None] * (pose[:, axis, :3] - bounded[:, None] * pose[:, 2, :3]))
        means.append(focal[axis] * slope + centre[axis])
    spread = [(ellipsoids.covariances[source] * row[:, None]).sum(-1) for row in axes]
    xx, xy, yy = ((axes[i] * spread[j]).sum(-1) for i, j in ((0, 0), (0, 1), (1, 1)))
    return torch.stack(means, -1), torch.stack([xx + rules.blur, xy, yy + rules.blur], -1), z


def _reach(
    means: Tensor, covariances: Tensor, opacities: Tensor, size: tuple[int, int], rules: RasterRules
) -> tuple[Tensor, Tensor]:
    """First and last column and row [M, 4] where a Gaussian can add to a pixel, and whether there are any [M].

    These are the tiles under the 3-sigma square, cut to the ellipse outside which alpha falls under its minimum:
    the second cut changes nothing in the image, but shortens the lists.
    """
    xx, xy, yy = covariances.unbind(-1)
    determinant, middle = xx * yy - xy * xy, 0.5 * (xx + yy)
    largest = middle + (middle * middle - determinant).clamp_min(rules.eigenvalue_floor).sqrt()
    radius = (3 * largest.sqrt()).ceil()
    farthest = 2 * (opacities / rules.alpha_min).log() + 1e-3  # squared Mahalanobis distance
    visible = (determinant > 0) & (middle > 0) & (farthest > 0) & torch.isfinite(means).all(-1) & torch.isfinite(radius)
    bounds = []
    for axis, (variance, length) in enumerate(((xx, size[1]), (yy, size[0]))):
        centre, extent = means[:, axis], (farthest * variance).sqrt()
        begin, end = (centre - inset + sign * radius for inset, sign in zip(rules.tile_inset, (-1, 1), strict=True))
        first = torch.maximum((begin / rules.tile).floor() * rules.tile, (centre - extent - 0.5).ceil())
        last = torch.minimum((end / rules.tile).ceil() * rules.tile - 1, (centre + extent - 0.5).floor())
        first, last = first.clamp(0, length), last.clamp(-1, length - 1)
        visible &= first <= last
        bounds += [first, last]
    return torch.stack(bounds, -1).nan_to_num().long(), visible
