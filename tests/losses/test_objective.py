"""Claims about the losses of one step: what each phase computes, what each loss reaches, and where draws come from."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import Tensor

from lsplat_ns import latentsplat
from lsplat_ns.errors import ConfigError
from lsplat_ns.geometry.rays import with_scene_bounds
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.losses import AdversarialConfig, DepthTerm, LossSchedule, LossTerm
from lsplat_ns.losses.objective import StepLosses, step_losses
from lsplat_ns.plugin.recipes import tiny_networks
from lsplat_ns.scene import Cameras, Gaussians, SceneBatch, Views

SCHEDULE = LossSchedule(
    render_image=(LossTerm("mse", 10.0), LossTerm("lpips", 0.5, 10)),
    combined=(LossTerm("l1", 1.0, 20), LossTerm("lpips", 1.0, 20)),
    adversarial=AdversarialConfig(starts_at_step=30),
)
"""The published phases, early: image, image with lpips, combined, adversarial."""
UNPUBLISHED = LossSchedule(
    gaussian=(LossTerm("kl", 0.1),),
    context_autoencoder=(LossTerm("mse"), LossTerm("kl", 0.1)),
    target_autoencoder=(LossTerm("l1"),),
    render_image=(),
    render_latent=(LossTerm("mse"),),
    combined=(LossTerm("l1"),),
    adversarial=AdversarialConfig("none"),
    depth=DepthTerm(0.5),
)
"""Every loss that no published experiment uses."""


def tiny_network(seed: int = 0, couple_features: bool = False) -> LatentSplat:
    config = tiny_networks()
    config.splatting = replace(config.splatting, couple_features=couple_features)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LatentSplat(config).train()


def tiny_batch(size: int = 32) -> SceneBatch:
    """Two context views and a target between them, of smooth random colours."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(3, 3, 4, 4, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)[None]
    poses = torch.eye(4).repeat(1, 3, 1, 1)
    poses[0, :, 0, 3] = torch.tensor([-0.5, 0.5, 0.1])
    intrinsics = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1.0]]).expand(1, 3, 3, 3)
    views = Views(image, Cameras(poses, intrinsics, torch.ones(1, 3), torch.ones(1, 3)), torch.tensor([[0, 2, 1]]))
    return with_scene_bounds(SceneBatch(views.select([0, 1]), views.select([2]), ("tiny",)))


def step_at(step: int, network: LatentSplat | None = None, schedule: LossSchedule = SCHEDULE, **options) -> StepLosses:
    options = {"perceptual": perceptual, "generator": torch.Generator().manual_seed(11), **options}
    return step_losses(network or tiny_network(), tiny_batch(), schedule, step, **options)


def perceptual(prediction: Tensor, target: Tensor) -> Tensor:
    """Stands in for LPIPS."""
    return (prediction - target).abs().mean((-1, -2)).square().mean()


def reached(network: LatentSplat, losses: dict[str, Tensor]) -> dict[str, bool]:
    """Which networks get a gradient other than zero."""
    parts = {name: list(getattr(network, name).parameters()) for name in ("encoder", "autoencoder", "discriminator")}
    parameters = [p for members in parts.values() for p in members]
    gradients = iter(torch.autograd.grad(sum(losses.values()), parameters, allow_unused=True, retain_graph=True))
    moved = {name: [next(gradients) for _ in members] for name, members in parts.items()}
    return {name: any(g is not None and bool(g.any()) for g in found) for name, found in moved.items()}


PHASES = {
    0: ({"render_image/mse"}, {"encoder"}),
    10: ({"render_image/mse", "render_image/lpips"}, {"encoder"}),
    20: ({"render_image/mse", "render_image/lpips", "combined/l1", "combined/lpips"}, {"encoder", "autoencoder"}),
    30: (
        {
            *("render_image/mse", "render_image/lpips", "combined/l1", "combined/lpips"),
            *("combined/generator", "combined/discriminator_fake", "combined/discriminator_real"),
        },
        {"encoder", "autoencoder", "discriminator"},
    ),
}


@pytest.mark.parametrize("step", PHASES)
@pytest.mark.parametrize("with_lpips", [True, False])
def test_every_phase_has_its_losses_which_reach_its_networks(step: int, with_lpips: bool):
    names, networks = PHASES[step]
    network = tiny_network()
    schedule = SCHEDULE if with_lpips else SCHEDULE.without("lpips")
    with mock.patch.object(latentsplat, "splat", wraps=latentsplat.splat) as splat:
        result = step_at(step, network, schedule, perceptual=perceptual if with_lpips else None)
    wanted = splat.call_args.kwargs
    assert (wanted["color"], wanted["features"]) == (True, step >= 20)
    assert set(result.losses) == {name for name in names if with_lpips or "lpips" not in name}
    assert {name for name, gets in reached(network, result.losses).items() if gets} == networks
    assert all(value.shape == () and value.isfinite() for value in (*result.losses.values(), *result.metrics.values()))
    assert (result.decoded is not None) == (step >= 20)
    assert ("psnr" in result.metrics) == (step >= 20) and ("adaptive_weight" in result.metrics) == (step >= 30)


