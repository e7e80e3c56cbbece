"""Do generated views show one and the same scene? Scores that need no true views.

:func:`consistency` needs no weights either. For a pair of neighbouring views (i, j) it takes the depth of view i from a
third one, k, by a plane sweep with the known cameras, and asks whether j agrees at that depth:

1. Planes at ``PLANES`` depths, evenly spaced in 1 / z from infinity, are laid into the view of i. By each of them, j
   and k are warped into i, and their patches are correlated with those of i (zero-mean normalised cross-correlation).
2. A pixel's depths are those at which k correlates best, or nearly so (within ``AMBIGUOUS``).
3. The pixel's error is 1 - the best correlation of j at these depths, within [0, 1].

The score of a pair is the mean over pixels with texture that both others see, of both directions, (i, j) and (j, i).
Depth comes from other views than those compared, so views cannot fit each other by a wrong depth. Where i and j stand
on one place, depth does not matter, and a single plane is laid. Brightness and contrast do not count (as in MEt3R),
colours do in ``color_error``. True renders of rooms and objects, up to 6 degrees apart, have an error of 0.1 to 0.15;
farther apart, they look different for good reasons (0.4 at 18 degrees). The same renders bent at random by 1 pixel of
128 have 0.4, by 4 pixels 0.65, and different rooms in turn 0.75.

:func:`met3r` is MEt3R (arXiv 2501.06336) by its own package, where that is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from lsplat_ns.errors import MissingExtra, SceneDataError, ShapeMismatch
from lsplat_ns.geometry.rays import camera_rays, pixel_centers, pixel_size_at_unit_depth, project
from lsplat_ns.scene import Cameras
from lsplat_ns.wording import counted

LONGEST_SIDE = 128
"""Images are reduced to this many pixels; the score would otherwise depend on their size."""
PLANES = 64
NEAREST_SHIFT = 0.4
"""A point on the nearest plane moves by this share of the shorter image side between the two views of a sweep."""
PATCH = 7
"""Pixels across a patch."""
AMBIGUOUS = 0.03
"""Depths whose correlation is worse than the best by no more than this count as well: along edges many are as good."""
LEAST_CONTRAST = 0.01
"""Standard deviation of brightness from which on a patch has texture."""
FEWEST_PIXELS = 0.02
"""Share of a view's pixels that must be comparable, or the pair has no score."""
SAME_PLACE = 1e-6
"""Distance up to which two cameras stand on one place, relative to their farthest coordinate: what float32 rounds."""
LEAST_BASELINE = 0.05
"""A third view stands at least this share of the pair's distance apart; depths would be too coarse for the pair."""


@dataclass(frozen=True)
class Consistency:
    """Scores of neighbouring pairs; NaN where two views have too little in common to compare."""

    pairs: tuple[tuple[int, int], ...]
    error: Tensor  # [p], 1 - correlation, in [0, 1]
    color_error: Tensor  # [p], mean absolute difference of colours in [0, 1], at the same pixels and depths
    coverage: Tensor  # [p], share of pixels that could be compared

    @property
    def mean(self) -> float:
        """Mean error over pairs that have a score; NaN where none has."""
        return float(self.error.nanmean())


@torch.no_grad()
def consistency(images: Tensor, cameras: Cameras) -> Consistency:
    """How well neighbouring views of a sequence agree. Lower is better; deterministic.

    Args:
        images: [n, 3, height, width] in [0, 1], three or more, in the order of the path.
        cameras: [1, n], OpenCV axes, any units.

    Returns:
        Scores of the pairs (0, 1), (1, 2), ...

    Raises:
        ShapeMismatch: If images and cameras do not fit.
        SceneDataError: If there are fewer than three views.
    """
    count = len(images)
    if images.ndim != 4 or images.shape[1] != 3 or cameras.near.shape != (1, count):
        raise ShapeMismatch("images", f"[{cameras.near.shape[-1]}, 3, height, width]", images.shape)
    if count < 3:
        there = counted(count, "view is there", "views are there")
        raise SceneDataError(f"consistency compares neighbouring views by a third one, but {there}")
    images = _reduced(images.float())
    cameras = cameras.to("cpu")  # few numbers, many decisions
    pairs = tuple((i, i + 1) for i in range(count - 1))
    rows = [
        torch.stack([_compared(images, cameras, pair), _compared(images, cameras, pair[::-1])]).mean(0)
        for pair in pairs
    ]
    error, color_error, coverage = torch.stack(rows).cpu().unbind(-1)
    return Consistency(pairs, error, color_error, coverage)


