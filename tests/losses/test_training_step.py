"""Claims about one training step: it equals the recorded step of the original, up to the change of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TypeVar
from unittest import mock

import pytest
import torch
from encoder.test_encoder_parity import configuration
from nerfstudio.engine.optimizers import Optimizers
from parity import Recording, load_exactly, normal, recording, uniform
from torch import Tensor

from lsplat_ns import latentsplat
from lsplat_ns.autoencoder import AutoencoderConfig, DiscriminatorConfig
from lsplat_ns.geometry.harmonics import evaluate_harmonics
from lsplat_ns.geometry.rays import with_scene_bounds
from lsplat_ns.latentsplat import LatentSplat, LatentSplatConfig
from lsplat_ns.losses import AdversarialConfig, LossSchedule, LossTerm
from lsplat_ns.losses.objective import StepLosses, StepNoise, step_losses
from lsplat_ns.plugin.optimizers import FINE_TUNED, LR_FACTOR
from lsplat_ns.plugin.recipes import published_trainer
from lsplat_ns.scene import Cameras, Gaussians, Rendering, SceneBatch, Views, map_tensors

T = TypeVar("T")
PARTS = ("encoder.", "autoencoder.", "discriminator.")
LIMITS = {
    "log/": 1e-5,
    "grad_norm/encoder.": 1e-3,  # the depth encoding magnifies the rounding of the rays
    "grad_norm/autoencoder.": 1e-4,
    "grad_norm/discriminator.": 2e-4,  # leaky ReLUs near their kinks
    "buffer_after/": 2e-5,
}
"""Largest relative deviations by the beginning of a recorded name."""
STEP_SIZE, TURNED = 1e-3, 0.02
"""Adam's first step is rate * sign(gradient): sizes agree, but signs of gradients that are all rounding may differ."""


def recorded_rasterizer(
    gaussians: Gaussians, cameras: Cameras, size: tuple[int, int], *_: object, **__: object
) -> Rendering:
    """The differentiable stand-in for the rasteriser that the recording documents, in its near units."""
    near = cameras.near[..., None]
    position = gaussians.means[:, None].sum(-1) / near
    spread = gaussians.covariances.triu().sum((-1, -2))[:, None] / near**2
    geometry = (gaussians.opacities[:, None] * (1 + 0.1 * position + spread)).mean(-1)[..., None]
    color = 5 * gaussians.color_harmonics.mean((1, 3))[:, None]
    directions = gaussians.means[:, None] - cameras.origins[:, :, None]
    directions = torch.nn.functional.normalize(directions, dim=-1)[:, :, :, None]
    features = 5 * (evaluate_harmonics(gaussians.feature_harmonics[:, None], directions, 2) + 0.5).mean(2)
    height, width = size
    ramp = (torch.arange(height * width) / (height * width - 1)).view(height, width)
    plane = ramp.expand(*cameras.near.shape, height, width)
    color, features = ((part + geometry)[..., None, None] * ramp for part in (color, features))
    return Rendering(0.9 * plane, plane, color + 0.3, features)


def network_of(case: Recording) -> LatentSplat:
    """The shrunken model of the recording, in training mode."""
    autoencoder = case.meta["config"]["model"]["autoencoder"]
    network = LatentSplat(
        LatentSplatConfig(
            encoder=configuration({**case.meta, "dino_depth_override": 1}),
            autoencoder=AutoencoderConfig(block_out_channels=tuple(autoencoder["block_out_channels"])),
            discriminator=DiscriminatorConfig(width=case.meta["config"]["model"]["discriminator"]["base_dim"]),
        )
    )
    return load_exactly(network, case.state("ModelWrapper")).train()


def batch_of(case: Recording) -> SceneBatch:
    """The first two recorded views are context, the others targets."""
    poses, intrinsics = case.input("extrinsics"), case.input("intrinsics")
    unknown = torch.ones(poses.shape[:2])
    views = Views(case.images(), Cameras(poses, intrinsics, unknown, unknown), unknown.long())
    return with_scene_bounds(SceneBatch(views.select([0, 1]), views.select([2, 3]), ("first", "second")))


def noise_of(case: Recording) -> StepNoise:
    draws = {"rand": uniform, "randn": normal}
    calls = enumerate(case.meta["noise_calls"])
    return StepNoise(*(draws[kind](f"ls_training_step:{kind}:{i}", tuple(shape)) for i, (kind, shape) in calls))


