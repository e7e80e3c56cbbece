"""Which frames of a capture the network sees, judged by cameras alone. Nothing here is random.

The scene's depth is unknown, so it is guessed: where the optical axes meet, or, where they do not, as far away as the
cameras are spread. Two cameras make a good pair when they see the same places (``overlap``) from directions that differ
enough to tell depth (``parallax``), as the pairs did that the model was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.rays import pixel_centers, project, world_rays

ENOUGH_OVERLAP = 0.6
"""Least share of places that both views of a pair see; the rule of the published evaluation indices."""
BEST_PARALLAX_DEGREES = 15.0
"""Of pairs with enough overlap, the one whose viewing directions differ by about this much is the best."""
LEAST_PARALLAX_DEGREES = 2.0
"""Pairs below this carry too little depth, and are taken only where nothing better exists."""
LARGEST_ANGLE_DEGREES = 45.0
"""Beyond this angle a camera counts as looking at another side of things."""
MOST_CANDIDATES = 120
"""Longer captures are thinned evenly to this many frames before pairs are compared."""
PARALLEL_AXES = 0.01
"""Least mean squared sine between optical axes for their meeting point to be trusted (about 6 degrees)."""
ONE_PLACE = 1e-5
"""Cameras closer together than this share of the scene's distance from the origin differ by rounding only."""
SECOND_TO_OVERLAP = 1e-7
"""Factor on degrees that keeps them below the last decimal of an overlap."""
GRID = (8, 8)
"""Rays per view at which overlap is measured."""
DEPTHS = (0.5, 1.0, 2.0)
"""Where on each ray, in units of the guessed distance of the scene."""


@dataclass(frozen=True)
class PairTable:
    """How well any two of n cameras go together. Symmetric; the diagonals mean nothing."""

    overlap: Tensor  # [n, n], smaller share of places on one camera's rays that the other one sees
    parallax_degrees: Tensor  # [n, n], mean angle between their lines of sight to these places

    @property
    def score(self) -> Tensor:
        """Quality [n, n]: above 1 with enough overlap and parallax, then better the nearer to the best parallax."""
        closeness = 1 / (1 + (self.parallax_degrees / BEST_PARALLAX_DEGREES).clamp_min(1e-6).log().abs())
        score = torch.where(self.parallax_degrees >= LEAST_PARALLAX_DEGREES, self.overlap, self.overlap * closeness)
        good = (self.overlap >= ENOUGH_OVERLAP) & (self.parallax_degrees >= LEAST_PARALLAX_DEGREES)
        score = torch.where(good, 1 + closeness, 0.5 * score).fill_diagonal_(-1)
        return score.round(decimals=4)  # evenly spaced cameras tie; rounding of their poses shall not decide


def scene_distance(world_from_camera: Tensor) -> float:
    """A guess of how far the scene is from cameras [n, 4, 4], in their units.

    Raises:
        SceneDataError: If all cameras stand at one place.
    """
    poses = world_from_camera.double()
    centres, axes = poses[:, :3, 3], poses[:, :3, 2]
    spread = float(torch.cdist(centres[None], centres[None]).max())
    if spread <= ONE_PLACE * float(centres.norm(dim=-1).max()):
        raise SceneDataError("all cameras stand at one place; a scene needs photos from different places")
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None]
    normal = across.mean(0)
    if float(torch.linalg.eigvalsh(normal)[0]) > PARALLEL_AXES:
        meeting = torch.linalg.solve(normal, (across @ centres[:, :, None])[:, :, 0].mean(0))
        distance = float(((meeting - centres) * axes).sum(-1).median())
        if distance > spread / 4:
            return distance
    return spread


def compare_pairs(world_from_camera: Tensor, intrinsics_norm: Tensor, distance: float) -> PairTable:
    """Compare all cameras [n, 4, 4], [n, 3, 3] with one another, for a scene ``distance`` away."""
    poses, intrinsics = world_from_camera.double(), intrinsics_norm.double()
    centres = poses[:, :3, 3]
    points_xy = pixel_centers(*GRID, like=poses)
    origins, directions = world_rays(points_xy, poses[:, None], intrinsics[:, None])
    depths = distance * poses.new_tensor(DEPTHS)
    places = (origins[:, :, None] + depths[:, None] * directions[:, :, None]).flatten(1, 2)  # [n, p, 3]
    overlap, parallax = [], []
    for place, centre in zip(places, centres, strict=True):  # one row at a time bounds memory
        xy, in_front = project(place, poses[:, None], intrinsics[:, None])
        here, there = place - centre, place - centres[:, None]
        cosine = (here * there).sum(-1) / (here.norm(dim=-1) * there.norm(dim=-1)).clamp_min(1e-12)
        degrees = torch.rad2deg(cosine.clamp(-1, 1).acos())
        seen = in_front & ((xy >= 0) & (xy <= 1)).all(-1) & (degrees <= LARGEST_ANGLE_DEGREES)
        overlap.append(seen.double().mean(-1))
        parallax.append(degrees.mean(-1))
    overlap, parallax = torch.stack(overlap), torch.stack(parallax)
    return PairTable(torch.minimum(overlap, overlap.T), (parallax + parallax.T) / 2)


