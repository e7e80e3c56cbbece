"""Counts of what training passed over, by reason, so that nothing is left out silently."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from lsplat_ns.errors import SceneDataError


@dataclass
class SkipTally:
    """How many examples were used, how many could not be, and why."""

    used: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # by reason
    latest: dict[str, str] = field(default_factory=dict)  # the last message of each reason

    @property
    def total_skipped(self) -> int:
        """Examples that could not be used, for any reason."""
        return sum(self.skipped.values())

    def note_used(self) -> None:
        """Count an example that was used."""
        self.used += 1

    def note_skipped(self, error: SceneDataError) -> None:
        """Count an example that cannot be used."""
        self.skipped[error.reason] += 1
        self.latest[error.reason] = str(error)

    def add(self, other: SkipTally) -> None:
        """Count what another tally counted, after this one."""
        self.used += other.used
        self.skipped.update(other.skipped)
        self.latest.update(other.latest)

    def reasons(self) -> str:
        """Each reason with its count and an instance, the most frequent one first."""
        return "; ".join(
            f"{count} {reason} (such as: {self.latest[reason]})" for reason, count in self.skipped.most_common()
        )

    def summary(self) -> str:
        """One line: how many of all, and why."""
        return f"{self.total_skipped} of {self.used + self.total_skipped} examples skipped: {self.reasons()}"

    def metrics(self) -> dict[str, float]:
        """Counts as scalars for a training log."""
        counts = {f"skipped_examples/{reason.replace(' ', '_')}": float(n) for reason, n in self.skipped.items()}
        return {"skipped_examples": float(self.total_skipped), **counts}
