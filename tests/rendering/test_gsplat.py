"""Claims that need CUDA: gsplat and the PyTorch rasteriser draw the same images and send the same gradients."""

from dataclasses import replace

import pytest
import torch
from rendering.benchmark_splatting import cameras_on_an_arc, unprojected_scene
from torch import Tensor

from lsplat_ns.cuda_graphs import RepeatedCalls
from lsplat_ns.rendering.splatting import SplattingConfig, SplattingParts, gsplat_status, splat
from lsplat_ns.scene import Gaussians

NAMES = ("means", "covariances", "opacities", "color_harmonics", "feature_harmonics")
SIZE = (56, 72)


@pytest.fixture(autouse=True)
def _needs_gsplat() -> None:
    problem = gsplat_status()
    if problem is not None:
        pytest.skip(problem)


def on_both(config: SplattingConfig, scene: Gaussians, **what: bool) -> tuple[tuple[Gaussians, dict], ...]:
    """(leaves, maps) on the CPU with the reference and on CUDA with gsplat."""
    results = []
    for device in ("cpu", "cuda"):
        leaves = scene.to(device)
        leaves = Gaussians(*(getattr(leaves, name).clone().requires_grad_() for name in NAMES))
        drawn = splat(leaves, cameras_on_an_arc(3).to(device), SIZE, config, **what)
        maps = {name: getattr(drawn, name) for name in ("color", "features", "alpha", "depth_z")}
        results.append((leaves, maps))
    return tuple(results)


def cosine(first: Tensor, second: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(first.flatten().double(), second.flatten().double(), dim=0).item()


@pytest.mark.gpu
@pytest.mark.parametrize("principal_point", ["centred", "true"])
def test_gsplat_and_the_reference_draw_the_same_images(principal_point):
    scene = unprojected_scene(40)  # opacities up to 1/3: no alpha reaches the clamp
    (_, wanted), (_, actual) = on_both(SplattingConfig(principal_point=principal_point), scene)
    for name in ("color", "features"):
        error = (actual[name].cpu() - wanted[name]).abs()
        assert error.max() <= 1e-3, f"{name}: {error.max()}"
        assert error.mean() <= 1e-4, f"{name}: {error.mean()}"
    assert (actual["alpha"].cpu() - wanted["alpha"]).abs().max() <= 6e-3
    assert (actual["depth_z"].cpu() - wanted["depth_z"]).abs().max() <= 2e-2


@pytest.mark.gpu
def test_gsplat_and_the_reference_agree_on_opaque_gaussians():
    (_, wanted), (_, actual) = on_both(SplattingConfig(), unprojected_scene(40, opacity=1.0))
    for name in ("color", "features", "alpha"):
        assert (actual[name].cpu() - wanted[name]).abs().mean() <= 1e-3
    assert (actual["alpha"].cpu() - wanted["alpha"]).abs().max() <= 6e-3


@pytest.mark.gpu
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("name", ["color", "features", "alpha", "depth_z"])
def test_gsplat_and_the_reference_send_the_same_gradients(name, coupled):
    results = on_both(SplattingConfig(couple_features=coupled), unprojected_scene(24))
    weights = torch.randn(results[0][1][name].shape, generator=torch.Generator().manual_seed(3))
    gradients = []
    for leaves, maps in results:
        loss = (maps[name] * weights.to(maps[name].device)).sum()
        tensors = [getattr(leaves, part) for part in NAMES]
        found = torch.autograd.grad(loss, tensors, allow_unused=True)
        gradients.append([torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=True)])
    for part, wanted, actual in zip(NAMES, *gradients, strict=True):
        if wanted.abs().max() == 0:
            assert actual.abs().max() == 0, part
        else:
            assert cosine(actual.cpu(), wanted) >= 0.999, part
            assert actual.norm().item() == pytest.approx(wanted.norm().item(), rel=1e-2)


@pytest.mark.gpu
def test_gsplat_draws_one_pixel_odd_sizes_and_empty_scenes():
    cameras = cameras_on_an_arc(2).to("cuda")
    scene = unprojected_scene(8).to("cuda")
    for size in ((1, 1), (17, 33)):
        assert torch.isfinite(splat(scene, cameras, size).color).all()
    empty = splat(scene.select(torch.zeros(scene.count, dtype=torch.bool, device="cuda")), cameras, (8, 8))
    assert (empty.color == 0).all()


@pytest.mark.gpu
def test_only_features_or_only_geometry_can_be_drawn_with_gsplat():
    scene = unprojected_scene(16)
    (_, wanted), (_, actual) = on_both(SplattingConfig(), scene, color=False)
    assert actual["color"] is None
    assert (actual["features"].cpu() - wanted["features"]).abs().max() <= 1e-3
    (_, wanted), (_, actual) = on_both(SplattingConfig(), scene, color=False, features=False)
    assert (actual["alpha"].cpu() - wanted["alpha"]).abs().max() <= 6e-3


@pytest.mark.gpu
def test_views_of_the_same_gaussians_are_equal_bit_for_bit_when_they_come_from_a_graph():
    parts = SplattingParts(repeated=RepeatedCalls())
    with torch.no_grad():
        for view_count in (1, 3):
            scene = unprojected_scene(32).to("cuda")
            for call in range(5):
                cameras = cameras_on_an_arc(view_count + call).to("cuda").select(slice(call, None))
                if call == 4:
                    scene.opacities.mul_(0.5)  # a graph reads what is there now
                wanted, again = splat(scene, cameras, SIZE), splat(scene, cameras, SIZE, parts=parts)
                for name in ("color", "features", "alpha", "depth_z"):
                    assert torch.equal(getattr(again, name), getattr(wanted, name)), (view_count, call, name)
    assert [call._graph is not None for call in parts.repeated._calls.values()] == [True]  # the first scene is gone


@pytest.mark.gpu
def test_what_one_graph_cannot_hold_is_drawn_all_the_same():
    parts, scene = SplattingParts(repeated=RepeatedCalls()), unprojected_scene(16).to("cuda")
    cameras = cameras_on_an_arc(2).to("cuda")
    unlike = cameras.with_bounds(cameras.near * torch.tensor([[1.0, 2.0]], device="cuda"), cameras.far)
    with torch.no_grad():
        for _ in range(4):
            drawn = splat(scene, unlike, SIZE, parts=parts)
            assert torch.equal(drawn.color, splat(scene, unlike, SIZE).color)
    leaves = scene.means.clone().requires_grad_()
    splat(replace(scene, means=leaves), cameras, SIZE, parts=parts).color.sum().backward()
    assert leaves.grad.abs().sum() > 0
    assert not parts.repeated._calls