def choose_context(world_from_camera: Tensor, intrinsics_norm: Tensor, count: int = 2) -> tuple[int, ...]:
    """Choose context frames: the best pair, then frame by frame what shows most that no chosen frame shows.

    A further frame must make a good pair with one of the chosen ones; where none does, fewer frames are returned. The
    pair comes in the order of the video, further frames in the order of their choice.

    Args:
        world_from_camera: [n, 4, 4], any units.
        intrinsics_norm: [n, 3, 3] of the images as the network sees them (cropped).
        count: Number of frames wanted, at least 2.

    Raises:
        SceneDataError: If there are fewer than two cameras, or all stand at one place.
    """
    if len(world_from_camera) < 2:
        raise SceneDataError(f"holds {len(world_from_camera)} image; the network needs at least two")
    frames = _thinned(len(world_from_camera))
    poses = world_from_camera[frames]
    table = compare_pairs(poses, intrinsics_norm[frames], scene_distance(world_from_camera))
    chosen = sorted(divmod(_first_largest(table.score.flatten()), len(frames)))
    return tuple(frames[i] for i in _extended(table, chosen, count))


def extend_context(
    world_from_camera: Tensor, intrinsics_norm: Tensor, chosen: tuple[int, ...], count: int
) -> tuple[int, ...]:
    """Chosen frames, and further ones: frame by frame what shows most that none of them shows, up to ``count``.

    A further frame must make a good pair with one before it; where none does, fewer frames are returned. A single
    chosen frame is joined by the best partner it has, good or not.

    Args:
        world_from_camera: [n, 4, 4], any units, few enough to compare all of them.
        intrinsics_norm: [n, 3, 3].
        chosen: At least one frame.
        count: Number of frames wanted in all.

    Raises:
        SceneDataError: If all cameras stand at one place.
    """
    table = compare_pairs(world_from_camera, intrinsics_norm, scene_distance(world_from_camera))
    chosen = list(chosen)
    if len(chosen) == 1:
        chosen.append(_first_largest(table.score[chosen[0]]))
    return tuple(_extended(table, chosen, count))


def _extended(table: PairTable, chosen: list[int], count: int) -> list[int]:
    """The chosen frames, and those that show most that is new, up to ``count``.

    Of frames that show equally little, the one that looks from the most different direction is taken.
    """
    chosen = list(chosen)
    while len(chosen) < min(count, len(table.overlap)):
        known = table.overlap[:, chosen].amax(1)  # what a frame shares with the chosen one that is most alike
        good = (table.score[:, chosen] > 1).any(1)
        good[chosen] = False
        if not good.any():
            break
        aside = table.parallax_degrees[:, chosen].amin(1)
        novelty = -known.round(decimals=4) + SECOND_TO_OVERLAP * aside.round(decimals=1)
        chosen.append(_first_largest(torch.where(good, novelty, -torch.inf)))
    return chosen


def _first_largest(values: Tensor) -> int:
    """Of equal values the first: torch leaves open which one its own argmax gives."""
    return int(values.numpy().argmax())


def _thinned(count: int) -> list[int]:
    if count <= MOST_CANDIDATES:
        return list(range(count))
    return [i * (count - 1) // (MOST_CANDIDATES - 1) for i in range(MOST_CANDIDATES)]


def pair_up(world_from_camera: Tensor, intrinsics_norm: Tensor) -> tuple[tuple[int, int], ...]:
    """How to encode several views in pairs: the first two, then each further one with its best partner before it.

    Args:
        world_from_camera: [v, 4, 4] of at least two context views, in order of precedence, any units.
        intrinsics_norm: [v, 3, 3].

    Returns:
        Pairs (earlier, later) of positions among the views; v - 1 of them.

    Raises:
        SceneDataError: If more than two views all stand at one place.
    """
    pairs = [(0, 1)]
    if len(world_from_camera) > 2:
        score = compare_pairs(world_from_camera, intrinsics_norm, scene_distance(world_from_camera)).score
        pairs += [(_first_largest(score[later, :later]), later) for later in range(2, len(world_from_camera))]
    return tuple(pairs)
