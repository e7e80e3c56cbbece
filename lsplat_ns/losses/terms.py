"""Loss terms: what a group of losses is made of, and the value of each.

A term is plain data, so that schedules can be configured, saved and compared; its function is looked up by name.

Source: latentSplat section 3.4 and its ``loss`` modules.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.errors import ConfigError, ShapeMismatch

TermName = Literal["mse", "l1", "lpips", "kl"]
PerceptualFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LossTerm:
    """One weighted loss that joins the training at some step."""

    name: TermName
    """mse, l1 and lpips compare images; kl pulls a distribution towards the standard normal."""
    weight: float = 1.0
    """Factor of the loss."""
    starts_at_step: int = 0
    """First step at which the loss counts."""

    def __post_init__(self) -> None:
        _check_weight_and_step(self.name, self.weight, self.starts_at_step)

    def is_active(self, step: int) -> bool:
        """Whether the term counts at a step."""
        return step >= self.starts_at_step


@dataclass(frozen=True)
class DepthTerm:
    """The smoothness loss on rendered depth, which no published model uses."""

    weight: float = 0.0
    """Factor of the loss; 0 turns it off."""
    starts_at_step: int = 0
    """First step at which the loss counts."""
    edge_sharpness: float = 0.0
    """How strongly depth may jump where the image has an edge; 0 ignores the image."""
    second_derivative: bool = False
    """Penalise curvature instead of slope."""

    def __post_init__(self) -> None:
        _check_weight_and_step("depth", self.weight, self.starts_at_step)

    def is_active(self, step: int) -> bool:
        """Whether the term counts at a step."""
        return self.weight > 0 and step >= self.starts_at_step


def _check_weight_and_step(name: str, weight: float, starts_at_step: int) -> None:
    if weight < 0 or starts_at_step < 0:
        raise ConfigError(f"loss {name}: weight {weight} and starts_at_step {starts_at_step} must not be negative")


@dataclass(frozen=True)
class TermValue:
    """The value of one term at one step."""

    name: str
    unweighted: Tensor  # []
    weighted: Tensor  # [], what is minimised


@dataclass(frozen=True)
class LossInputs:
    """What the terms of one group look at; the parts that no term of the group needs may be None."""

    prediction: Tensor | None = None  # [..., 3, height, width]
    target: Tensor | None = None  # as prediction
    posterior: DiagonalGaussian | None = None  # [...]


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all elements []."""
    return (prediction - target).square().mean()


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over all elements []."""
    return (prediction - target).abs().mean()


def kl(posterior: DiagonalGaussian) -> Tensor:
    """KL divergence to N(0, 1), mean over all elements []. Differentiable to mean and logvar."""
    return posterior.kl_to_standard_normal().mean()


def depth_smoothness(depth_z: Tensor, near: Tensor, far: Tensor, image: Tensor, term: DepthTerm) -> Tensor:
    """Mean absolute change of log depth between neighbours [], log near and log far being 0 and 1.

    Differentiable to the depth where it lies between near and far.

    Args:
        depth_z: Rendered depth [b, t, height, width] in world units.
        near: Lower bound of the depth [b, t] in world units.
        far: Upper bound, as ``near``.
        image: True images [b, t, 3, height, width] in [0, 1], whose edges excuse a jump of depth.
        term: Which derivative, and how much edges excuse.
    """
    log_near, log_far = near.log()[..., None, None], far.log()[..., None, None]
    # Differs from upstream: it applies these bounds of log depth to linear depth.
    bounded = depth_z.minimum(far[..., None, None]).maximum(near[..., None, None])
    depth = (bounded.log() - log_near) / (log_far - log_near)
    return sum(_mean_change(depth, image, axis, term) for axis in (-1, -2))


def _mean_change(depth: Tensor, image: Tensor, axis: int, term: DepthTerm) -> Tensor:
    change = depth.diff(dim=axis)
    # Differs from upstream: it takes the signed step of the image, which excuses edges in one direction only.
    edge = image.diff(dim=axis).abs().amax(dim=-3)
    if term.second_derivative:
        change = change.diff(dim=axis)
        count = edge.shape[axis] - 1
        edge = edge.narrow(axis, 0, count).maximum(edge.narrow(axis, 1, count))
    return (change.abs() * (-term.edge_sharpness * edge).exp()).mean()


def evaluate_terms(
    terms: Iterable[LossTerm], inputs: LossInputs, perceptual: PerceptualFunction | None = None
) -> tuple[TermValue, ...]:
    """Values of the given terms, in their order; the same name may occur more than once.

    Args:
        terms: The active terms of one group (``LossSchedule.active``).
        inputs: What they compare.
        perceptual: Function of (prediction, target) behind "lpips", see ``losses.perceptual``.

    Raises:
        ConfigError: "lpips" is among the terms and ``perceptual`` is None.
        ShapeMismatch: Prediction and target differ in shape.
    """
    if inputs.prediction is not None and inputs.target is not None and inputs.prediction.shape != inputs.target.shape:
        raise ShapeMismatch("loss prediction", f"of its target {list(inputs.target.shape)}", inputs.prediction.shape)
    values = []
    for term in terms:
        unweighted = _evaluate(term.name, inputs, perceptual)
        values.append(TermValue(term.name, unweighted, term.weight * unweighted))
    return tuple(values)


def _evaluate(name: TermName, inputs: LossInputs, perceptual: PerceptualFunction | None) -> Tensor:
    if name == "kl":
        return kl(inputs.posterior)
    if name == "lpips" and perceptual is None:
        raise ConfigError(
            'an lpips loss needs a perceptual network: build one, or drop it by schedule.without("lpips")'
        )
    function = {"mse": mse, "l1": l1, "lpips": perceptual}[name]
    return function(inputs.prediction, inputs.target)


def with_gradient_taken(prediction: Tensor, evaluate: Callable[[Tensor], Sequence[TermValue]]) -> tuple[TermValue, ...]:
    """Values of terms of images, whose gradient has been taken back to the images already.

    What the terms compute on the way is freed at once, instead of being kept until the backward pass of the whole step
    and, for the adaptive weight, walked through twice. Values and gradients are those of ``evaluate(prediction)``.

    Args:
        prediction: The images. What ``evaluate`` looks at besides gets no gradient.
        evaluate: The terms, as a function of the images; they share nothing but these.
    """
    if not (prediction.requires_grad and torch.is_grad_enabled()):
        return tuple(evaluate(prediction))
    images = prediction.detach().requires_grad_()
    taken = []
    for value in evaluate(images):
        (gradient,) = torch.autograd.grad(value.weighted, images)
        carrier = ((prediction - prediction.detach()) * gradient).sum()  # zero, with this gradient
        taken.append(replace(value, unweighted=value.unweighted.detach(), weighted=value.weighted.detach() + carrier))
    return tuple(taken)


def total(values: Sequence[TermValue]) -> Tensor:
    """Sum of the weighted values []. There must be at least one."""
    return torch.stack([value.weighted for value in values]).sum()


def weighted_by_name(group: str, values: Iterable[TermValue]) -> dict[str, Tensor]:
    """Weighted values under "group/name"; a repeated name becomes "group/name_2" and so on."""
    seen: Counter[str] = Counter()
    named = {}
    for value in values:
        seen[value.name] += 1
        suffix = f"_{seen[value.name]}" if seen[value.name] > 1 else ""
        named[f"{group}/{value.name}{suffix}"] = value.weighted
    return named
