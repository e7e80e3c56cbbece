"""What is built into walls: windows with a view, doors, skirting boards, curtains, beams.

Everything is described in the frame of one wall: x along it from its left end as seen from inside, y outwards
(the room lies at negative y), z up. Metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lsplat_ns.data.demo_scenes import materials as m
from lsplat_ns.data.demo_scenes import pictures as p
from lsplat_ns.data.demo_scenes.surfaces import (
    Material,
    Opening,
    Rectangle,
    Solid,
    Sun,
    ball,
    box,
    column,
    place,
    turn,
    vector,
)

WALL_DEPTH = 0.2
BACKDROP_DISTANCE = 11.0
EYE_HEIGHT = 1.4


@dataclass(frozen=True)
class Wall:
    """One wall of a room with its left bottom corner, heading and size."""

    name: str
    corner: np.ndarray  # [3]
    yaw: float
    length: float
    height: float

    def point(self, x: float, y: float, z: float) -> np.ndarray:
        """World position [3] of a point in the wall's frame."""
        return turn(self.yaw) @ vector(x, y, z) + self.corner

    def direction(self, x: float, y: float, z: float) -> np.ndarray:
        """World direction [3] of a vector in the wall's frame."""
        return turn(self.yaw) @ vector(x, y, z)

    def place(self, solids: list[Solid]) -> list[Solid]:
        """Solids of the wall's frame in the world."""
        return place(solids, self.yaw, self.corner)

    def hole(self, x0: float, z0: float, x1: float, z1: float) -> tuple[float, float, float, float]:
        """The opening as a hole in the wall's rectangle."""
        return x0 / self.length, 1 - z1 / self.height, x1 / self.length, 1 - z0 / self.height


def walls_of(width: float, depth: float, height: float) -> dict[str, Wall]:
    """The four walls of a room that spans [0, width] x [0, depth] x [0, height]."""
    return {
        "north": Wall("north", vector(0, depth, 0), 0.0, width, height),
        "east": Wall("east", vector(width, depth, 0), -np.pi / 2, depth, height),
        "south": Wall("south", vector(width, 0, 0), np.pi, width, height),
        "west": Wall("west", vector(0, 0, 0), np.pi / 2, depth, height),
    }


@dataclass(frozen=True)
class Window:
    """A glazed hole in a wall."""

    x0: float
    z0: float
    x1: float
    z1: float
    bars: tuple[int, int]  # panes across and down
    curtains: str | None  # their colour


def window_solids(window: Window, trim: Material) -> list[Solid]:
    """Reveal, sill, frame, casing and curtains."""
    x0, x1, z0, z1 = window.x0, window.x1, window.z0, window.z1
    width, height, middle = x1 - x0, z1 - z0, (x0 + x1) / 2
    solids: list[Solid] = []
    for x in (x0 - 0.015, x1 + 0.015):
        solids.append(box((0.03, WALL_DEPTH, height), (x, WALL_DEPTH / 2, z0), trim))
    solids.append(box((width + 0.06, WALL_DEPTH, 0.03), (middle, WALL_DEPTH / 2, z1), trim))
    solids.append(box((width + 0.06, WALL_DEPTH, 0.03), (middle, WALL_DEPTH / 2, z0 - 0.03), trim))
    solids.append(box((width + 0.16, 0.06, 0.035), (middle, -0.03, z0 - 0.035), trim))
    deep, bar = WALL_DEPTH - 0.04, 0.05
    for i in range(window.bars[0] + 1):
        side = bar if i in (0, window.bars[0]) else 0.035
        x = np.clip(x0 + i / window.bars[0] * width, x0 + side / 2, x1 - side / 2)
        solids.append(box((side, 0.05, height), (x, deep, z0), trim))
    for i in range(window.bars[1] + 1):
        side = bar if i in (0, window.bars[1]) else 0.03
        z = np.clip(z0 + i / window.bars[1] * height - side / 2, z0, z1 - side)
        solids.append(box((width, 0.05, side), (middle, deep, z), trim))
    for x in (x0 - 0.04, x1 + 0.04):
        solids.append(box((0.08, 0.02, height + 0.08), (x, -0.01, z0), trim, casts_shadow=False))
    solids.append(box((width + 0.16, 0.02, 0.08), (middle, -0.01, z1), trim, casts_shadow=False))
    return solids + (_curtains(window) if window.curtains else [])


