"""All textures of a scene in one picture, each with its half-size copies, so that one look-up can serve a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

MAX_SIDE = 16_384  # cv2.remap cannot address sources beyond 32767


@dataclass(frozen=True)
class Atlas:
    """Packed textures with their mip levels."""

    image: np.ndarray  # [height, width, 3] uint8, sRGB
    places: np.ndarray  # [surface, level, 4] float32: left, top, width, height of a level, in texels
    sizes: np.ndarray  # [surface, 2] float32: width and height of level 0

    @property
    def levels(self) -> int:
        """Mip levels that every surface has (small textures repeat their last one)."""
        return self.places.shape[1]

    def look_up(self, surface: np.ndarray, u: np.ndarray, v: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Trilinear colours [h, w, 3] uint8 at texture coordinates u, v [h, w] of surfaces [h, w], at mip levels."""
        level = np.clip(level, 0, self.levels - 1.001).astype(np.float32)
        lower = level.astype(np.int32)
        weight = level - lower.astype(np.float32)
        index = surface * self.levels + lower
        first, second = self._bilinear(index, u, v), self._bilinear(index + 1, u, v)
        return cv2.blendLinear(first, second, 1 - weight, weight)

    def _bilinear(self, index: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        left, top, width, height = (np.take(column, index) for column in self._columns)
        x = left + np.minimum(np.maximum(u * width, 0.5), width - 0.5) - 0.5
        y = top + np.minimum(np.maximum(v * height, 0.5), height - 0.5) - 0.5
        return cv2.remap(self.image, x, y, cv2.INTER_LINEAR)

    @cached_property
    def _columns(self) -> tuple[np.ndarray, ...]:
        return tuple(np.ascontiguousarray(column) for column in self.places.reshape(-1, 4).T)


def pack(textures: Sequence[np.ndarray]) -> Atlas:
    """Lay out textures [height, width, 3] uint8 and their mip levels on shelves of one picture."""
    chains = [_mip_chain(texture) for texture in textures]
    levels = max(len(chain) for chain in chains) + 1
    pieces = [(s, level, image) for s, chain in enumerate(chains) for level, image in enumerate(chain)]
    pieces.sort(key=lambda piece: (-piece[2].shape[0], piece[0], piece[1]))
    area = sum(image.shape[0] * image.shape[1] for _, _, image in pieces)
    widest = max(image.shape[1] for _, _, image in pieces)
    side = min(MAX_SIDE, max(widest, int(area**0.5 * 1.1) + 1))
    places = np.zeros((len(chains), levels, 4), dtype=np.float32)
    x = y = shelf = 0
    for surface, level, image in pieces:
        height, width = image.shape[:2]
        if x + width > side:
            x, y, shelf = 0, y + shelf, 0
        places[surface, level] = (x, y, width, height)
        shelf = max(shelf, height)
        x += width
    picture = np.zeros((y + shelf, side, 3), dtype=np.uint8)
    for surface, level, image in pieces:
        left, top, width, height = places[surface, level].astype(int)
        picture[top : top + height, left : left + width] = image
    for surface, chain in enumerate(chains):
        places[surface, len(chain) :] = places[surface, len(chain) - 1]
    return Atlas(picture, places, places[:, 0, 2:].copy())


def _mip_chain(texture: np.ndarray) -> list[np.ndarray]:
    chain = [texture]
    while max(chain[-1].shape[:2]) > 1:
        height, width = chain[-1].shape[:2]
        half = (max(1, width // 2), max(1, height // 2))
        chain.append(cv2.resize(chain[-1], half, interpolation=cv2.INTER_AREA))
    return chain
