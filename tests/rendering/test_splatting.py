"""Claims about the splatting entry point: the original's recordings, conventions, gradients, backends."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from gsplat.cuda import _torch_impl
from parity import PARITY
from rendering.benchmark_splatting import cameras_on_an_arc, unprojected_scene
from torch import Tensor
from torch.nn.functional import normalize

from lsplat_ns.cuda_graphs import RepeatedCalls
from lsplat_ns.errors import ConfigError, MissingExtra, ShapeMismatch
from lsplat_ns.geometry.harmonics import dc_from_rgb, harmonic_basis
from lsplat_ns.rendering import gsplat_adapter, splatting
from lsplat_ns.rendering.compositing import GSPLAT_RULES, ORIGINAL_RULES
from lsplat_ns.rendering.rasterization import Ellipsoids, pixel_cameras
from lsplat_ns.rendering.reference import rasterize_in_pytorch
from lsplat_ns.rendering.splatting import SplattingConfig, SplattingParts, gsplat_status, splat
from lsplat_ns.scene import Cameras, Gaussians

NAMES = ("means", "covariances", "opacities", "color_harmonics", "feature_harmonics")
ORIGINAL = SplattingConfig(backend="reference", reference_rules="original")


def recorded(name: str) -> tuple[dict[str, Tensor], Gaussians, Cameras, tuple[int, int]]:
    """A recording of the original rasteriser: arrays, scene with gradients, cameras, size."""
    path = PARITY / "golden" / "rasterizer" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no recording {name}: ../shared/parity is not beside this checkout")
    with np.load(path) as archive:
        arrays = {key: torch.from_numpy(archive[key]) for key in archive.files}
    scene = Gaussians(*(arrays[f"in_{part}"][None].clone().requires_grad_() for part in NAMES))
    cameras = Cameras(*(arrays[f"in_{part}"][None] for part in ("extrinsics", "intrinsics", "near", "far")))
    return arrays, scene, cameras, tuple(arrays["in_shape"].tolist())


def assert_near(actual: Tensor, expected: Tensor, limit: float) -> None:
    """Relative error in the L2 norm."""
    assert (actual - expected).norm() <= limit * expected.norm().clamp_min(1e-9)


@pytest.mark.parametrize("name", ["raster_a", "raster_sh0"])
def test_images_and_gradients_equal_the_original_rasteriser(name):
    arrays, scene, cameras, size = recorded(name)
    drawn = splat(scene, cameras, size, ORIGINAL)
    near = cameras.near[0, :, None, None]
    maps = {"color": drawn.color[0], "feature": drawn.features[0], "mask": drawn.alpha[0]}
    maps["depth"] = drawn.depth_z[0] / near
    for output, image in maps.items():
        assert (image - arrays[f"out_{output}"]).abs().max() <= (1e-4 if output == "depth" else 1e-5)
        loss = (image * arrays[f"cot_{output}"]).sum()
        leaves = [getattr(scene, part) for part in NAMES]
        gradients = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        for part, gradient in zip(NAMES, gradients, strict=True):
            expected = arrays[f"grad_{output}_{part}"]
            actual = torch.zeros_like(expected) if gradient is None else gradient[0]
            if part == "covariances":  # the original leaves the lower triangle out
                assert torch.equal(actual, actual.mT)
                expected = (expected + expected.mT) / 2
            if name == "raster_a" and output == "color" and part in {"means", "color_harmonics"}:
                continue  # the original differentiates another function 14 than it evaluates: next test
            assert_near(actual, expected, 2e-4)


def test_color_gradients_equal_the_original_when_function_fourteen_is_differentiated_its_way():
    arrays, scene, cameras, size = recorded("raster_a")
    means, coefficients = scene.means[0], scene.color_harmonics[0, ..., :16]
    directions = normalize(means - cameras.origins[0, :, None], dim=-1)
    regular, slipped = (
        torch.einsum("vgk,gck->vgc", harmonic_basis(directions, 3, regular=flag), coefficients)
        for flag in (True, False)
    )
    values = (regular + (slipped - regular).detach() + 0.5).clamp_min(0)
    pixels = pixel_cameras(cameras, size, "centred", 0.2).select(0, slice(None))
    ellipsoids = Ellipsoids(means, scene.covariances[0], scene.opacities[0])
    image = rasterize_in_pytorch(ellipsoids, values, pixels, size, ORIGINAL_RULES).values
    gradients = torch.autograd.grad((image * arrays["cot_color"]).sum(), [scene.means, scene.color_harmonics])
    for part, gradient in zip(("means", "color_harmonics"), gradients, strict=True):
        assert_near(gradient[0], arrays[f"grad_color_{part}"], 2e-4)


def test_gsplat_constants_stay_close_to_the_original():
    arrays, scene, cameras, size = recorded("raster_a")
    drawn = splat(scene.detach(), cameras, size)
    assert (drawn.color[0] - arrays["out_color"]).abs().mean() < 1e-3
    assert (drawn.alpha[0] - arrays["out_mask"]).abs().max() < 2e-2


def test_a_wide_opaque_gaussian_shows_its_colour_and_depth():
    mean = torch.tensor([[[0.0, 0.0, 2.0]]])
    harmonics = torch.zeros(1, 1, 3, 25)
    harmonics[0, 0, :, 0] = dc_from_rgb(torch.tensor([0.25, 0.5, 2.0]))
    features = torch.zeros(1, 1, 2, 9)
    features[0, 0, :, 0] = dc_from_rgb(torch.tensor([-3.0, 4.0]))
    scene = Gaussians(mean, torch.eye(3)[None, None] * 100, torch.tensor([[0.9]]), harmonics, features)
    drawn = splat(scene, cameras_on_an_arc(1), (8, 8))
    middle = (0, 0, slice(None), 4, 4)
    torch.testing.assert_close(drawn.color[middle], 0.9 * torch.tensor([0.25, 0.5, 2.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(drawn.features[middle], 0.9 * torch.tensor([-3.0, 4.0]), atol=2e-3, rtol=0)
    assert drawn.alpha[0, 0, 4, 4].item() == pytest.approx(0.9, abs=1e-3)
    assert drawn.depth_z[0, 0, 4, 4].item() == pytest.approx(1.8, abs=2e-3)
    negative = replace(scene, color_harmonics=harmonics - 10)
    assert (splat(negative, cameras_on_an_arc(1), (8, 8)).color == 0).all()


def test_a_gaussian_lands_on_the_pixel_its_ray_goes_through():
    cameras = cameras_on_an_arc(1)
    row, column, size = 5, 11, (16, 16)
    point = torch.tensor([(column + 0.5) / 16, (row + 0.5) / 16, 1.0])
    mean = 3 * torch.linalg.inv(cameras.intrinsics_norm[0, 0]) @ point
    mean = cameras.world_from_camera[0, 0, :3, :3] @ mean + cameras.origins[0, 0]
    scene = Gaussians(mean[None, None], 1e-6 * torch.eye(3)[None, None], torch.ones(1, 1), torch.zeros(1, 1, 3, 25))
    alpha = splat(scene, cameras, size).alpha[0, 0]
    assert alpha.argmax() == row * 16 + column


def test_scaling_the_world_and_near_changes_nothing_but_depth():
    scene, cameras = unprojected_scene(12), cameras_on_an_arc(2)
    factor = 7.0
    scaled = replace(scene, means=scene.means * factor, covariances=scene.covariances * factor**2)
    poses = cameras.world_from_camera.clone()
    poses[..., :3, 3] *= factor
    larger = Cameras(poses, cameras.intrinsics_norm, cameras.near * factor, cameras.far * factor)
    first, second = splat(scene, cameras, (20, 20)), splat(scaled, larger, (20, 20))
    torch.testing.assert_close(second.color, first.color, atol=1e-4, rtol=0)
    torch.testing.assert_close(second.depth_z, first.depth_z * factor, atol=1e-2, rtol=1e-4)


def test_an_off_centre_principal_point_is_ignored_unless_asked_for():
    scene, cameras = unprojected_scene(12), cameras_on_an_arc(1)
    intrinsics = cameras.intrinsics_norm.clone()
    intrinsics[..., 0, 2] = 0.5 + 4 / 16
    shifted = replace(cameras, intrinsics_norm=intrinsics)
    plain = splat(scene, cameras, (16, 16)).alpha
    true = splat(scene, shifted, (16, 16), SplattingConfig(principal_point="true")).alpha
    torch.testing.assert_close(true[..., 6:], plain[..., 2:-4], atol=2e-2, rtol=0)  # tiles cut tails elsewhere
    pixels = pixel_cameras(shifted, (16, 16), "centred", 0.2)
    assert pixels.intrinsics_px[0, 0, 0, 2] == 8
    half_angles = [torch.tensor(edge / 0.9).atan() for edge in (0.75, 0.25)]
    focal = 8 / torch.tan(sum(half_angles) / 2)
    torch.testing.assert_close(pixels.intrinsics_px[0, 0, 0, 0], focal, atol=0.2, rtol=0)
    torch.testing.assert_close(pixels.intrinsics_px[0, 0, 1, 1].item(), 0.9 * 16, atol=1.0, rtol=0)


@pytest.mark.parametrize("coupled", [False, True])
def test_feature_losses_leave_geometry_untouched_unless_coupled(coupled):
    scene = unprojected_scene(8)
    leaves = [getattr(scene, name).requires_grad_() for name in NAMES]
    drawn = splat(scene, cameras_on_an_arc(2), (16, 16), SplattingConfig(couple_features=coupled))
    gradients = torch.autograd.grad(drawn.features.square().sum(), leaves, allow_unused=True, retain_graph=True)
    moved = dict(zip(NAMES, gradients, strict=True))
    assert moved["feature_harmonics"].abs().max() > 0
    assert moved["means"].abs().max() > 0  # through the viewing direction
    for name in ("covariances", "opacities"):
        assert (moved[name].abs().max() > 0) == coupled
    *_, of_colors, of_features = torch.autograd.grad(drawn.color.sum(), leaves, allow_unused=True)
    assert of_colors.abs().max() > 0
    assert of_features is None or (of_features == 0).all()


def test_scenes_and_views_do_not_mix(monkeypatch):
    first, second, cameras = unprojected_scene(10, seed=1), unprojected_scene(10, seed=2), cameras_on_an_arc(3)
    both = Gaussians(*(torch.cat([getattr(first, name), getattr(second, name)]) for name in NAMES))
    twice = Cameras(*(tensor.repeat(2, *[1] * (tensor.ndim - 1)) for tensor in vars(cameras).values()))
    together = splat(both, twice, (12, 20))
    for index, scene in enumerate((first, second)):
        for view in range(3):
            alone = splat(scene, cameras.select([view]), (12, 20))
            torch.testing.assert_close(together.color[index, view], alone.color[0, 0])
            torch.testing.assert_close(together.features[index, view], alone.features[0, 0])
    monkeypatch.setattr(splatting, "VALUES_AT_ONCE", 250)  # two views at a time
    torch.testing.assert_close(splat(both, twice, (12, 20)).color, together.color)


def test_only_what_is_asked_for_is_drawn():
    scene, cameras = unprojected_scene(6), cameras_on_an_arc(2)
    full = splat(scene, cameras, (9, 7))
    assert full.color.shape == (1, 2, 3, 9, 7)
    assert full.features.shape == (1, 2, 4, 9, 7)
    features = splat(scene, cameras, (9, 7), color=False)
    assert features.color is None
    torch.testing.assert_close(features.features, full.features)
    bare = splat(scene, cameras, (9, 7), color=False, features=False)
    assert bare.color is None
    assert bare.features is None
    torch.testing.assert_close(bare.alpha, full.alpha)
    torch.testing.assert_close(bare.depth_z, full.depth_z)
    assert splat(replace(scene, feature_harmonics=None), cameras, (9, 7)).features is None
    raw = splat(scene, cameras, (9, 7), SplattingConfig(feature_offset=0.0)).features
    torch.testing.assert_close(raw + 0.5 * full.alpha[:, :, None], full.features, atol=1e-5, rtol=0)


def test_half_precision_harmonics_and_autocast_are_drawn_in_full_precision():
    scene, cameras = unprojected_scene(6), cameras_on_an_arc(2)
    half = replace(scene, color_harmonics=scene.color_harmonics.bfloat16())
    rounded = replace(scene, color_harmonics=half.color_harmonics.float())
    with torch.autocast("cpu", torch.bfloat16):
        drawn = splat(half, cameras, (9, 7))
    assert drawn.color.dtype == torch.float32
    torch.testing.assert_close(drawn.color, splat(rounded, cameras, (9, 7)).color)


def test_an_empty_scene_is_black():
    scene = unprojected_scene(4).select(torch.zeros(32, dtype=torch.bool))
    drawn = splat(scene, cameras_on_an_arc(2), (5, 6))
    assert drawn.color.shape == (1, 2, 3, 5, 6)
    assert (drawn.color == 0).all()
    assert (drawn.alpha == 0).all()


def test_what_cannot_be_drawn_is_refused():
    scene, cameras = unprojected_scene(4), cameras_on_an_arc(2)
    with pytest.raises(ConfigError, match="0 x 4"):
        splat(scene, cameras, (0, 4))
    with pytest.raises(ConfigError, match="CUDA"):
        splat(scene, cameras, (4, 4), SplattingConfig(backend="gsplat"))
    with pytest.raises(ShapeMismatch):
        splat(scene, Cameras(*(tensor[0] for tensor in vars(cameras).values())), (4, 4))
    with pytest.raises(ConfigError):
        SplattingConfig(near_cull=0)
    with pytest.raises(ConfigError):
        SplattingConfig(color_degree=5)


class StandInGsplat:
    """gsplat in PyTorch: it projects and sorts with its own slow twins, and blends in one tile. Counts calls."""

    isect_offset_encode = staticmethod(_torch_impl._isect_offset_encode)

    def __init__(self) -> None:
        self.near_planes, self.blended = [], []

    def isect_tiles(self, means, radii, depths, tile_size, columns, rows, *, packed):
        assert not packed
        return _torch_impl._isect_tiles(means, radii, depths, tile_size, columns, rows)

    def fully_fused_projection(
        self, means, triangles, quats, scales, viewmats, Ks, width, height, *, near_plane, eps2d, radius_clip, packed
    ):
        assert (quats, scales, radius_clip, packed) == (None, None, 0.0, False)
        self.near_planes.append(near_plane)
        covariances = triangles[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(-1, (3, 3))
        return _torch_impl._fully_fused_projection(
            means, covariances, viewmats, Ks, width, height, eps2d=eps2d, near_plane=near_plane
        )

    def rasterize_to_pixels(self, means, conics, values, opacities, width, height, tile_size, offsets, order):
        assert offsets.shape == (len(means), 1, 1)
        self.blended.append((values.shape[-1], means.requires_grad))
        rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        pixels = torch.stack([columns, rows], -1)
        maps, alphas = [], []
        for view in range(len(means)):
            mine = order[order // means.shape[1] == view] % means.shape[1]
            shift = pixels[..., None, :] - means[view, mine]
            xx, xy, yy = conics[view, mine].unbind(-1)
            power = 0.5 * (xx * shift[..., 0] ** 2 + yy * shift[..., 1] ** 2) + xy * shift[..., 0] * shift[..., 1]
            alpha = (opacities[view, mine] * torch.exp(-power)).clamp_max(0.999)
            alpha = torch.where(alpha < 1 / 255, 0.0, alpha)
            passed = torch.cumprod(torch.nn.functional.pad(1 - alpha, (1, 0), value=1.0), -1)
            weights = alpha * passed[..., :-1]
            maps.append(weights @ values[view, mine])
            alphas.append(weights.sum(-1, keepdim=True))
        return torch.stack(maps), torch.stack(alphas)


@pytest.fixture
def stand_in(monkeypatch):
    module = StandInGsplat()
    monkeypatch.setattr(gsplat_adapter, "_gsplat", lambda: module)

    chosen = splatting._rasterizer

    def rasterizer(config, gaussians, cameras, color):
        reference = chosen(config, gaussians, cameras, color)
        if config.backend == "reference":
            return reference
        return partial(gsplat_adapter.rasterize_with_gsplat, attached=reference.keywords["attached"])

    monkeypatch.setattr(splatting, "_rasterizer", rasterizer)
    return module


def test_gsplat_draws_everything_in_one_pass_at_inference(stand_in):
    scene, cameras = unprojected_scene(6), cameras_on_an_arc(2)
    drawn = splat(scene, cameras, (9, 7))
    assert stand_in.near_planes == pytest.approx([0.06])
    assert stand_in.blended == [(8, False)]  # three colours, four features, depth
    wanted = splat(scene, cameras, (9, 7), SplattingConfig(backend="reference"))
    for name in ("color", "features", "alpha", "depth_z"):
        torch.testing.assert_close(getattr(drawn, name), getattr(wanted, name), rtol=1e-4, atol=2e-4)
    splat(scene, cameras, (9, 7), color=False, features=False)
    assert stand_in.blended[-1] == (1, False)


def test_gsplat_projects_once_and_blends_features_apart_from_geometry_in_training(stand_in):
    scene, cameras = unprojected_scene(6), cameras_on_an_arc(2)
    leaves = [getattr(scene, name).requires_grad_() for name in NAMES]
    drawn = splat(scene, cameras, (9, 7))
    assert len(stand_in.near_planes) == 1
    assert stand_in.blended == [(4, True), (4, False)]
    gradients = torch.autograd.grad(drawn.features.square().sum(), leaves, allow_unused=True)
    assert gradients[1] is None or (gradients[1] == 0).all()
    assert gradients[4].abs().max() > 0
    splat(scene, cameras, (9, 7), SplattingConfig(couple_features=True))
    assert stand_in.blended[-1] == (8, True)


def test_many_channels_are_blended_in_parts_that_fit_the_kernels(stand_in):
    scene, cameras = unprojected_scene(4), cameras_on_an_arc(1)
    features = torch.randn(1, scene.count, 64, 9, generator=torch.Generator().manual_seed(0))
    wide = replace(scene, feature_harmonics=features)
    drawn = splat(wide, cameras, (9, 7))
    assert [channels for channels, _ in stand_in.blended] == [32, 32, 4]
    few = splat(replace(scene, feature_harmonics=features[:, :, 40:44]), cameras, (9, 7))
    torch.testing.assert_close(drawn.features[:, :, 40:44], few.features)


def test_gsplat_draws_views_with_other_near_planes_one_by_one(stand_in):
    cameras = cameras_on_an_arc(2)
    cameras = cameras.with_bounds(torch.tensor([[0.3, 10.0]]), cameras.far)
    drawn = splat(unprojected_scene(6), cameras, (9, 7))
    assert stand_in.near_planes == pytest.approx([0.06, 2.0])
    assert drawn.color.shape == (1, 2, 3, 9, 7)


def test_a_missing_gsplat_is_explained(monkeypatch):
    gsplat_status.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gsplat_adapter, "find_spec", lambda name: None)
    try:
        assert "pip install gsplat" in gsplat_status()
        with pytest.raises(MissingExtra, match="pip install gsplat"):
            gsplat_adapter._gsplat()
    finally:
        gsplat_status.cache_clear()


def test_missing_compilers_are_named(monkeypatch):
    gsplat_status.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gsplat_adapter.shutil, "which", lambda program: None)
    try:
        status = gsplat_status()
        assert status is None or "nvcc" in status or "pip install gsplat" in status
    finally:
        gsplat_status.cache_clear()


class _Sorted:
    """Stands in for gsplat's half of a view that may come from a graph: the reference draws what it was given."""

    def __init__(self, ellipsoids, cameras, size, near, blur):
        assert blur == pytest.approx(GSPLAT_RULES.blur) and near == cameras.z_min[0]
        self.draw_values = lambda values: rasterize_in_pytorch(ellipsoids, values, cameras, size)

    def with_depth(self, values):
        return values

    def draw(self, values):
        return self.draw_values(values)


@pytest.mark.parametrize("what", [{}, {"color": False}, {"features": False}])
def test_what_a_graph_would_hold_is_what_is_drawn_without_it(what, monkeypatch):
    scene, size = unprojected_scene(16), (24, 40)
    wanted = [splat(scene, cameras_on_an_arc(count), size, **what) for count in (1, 2)]
    monkeypatch.setattr(splatting, "_draws_with_gsplat", lambda config, gaussians: True)
    monkeypatch.setattr(splatting, "project", _Sorted)
    monkeypatch.setattr(splatting, "sort", lambda projected, size: projected)
    parts = SplattingParts(repeated=RepeatedCalls())
    with torch.no_grad():
        drawn = [splat(scene, cameras_on_an_arc(count), size, parts=parts, **what) for count in (1, 2)]
    assert len(parts.repeated._calls) == 2  # each number of views has its own
    for actual, expected in zip(drawn, wanted, strict=True):
        for name in ("color", "features", "alpha", "depth_z"):
            if getattr(expected, name) is None:
                assert getattr(actual, name) is None
            else:
                assert torch.equal(getattr(actual, name), getattr(expected, name)), name