RECORDED_SCHEDULE = LossSchedule(
    gaussian=(LossTerm("kl", 0.1),),
    render_image=(LossTerm("mse", 10.0),),
    combined=(LossTerm("l1"),),
    adversarial=AdversarialConfig(starts_at_step=0),
)


@dataclass(frozen=True)
class TrainedStep:
    """One step of the recorded training, taken by our losses and our optimisers."""

    case: Recording
    named: dict[str, Tensor]  # everything recorded except the change of the weights, by its recorded name
    gradient_norms: dict[str, float]  # of each parameter, before clipping
    clipped_norm: float  # of encoder and autoencoder together
    change: dict[str, Tensor]  # of each recorded weight
    without_gradient: list[str]

    def recorded_changes(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Our and the recorded change of weights, flat; of long ones the recorded selection."""
        pairs = {}
        for name, change in self.change.items():
            stored, ours = f"delta/{name}", change.flatten()
            if f"{stored}@idx" in self.case.outputs:
                ours = ours[self.case.outputs[f"{stored}@idx"].astype(int)]
                stored = f"{stored}@val"
            pairs[name] = ours, torch.from_numpy(self.case.outputs[stored]).flatten()
        return pairs


@cache
def trained_step() -> TrainedStep:
    """Take the step once for all claims."""
    case = recording("ls_training_step")
    network = network_of(case)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizers = optimizers_of(network, examples=2)
    optimizers.zero_grad_all()
    with mock.patch.object(latentsplat, "splat", recorded_rasterizer):
        result = step_losses(network, batch_of(case), RECORDED_SCHEDULE, 0, noise=noise_of(case))
    sum(result.losses.values()).backward()
    gradients = {name: p.grad.norm() for name, p in network.named_parameters() if p.grad is not None}
    optimizers.optimizer_step_all()

    generator = optimizers.parameters["generator"]
    after = network.state_dict()
    named = recorded_logs(result)
    for part in PARTS:
        named[f"grad_norm/{part}"] = torch.stack([n for name, n in gradients.items() if name.startswith(part)]).norm()
    named |= {name: after[name.removeprefix("buffer_after/")] for name in case.outputs if name.startswith("buffer_")}
    deltas = {name.split("@")[0].removeprefix("delta/") for name in case.outputs if name.startswith("delta/")}
    return TrainedStep(
        case,
        named,
        {name: norm.item() for name, norm in gradients.items()},
        torch.stack([p.grad.norm() for p in generator if p.grad is not None]).norm().item(),
        {name: after[name] - before[name] for name in deltas},
        sorted(name for name, p in network.named_parameters() if p.grad is None),
    )


def recorded_logs(result: StepLosses) -> dict[str, Tensor]:
    """Our weighted losses and metrics by the names, and with the weights, of the original's log."""
    losses = {name: value.detach().double() for name, value in result.losses.items()}
    balance = result.metrics["adaptive_weight"].double()
    kl, mse, l1 = losses["gaussian/kl"], losses["render_image/mse"], losses["combined/l1"]
    generator = losses["combined/generator"]
    fake, real = losses["combined/discriminator_fake"], losses["combined/discriminator_real"]
    groups, judged = "log/loss/generator/", "log/loss/discriminator/"
    return {
        f"{groups}gaussian/kl": kl / 0.1,
        f"{groups}gaussian/total": kl,
        f"{groups}target/render/image/mse": mse / 10,
        f"{groups}target/render/image/total": mse,
        f"{groups}target/combined/l1": l1,
        f"{groups}target/combined/generator": generator / (0.5 * balance),
        f"{groups}target/combined/total": l1 + generator,
        f"{groups}total": kl + mse + l1 + generator,
        f"{judged}target/combined/fake": 2 * fake,
        f"{judged}target/combined/real": 2 * real,
        f"{judged}target/combined/total": fake + real,
        f"{judged}total": fake + real,
        "log/train/target_render/psnr": result.metrics["psnr_splat"].double(),
        "log/train/target_combined/psnr": result.metrics["psnr"].double(),
    }


def optimizers_of(network: LatentSplat, examples: int, warm_up_from: float = 1.0) -> Optimizers:
    """nerfstudio's optimisers with our configurations; the recorded step began without warm-up."""
    for parameter in network.autoencoder.parameters():
        setattr(parameter, FINE_TUNED, True)
    for parameter in network.parameters():
        setattr(parameter, LR_FACTOR, examples)
    configs = published_trainer("latentsplat").optimizers
    configs["generator"]["scheduler"].initial_factor = warm_up_from
    generator = [*network.encoder.parameters(), *network.autoencoder.parameters()]
    return Optimizers(configs, {"generator": generator, "discriminator": [*network.discriminator.parameters()]})


def limit_of(name: str) -> float:
    """Largest relative deviation of a recorded number of the step."""
    return next(limit for start, limit in LIMITS.items() if name.startswith(start))


def test_every_logged_loss_gradient_norm_and_statistic_is_the_recorded_one():
    step = trained_step()
    zero = {"log/step_tracker/step", *(n for n, v in step.case.outputs.items() if n.startswith("log/") and v == 0)}
    recorded = {name for name in step.case.outputs if not name.startswith("delta/")}
    assert set(step.named) == recorded - zero
    for name, value in step.named.items():
        step.case.assert_close(name, value, limit_of(name))


def logs_in_float64(case: Recording) -> dict[str, Tensor]:
    """Our logged losses of the recorded step, without rounding."""

    def widened(value: T) -> T:
        return map_tensors(value, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    noise = noise_of(case)
    noise = replace(noise, **{f.name: widened(getattr(noise, f.name)) for f in fields(noise)})
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(latentsplat, "splat", recorded_rasterizer),
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),  # parts that ask for float32
        ):
            network, batch = network_of(case).double(), widened(batch_of(case))
            return recorded_logs(step_losses(network, batch, RECORDED_SCHEDULE, 0, noise=noise))
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_adaptive_weight_is_the_recorded_one():
    case = recording("ls_training_step")

    def weight(logs: Mapping[str, Tensor]) -> float:
        group = "log/loss/generator/target/combined"
        total, l1, generator = (float(logs[f"{group}/{name}"]) for name in ("total", "l1", "generator"))
        return (total - l1) / (0.5 * generator)

    assert 0.1 < weight(case.outputs) < 0.9
    # In float32 the difference of two logged numbers loses two digits, differently in each version of torch.
    assert weight(logs_in_float64(case)) == pytest.approx(weight(case.outputs), rel=1e-5)


