"""Typed errors. Each message is one line that says what is wrong, where, and how to mend it."""

from typing import Literal

SkipReason = Literal["broken", "too short", "no baseline", "field of view", "image size"]
"""Why a scene or an example of it cannot be used; training counts by these."""


class LsplatError(Exception):
    """Base of every error a user can cause. Command line tools print its message and exit with 1."""


class SceneDataError(LsplatError):
    """A dataset, scene or view on disk is missing, broken or too small for what was asked of it."""

    def __init__(self, message: str, *, reason: SkipReason = "broken") -> None:
        super().__init__(message)
        self.reason = reason


class CheckpointMismatch(LsplatError):
    """A checkpoint's keys or shapes are not those of the model it is loaded into."""


class ConfigError(LsplatError, ValueError):
    """Two options contradict each other, or a value is out of its range.

    A ValueError as well, so that option parsers show it as a mistake on the command line and not as a stack trace.
    """


class MissingExtra(LsplatError):
    """An optional program, library or kernel is needed and absent."""


class MissingWeights(LsplatError):
    """A weight file is needed and absent."""


class ShapeMismatch(LsplatError):
    """A tensor does not have the shape that its place in the model asks for."""

    def __init__(self, name: str, expected: str, actual: tuple[int, ...]) -> None:
        super().__init__(f"{name} must have shape {expected}, but has {tuple(actual)}")
        self.name, self.expected, self.actual = name, expected, tuple(actual)


class GenerationCancelled(LsplatError):
    """Whoever asked for generated views no longer wants them; what was delivered before is complete."""
