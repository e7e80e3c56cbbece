"""The options of the rule by which evaluation indices are drawn."""

from dataclasses import dataclass
from typing import Literal, Optional

from lsplat_ns.errors import ConfigError


@dataclass
class EvaluationIndexConfig:
    """How pairs of context views and their targets are chosen. The defaults are the published rules."""

    kind: Literal["interpolation", "extrapolation", "both"] = "both"
    """Targets between the context views, outside them, or two entries for every pair (the papers: a file each)."""
    num_targets: int = 3
    """Target views per entry."""
    gap: Optional[tuple[int, int]] = None
    """Least and largest number of frames between the context views; 45 136 for RealEstate10k, 16 24 for CO3D."""
    min_overlap: Optional[float] = None
    """Least share of either context view's rays that the other one sees (RealEstate10k; 0.6)."""
    max_overlap: Optional[float] = None
    """Largest such share (RealEstate10k; 1.0)."""
    reach: int = 45
    """How many frames outside the pair extrapolated targets may lie (RealEstate10k; a turntable has no outside)."""
    pairs: Optional[int] = None
    """Context pairs per scene; 1 for RealEstate10k, 20 for CO3D."""
    exclude_context: bool = False
    """Keep context views out of interpolated targets. The published rule lets them in: such targets are copies."""
    seed: int = 123
    """Another seed, other pairs. What is drawn for a scene does not depend on the other scenes."""

    def __post_init__(self) -> None:
        if self.num_targets < 1 or self.reach < 1 or (self.pairs is not None and self.pairs < 1):
            raise ConfigError("num-targets, reach and pairs must be at least 1")
        if self.gap is not None and not 1 <= self.gap[0] <= self.gap[1]:
            raise ConfigError(f"gap needs 1 <= least <= largest, but is {self.gap[0]} {self.gap[1]}")
        low, high = self.overlap
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"overlap needs 0 <= min-overlap <= max-overlap <= 1, but is {low:g} to {high:g}")

    @property
    def overlap(self) -> tuple[float, float]:
        """Least and largest overlap of a pair."""
        low = 0.6 if self.min_overlap is None else self.min_overlap
        return low, 1.0 if self.max_overlap is None else self.max_overlap

    def refuse_what_circles_lack(self) -> None:
        """Raise ConfigError if an option is stated that the rule for turntables does not know."""
        if self.min_overlap is not None or self.max_overlap is not None:
            raise ConfigError("the rule for CO3D turntables has no overlap; leave out --min-overlap and --max-overlap")
