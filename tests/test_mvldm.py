"""Claims about MV-LDM as a whole: sizes, latents, reproducibility, and that the small model learns."""

from dataclasses import replace

import pytest
import torch
from mvldm_recordings import loaded_model, split_views

from lsplat_ns import mvldm
from lsplat_ns.autoencoder import AutoencoderConfig
from lsplat_ns.diffusion.objective import TrainingConfig, TrainingDraw, draw_training_step
from lsplat_ns.diffusion.sampler import GroupNoise, SamplingConfig
from lsplat_ns.diffusion.schedule import SolverConfig
from lsplat_ns.diffusion.view_plan import ViewGroup
from lsplat_ns.errors import ConfigError, ShapeMismatch
from lsplat_ns.mvldm import MultiViewDiffusion, MultiViewDiffusionConfig, tiny_multi_view_diffusion
from lsplat_ns.scene import Cameras, SceneBatch, Views


@pytest.fixture(scope="module")
def tiny() -> MultiViewDiffusion:
    torch.manual_seed(0)
    return MultiViewDiffusion(tiny_multi_view_diffusion()).eval()


def views(count: int, size: tuple[int, int], samples: int = 1) -> Views:
    poses = torch.eye(4).repeat(samples, count, 1, 1)
    poses[..., 0, 3] = torch.arange(count) * 0.3
    intrinsics = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]).repeat(samples, count, 1, 1)
    ones = torch.ones(samples, count)
    image = torch.rand(samples, count, 3, *size, generator=torch.Generator().manual_seed(1))
    return Views(image, Cameras(poses, intrinsics, ones, ones), torch.arange(count).repeat(samples, 1))


def noise_for(model: MultiViewDiffusion, context: int, targets: int, size: tuple[int, int]) -> GroupNoise:
    group = ViewGroup(tuple(range(context)), tuple(range(context, context + targets)), 0)
    return GroupNoise.draw(group, 0, model.latent_shape(size), 0)


@pytest.mark.parametrize("size", [(16, 16), (20, 36), (64, 32)])
def test_images_of_any_multiple_of_the_autoencoder_s_downscale_are_generated(tiny, size: tuple[int, int]) -> None:
    everything = views(3, size)
    context, targets = everything.select([0]), everything.cameras.select([1, 2])
    config = SamplingConfig(SolverConfig(steps=2))
    images = tiny.sample(context, targets, noise_for(tiny, 1, 2, size), config)
    assert images.shape == (1, 2, 3, *size) and 0 <= images.min() < images.max() <= 1
    assert not images.requires_grad


def test_a_common_motion_of_all_cameras_changes_nothing(tiny: MultiViewDiffusion) -> None:
    everything = views(3, (16, 16))
    motion = torch.eye(4)
    motion[:3, :3] = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    motion[:3, 3] = torch.tensor([5.0, -3, 2])
    cameras = everything.cameras
    moved = Cameras(motion @ cameras.world_from_camera, cameras.intrinsics_norm, cameras.near, cameras.far)
    results = []
    for each in (cameras, moved):
        context = Views(everything.image, each, everything.frame).select([0])
        noise = noise_for(tiny, 1, 2, (16, 16))
        results.append(tiny.sample(context, each.select([1, 2]), noise, SamplingConfig(SolverConfig(steps=2))))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_samples_of_a_batch_are_independent(tiny: MultiViewDiffusion) -> None:
    both = views(3, (16, 16), samples=2)
    both.image[1] = 1 - both.image[0]
    noises = [GroupNoise.draw(ViewGroup((0,), (1, 2), 0), i, (4, 4, 4), 0) for i in range(2)]
    joined = GroupNoise(*(torch.cat([getattr(n, name) for n in noises]) for name in ("context", "targets")))
    config = SamplingConfig(SolverConfig(steps=2))
    context, targets = both.select([0]), both.cameras.select([1, 2])
    together = tiny.sample(context, targets, joined, config)
    for i in range(2):
        one = slice(i, i + 1)
        alone = tiny.sample(
            Views(context.image[one], views(1, (16, 16)).cameras, context.frame[one]),
            views(3, (16, 16)).cameras.select([1, 2]), noises[i], config,
        )  # fmt: skip
        torch.testing.assert_close(together[one], alone, rtol=1e-3, atol=1e-4)


