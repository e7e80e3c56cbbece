"""How a scene is looked at in the viewer: which draw, how large while flying, and what is said about it.

Nothing here knows viser or nerfstudio.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field
from typing import Literal

import torch

from lsplat_ns.errors import ConfigError, LsplatError

SECONDS_AT_REST = 0.25
"""A camera that has not moved for so long is at rest: its picture is decoded."""
FAST_DECODING_MS = 30.0
"""A picture that is splatted and decoded in less is decoded while the camera moves, too."""
HIGHEST_TEMPERATURE = 2.0
IN_THE_PANEL = {
    "state it with --fov": "state it under Photo angle and add the photos again",
    "--fov": "Photo angle",
    "; lower --size": "; end other programs on it, or generate with lsplat generate",
    "generate in float32 (--acceleration off), or take": "take",
    "; pass a folder that": "; it has to be where it was when the viewer was started: a folder that",
    " can read with --data": " can read",
    "delete it and call the command again": "take the layer back and generate anew",
}
"""What a person at the panel does where a message speaks of a command."""
EXPLAINED = (LsplatError, OSError, MemoryError, torch.cuda.OutOfMemoryError)
"""Errors whose message says all; of others the terminal shows where they come from."""


@dataclass(frozen=True)
class Draw:
    """Which draw of a predicted scene is shown.

    Raises:
        ConfigError: If a value is impossible.
    """

    mode: Literal["mode", "sample"] = "mode"
    seed: int = 0
    temperature: float = 1.0
    """Factor of the noise in the features; 1 draws from what was predicted."""

    def __post_init__(self) -> None:
        if self.mode not in ("mode", "sample"):
            raise ConfigError(f"a scene is shown as mode or sample, not as {self.mode!r}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"the seed must be a whole number from 0 on, but is {self.seed}")
        if not 0 <= self.temperature <= HIGHEST_TEMPERATURE:
            raise ConfigError(f"the temperature must lie in [0, {HIGHEST_TEMPERATURE:g}], but is {self.temperature}")


def parse_context(text: str) -> tuple[int, ...] | Literal["auto"] | None:
    """Context frames as a person types them: "1, 11", "auto" (the pair with the best overlap), or nothing (default).

    Raises:
        ConfigError: If it is something else, or not two different frames at least.
    """
    words = re.findall(r"[^\s,;]+", text)
    if not words:
        return None
    if [word.lower() for word in words] == ["auto"]:
        return "auto"
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise ConfigError(f"context views are frame numbers such as 1, 11, or auto; not {text!r}")
    frames = tuple(int(word) for word in words)
    if len(frames) < 2 or len(set(frames)) < len(frames):
        raise ConfigError(f"the network needs at least two different context views, not {text!r}")
    return frames


def in_panel_words(message: str) -> str:
    """A message of code that command line tools share, with fields of the panel for options of the command line."""
    for option, in_the_panel in IN_THE_PANEL.items():
        message = message.replace(option, in_the_panel)
    return message


def plain_message(error: BaseException) -> str:
    """What went wrong, and what to do, for someone who looks at a browser and does not read stack traces."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return "Out of memory: choose a smaller resolution (Max res) or fewer context views"
    if isinstance(error, LsplatError):
        return in_panel_words(str(error))
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error} (more in the terminal)"


class FramePacer:
    """How large pictures are while the camera moves, so that they come often enough and never become a stamp.

    nerfstudio guesses a size from pixels per second, which shrinks without end where drawing has a fixed cost.
    """

    SECONDS_PER_FRAME = 1 / 8
    FIRST, SHORTEST, LONGEST = 128, 96, 720
    """Shorter side in pixels: what it begins with, and its limits."""

    def __init__(self) -> None:
        self._short_side = float(self.FIRST)

    def moving_size(self, aspect: float, max_res: int) -> tuple[int, int]:
        """(height, width) of a picture while the camera moves. ``aspect`` is width by height, ``max_res`` the user's
        limit of the longer side."""
        return self._fitted(aspect, round(self._short_side), max_res)

    def resting_size(self, aspect: float, max_res: int) -> tuple[int, int]:
        """(height, width) of a picture at rest: as large as the user allows."""
        return self._fitted(aspect, max_res, max_res)

    def took(self, seconds: float) -> None:
        """Learn from the time that a picture of a moving camera took."""
        # Time grows at most with the number of pixels; steps are small, since times vary.
        change = math.sqrt(self.SECONDS_PER_FRAME / max(seconds, 1e-3))
        self._short_side *= min(max(change, 0.8), 1.1)
        self._short_side = min(max(self._short_side, self.SHORTEST), self.LONGEST)

    @staticmethod
    def _fitted(aspect: float, short_side: int, max_res: int) -> tuple[int, int]:
        if not math.isfinite(aspect) or aspect <= 0:  # a window that is not laid out yet
            aspect = 1.0
        short_side, longer = min(short_side, max_res), max(aspect, 1 / aspect)
        long_side = min(short_side * longer, max_res)
        sides = max(1, round(long_side / longer)), max(1, round(long_side))
        return sides if aspect >= 1 else sides[::-1]


@dataclass
class FrameTimes:
    """Times of the picture that is being made, stage by stage."""

    device: torch.device
    milliseconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._last = self._now()

    def stage(self, name: str) -> None:
        """Note that a stage is done."""
        now = self._now()
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + 1000 * (now - self._last)
        self._last = now

    def total(self) -> float:
        """Milliseconds of all stages."""
        return sum(self.milliseconds.values())

    def line(self, gaussians: int, size: tuple[int, int]) -> str:
        """A line about the picture of ``size`` (height, width) for the panel."""
        decode = self.milliseconds.get("decode")
        stages = [f"splat {self.milliseconds.get('splat', 0):.0f} ms"]
        stages += [f"decode {decode:.0f} ms"] if decode is not None else ["not decoded"]
        return " · ".join([*stages, f"{gaussians:,} Gaussians", f"{size[1]}x{size[0]}"])

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # not the whole GPU, which may generate views
        return time.perf_counter()
