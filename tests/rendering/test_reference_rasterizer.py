"""Claims about the PyTorch rasteriser: a brute-force twin, gradients, robustness, bounded memory."""

import time
from dataclasses import fields

import pytest
import torch
from rendering.benchmark_splatting import PeakMemory, cameras_on_an_arc, unprojected_scene
from torch import Tensor

from lsplat_ns.geometry.covariance import covariances_from_scales
from lsplat_ns.rendering import compositing
from lsplat_ns.rendering.compositing import GSPLAT_RULES, ORIGINAL_RULES, RasterRules
from lsplat_ns.rendering.rasterization import Ellipsoids, PixelCameras, pixel_cameras
from lsplat_ns.rendering.reference import project, rasterize_in_pytorch
from lsplat_ns.rendering.splatting import splat

SIZE = (21, 35)  # no multiple of the tile in either direction
VIEWS = 2


def crowd(count: int = 24, seed: int = 0) -> tuple[Ellipsoids, Tensor, PixelCameras]:
    """Float64 Gaussians that meet every branch: opaque stacks, behind the camera, off screen, needles."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    z = 1 + 3 * draw(count)
    means = torch.stack([(draw(count) - 0.5) * 1.4 * z, (draw(count) - 0.5) * z, z], -1)
    scales = 0.02 + 0.3 * draw(count, 3) ** 2
    opacities = draw(count)
    opacities[:8] = 0.9995  # opaque: reaches the clamp and stops pixels
    means[:6, :2] *= 0.1
    means[8, 2] = -1.0
    means[9, 2] = 0.05
    means[10] = torch.tensor([6.0, 0.0, 1.5], dtype=torch.float64)
    means[11] = torch.tensor([2.5, 0.3, 1.5], dtype=torch.float64)  # outside the image, but large: clamped slope
    scales[11] = 1.5
    scales[12] = torch.tensor([1.2, 0.002, 0.002], dtype=torch.float64)
    opacities[13] = 0.003
    quaternions = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    ellipsoids = Ellipsoids(means, covariances_from_scales(scales, quaternions), opacities)
    cameras = cameras_on_an_arc(VIEWS, baseline=0.4)
    pixels = pixel_cameras(cameras, SIZE, "centred", 0.5)
    pixels = PixelCameras(*(getattr(pixels, f.name)[0].double() for f in fields(PixelCameras)))
    return ellipsoids, draw(VIEWS, count, 3), pixels


def brute_force(ellipsoids: Ellipsoids, values: Tensor, cameras: PixelCameras, rules: RasterRules) -> Tensor:
    """[V, C + 2, height, width]: values, depth and alpha, one Gaussian after the other on whole images."""
    height, width = SIZE
    y, x = torch.meshgrid(*(torch.arange(length).double() + 0.5 for length in SIZE), indexing="ij")
    images = []
    for view in range(VIEWS):
        rotation, shift = cameras.camera_from_world[view, :3, :3], cameras.camera_from_world[view, :3, 3]
        fx, fy = cameras.intrinsics_px[view].diagonal()[:2]
        local = ellipsoids.means @ rotation.T + shift
        transmittance = torch.ones(height, width, dtype=torch.float64)
        stopped = torch.zeros(height, width, dtype=torch.bool)
        image = torch.zeros(values.shape[-1] + 2, height, width, dtype=torch.float64)
        for index in local[:, 2].argsort().tolist():
            px, py, pz = local[index]
            if pz <= cameras.z_min[view]:
                continue
            limit_x, limit_y = 1.3 * width / 2 / fx, 1.3 * height / 2 / fy
            bounded_x, bounded_y = (px / pz).clamp(-limit_x, limit_x), (py / pz).clamp(-limit_y, limit_y)
            qx, qy = pz * bounded_x, pz * bounded_y
            if rules.straight_through:
                qx = px if bounded_x == px / pz else qx.detach()
                qy = py if bounded_y == py / pz else qy.detach()
            zero = torch.zeros_like(pz)
            jacobian = torch.stack([fx / pz, zero, -fx * qx / pz**2, zero, fy / pz, -fy * qy / pz**2]).reshape(2, 3)
            spread = jacobian @ rotation @ ellipsoids.covariances[index] @ rotation.T @ jacobian.T
            spread = spread + rules.blur * torch.eye(2, dtype=torch.float64)
            middle, det = spread.diagonal().mean(), torch.linalg.det(spread)
            radius = (3 * (middle + (middle**2 - det).clamp_min(rules.eigenvalue_floor).sqrt()).sqrt()).ceil()
            u, v = fx * px / pz + cameras.intrinsics_px[view, 0, 2], fy * py / pz + cameras.intrinsics_px[view, 1, 2]
            inset_low, inset_high = rules.tile_inset
            reached = torch.ones_like(stopped)
            for mean, position in ((u, x), (v, y)):
                tile = (position / 16).floor()
                reached &= (tile >= ((mean - inset_low - radius) / 16).floor()) & (
                    tile < ((mean - inset_high + radius) / 16).ceil()
                )
            delta = torch.stack([x - u, y - v], -1)
            power = 0.5 * torch.einsum("hwi,ij,hwj->hw", delta, torch.linalg.inv(spread), delta)
            raw = ellipsoids.opacities[index] * (-power).exp()
            alpha = raw.clamp_max(rules.alpha_max)
            if rules.straight_through:
                alpha = raw + (alpha - raw).detach()
            alpha = torch.where(reached & (alpha >= rules.alpha_min), alpha, 0.0)
            behind = transmittance * (1 - alpha)
            stopped = stopped | (behind < rules.transmittance_min)
            weight = torch.where(stopped, 0.0, alpha * transmittance)
            transmittance = torch.where(stopped, transmittance, behind)
            entry = torch.cat([values[view, index], torch.stack([pz, torch.ones_like(pz)])])
            image = image + weight * entry[:, None, None]
        images.append(image)
    return torch.stack(images)


def stacked(maps) -> Tensor:
    return torch.cat([maps.values, maps.depth_z[:, None], maps.alpha[:, None]], 1)


@pytest.mark.parametrize("rules", [GSPLAT_RULES, ORIGINAL_RULES], ids=["gsplat", "original"])
def test_images_and_gradients_equal_a_brute_force_rasteriser(rules):
    ellipsoids, values, cameras = crowd()
    leaves = [ellipsoids.means, ellipsoids.covariances, ellipsoids.opacities, values, cameras.camera_from_world]
    for leaf in leaves:
        leaf.requires_grad_()
    expected = brute_force(ellipsoids, values, cameras, rules)
    actual = stacked(rasterize_in_pytorch(ellipsoids, values, cameras, SIZE, rules))
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-10)
    assert expected[:, -1].max() > 0.999  # some pixels stop
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    for index, gradient in enumerate(torch.autograd.grad((actual * weights).sum(), leaves)):
        # How off-diagonal gradients of a covariance are split between its two equal entries is arbitrary.
        first, second = (t + t.mT if index == 1 else t for t in (gradient, wanted[index]))
        torch.testing.assert_close(first, second, atol=1e-9, rtol=1e-8)


def test_detached_channels_reach_values_only():
    ellipsoids, values, cameras = crowd()
    leaves = [ellipsoids.means, ellipsoids.covariances, ellipsoids.opacities, values]
    for leaf in leaves:
        leaf.requires_grad_()
    plain = rasterize_in_pytorch(ellipsoids, values, cameras, SIZE).values
    partly = rasterize_in_pytorch(ellipsoids, values, cameras, SIZE, attached=1).values
    torch.testing.assert_close(partly, plain)
    for channels, reaches in ((slice(0, 1), True), (slice(1, 3), False)):
        *geometry, of_values = torch.autograd.grad(partly[:, channels].square().sum(), leaves, retain_graph=True)
        wanted = torch.autograd.grad(plain[:, channels].square().sum(), leaves, retain_graph=True)
        torch.testing.assert_close(of_values, wanted[-1])
        for gradient, target in zip(geometry, wanted[:-1], strict=True):
            torch.testing.assert_close(gradient, target if reaches else torch.zeros_like(target))


@pytest.mark.parametrize("limits", [{"LIST_LENGTH": 7}, {"STEP_GAUSSIANS": 3}, {"STEP_BLOCKS": 2}], ids=str)
def test_how_the_work_is_cut_changes_neither_images_nor_gradients(limits, monkeypatch):
    ellipsoids, values, cameras = crowd(60)
    ellipsoids.means.requires_grad_()

    def draw() -> tuple[Tensor, Tensor]:
        image = stacked(rasterize_in_pytorch(ellipsoids, values, cameras, SIZE))
        return image, torch.autograd.grad(image.square().sum(), ellipsoids.means)[0]

    expected = draw()
    for name, value in limits.items():
        monkeypatch.setattr(compositing, name, value)
    for actual, target in zip(draw(), expected, strict=True):
        torch.testing.assert_close(actual, target, atol=1e-10, rtol=1e-10)


def test_broken_gaussians_are_not_drawn_and_spoil_no_gradient():
    ellipsoids, values, cameras = crowd()
    expected = stacked(rasterize_in_pytorch(ellipsoids, values, cameras, SIZE))
    broken = Ellipsoids(
        torch.cat([ellipsoids.means, ellipsoids.means[:5]]).clone(),
        torch.cat([ellipsoids.covariances, ellipsoids.covariances[:5]]).clone(),
        torch.cat([ellipsoids.opacities, ellipsoids.opacities[:5]]).clone(),
    )
    first = len(values[0])
    broken.means[first] = torch.nan
    broken.covariances[first + 1, 0, 0] = torch.inf
    broken.covariances[first + 2] = -torch.eye(3)
    broken.opacities[first + 3] = torch.nan
    broken.means[first + 4] = torch.linalg.inv(cameras.camera_from_world[0])[:3, 3]  # on the camera itself
    leaves = [broken.means, broken.covariances, broken.opacities]
    for leaf in leaves:
        leaf.requires_grad_()
    image = stacked(rasterize_in_pytorch(broken, torch.cat([values, values[:, :5]], 1), cameras, SIZE))
    torch.testing.assert_close(image, expected)
    for gradient in torch.autograd.grad(image.sum(), leaves):
        assert torch.isfinite(gradient).all()
        assert (gradient[first : first + 4] == 0).all()


def test_one_pixel_images_and_empty_scenes_are_drawn():
    ellipsoids, values, _ = crowd()
    cameras = pixel_cameras(cameras_on_an_arc(2), (1, 1), "centred", 0.2)
    cameras = PixelCameras(*(getattr(cameras, f.name)[0].double() for f in fields(PixelCameras)))
    assert rasterize_in_pytorch(ellipsoids, values, cameras, (1, 1)).alpha.max() > 0.5
    nothing = Ellipsoids(*(getattr(ellipsoids, f.name)[:0].requires_grad_() for f in fields(Ellipsoids)))
    empty = stacked(rasterize_in_pytorch(nothing, values[:, :0], cameras, (1, 1)))
    assert empty.shape == (2, 5, 1, 1)
    assert (empty == 0).all()
    torch.autograd.grad(empty.sum(), nothing.means)


def test_projection_equals_gsplats_own_pytorch_formulas():
    twin = pytest.importorskip("gsplat.cuda._torch_impl")
    ellipsoids, _, cameras = crowd(200, seed=4)
    screen = project(ellipsoids, cameras, SIZE, GSPLAT_RULES)
    radii, means, depths, conics, _ = twin._fully_fused_projection(
        ellipsoids.means,
        ellipsoids.covariances,
        cameras.camera_from_world,
        cameras.intrinsics_px,
        SIZE[1],
        SIZE[0],
        near_plane=cameras.z_min[0].item(),
    )
    pair = (screen.view, screen.source)
    assert len(screen.view) > 150
    assert (radii[pair] > 0).all()
    torch.testing.assert_close(screen.means, means[pair])
    torch.testing.assert_close(screen.depth_z, depths[pair])
    torch.testing.assert_close(screen.conics, conics[pair])


@pytest.mark.slow
@pytest.mark.parametrize("footprint", [(0.5, 2.0), (10.0, 60.0)], ids=["small", "large"])
def test_drawing_the_size_of_a_training_scene_is_quick_and_small(footprint):
    scene = unprojected_scene(128, footprint=footprint)
    cameras = cameras_on_an_arc(1)
    splat(unprojected_scene(8), cameras, (8, 8))
    scene.means.requires_grad_()
    for _ in range(4):  # the quickest: in others the machine may have been busy otherwise
        start = time.perf_counter()
        with PeakMemory("cpu") as peak:
            drawn = splat(scene, cameras, (128, 128))
            forward = time.perf_counter() - start
            torch.autograd.grad(drawn.color.sum(), scene.means)
        assert peak.mib < 2048
        both = time.perf_counter() - start
        if forward < 5 and both < 15:
            break
    assert forward < 5  # 0.1 to 0.3 s on two idle cores
    assert both < 15


@pytest.mark.slow
def test_memory_does_not_grow_with_the_area_that_gaussians_cover():
    scene = unprojected_scene(160, footprint=(100.0, 200.0))  # every Gaussian covers every block: 52 million pairs
    with PeakMemory("cpu") as peak, torch.no_grad():
        splat(scene, cameras_on_an_arc(1), (256, 256), features=False)
    assert peak.mib < 1024
