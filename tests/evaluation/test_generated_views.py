"""Claims about the scores of generated views: beside what they stand, and what is averaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lsplat_ns.data.demo_scenes.demo_scene import build_demo_scene
from lsplat_ns.diffusion.view_plan import ViewPlanConfig, plan_views
from lsplat_ns.evaluation.generated_views import (
    ANCHORS,
    GENERATED,
    NEAREST,
    TRUE,
    first_anchors,
    score_scene,
    summarise_scenes,
)
from lsplat_ns.evaluation.metrics import psnr, ssim
from lsplat_ns.scene import Cameras, Views


@pytest.fixture(scope="module")
def room() -> Views:
    """Six neighbouring views of a room, frames 0, 2, ..., 10."""
    scene, frames = build_demo_scene("rooms", 3, 0, 60, (48, 48)), range(0, 12, 2)
    image = torch.stack([torch.from_numpy(np.array(scene.frame(f).image)).permute(2, 0, 1) / 255 for f in frames])
    poses = torch.stack([torch.as_tensor(scene.cameras[f].world_from_camera) for f in frames]).float()
    intrinsics = torch.stack([torch.as_tensor(scene.cameras[f].intrinsics_norm) for f in frames]).float()
    ones = torch.ones(1, len(frames))
    return Views(image[None], Cameras(poses[None], intrinsics[None], ones, ones), torch.tensor([list(frames)]))


def test_the_first_anchors_are_what_the_plan_generates_first() -> None:
    plan = plan_views((3,), tuple(range(4, 20)), ViewPlanConfig())
    assert first_anchors(plan) == (8, 12)
    assert first_anchors(plan_views((3,), (4,), ViewPlanConfig())) == (4,)


def test_views_are_scored_beside_the_nearest_given_one_and_the_truth(room: Views) -> None:
    given, truth = room.select([0, 5]), room.select([1, 2, 3, 4])
    images = truth.image[0] * 0.5 + 0.1
    scores = score_scene(given, truth, images, (4, 6))
    nearest = given.image[0][[0, 0, 1, 1]]
    for what, shown in ((GENERATED, images), (NEAREST, nearest)):
        for name, metric in (("psnr", psnr), ("ssim", ssim)):
            assert scores.metrics[what][name] == pytest.approx(metric(shown, truth.image[0]).tolist(), abs=1e-4)
    assert scores.given == (0, 10) and scores.frames == (2, 4, 6, 8)
    assert scores.mean(GENERATED, "psnr", ANCHORS) == pytest.approx(sum(scores.metrics[GENERATED]["psnr"][1:3]) / 2)
    assert 0 < scores.consistency[TRUE] < 0.3
    # given views keep their contrast, and correlation does not mind: a view dimmed as a whole is as consistent
    assert scores.consistency[GENERATED] == pytest.approx(scores.consistency[TRUE], abs=0.02)


def test_views_of_another_room_each_are_inconsistent_whatever_their_order_in_memory(room: Views) -> None:
    given, truth = room.select([0]), room.select([1, 2, 3])
    noise = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    scores = score_scene(given, truth, noise, (2,))
    assert scores.consistency[GENERATED] > 2 * scores.consistency[TRUE]
    late = score_scene(room.select([5]), truth, truth.image[0], (2,))  # the given view is the last of the path
    assert late.consistency[GENERATED] == late.consistency[TRUE] < 0.3
    assert late.metrics[GENERATED]["psnr"] == [None] * 3  # identical: infinite


def test_means_are_over_scenes_and_the_ratio_over_those_that_have_both_scores(room: Views) -> None:
    given, truth = room.select([0]), room.select([1, 2, 3])
    one = score_scene(given, truth, truth.image[0] * 0.5, (4, 6))
    two = score_scene(given, room.select([2, 3]), room.image[0][[2, 3]] * 0.9, (4,))
    blind = replace(two, consistency={GENERATED: None, TRUE: 0.1})
    summed = summarise_scenes({"one": one, "blind": blind})
    psnrs = summed["metrics"]["all"][GENERATED]["psnr"]
    mean = np.mean([np.mean(scene.metrics[GENERATED]["psnr"]) for scene in (one, two)])
    assert psnrs["mean"] == pytest.approx(mean, abs=1e-3) and psnrs["count"] == 2
    first = summed["metrics"][ANCHORS][NEAREST]["ssim"]["mean"]
    expected = np.mean([np.mean(one.metrics[NEAREST]["ssim"][1:]), two.metrics[NEAREST]["ssim"][0]])
    assert first == pytest.approx(expected, abs=1e-3)
    assert summed["consistency"][TRUE]["count"] == 1 and summed["views"] == 5
    assert summed["consistency"]["ratio"] == pytest.approx(one.consistency[GENERATED] / one.consistency[TRUE], abs=1e-3)
    assert summed["scenes"]["blind"]["consistency"] is None
    alone = summarise_scenes({"blind": blind})["consistency"]
    assert alone == {GENERATED: {}, TRUE: {}}