def _curtains(window: Window) -> list[Solid]:
    cloth, panel = m.curtain(window.curtains), 0.34
    top = window.z1 + 0.14
    solids: list[Solid] = [
        box((panel, 0.05, top - 0.06), (x, -0.1, 0.04), cloth)
        for x in (window.x0 - panel / 2 + 0.08, window.x1 + panel / 2 - 0.08)
    ]
    rod = column(0.012, window.x1 - window.x0 + 0.7, (0, 0, 0), m.metal("5f5a52"), casts_shadow=False)
    rod = rod.placed(turn(0, 0, np.pi / 2), vector(window.x0 - 0.35, -0.1, top))
    knobs = [
        ball(0.025, (x, -0.1, top), m.metal("5f5a52"), casts_shadow=False) for x in (window.x0 - 0.36, window.x1 + 0.36)
    ]
    return [*solids, rod, *knobs]


def daylight(wall: Wall, window: Window, radiance: np.ndarray) -> Opening:
    """The light that comes in through a window."""
    corner = wall.point(window.x0, WALL_DEPTH, window.z0)
    edge_u = wall.direction(window.x1 - window.x0, 0, 0)
    return Opening(corner, edge_u, vector(0, 0, window.z1 - window.z0), wall.direction(0, -1, 0), radiance)


def backdrop(wall: Wall, view: Material, brightness: float) -> Rectangle:
    """A large picture of the outside, far enough away to move against the window as a landscape does."""
    width, height = 52.0, 22.0
    corner = wall.point(wall.length / 2 - width / 2, BACKDROP_DISTANCE, EYE_HEIGHT + 0.55 * height)
    edge_v = vector(0, 0, -height)
    return Rectangle(corner, wall.direction(width, 0, 0), edge_v, view, self_lit=brightness, detail=0.12)


def door_solids(x0: float, width: float, height: float, color: str, trim: Material, metal: str) -> list[Solid]:
    """A panelled door in its frame, slightly proud of the wall."""
    leaf = p.fronts(m.paint(color, 0.02), 2, 3, 0.07, gap=0.0)
    middle = x0 + width / 2
    solids: list[Solid] = [box((width, 0.02, height), (middle, -0.01, 0.005), m.paint(color), faces={"front": leaf})]
    for x in (x0 - 0.045, x0 + width + 0.045):
        solids.append(box((0.09, 0.035, height + 0.09), (x, -0.0175, 0), trim))
    solids.append(box((width, 0.035, 0.09), (middle, -0.0175, height), trim))
    plate = box((0.035, 0.008, 0.16), (x0 + 0.07, -0.024, 0.95), m.metal(metal), casts_shadow=False)
    return [*solids, plate, ball((0.045, 0.022, 0.022), (x0 + 0.085, -0.055, 1.05), m.metal(metal), casts_shadow=False)]


def skirting(wall: Wall, trim: Material, gap: tuple[float, float] | None) -> list[Solid]:
    """A skirting board, interrupted for a door, and a moulding below the ceiling."""
    runs = [(0.0, wall.length)] if gap is None else [(0.0, gap[0]), (gap[1], wall.length)]
    solids: list[Solid] = [
        box((x1 - x0, 0.018, 0.1), ((x0 + x1) / 2, -0.009, 0), trim, casts_shadow=False)
        for x0, x1 in runs
        if x1 - x0 > 0.02
    ]
    moulding = box((wall.length, 0.05, 0.05), (wall.length / 2, -0.025, wall.height - 0.05), trim, casts_shadow=False)
    return [*solids, moulding]


def sun_through(wall: Wall, rng: np.random.Generator, strength: float) -> Sun:
    """A sun that shines through the windows of one wall."""
    sideways, height = rng.uniform(-0.8, 0.8), rng.uniform(0.45, 0.85)
    towards = wall.direction(sideways, 1.0, height)
    return Sun(towards / np.linalg.norm(towards), strength * vector(1.0, 0.88, 0.70))