def test_each_loss_is_its_weight_times_its_term_on_the_returned_images():
    batch = tiny_batch()
    result = step_at(30)
    truth = batch.target.image
    expected = {
        "render_image/mse": 10 * (result.color - truth).square().mean(),
        "render_image/lpips": 0.5 * perceptual(result.color, truth),
        "combined/l1": (result.decoded - truth).abs().mean(),
        "combined/lpips": perceptual(result.decoded, truth),
    }
    for name, value in expected.items():
        torch.testing.assert_close(result.losses[name], value)
    error = (result.decoded.clamp(0, 1) - truth).square().mean()
    torch.testing.assert_close(result.metrics["psnr"], -10 * error.log10())
    assert result.metrics["gaussians"] == 2 * 32 * 32 * 2


def test_generator_and_discriminator_losses_reach_only_their_own_networks():
    network = tiny_network()
    losses = step_at(30, network).losses
    generator = {name: value for name, value in losses.items() if "discriminator" not in name}
    judges = {name: value for name, value in losses.items() if "discriminator" in name}
    assert not reached(network, generator)["discriminator"]
    assert reached(network, judges) == {"encoder": False, "autoencoder": False, "discriminator": True}


@pytest.mark.parametrize("coupled", [False, True])
def test_latent_losses_move_geometry_only_when_features_are_coupled(coupled: bool):
    network = tiny_network(couple_features=coupled)
    caught: list[Gaussians] = []
    sample = latentsplat.VariationalGaussians.sample

    def watched(*arguments, **options) -> Gaussians:
        caught.append(sample(*arguments, **options))
        return caught[-1]

    with mock.patch.object(latentsplat.VariationalGaussians, "sample", watched):
        losses = step_at(20, network, replace(SCHEDULE, render_image=())).losses
    (gaussians,) = caught
    names = ("means", "covariances", "opacities", "color_harmonics", "feature_harmonics")
    gradients = torch.autograd.grad(
        sum(losses.values()), [getattr(gaussians, name) for name in names], allow_unused=True
    )
    size = {name: 0.0 if g is None else g.norm().item() for name, g in zip(names, gradients, strict=True)}
    assert size["feature_harmonics"] > 0 and size["color_harmonics"] == 0
    assert (size["covariances"] > 0) == (size["opacities"] > 0) == coupled
    # The harmonics' viewing directions depend on the means, as in the original.
    assert size["means"] > 0


@pytest.mark.parametrize("step", [0, 30])
def test_the_same_generator_seed_gives_identical_losses_and_another_seed_others(step: int):
    first, again = step_at(step), step_at(step)
    other = step_at(step, generator=torch.Generator().manual_seed(12))
    for name, value in first.losses.items():
        assert torch.equal(value, again.losses[name]), name
    assert not torch.equal(first.color, other.color)


@pytest.mark.parametrize("schedule", [SCHEDULE, UNPUBLISHED], ids=["published", "unpublished"])
def test_no_draw_comes_from_the_global_generator(schedule: LossSchedule):
    network = tiny_network()
    state = torch.get_rng_state()
    step_at(30, network, schedule)
    assert torch.equal(torch.get_rng_state(), state)


def test_thirty_steps_on_one_example_lower_the_losses():
    network = tiny_network()
    schedule = LossSchedule(
        render_image=(LossTerm("mse", 10.0),), combined=(LossTerm("l1"),), adversarial=AdversarialConfig("none")
    )
    optimizer = torch.optim.Adam([*network.encoder.parameters(), *network.autoencoder.parameters()], 1e-3)
    generator = torch.Generator().manual_seed(0)
    history = []
    for step in range(30):
        losses = step_at(step, network, schedule, generator=generator).losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    for name in ("render_image/mse", "combined/l1"):
        first, last = (sum(entry[name] for entry in part) for part in (history[:3], history[-3:]))
        assert last < 0.8 * first, (name, first, last)


def test_losses_without_a_published_experiment_run_and_reach_the_autoencoders_encoder():
    network = tiny_network()
    losses = step_at(0, network, UNPUBLISHED).losses
    assert set(losses) == {
        *("gaussian/kl", "context_autoencoder/mse", "context_autoencoder/kl", "target_autoencoder/l1"),
        *("render_latent/mse", "render_depth/depth", "combined/l1"),
    }
    for name, value in losses.items():
        encoder = torch.autograd.grad(
            value, list(network.autoencoder.model.encoder.parameters()), allow_unused=True, retain_graph=True
        )
        assert any(g is not None for g in encoder) == ("autoencoder" in name or name == "render_latent/mse"), name
    for name in ("gaussian/kl", "render_latent/mse", "render_depth/depth", "combined/l1"):
        assert reached(network, {name: losses[name]})["encoder"], name
    doubled = step_at(0, network, replace(UNPUBLISHED, depth=DepthTerm(1.0))).losses
    torch.testing.assert_close(doubled["render_depth/depth"], 2 * losses["render_depth/depth"])


def test_the_encoder_is_told_the_step():
    with mock.patch.object(LatentSplat, "encode", autospec=True, side_effect=LatentSplat.encode) as encode:
        step_at(20)
    assert encode.call_args.kwargs["step"] == 20


def test_an_lpips_loss_without_its_network_is_refused():
    with pytest.raises(ConfigError, match="lpips"):
        step_at(10, perceptual=None)