def test_latents_are_drawn_with_the_noise_given_and_scaled(tiny: MultiViewDiffusion) -> None:
    _, model = loaded_model("mv_sample_small")
    image = torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    distribution = model.autoencoder.encode(image)
    noise = torch.ones_like(distribution.mean)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(image), 0.18215 * distribution.mean)
        torch.testing.assert_close(model.encode(image, noise), 0.18215 * (distribution.mean + distribution.std))


def test_decoding_in_parts_is_decoding_at_once_and_stays_in_range(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [mvldm._of_size(8, side * side) for side in (64, 128, 256, 4096)] == [128, 32, 8, 1]
    monkeypatch.setattr(mvldm, "_of_size", lambda count, _: count)
    _, model = loaded_model("mv_sample_small")
    latents = 2 * torch.randn(1, 6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = model.decode(latents)
        whole = model.autoencoder.decode(latents[0] / 0.18215)
    torch.testing.assert_close(images[0], whole.clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_the_autoencoder_keeps_its_type_where_training_has_cast_its_weights_to_another() -> None:
    model = MultiViewDiffusion(tiny_multi_view_diffusion())
    images = views(2, (16, 16)).image
    with torch.autocast("cpu", torch.bfloat16):
        model.autoencoder.encode(images)  # as its own training does, right before the denoiser's begins
        model.autoencoder_dtype = torch.float16
        half = model.encode(images)
    model.autoencoder_dtype = None
    assert torch.allclose(half, model.encode(images), atol=2e-3)
    assert not torch.equal(half, model.encode(images))


def test_callbacks_see_every_step_and_their_errors_end_the_generation(tiny: MultiViewDiffusion) -> None:
    everything, steps = views(2, (16, 16)), []

    def stop(step: int) -> None:
        steps.append(step)
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.sample(
            everything.select([0]), everything.cameras.select([1]), noise_for(tiny, 1, 1, (16, 16)),
            SamplingConfig(SolverConfig(steps=5)), on_step=stop,
        )  # fmt: skip
    assert steps == [0, 1, 2]


def test_the_small_model_learns_from_scratch() -> None:
    """To predict noise, of which it learns the most in a few steps; velocity of random latents cannot be guessed."""
    torch.manual_seed(0)
    model = MultiViewDiffusion(replace(tiny_multi_view_diffusion(), prediction="noise"))
    everything = views(5, (16, 16), samples=2)
    batch = SceneBatch(everything.select([0, 1]), everything.select([2, 3, 4]), ("a", "b"))
    generator = torch.Generator().manual_seed(0)

    def draw() -> TrainingDraw:
        return draw_training_step(2, 2, 3, model.latent_shape((16, 16)), TrainingConfig(), generator)

    held_out = [draw() for _ in range(6)]  # of noise, levels and views

    @torch.no_grad()
    def error() -> float:
        return sum(model.training_loss(batch, each).item() for each in held_out) / len(held_out)

    before = error()
    optimizer = torch.optim.AdamW(model.denoiser.parameters(), 5e-4)
    for _ in range(48):
        optimizer.zero_grad()
        model.training_loss(batch, draw()).backward()
        optimizer.step()
    assert before > 0.8 and error() < 0.7 * before


def test_wrong_sizes_are_one_clear_line(tiny: MultiViewDiffusion) -> None:
    with pytest.raises(ShapeMismatch, match="multiples of 4"):
        tiny.latent_shape((18, 16))
    with pytest.raises(ShapeMismatch, match="multiples of 4"):
        tiny.latent_shape((0, 16))
    everything = views(3, (16, 16))
    with pytest.raises(ShapeMismatch, match="noise of the targets"):
        tiny.sample(
            everything.select([0]), everything.cameras.select([1, 2]), noise_for(tiny, 1, 1, (16, 16)), SamplingConfig()
        )


def test_contradictory_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="no skip-connections"):
        MultiViewDiffusionConfig(autoencoder=AutoencoderConfig())
    with pytest.raises(ConfigError, match="latent_scale must be positive"):
        MultiViewDiffusionConfig(latent_scale=0)


def test_the_recorded_relative_order_is_context_then_targets() -> None:
    case, model = loaded_model("mv_sample_small")
    context, targets = split_views(case)
    conditioning = model.conditioning(context, targets.cameras, noise_for(model, 2, 3, (64, 64)), 1)
    assert conditioning.context_count == 2
    origins = conditioning.ray_maps[0, :2, :3].abs().amax((1, 2, 3))
    assert origins[0] > 0.1 and origins[1] < 1e-6  # the reference's rays start at the origin
