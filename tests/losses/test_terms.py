"""Claims about the loss terms: recorded values, repeated names, guards."""

import weakref
from dataclasses import replace

import pytest
import torch
from parity import recording
from torch import Tensor

from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.errors import ConfigError, ShapeMismatch
from lsplat_ns.losses import (
    DepthTerm,
    LossInputs,
    LossTerm,
    depth_smoothness,
    evaluate_terms,
    total,
    weighted_by_name,
)
from lsplat_ns.losses.terms import TermValue, with_gradient_taken


@pytest.mark.parametrize(("name", "weight"), [("mse", 10.0), ("l1", 0.3), ("kl", 0.1)])
def test_term_equals_the_recorded_original(name: str, weight: float) -> None:
    case = recording("ls_losses")
    posterior = DiagonalGaussian(case.input("mean"), case.input("logvar"))
    inputs = LossInputs(case.input("pred_image"), case.input("gt_image"), posterior)
    (value,) = evaluate_terms([LossTerm(name, weight)], inputs)
    case.assert_close(f"{name}/unweighted", value.unweighted, 1e-6)
    case.assert_close(f"{name}/weighted", value.weighted, 1e-6)


@pytest.mark.parametrize("second_derivative", [False, True])
def test_depth_smoothness_equals_the_recorded_original(second_derivative: bool) -> None:
    case = recording("ls_losses")
    value = depth_smoothness(
        case.input("depth").exp(),  # the original was recorded with log depth
        case.input("near"),
        case.input("far"),
        case.input("gt_image"),
        DepthTerm(second_derivative=second_derivative),
    )
    case.assert_close(f"depth/sigma=None/second={second_derivative}/unweighted", value, 1e-5)


@pytest.mark.parametrize("second_derivative", [False, True])
def test_image_edges_excuse_depth_edges_whichever_side_is_bright(second_derivative: bool) -> None:
    bounds = torch.ones(1, 1), torch.full((1, 1), 10.0)
    depth = torch.full((1, 1, 6, 8), 2.0)
    depth[..., 4:] = 5.0
    image = torch.zeros(1, 1, 3, 6, 8)
    image[..., 4:] = 1.0
    strict = DepthTerm(second_derivative=second_derivative)
    lenient = replace(strict, edge_sharpness=3.0)
    along_edge = depth_smoothness(depth, *bounds, image, lenient)
    assert along_edge < 0.1 * depth_smoothness(depth, *bounds, image, strict)
    torch.testing.assert_close(along_edge, depth_smoothness(depth, *bounds, 1 - image, lenient))
    elsewhere = depth_smoothness(depth, *bounds, image.roll(3, -1), strict)
    assert elsewhere > 5 * along_edge


def test_uncovered_depth_gives_finite_loss_and_gradient() -> None:
    depth = torch.zeros(1, 1, 4, 4).requires_grad_()
    loss = depth_smoothness(depth, torch.ones(1, 1), 2 * torch.ones(1, 1), torch.rand(1, 1, 3, 4, 4), DepthTerm())
    loss.backward()
    assert loss.isfinite() and depth.grad.isfinite().all()


def test_terms_of_the_same_name_all_count_and_keep_their_own_entries() -> None:
    inputs = LossInputs(torch.full((1, 1, 3, 2, 2), 0.5), torch.zeros(1, 1, 3, 2, 2))
    values = evaluate_terms([LossTerm("l1", 1.0), LossTerm("mse", 2.0), LossTerm("l1", 3.0)], inputs)
    named = weighted_by_name("combined", values)
    assert {key: value.item() for key, value in named.items()} == {
        "combined/l1": 0.5,
        "combined/mse": 0.5,
        "combined/l1_2": 1.5,
    }
    assert total(values).item() == 2.5


def test_a_term_counts_from_its_first_step_on() -> None:
    term = LossTerm("mse", 10.0, starts_at_step=7)
    assert [term.is_active(step) for step in (0, 6, 7, 8)] == [False, False, True, True]
    assert not DepthTerm().is_active(10**9) and DepthTerm(weight=0.1, starts_at_step=3).is_active(3)


def test_lpips_uses_the_given_network() -> None:
    inputs = LossInputs(torch.ones(1, 1, 3, 2, 2), torch.zeros(1, 1, 3, 2, 2))
    (value,) = evaluate_terms([LossTerm("lpips", 0.5)], inputs, lambda prediction, target: (prediction - target).sum())
    assert (value.unweighted.item(), value.weighted.item()) == (12.0, 6.0)
    with pytest.raises(ConfigError, match="without"):
        evaluate_terms([LossTerm("lpips")], inputs)


def test_images_of_different_shapes_are_not_broadcast() -> None:
    with pytest.raises(ShapeMismatch):
        evaluate_terms([LossTerm("mse")], LossInputs(torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 1, 3, 4, 4)))


def test_negative_weights_and_steps_are_refused() -> None:
    for build in (lambda: LossTerm("mse", -1.0), lambda: LossTerm("mse", 1.0, -1), lambda: DepthTerm(weight=-1.0)):
        with pytest.raises(ConfigError):
            build()


def test_a_gradient_taken_early_is_the_same_and_nothing_waits_for_the_backward_pass() -> None:
    kept = []

    def perceptual(prediction: Tensor, target: Tensor) -> Tensor:
        features = (prediction - target).sin()
        kept.append(weakref.ref(features))
        return features.square().mean()

    generator = torch.Generator().manual_seed(0)
    weight, target = torch.randn(3, generator=generator), torch.rand(1, 2, 3, 8, 8, generator=generator)
    terms = (LossTerm("mse", 10.0), LossTerm("lpips", 0.5))
    gradients, values = [], []
    for early in (False, True):
        last = weight.clone().requires_grad_()
        images = target.roll(1) * last[:, None, None]

        def evaluate(prediction: Tensor) -> tuple[TermValue, ...]:
            return evaluate_terms(terms, LossInputs(prediction, target), perceptual)

        found = with_gradient_taken(images, evaluate) if early else evaluate(images)
        assert (kept[-1]() is None) == early
        values.append([(value.name, value.unweighted.item(), value.weighted.item()) for value in found])
        (3 * found[0].weighted + found[1].weighted).backward()
        gradients.append(last.grad)
    assert values[0] == values[1]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)


def test_images_without_gradient_are_evaluated_as_they_are() -> None:
    image = torch.rand(1, 1, 3, 4, 4)
    (value,) = with_gradient_taken(
        image, lambda images: evaluate_terms([LossTerm("l1")], LossInputs(images, 1 - image))
    )
    assert not value.weighted.requires_grad and value.weighted.item() == value.unweighted.item()
