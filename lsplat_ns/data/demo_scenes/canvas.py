"""A patch of surface to paint on, with the noise that procedural materials are built from."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


def linear(color: tuple[float, float, float] | str | np.ndarray) -> np.ndarray:
    """Linear RGB [..., 3], float32, of an sRGB colour in [0, 1] or a hex string such as ``"c8b49a"``."""
    if isinstance(color, str):
        color = tuple(int(color[i : i + 2], 16) / 255 for i in (0, 2, 4))
    srgb = np.asarray(color, dtype=np.float32)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def ramp(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """Smooth step from 0 at ``low`` to 1 at ``high`` (which may be below ``low``)."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(first: np.ndarray, second: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    """Blend of two colours [..., 3] with weights [...] of the second."""
    weight = np.asarray(weight, dtype=np.float32)[..., None]
    return first + (second - first) * weight


@dataclass(frozen=True)
class Canvas:
    """A grid of texels over a surface of known size. Row 0 is the top, column 0 the left."""

    height: int
    width: int
    extent: tuple[float, float]  # metres along u (columns) and v (rows)
    rng: np.random.Generator

    @property
    def u(self) -> np.ndarray:
        """Metres from the left [1, width]."""
        return ((np.arange(self.width, dtype=np.float32) + 0.5) * (self.extent[0] / self.width))[None, :]

    @property
    def v(self) -> np.ndarray:
        """Metres from the top [height, 1]."""
        return ((np.arange(self.height, dtype=np.float32) + 0.5) * (self.extent[1] / self.height))[:, None]

    @property
    def texel(self) -> float:
        """Size of a texel in metres (the larger of both directions)."""
        return max(self.extent[0] / self.width, self.extent[1] / self.height)

    def turned(self) -> Canvas:
        """The same patch with u and v exchanged; the result painted on it must be transposed."""
        return Canvas(self.width, self.height, (self.extent[1], self.extent[0]), self.rng)

    def noise(self, cell_u: float, cell_v: float | None = None, octaves: int = 3) -> np.ndarray:
        """Smooth noise [height, width] of about unit size; features of ``cell_u`` x ``cell_v`` metres and smaller."""
        cell_v = cell_u if cell_v is None else cell_v
        total = np.zeros((self.height, self.width), dtype=np.float32)
        for octave in range(octaves):
            shrink = 0.5**octave
            columns = int(np.clip(self.extent[0] / (cell_u * shrink) + 3, 2, self.width + 3))
            rows = int(np.clip(self.extent[1] / (cell_v * shrink) + 3, 2, self.height + 3))
            grid = self.rng.standard_normal((rows, columns), dtype=np.float32)
            total += shrink * cv2.resize(grid, (self.width, self.height), interpolation=cv2.INTER_CUBIC)
        return total * np.float32(0.7)

    def grain(self, amount: float) -> np.ndarray:
        """Independent factors [height, width] around 1, for a fine texture."""
        return 1 + amount * self.rng.standard_normal((self.height, self.width), dtype=np.float32)

    def lines(self, position: np.ndarray, width: float) -> np.ndarray:
        """Coverage in [0, 1] of a line of ``width`` metres around position 0, one texel soft."""
        soft = self.texel * 0.75
        return np.clip((width / 2 + soft - np.abs(position)) / (2 * soft), 0, 1)