def test_the_gradient_of_every_parameter_has_the_recorded_norm():
    step = trained_step()
    recorded = step.case.meta["grad_norms"]
    assert set(step.gradient_norms) == set(recorded)
    for name, norm in step.gradient_norms.items():
        # Biases in front of a normalisation have no gradient but rounding noise.
        assert norm == pytest.approx(recorded[name], rel=1e-2, abs=1e-6), name


def test_the_same_108_parameters_get_no_gradient():
    step = trained_step()
    recorded = step.case.meta["generator_params_without_grad"]
    assert len(recorded) == 108 and not step.case.meta["discriminator_params_without_grad"]
    assert step.without_gradient == sorted(recorded)


def test_encoder_and_autoencoder_are_clipped_together_and_the_discriminator_is_not():
    step = trained_step()
    squares = {part: float(step.case.outputs[f"grad_norm/{part}"]) ** 2 for part in PARTS}
    assert squares["encoder."] + squares["autoencoder."] > 0.5**2 and squares["discriminator."] > 0.5**2
    assert step.clipped_norm == pytest.approx(0.5, rel=1e-4)


def test_the_first_adam_step_moves_weights_as_far_as_the_recorded_one():
    step = trained_step()
    rates = step.case.meta["lr"]
    changes = step.recorded_changes()
    assert len(changes) == 5
    for name, (ours, theirs) in changes.items():
        rate = rates["generator"] if name.startswith("encoder.") else rates["autoencoder"]
        assert ours.abs().max() == pytest.approx(rate, rel=1e-2), name
        torch.testing.assert_close(ours.abs().median(), theirs.abs().median(), rtol=STEP_SIZE, atol=0)
        assert (ours.sign() != theirs.sign()).float().mean() < TURNED, name


def test_learning_rates_after_four_steps_are_the_recorded_ones():
    recorded = recording("ls_checkpoint").meta["optimizers"]
    optimizers = optimizers_of(network_of(recording("ls_training_step")), examples=2, warm_up_from=5e-4)
    for _ in range(4):
        optimizers.optimizer_step_all()
        optimizers.schedulers["generator"].step()
    for ours, theirs in zip(optimizers.optimizers.values(), recorded, strict=True):
        assert len(ours.param_groups) == len(theirs["groups"])
        for group, expected in zip(ours.param_groups, theirs["groups"], strict=True):
            assert group["lr"] == pytest.approx(expected["lr"], rel=1e-9)
            assert (list(group["betas"]), group["eps"]) == (expected["betas"], expected["eps"])
