from __future__ import annotations

import torch

from lsplat_ns.geometry.overlap import RAY_GRID, view_overlap
from lsplat_ns.geometry.rays import pixel_centers, project, world_rays

INTRINSICS = torch.tensor([[0.9, 0.0, 0.5], [0.0, 0.9, 0.5], [0.0, 0.0, 1.0]])


def poses(count: int, seed: int, turn: float = 0.3, move: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    axis = torch.randn(count, 3, generator=generator) * turn
    skew = torch.zeros(count, 3, 3)
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = -axis[:, 2], axis[:, 1], -axis[:, 0]
    pose = torch.eye(4).repeat(count, 1, 1)
    pose[:, :3, :3] = torch.linalg.matrix_exp(skew - skew.transpose(1, 2))
    pose[:, :3, 3] = torch.randn(count, 3, generator=generator) * move
    return pose


def overlap(first: torch.Tensor, second: torch.Tensor, grid: tuple[int, int] = RAY_GRID) -> torch.Tensor:
    return view_overlap((first, second), (INTRINSICS, INTRINSICS), grid)


def test_overlap_is_the_share_of_rays_with_a_visible_point() -> None:
    first, second = poses(12, 0), poses(12, 1)
    points = pixel_centers(16, 16, like=first)
    depths = torch.logspace(-2, 3, 800)

    def seen(by: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        origins, directions = world_rays(points, of[:, None], INTRINSICS)
        along = origins[:, :, None] + depths[:, None] * directions[:, :, None]
        xy, before = project(along, by[:, None, None], INTRINSICS)
        inside = before & (xy >= 0).all(-1) & (xy <= 1).all(-1)
        return inside.any(-1).float().mean(-1)

    sampled = torch.minimum(seen(second, first), seen(first, second))
    exact = overlap(first, second, (16, 16))
    assert len(exact.unique()) > 10 and float(exact.max()) < 1  # the cases tell something
    # Sampled depths miss rays that only graze the image: a few of 256.
    torch.testing.assert_close(sampled, exact, atol=3 / 256, rtol=0)


def test_a_view_sees_all_of_itself_and_nothing_behind_its_back() -> None:
    here = torch.eye(4)
    away = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))  # turned about, and a step back
    away[2, 3] = -1.0
    assert overlap(here, here) == 1
    assert overlap(here, away) == 0


def test_both_views_are_equal_partners() -> None:
    first, second = poses(10, 2), poses(10, 3)
    torch.testing.assert_close(overlap(first, second), overlap(second, first))


def test_the_default_grid_is_as_good_as_every_pixel() -> None:
    first, second = poses(10, 4), poses(10, 5)
    every_pixel = torch.cat([overlap(first[i : i + 1], second[i : i + 1], (256, 256)) for i in range(10)])
    torch.testing.assert_close(overlap(first, second), every_pixel, atol=0.01, rtol=0)
