"""Training losses: the terms, when each of them counts, and the adversarial pair."""

from lsplat_ns.losses.adversarial import AdversarialConfig, AdversarialLosses, adversarial_losses
from lsplat_ns.losses.perceptual import PerceptualDistance
from lsplat_ns.losses.schedule import GROUPS, LossSchedule, StepPlan
from lsplat_ns.losses.terms import (
    DepthTerm,
    LossInputs,
    LossTerm,
    TermValue,
    depth_smoothness,
    evaluate_terms,
    total,
    weighted_by_name,
)

__all__ = [
    "GROUPS",
    "AdversarialConfig",
    "AdversarialLosses",
    "DepthTerm",
    "LossInputs",
    "LossSchedule",
    "LossTerm",
    "PerceptualDistance",
    "StepPlan",
    "TermValue",
    "adversarial_losses",
    "depth_smoothness",
    "evaluate_terms",
    "total",
    "weighted_by_name",
]