def met3r(images: Tensor, image_size: int = 256) -> Tensor:
    """MEt3R of neighbouring views [n - 1], as in the paper: the mean of (i, i + 1) and (i + 1, i). Lower is better.

    MASt3R's point maps, DINO features enlarged by FeatUp, cosine distance. Takes the GPU where there is one.

    Args:
        images: [n, 3, height, width] in [0, 1], two or more, in the order of the path.
        image_size: Side of the squares that are compared; the package's default.

    Raises:
        MissingExtra: If the package met3r is not installed.
        SceneDataError: If there are fewer than two views.
    """
    try:
        from met3r import MEt3R
    except ImportError as error:
        raise MissingExtra(
            f"MEt3R is not available ({error}): pip install git+https://github.com/mohammadasim98/met3r, and its "
            f"weights; the score without weights is 'consistency'"
        ) from None
    if len(images) < 2:
        raise SceneDataError(f"MEt3R compares pairs of views, but there is {len(images)}")
    metric = MEt3R(
        img_size=image_size,
        use_norm=True,
        backbone="mast3r",
        feature_backbone="dino16",
        feature_backbone_weights="mhamilton723/FeatUp",
        upsampler="featup",
        distance="cosine",
        freeze=True,
    )
    metric = metric.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    device = next(metric.parameters()).device
    size = (image_size, image_size)
    squares = functional.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
    squares = squares.clamp(0, 1) * 2 - 1
    scores = []
    with torch.no_grad():
        for first, second in pairwise(squares):
            both = torch.stack([torch.stack([first, second]), torch.stack([second, first])])
            score, *_ = metric(images=both.to(device))
            scores.append(score.float().mean().cpu())
    return torch.stack(scores)


def _reduced(images: Tensor) -> Tensor:
    factor = LONGEST_SIDE / max(images.shape[-2:])
    if factor >= 1:
        return images
    size = [max(1, round(side * factor)) for side in images.shape[-2:]]
    return functional.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _third_view(cameras: Cameras, pair: tuple[int, int]) -> int | None:
    """The view nearest to i in the sequence, of those that tell depths in i for a comparison with j.

    j itself where i and j stand on one place; None where there is no such view.
    """
    i, j = pair
    places = cameras.origins[0].double()
    distance = (places - places[i]).norm(dim=-1)
    rounded = SAME_PLACE * places.abs().max()
    if distance[j] <= rounded:
        return j
    far_enough = distance > torch.maximum(rounded, LEAST_BASELINE * distance[j])
    others = [view for view in range(len(places)) if view not in pair and far_enough[view]]
    return min(others, key=lambda view: abs(view - i), default=None)


def _poses_in_first(world_from_camera: Tensor, one_place: bool) -> Tensor:
    """Poses [n, 4, 4] in the first one's axes, float32: free of the scene's origin and unit.

    The two that are farthest apart are so by 1; or all cameras are at 0, where they stand on one place.
    """
    poses = world_from_camera.double()
    relative = poses[0].inverse() @ poses
    places = relative[:, :3, 3].clone()
    span = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").max()
    relative[:, :3, 3] = 0 if one_place else places / span
    return relative.float()


