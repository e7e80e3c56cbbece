"""Which losses count when, and what must be computed for them.

The training asks ``LossSchedule.plan`` what to render and decode at a step, so the conditions stand here only.

Source: latentSplat's supplement (training details) and its experiment files.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar, get_args

from lsplat_ns.errors import ConfigError
from lsplat_ns.losses.adversarial import AdversarialConfig
from lsplat_ns.losses.terms import DepthTerm, LossTerm, TermName

GroupName = Literal[
    "gaussian", "context_autoencoder", "target_autoencoder", "render_image", "render_latent", "combined"
]
GROUPS: tuple[GroupName, ...] = get_args(GroupName)

_IMAGE_TERMS: tuple[TermName, ...] = ("mse", "l1", "lpips")
_ALLOWED_TERMS: dict[GroupName, tuple[TermName, ...]] = {
    "gaussian": ("kl",),
    "context_autoencoder": (*_IMAGE_TERMS, "kl"),
    "target_autoencoder": (*_IMAGE_TERMS, "kl"),
    "render_image": _IMAGE_TERMS,
    "render_latent": ("mse", "l1"),
    "combined": _IMAGE_TERMS,
}

_Term = TypeVar("_Term", LossTerm, DepthTerm, AdversarialConfig)


def _rescheduled(term: _Term, factor: float) -> _Term:
    return replace(term, starts_at_step=int(term.starts_at_step * factor))


@dataclass(frozen=True)
class StepPlan:
    """What one training step must compute, besides encoding the context into Gaussians."""

    render_color: bool
    render_depth: bool
    render_features: bool
    decode: bool  # rendered latents into images
    discriminate: bool  # generator and discriminator losses on the decoded images
    encode_context: bool  # context images by the image autoencoder
    encode_target: bool  # target images by the image autoencoder
    perceptual: bool  # some term needs the perceptual network


@dataclass(frozen=True)
class LossSchedule:
    """The terms of each group of losses. The defaults are the published schedule, for 200,000 steps."""

    gaussian: tuple[LossTerm, ...] = ()
    """On the features of the predicted Gaussians; the published "kl" variants have ("kl", 0.1)."""
    context_autoencoder: tuple[LossTerm, ...] = ()
    """On context images encoded and decoded by the image autoencoder."""
    target_autoencoder: tuple[LossTerm, ...] = ()
    """On target images encoded and decoded by the image autoencoder."""
    render_image: tuple[LossTerm, ...] = (LossTerm("mse", 10.0), LossTerm("lpips", 0.5, 50_000))
    """On splatted colour."""
    render_latent: tuple[LossTerm, ...] = ()
    """On rendered latents, against the encoded target images."""
    combined: tuple[LossTerm, ...] = (LossTerm("l1", 1.0, 100_000), LossTerm("lpips", 1.0, 100_000))
    """On the decoded images, the output of the model."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """Generator and discriminator losses on the decoded images."""
    depth: DepthTerm = field(default_factory=DepthTerm)
    """Smoothness of splatted depth."""

    def __post_init__(self) -> None:
        for group in GROUPS:
            for term in getattr(self, group):
                if term.name not in _ALLOWED_TERMS[group]:
                    allowed = ", ".join(_ALLOWED_TERMS[group])
                    raise ConfigError(f"loss {term.name} cannot be in group {group}, which takes {allowed}")
        start = self.adversarial.starts_at_step
        # Its adaptive weight compares the generator's gradient with that of the other losses.
        if self.uses_discriminator and not self.active("combined", start):
            raise ConfigError(
                f"adversarial losses start at step {start}, before any loss in group combined: "
                "start a combined loss at that step or earlier"
            )

    @property
    def uses_discriminator(self) -> bool:
        """Whether a discriminator is trained at any step."""
        return self.adversarial.loss != "none"

    def uses(self, name: TermName) -> bool:
        """Whether a term of this name counts at any step."""
        return any(term.name == name for group in GROUPS for term in getattr(self, group))

    def active(self, group: GroupName, step: int) -> tuple[LossTerm, ...]:
        """The terms of a group that count at a step."""
        return tuple(term for term in getattr(self, group) if term.is_active(step))

    def active_groups(self, step: int) -> tuple[GroupName, ...]:
        """The groups with at least one active term, in the order of evaluation."""
        return tuple(group for group in GROUPS if self.active(group, step))

    def plan(self, step: int, color_in_skip: bool) -> StepPlan:
        """What a training step must compute.

        Args:
            step: Training step, from 0.
            color_in_skip: Whether the decoder is fed the rendered colour (``AutoencoderConfig.color_in_skip``).
        """
        groups = self.active_groups(step)
        decode = "combined" in groups
        return StepPlan(
            # Differs from upstream: it renders colour for the image loss only, and the skip input may then lack it.
            render_color="render_image" in groups or (decode and color_in_skip),
            render_depth=self.depth.is_active(step),
            render_features=decode or "render_latent" in groups,
            decode=decode,
            discriminate=self.adversarial.is_active(step),
            encode_context="context_autoencoder" in groups,
            encode_target="target_autoencoder" in groups or "render_latent" in groups,
            perceptual=any(term.name == "lpips" for group in groups for term in self.active(group, step)),
        )

    def without(self, name: TermName) -> "LossSchedule":
        """The same schedule without the terms of one name, e.g. "lpips" when its weights are absent."""
        return self._map_groups(lambda terms: tuple(term for term in terms if term.name != name))

    def scaled(self, factor: float) -> "LossSchedule":
        """The same schedule with every starting step multiplied by ``factor`` and rounded down, for shorter runs."""
        scaled = self._map_groups(lambda terms: tuple(_rescheduled(term, factor) for term in terms))
        return replace(
            scaled, adversarial=_rescheduled(self.adversarial, factor), depth=_rescheduled(self.depth, factor)
        )

    def _map_groups(self, function: Callable[[tuple[LossTerm, ...]], tuple[LossTerm, ...]]) -> "LossSchedule":
        return replace(self, **{group: function(getattr(self, group)) for group in GROUPS})
