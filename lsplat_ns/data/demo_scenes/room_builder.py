"""Furnishing by trial: keeps pieces off each other, off doors, and tall ones off windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lsplat_ns.data.demo_scenes import fittings as fit
from lsplat_ns.data.demo_scenes import furniture as f
from lsplat_ns.data.demo_scenes.surfaces import Lamp, Opening, Rectangle, Solid, turn, vector


class RoomBuilder:
    """Collects the parts of one room and keeps furniture from overlapping."""

    def __init__(self, size: tuple[float, float, float], style: f.Style, rng: np.random.Generator) -> None:
        self.size, self.style, self.rng = size, style, rng
        self.walls = fit.walls_of(*size)
        self.solids: list[Solid] = []
        self.lamps: list[Lamp] = []
        self.openings: list[Opening] = []
        self.backdrops: list[Rectangle] = []
        self.holes: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in self.walls}
        self.doors: dict[str, tuple[float, float]] = {}
        self.windows: list[tuple[fit.Wall, fit.Window]] = []
        self.footprints: list[tuple[float, float, float, float, float]] = []
        self._reserved: list[tuple[float, float, float, float, float]] = []  # kept free above a height

    def add(self, piece: f.Piece, yaw: float, at: Sequence[float], solid: bool = True) -> None:
        """Put a piece somewhere without asking; ``solid`` ones take up floor."""
        placed = piece.placed(yaw, at)
        self.solids += placed.solids
        self.lamps += placed.lamps
        if solid:
            self.footprints.append((*_bounds(piece.size, yaw, at), at[2] + piece.size[2]))

    def fits(self, size: Sequence[float], yaw: float, at: Sequence[float], margin: float = 0.04) -> bool:
        """Whether a piece of this size can stand there."""
        x0, y0, x1, y1 = _bounds(size, yaw, at)
        if min(x0, y0) < -1e-6 or x1 > self.size[0] + 1e-6 or y1 > self.size[1] + 1e-6:
            return False
        for u0, v0, u1, v1, _ in self.footprints:
            if x0 < u1 + margin and u0 < x1 + margin and y0 < v1 + margin and v0 < y1 + margin:
                return False
        return not any(
            x0 < u1 and u0 < x1 and y0 < v1 and v0 < y1 and size[2] > z for u0, v0, u1, v1, z in self._reserved
        )

    def reserve(self, wall: fit.Wall, x0: float, x1: float, depth: float, above: float) -> None:
        """Keep the strip in front of a door or window free of furniture taller than ``above``."""
        (ax, ay, _), (bx, by, _) = wall.point(x0, 0, 0), wall.point(x1, -depth, 0)
        self._reserved.append((min(ax, bx), min(ay, by), max(ax, bx), max(ay, by), above))

    def against_wall(self, piece: f.Piece, walls: Sequence[str] | None = None, corner: bool = False) -> fit.Wall | None:
        """Stand a piece with its back to a wall, in a corner if asked; None if there is no room left."""
        names = list(walls or self.walls)
        for _ in range(40):
            wall = self.walls[names[self.rng.integers(len(names))]]
            half = piece.size[0] / 2
            if wall.length < 2 * half + 0.05:
                continue
            x = self.rng.uniform(half + 0.03, wall.length - half - 0.02)
            if corner:
                x = half + 0.05 if self.rng.random() < 0.5 else wall.length - half - 0.05
            at = wall.point(x, -piece.size[1] / 2 - 0.02, 0)
            if self.fits(piece.size, wall.yaw, at):
                self.add(piece, wall.yaw, at)
                return wall
        return None

    def before(self, piece: f.Piece, distance: float, turned: bool = False, solid: bool = True) -> bool:
        """Put a piece in front of the one that was added last, ``distance`` from its centre."""
        x0, y0, x1, y1, _ = self.footprints[-1]
        wall = min(self.walls.values(), key=lambda w: _gap_to_wall(w, (x0 + x1) / 2, (y0 + y1) / 2))
        at = vector((x0 + x1) / 2, (y0 + y1) / 2, 0) + wall.direction(0, -distance, 0)
        yaw = wall.yaw + (np.pi if turned else 0)
        if solid and not self.fits(piece.size, yaw, at):
            return False
        self.add(piece, yaw, at, solid)
        return True

    def hang(self, piece: f.Piece, height: float = 1.55) -> bool:
        """Hang a picture on a free piece of wall."""
        names = list(self.walls)
        for _ in range(25):
            wall = self.walls[names[self.rng.integers(4)]]
            half = piece.size[0] / 2
            if wall.length < 2 * half + 0.4:
                continue
            x = self.rng.uniform(half + 0.2, wall.length - half - 0.2)
            size = (piece.size[0] + 0.1, 0.06, height + piece.size[2] / 2)
            at = wall.point(x, -0.035, 0)
            lowest = height - piece.size[2] / 2 - 0.05
            x0, y0, x1, y1 = _bounds(size, wall.yaw, at)
            blocked = any(
                x0 < c and a < x1 and y0 < d and b < y1 and top > lowest for a, b, c, d, top in self.footprints
            )
            reserved = any(x0 < c and a < x1 and y0 < d and b < y1 for a, b, c, d, _ in self._reserved)
            if not blocked and not reserved:
                placed = piece.placed(wall.yaw, wall.point(x, 0, height))
                self.solids += placed.solids
                self._reserved.append((x0 - 0.1, y0 - 0.1, x1 + 0.1, y1 + 0.1, lowest))
                return True
        return False


def _bounds(size: Sequence[float], yaw: float, at: Sequence[float]) -> tuple[float, float, float, float]:
    half = np.abs(turn(yaw)[:2, :2]) @ (np.array(size[:2]) / 2)
    return at[0] - half[0], at[1] - half[1], at[0] + half[0], at[1] + half[1]


def _gap_to_wall(wall: fit.Wall, x: float, y: float) -> float:
    return abs(float((turn(wall.yaw).T @ (vector(x, y, 0) - wall.corner))[1]))