def _compared(images: Tensor, cameras: Cameras, pair: tuple[int, int]) -> Tensor:
    """Error, colour error and coverage [3] of view j against view i, at the depths that a third view finds: (i, j)."""
    i, j = pair
    k = _third_view(cameras, pair)
    if k is None:
        return images.new_tensor([torch.nan, torch.nan, 0.0])
    size = images.shape[-2:]
    poses = _poses_in_first(cameras.world_from_camera[0, [i, j, k]], one_place=k == j)
    intrinsics = cameras.intrinsics_norm[0, [i, j, k]].float()
    inverse_depth = _inverse_depths(poses[2], intrinsics[0], size).to(images.device)
    poses, intrinsics = poses.to(images.device), intrinsics.to(images.device)
    rays = camera_rays(pixel_centers(*size, like=images), intrinsics[0])
    points = rays / rays[:, 2:] / inverse_depth[:, None, None]  # [planes, pixels, 3]
    (warped_j, seen_j), (warped_k, seen_k) = (
        _warped(images[view], points, poses[place], intrinsics[place]) for place, view in ((1, j), (2, k))
    )
    gray = images[i].mean(0)[None, None]
    from_k = _correlation(gray, warped_k).masked_fill(~seen_k, -2.0)
    from_j = _correlation(gray, warped_j)
    best = from_k.amax(0)
    plausible = (from_k >= best - AMBIGUOUS) & seen_k
    from_j = from_j.masked_fill(~(plausible & seen_j), -2.0)
    agreed, plane = from_j.max(0)
    textured = _spread(gray)[0, 0].sqrt() >= LEAST_CONTRAST
    usable = textured & (agreed > -2.0)
    coverage = usable.float().mean()
    if float(coverage) < FEWEST_PIXELS:
        return torch.stack([coverage * torch.nan, coverage * torch.nan, coverage])
    error = (1 - agreed).clamp(0, 1)[usable].mean()
    chosen = warped_j.gather(0, plane[None, None].expand(1, 3, -1, -1))[0]
    color_error = (chosen - images[i]).abs().mean(0)[usable].mean()
    return torch.stack([error, color_error, coverage])


def _inverse_depths(pose: Tensor, intrinsics_norm: Tensor, size: tuple[int, int]) -> Tensor:
    """1 / z [planes] from (nearly) infinity to where a point moves by :data:`NEAREST_SHIFT` in a view of this pose.

    A single one, 1, where the view stands at 0, as the one that is swept does.
    """
    baseline = pose[:3, 3].norm()
    if not baseline:
        return torch.ones(1)
    pixel = pixel_size_at_unit_depth(intrinsics_norm, size).mean()
    return NEAREST_SHIFT * min(size) * pixel / baseline * torch.linspace(1e-4, 1, PLANES)


def _warped(image: Tensor, points: Tensor, pose: Tensor, intrinsics_norm: Tensor) -> tuple[Tensor, Tensor]:
    """What a view shows at points [planes, pixels, 3]: [planes, 3, h, w], and whether it sees them."""
    height, width = image.shape[-2:]
    xy, in_front = project(points, pose, intrinsics_norm)
    seen = in_front & ((xy >= 0) & (xy <= 1)).all(-1)
    grid = (2 * xy - 1).clamp(-2, 2).view(len(points), height, width, 2)
    warped = functional.grid_sample(
        image.expand(len(points), -1, -1, -1), grid, padding_mode="border", align_corners=False
    )
    return warped, seen.view(len(points), height, width)


def _mean(maps: Tensor) -> Tensor:
    """Means over patches of maps [n, 1, h, w]."""
    return functional.avg_pool2d(maps, PATCH, stride=1, padding=PATCH // 2, count_include_pad=False)


def _spread(gray: Tensor) -> Tensor:
    """Variances of patches."""
    return (_mean(gray.square()) - _mean(gray).square()).clamp_min(0)


def _correlation(gray: Tensor, warped: Tensor) -> Tensor:
    """Correlation [planes, h, w] of patches of a brightness [1, 1, h, w] with those of pictures [planes, 3, h, w]."""
    other = warped.mean(1, keepdim=True)
    covariance = _mean(gray * other) - _mean(gray) * _mean(other)
    return (covariance / (_spread(gray) * _spread(other) + 1e-8).sqrt()).clamp(-1, 1)[:, 0]
