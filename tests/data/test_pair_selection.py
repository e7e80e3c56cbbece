"""Which views are encoded, judged by cameras alone."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

from lsplat_ns.data.pair_selection import (
    BEST_PARALLAX_DEGREES,
    ENOUGH_OVERLAP,
    choose_context,
    compare_pairs,
    pair_up,
    scene_distance,
)
from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.similarity import Similarity

INTRINSICS = torch.tensor([[0.9, 0.0, 0.5], [0.0, 0.9, 0.5], [0.0, 0.0, 1.0]])


def looking(origin: tuple[float, ...], target: tuple[float, ...]) -> Tensor:
    """A camera [4, 4] at ``origin`` that looks at ``target``, with the world's +z up."""
    position = torch.tensor(origin, dtype=torch.float32)
    forward = torch.nn.functional.normalize(torch.tensor(target) - position, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    pose = torch.eye(4)
    pose[:3] = torch.stack([right, torch.linalg.cross(forward, right), forward, position], 1)
    return pose


def turntable(count: int, radius: float = 3.0) -> Tensor:
    angles = [2 * math.pi * i / count for i in range(count)]
    return torch.stack([looking((radius * math.cos(a), radius * math.sin(a), 0.4), (0.0, 0.0, 0.4)) for a in angles])


def row(count: int, step: float = 0.1) -> Tensor:
    """Cameras side by side with parallel axes."""
    return torch.stack([looking((step * i, 0.0, 0.0), (step * i, 5.0, 0.0)) for i in range(count)])


def intrinsics(poses: Tensor) -> Tensor:
    return INTRINSICS.expand(len(poses), 3, 3)


def test_the_scene_is_where_the_axes_meet_or_else_as_far_as_the_cameras_are_spread() -> None:
    assert scene_distance(turntable(24)) == pytest.approx(3.0, rel=1e-4)
    assert scene_distance(row(8)) == pytest.approx(0.7, rel=1e-4)
    outward = torch.stack([looking((math.cos(a), math.sin(a), 0), (9 * math.cos(a), 9 * math.sin(a), 0)) for a in
                           (0.0, 2.1, 4.2)])  # fmt: skip
    assert scene_distance(outward) == pytest.approx(math.sqrt(3), rel=1e-2)  # their axes meet behind them


def test_overlap_and_parallax_know_which_cameras_see_the_same_side() -> None:
    poses = turntable(24)
    table = compare_pairs(poses, intrinsics(poses), scene_distance(poses))
    assert table.overlap[0, 1] > 0.7 and table.overlap[0, 12] == 0  # neighbours, and opposite sides
    assert table.parallax_degrees[0, 1] == pytest.approx(15, abs=3)
    torch.testing.assert_close(table.overlap, table.overlap.T)
    turned = torch.stack([looking((0, 0, 0), (0, 5, 0)), looking((0, 0, 0), (5, 1, 0))])
    assert compare_pairs(turned, intrinsics(turned), 5.0).overlap[0, 1] < 0.3


@pytest.mark.parametrize("count", [12, 24, 60])
def test_the_chosen_pair_overlaps_and_has_parallax(count: int) -> None:
    for poses in (turntable(count), row(count, step=2.0 / count)):
        left, right = choose_context(poses, intrinsics(poses))
        table = compare_pairs(poses, intrinsics(poses), scene_distance(poses))
        assert left < right
        assert count < 24 or table.overlap[left, right] >= ENOUGH_OVERLAP
        good = table.overlap >= ENOUGH_OVERLAP
        best = (table.parallax_degrees[good] - BEST_PARALLAX_DEGREES).abs().min()
        chosen = (table.parallax_degrees[left, right] - BEST_PARALLAX_DEGREES).abs()
        assert chosen < best + 5 or count < 24


def test_the_choice_does_not_depend_on_the_captures_frame() -> None:
    poses = turntable(17)[:9]
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    rotation = rotation * torch.linalg.det(rotation).sign()
    moved = Similarity(10.0, rotation, torch.tensor([40.0, -3.0, 7.0])).apply_to_poses(poses)
    assert choose_context(poses, intrinsics(poses), 4) == choose_context(moved, intrinsics(moved), 4)


def test_a_pair_without_parallax_is_never_chosen_where_another_exists() -> None:
    here = [looking((0.0, 0.0, 0.0), (0.1 * i, 5.0, 0.0)) for i in range(6)]  # turning on the spot: all overlap
    poses = torch.stack([*here, looking((1.0, 0.0, 0.0), (0.2, 5.0, 0.0))])
    assert 6 in choose_context(poses, intrinsics(poses))


def test_further_frames_show_something_new_and_overlap_with_a_chosen_one() -> None:
    poses = turntable(48)
    chosen = choose_context(poses, intrinsics(poses), 6)
    assert len(chosen) == len(set(chosen)) == 6
    table = compare_pairs(poses, intrinsics(poses), scene_distance(poses))
    for later in range(2, 6):
        shared = table.overlap[chosen[later], list(chosen[:later])]
        assert ENOUGH_OVERLAP <= shared.max() < 0.95
    spread = torch.cdist(poses[list(chosen), :3, 3], poses[list(chosen), :3, 3]).max()
    first = (poses[chosen[0], :3, 3] - poses[chosen[1], :3, 3]).norm()
    assert spread > 3 * first


def test_fewer_frames_are_chosen_where_no_further_one_fits() -> None:
    poses = torch.stack(
        [looking((0.0, 0, 0), (0.2, 5, 0)), looking((1.0, 0, 0), (0.2, 5, 0)), looking((0.5, 9, 0), (0.2, 5, 0))]
    )
    assert choose_context(poses, intrinsics(poses), 3) == (0, 1)  # the third one looks from behind


def test_long_captures_are_compared_in_little_time() -> None:
    poses = turntable(2000)
    started = time.process_time()
    left, right = choose_context(poses, intrinsics(poses))
    assert time.process_time() - started < 8
    apart = (right - left) * 360 / 2000
    assert min(apart, 360 - apart) == pytest.approx(BEST_PARALLAX_DEGREES, abs=4)


@pytest.mark.parametrize("poses", [row(1), row(1).expand(5, 4, 4), row(1).expand(5, 4, 4) + 1e-9])
def test_cameras_at_one_place_are_refused(poses: Tensor) -> None:
    with pytest.raises(SceneDataError, match=r"at least two|one place"):
        choose_context(poses, intrinsics(poses))


def test_every_further_view_is_paired_with_its_best_partner_before_it() -> None:
    poses = turntable(24)[[0, 1, 2, 23, 5, 4]]  # 15 degrees apart is best
    assert pair_up(poses, intrinsics(poses)) == ((0, 1), (1, 2), (0, 3), (2, 4), (4, 5))
    assert pair_up(poses[:2], intrinsics(poses[:2])) == ((0, 1),)
