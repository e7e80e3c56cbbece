"""Several pairs of views as one scene: what each layer adds, and what it leaves to the layers before it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.fusion import Layer, ScenePair, encode_layer, fuse, predict_scene
from lsplat_ns.geometry.rays import bounds_from_baseline, pixel_centers, project, world_rays
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.plugin.recipes import tiny_networks
from lsplat_ns.scene import Cameras, VariationalGaussians, Views

SIZE = (32, 32)
INTRINSICS = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
WALL, PANEL = 4.0, 2.0  # a wall, and a panel before its left half (x < 0), in the scene's units


@pytest.fixture(scope="module")
def network() -> LatentSplat:
    torch.manual_seed(0)
    return LatentSplat(tiny_networks(), discriminator=False).eval()


def camera(x: float) -> Cameras:
    """A camera [1, 1] at (x, 0, 0) that looks along +z."""
    pose = torch.eye(4)
    pose[0, 3] = x
    ones = torch.ones(1, 1)
    return Cameras(pose[None, None], INTRINSICS[None, None], 0.3 * ones, 100 * ones)


def photo_layer(x: float, *, generated: bool = False, with_panel: bool = False, depth_error: float = 0.0) -> Layer:
    """What a perfect network would predict for one photo from (x, 0, 0): one opaque Gaussian per pixel."""
    cameras = camera(x)
    points = pixel_centers(*SIZE, like=INTRINSICS)
    origins, directions = world_rays(points, cameras.world_from_camera[0, 0], INTRINSICS)
    means = origins + directions * (WALL / directions[:, 2:])
    if with_panel:
        before = origins + directions * (PANEL / directions[:, 2:])
        means = torch.where((before[:, :1] < 0) & (before[:, :1] > -1.5), before, means)
    means = origins + (means - origins) * (1 + depth_error)
    count = len(means)
    gaussians = VariationalGaussians(
        means[None],
        torch.eye(3).expand(1, count, 3, 3) * (0.7 * means[None, :, 2:, None] / SIZE[0]) ** 2,
        torch.full((1, count), 0.97),
        torch.zeros(1, count, 3, 25),
        DiagonalGaussian(torch.zeros(1, count, 4, 9), torch.zeros(1, count, 4, 9)),
    )
    return Layer(gaussians, cameras, SIZE, generated)


def views(positions: list[float], network: LatentSplat, seed: int = 0) -> Views:
    cameras = Cameras(*(torch.cat(parts, 1) for parts in zip(*(_fields(camera(x)) for x in positions), strict=True)))
    near, far = bounds_from_baseline(cameras, (64, 64))
    image = torch.rand(1, len(positions), 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return Views(image, cameras.with_bounds(near[:, None], far[:, None]), torch.arange(len(positions))[None])


def _fields(cameras: Cameras) -> tuple[Tensor, ...]:
    return cameras.world_from_camera, cameras.intrinsics_norm, cameras.near, cameras.far


# ------------------------------------------------------------------------------------------------------ the rule


def test_the_same_photo_again_adds_nothing(network: LatentSplat) -> None:
    for error in (0.0, 0.2, -0.2):  # two predictions of one wall never agree exactly
        fused = fuse(network, [photo_layer(0.0), photo_layer(0.0, depth_error=error)])
        assert torch.equal(fused.layer, torch.zeros(1, SIZE[0] * SIZE[1], dtype=torch.int64))


@pytest.mark.parametrize("depth_error", [0.0, 0.1, -0.1])
def test_a_photo_beside_adds_what_lies_outside_the_first_one(network: LatentSplat, depth_error: float) -> None:
    first, second = photo_layer(0.0), photo_layer(1.0, depth_error=depth_error)
    fused = fuse(network, [first, second])
    added = fused.gaussians.means[0, fused.layer[0] == 1]
    xy, _ = project(second.gaussians.means[0], first.cameras.world_from_camera[0, 0], INTRINSICS)
    outside = int((xy > 1).any(-1).sum())
    assert len(added) == pytest.approx(outside, rel=0.15) and 0 < outside < 0.4 * SIZE[0] * SIZE[1]
    assert (added[:, 0] > 1.8).all()  # the first photo ends at x = 2 on the wall


def test_what_was_hidden_behind_a_panel_is_filled_by_the_next_photo(network: LatentSplat) -> None:
    first, second = photo_layer(0.0, with_panel=True), photo_layer(0.6, with_panel=True)
    fused = fuse(network, [first, second])
    added = fused.gaussians.means[0, fused.layer[0] == 1]
    within = project(added, first.cameras.world_from_camera[0, 0], INTRINSICS)[0]
    filled = added[((within > 0.02) & (within < 0.98)).all(-1)]
    assert len(filled) > 20
    # From the first camera the panel's edge hides the wall left of x = 0, from the second one left of x = -0.6.
    assert (filled[:, 2] > PANEL + 1).all() and (filled[:, 0] > -0.7).all() and (filled[:, 0] < 0.15).all()


def test_from_the_first_photo_a_fused_scene_looks_as_it_did_alone(network: LatentSplat) -> None:
    first = photo_layer(0.0, with_panel=True)
    fused = fuse(
        network, [first, photo_layer(0.6, with_panel=True), photo_layer(-0.9, with_panel=True, depth_error=-0.1)]
    )
    with torch.no_grad():
        alone, together = (
            network.render(g.mode(), first.cameras, SIZE, color=False, features=False)
            for g in (first.gaussians, fused.gaussians)
        )
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(together.depth_z[inner], alone.depth_z[inner], atol=0.25, rtol=0)
    assert (together.alpha[inner] - alone.alpha[inner]).abs().max() < 0.15


def test_real_beats_generated_in_whatever_order_they_come(network: LatentSplat) -> None:
    real, made = photo_layer(0.0), photo_layer(0.5, generated=True, depth_error=-0.3)
    fused = fuse(network, [made, real])
    assert (fused.layer[0] == fused.generated[0].long()).all()  # layer 0 is real, layer 1 is generated
    assert int((~fused.generated).sum()) == real.gaussians.count
    only_real = fused.select(~fused.generated[0])
    torch.testing.assert_close(only_real.gaussians.means, real.gaussians.means)
    assert fused.generated.any() and fused.generated.shape == fused.layer.shape == fused.gaussians.opacities.shape


def test_an_object_that_no_earlier_photo_has_in_view_is_kept_before_a_covered_wall(network: LatentSplat) -> None:
    second = photo_layer(2.2)
    ball = torch.zeros_like(second.gaussians.means[0, :, 0], dtype=torch.bool)
    means = second.gaussians.means.clone()
    column = torch.arange(SIZE[1]).repeat(SIZE[0])
    ball |= (column > 4) & (column < 9)
    means[0, ball] = camera(2.2).origins[0] + (means[0, ball] - camera(2.2).origins[0]) * 0.35
    xy, _ = project(means[0, ball], torch.eye(4), INTRINSICS)
    unseen = ~((xy >= 0) & (xy <= 1)).all(-1)
    assert unseen.any()
    fused = fuse(network, [photo_layer(0.0), replace(second, gaussians=replace(second.gaussians, means=means))])
    added = fused.gaussians.means[0, fused.layer[0] == 1]
    assert int((added[:, 2] < 2).sum()) == int(unseen.sum())


# ---------------------------------------------------------------------------------------------------- prediction


def test_one_pair_is_exactly_what_the_network_predicts(network: LatentSplat) -> None:
    pair = ScenePair(views([0.0, 1.0], network), 1.0, (0, 1))
    with torch.no_grad():
        expected = network.encode(pair.views, generator=torch.Generator().manual_seed(3))
    fused = predict_scene(network, [pair], generator=torch.Generator().manual_seed(3))
    for name in ("means", "covariances", "opacities", "color_harmonics"):
        assert torch.equal(getattr(fused.gaussians, name), getattr(expected, name)), name
    assert torch.equal(fused.gaussians.features.logvar, expected.features.logvar)
    assert not fused.layer.any() and not fused.generated.any()


def test_a_photo_contributes_once_and_in_the_scenes_units(network: LatentSplat) -> None:
    """Of a second pair, whose baseline is half as long, only the new view is taken."""
    second = ScenePair(views([1.0, 2.0], network), 0.5, (1,))
    layer = encode_layer(network, second, deterministic=True)
    with torch.no_grad():
        expected = network.encode(second.views, deterministic=True)
    half = expected.count // 2
    torch.testing.assert_close(layer.gaussians.means, 0.5 * expected.means[:, half:])
    torch.testing.assert_close(layer.gaussians.covariances, 0.25 * expected.covariances[:, half:])
    torch.testing.assert_close(layer.gaussians.color_harmonics, expected.color_harmonics[:, half:])
    torch.testing.assert_close(layer.cameras.origins[0, 0], torch.tensor([1.0, 0.0, 0.0]))
    xy, in_front = project(layer.gaussians.means[0], layer.cameras.world_from_camera[0, 0], INTRINSICS)
    own = pixel_centers(64, 64, like=INTRINSICS)
    assert in_front.all() and (xy - own).abs().max() < 0.6 / 64


def test_a_fused_scene_stays_variational_and_its_draw_follows_the_seed(network: LatentSplat) -> None:
    pairs = [ScenePair(views([0.0, 1.0], network), 1.0, (0, 1)), ScenePair(views([1.0, 2.0], network, 1), 1.0, (1,))]
    steps: list[int] = []

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        fused = predict_scene(network, pairs, generator=generator, on_pair=steps.append)
        assert fused.layer.max() == 1 and fused.gaussians.features.std.min() > 0
        return fused.gaussians.sample(generator).feature_harmonics

    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert steps == [1, 2] * 3
