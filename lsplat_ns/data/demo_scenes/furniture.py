"""Furniture: every function returns a ``Piece`` that stands on z = 0 around the origin and faces -y. Metres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lsplat_ns.data.demo_scenes import materials as m
from lsplat_ns.data.demo_scenes import pictures as p
from lsplat_ns.data.demo_scenes.surfaces import (
    Frustum,
    Lamp,
    Material,
    Solid,
    ball,
    box,
    column,
    place,
    turn,
    turned,
    vector,
)

WARM = vector(1.0, 0.78, 0.52)


@dataclass(frozen=True)
class Style:
    """The colours and woods that one room repeats."""

    wood: str
    second_wood: str
    fabric: str
    accents: tuple[str, ...]
    metal: str = "8d8a86"

    def accent(self, rng: np.random.Generator) -> str:
        """One of the accent colours."""
        return self.accents[rng.integers(len(self.accents))]


@dataclass(frozen=True)
class Piece:
    """Solids with the (width, depth, height) that they need, and the lamps among them."""

    solids: tuple[Solid, ...]
    size: tuple[float, float, float]
    lamps: tuple[Lamp, ...] = field(default=())

    def placed(self, yaw: float, at: Sequence[float]) -> Piece:
        """The piece turned about the vertical axis, then moved."""
        rotation, offset = turn(yaw), np.asarray(at, dtype=np.float64)
        lamps = tuple(replace(lamp, centre=rotation @ lamp.centre + offset) for lamp in self.lamps)
        return Piece(tuple(place(self.solids, yaw, at)), self.size, lamps)

    def with_others(self, *others: Piece) -> Piece:
        """This piece together with others that already stand where they belong."""
        solids = sum((o.solids for o in others), self.solids)
        return Piece(solids, self.size, sum((o.lamps for o in others), self.lamps))


def _legs(width: float, depth: float, height: float, side: float, material: Material) -> list[Solid]:
    return [
        box((side, side, height), (sx * (width - side) / 2, sy * (depth - side) / 2, 0), material)
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]


def table(size: tuple[float, float, float], wood: str, *, round_top: bool = False) -> Piece:
    """A table with a thick top; round tops stand on a turned foot."""
    width, depth, height = size
    top, body = m.wood(wood), m.upright(m.wood(wood))
    if round_top:
        profile = [(0.28, 0), (0.26, 0.03), (0.07, 0.07), (0.05, 0.3), (0.06, height - 0.1), (0.14, height - 0.03)]
        foot = turned(profile, (0, 0, 0), body)
        return Piece((*foot, column(width / 2, 0.03, (0, 0, height - 0.03), top)), (width, width, height))
    rails = [
        box((width - 0.14, 0.022, 0.08), (0, sy * (depth / 2 - 0.06), height - 0.115), top, casts_shadow=False)
        for sy in (-1, 1)
    ]
    board = box((width, depth, 0.035), (0, 0, height - 0.035), top)
    return Piece((board, *rails, *_legs(width - 0.06, depth - 0.06, height - 0.035, 0.06, body)), size)


def chair(wood: str, seat: Material) -> Piece:
    """A dining chair with a slatted back and a cushion."""
    frame = m.upright(m.wood(wood))
    solids: list[Solid] = [box((0.44, 0.43, 0.035), (0, 0, 0.42), m.wood(wood))]
    solids += [box((0.40, 0.39, 0.035), (0, -0.01, 0.455), seat, casts_shadow=False)]
    solids += _legs(0.42, 0.41, 0.42, 0.036, frame)
    for x in (-0.19, 0.19):
        solids.append(box((0.035, 0.035, 0.5), (x, 0.195, 0.44), frame))
    for x in (-0.1, 0.0, 0.1):
        solids.append(box((0.04, 0.016, 0.36), (x, 0.195, 0.5), frame, casts_shadow=False))
    solids.append(box((0.42, 0.03, 0.08), (0, 0.195, 0.86), m.wood(wood)))
    return Piece(tuple(solids), (0.46, 0.46, 0.94))


def cushion(
    at: Sequence[float], material: Material, lean: float = -0.35, roll: float = 0.0, size: float = 0.4
) -> Solid:
    """A plump cushion leaning against something behind it."""
    soft = ball((size / 2, 0.085, size / 2), at, material)
    return replace(soft, rotation=turn(0, lean, roll))


def sofa(width: float, cloth: Material, style: Style, rng: np.random.Generator) -> Piece:
    """A sofa with seat and back cushions, arm rests and a few loose cushions."""
    seats = max(1, round((width - 0.4) / 0.7))
    inner = width - 0.36
    solids: list[Solid] = [box((width - 0.04, 0.86, 0.2), (0, 0, 0.1), cloth)]
    solids += [box((0.18, 0.88, 0.5), (s * (width / 2 - 0.09), 0, 0.1), cloth) for s in (-1, 1)]
    for s in (-1, 1):
        arm = Frustum(vector(s * (width / 2 - 0.09), 0, 0.6), 0.88, 0.095, 0.095, cloth, turn(0, np.pi / 2))
        solids.append(arm)
    solids.append(box((width - 0.1, 0.2, 0.74), (0, 0.34, 0.1), cloth))
    for i in range(seats):
        x = (i + 0.5) / seats * inner - inner / 2
        solids.append(box((inner / seats - 0.006, 0.64, 0.16), (x, -0.11, 0.3), cloth))
        back = box((inner / seats - 0.03, 0.16, 0.4), (0, 0, 0), cloth).placed(turn(0, -0.18), vector(x, 0.17, 0.46))
        solids.append(back)
    for _ in range(rng.integers(1, 4)):
        x, color = rng.uniform(-0.42, 0.42) * inner, style.accent(rng)
        pattern = m.plaid(color, "e8e2d6") if rng.random() < 0.4 else m.fabric(color)
        solids.append(cushion((x, -0.02, 0.64), pattern, -0.4, rng.uniform(-0.4, 0.4)))
    solids += _legs(width - 0.1, 0.8, 0.1, 0.06, m.wood(style.wood))
    return Piece(tuple(solids), (width, 0.9, 0.88))


def bed(width: float, style: Style, rng: np.random.Generator) -> Piece:
    """A bed: headboard, frame, mattress, blanket, two pillows per side."""
    length, wood = 2.05, m.wood(style.wood)
    cover = m.plaid(style.fabric, style.accent(rng), 0.3) if rng.random() < 0.5 else m.fabric(style.fabric, 0.12)
    linen = m.fabric("eae6dd", 0.05, 0.05)
    solids: list[Solid] = [
        box((width + 0.1, 0.08, 1.1), (0, length / 2 - 0.02, 0), wood, faces={"front": p.fronts(wood, 3, 1, 0.09)}),
        box((width + 0.04, length, 0.26), (0, -0.04, 0.08), wood),
        box((width, length - 0.06, 0.22), (0, -0.04, 0.32), linen),
        box((width + 0.03, length * 0.66, 0.06), (0, -0.04 - length * 0.17, 0.5), cover),
        box((width + 0.035, 0.34, 0.075), (0, -0.04 + length * 0.16, 0.495), linen),
    ]
    for s in (-1, 1):
        side = box((0.03, length * 0.66, 0.3), (s * (width / 2 + 0.012), -0.04 - length * 0.17, 0.24), cover)
        solids += [side, ball((width * 0.21, 0.2, 0.1), (s * width / 4, length / 2 - 0.36, 0.62), linen)]
        solids.append(cushion((s * width / 4, length / 2 - 0.56, 0.68), m.fabric(style.accent(rng)), -0.55, 0, 0.42))
    return Piece(tuple(solids), (width + 0.12, length + 0.08, 1.1))


def cabinet(size: tuple[float, float, float], wood: str, columns: int, rows: int, metal: str = "8d8a86") -> Piece:
    """A sideboard, dresser or wardrobe with a grid of doors or drawers and their knobs."""
    width, depth, height = size
    body = m.upright(m.wood(wood))
    face = p.fronts(m.upright(m.wood(wood)) if rows == 1 else m.wood(wood), columns, rows, 0.05)
    solids: list[Solid] = [
        box((width - 0.06, depth - 0.06, 0.07), (0, 0.01, 0), m.plain("2b2724")),
        box((width, depth, height - 0.1), (0, 0, 0.07), body, faces={"front": face}),
        box((width + 0.03, depth + 0.02, 0.03), (0, -0.01, height - 0.03), m.wood(wood), casts_shadow=False),
    ]
    for column_index in range(columns):
        for row in range(rows):
            x = (column_index + 0.5) / columns * width - width / 2
            z = 0.07 + (row + 0.5) / rows * (height - 0.1)
            if rows == 1:
                x += (0.5 - 1 / (columns * 12)) * width / columns * (1 if column_index % 2 == 0 else -1) * 0.85
            knob = ball(0.014, (x, -depth / 2 - 0.018, z), m.metal(metal), casts_shadow=False)
            solids.append(knob)
    return Piece(tuple(solids), (width + 0.03, depth + 0.03, height))


def bookshelf(width: float, height: float, style: Style, rng: np.random.Generator) -> Piece:
    """Open shelves with books and a few ornaments."""
    depth, wood, rows = 0.3, m.wood(style.wood), max(2, round(height / 0.36))
    sides = m.upright(wood)
    solids: list[Solid] = [
        box((width, 0.02, height), (0, depth / 2 - 0.01, 0), sides),
        box((0.025, depth, height), (-width / 2, 0, 0), sides),
        box((0.025, depth, height), (width / 2, 0, 0), sides),
    ]
    pitch = (height - 0.08) / rows
    for row in range(rows + 1):
        solids.append(box((width, depth, 0.025), (0, 0, 0.06 + row * pitch - (row == rows) * 0.005), wood))
    palette = (*style.accents, "7a2f2a", "2f4858", "4d5d3a", "c8b28a", "d8d0c0", "3b3440")
    for row in range(rows):
        z, clear = 0.085 + row * pitch, pitch - 0.03
        left = -width / 2 + 0.02
        while left < width / 2 - 0.15:
            run = min(rng.uniform(0.25, 0.6), width / 2 - 0.02 - left)
            if rng.random() < 0.8:
                tall, spine = clear * rng.uniform(0.8, 0.97), p.books(palette)
                x = left + run / 2
                row_of_books = box(
                    (run, 0.2, tall), (x, 0.03, z), m.plain("e6dfcf"), faces={"front": spine}, detail=1.5
                )
                solids.append(row_of_books)
            else:
                solids += ornament(rng, style, 0.6 * clear).placed(0, (left + run / 2, 0, z)).solids
            left += run + 0.01
    return Piece(tuple(solids), (width + 0.03, depth, height))


def ornament(rng: np.random.Generator, style: Style, height: float) -> Piece:
    """A vase, bowl or ball."""
    glaze = m.plain(style.accent(rng), 0.08)
    kind = rng.integers(3)
    if kind == 0:
        profile = [(0.22, 0), (0.38, 0.3), (0.34, 0.6), (0.14, 0.85), (0.18, 1.0)]
    elif kind == 1:
        profile = [(0.25, 0), (0.28, 0.1), (0.5, 0.6), (0.55, 0.75)]
    else:
        profile = [(0.3, 0), (0.08, 0.15), (0.06, 0.55), (0.25, 0.7), (0.28, 1.0)]
    solids = turned([(r * height, z * height) for r, z in profile], (0, 0, 0), glaze)
    solids = [replace(s, casts_shadow=i == 1 and height > 0.18) for i, s in enumerate(solids)]
    return Piece(tuple(solids), (height, height, height))


def plant(height: float, rng: np.random.Generator, pot: str = "a9745a") -> Piece:
    """A potted plant with arching leaves."""
    pot_height = min(0.34, height * 0.3)
    glaze = m.plain(pot, 0.08)
    solids: list[Solid] = turned([(0.11, 0), (0.15, pot_height), (0.165, pot_height + 0.02)], (0, 0, 0), glaze)
    solids.append(column(0.15, 0.01, (0, 0, pot_height + 0.012), m.speckled("3a2c22", "54402f"), casts_shadow=False))
    green = ("3f6b35", "4c7a3c", "5b8546", "35603a")[rng.integers(4)]
    count, base = int(14 + 10 * height), np.array([0, 0, pot_height])
    for i in range(count):
        around = i * 2.4 + rng.uniform(-0.3, 0.3)
        up = rng.uniform(0.25, 1.3)
        length = (height - pot_height) * rng.uniform(0.32, 0.52)
        start = base + vector(0, 0, (height - pot_height) * rng.uniform(0, 0.5))
        rotation = turn(around) @ turn(0, 0, np.pi / 2 - up)
        centre = start + rotation @ vector(0, 0, length * 0.8)
        piece = ball((0.006, length * 0.16, length * 0.8 / 1.6), centre, m.leaf(green), casts_shadow=i % 3 == 0)
        solids.append(replace(piece, rotation=rotation))
        if i % 3 == 0:
            middle = (base + centre) / 2
            axis = (centre - base) / np.linalg.norm(centre - base)
            solids.append(_rod(middle, axis, float(np.linalg.norm(centre - base)), 0.006, m.plain("4d6b35")))
    return Piece(tuple(solids), (0.5, 0.5, height))


def _rod(middle: np.ndarray, axis: np.ndarray, length: float, radius: float, material: Material) -> Frustum:
    helper = vector(1, 0, 0) if abs(axis[0]) < 0.9 else vector(0, 1, 0)
    x = np.cross(helper, axis)
    x /= np.linalg.norm(x)
    rotation = np.stack([x, np.cross(axis, x), axis], 1)
    return Frustum(middle, length, radius, radius, material, rotation, casts_shadow=False, capped=False)


def lamp_shade(at: Sequence[float], radius: float, height: float, power: float) -> Piece:
    """A glowing fabric shade around a lamp, its bottom centre at ``at``."""
    shade = column((radius, radius * 0.72), height, at, m.fabric("ffe3b4", 0.05, 0.05), self_lit=1.5, capped=False)
    centre = np.asarray(at, dtype=np.float64) + vector(0, 0, height / 2)
    glowing = replace(shade, casts_shadow=False)
    return Piece((glowing,), (2 * radius, 2 * radius, height), (Lamp(centre, radius * 0.8, WARM * power),))


def floor_lamp(style: Style, power: float = 0.55) -> Piece:
    """A standing lamp."""
    stand = m.metal(style.metal)
    foot = turned([(0.15, 0), (0.15, 0.015), (0.03, 0.03)], (0, 0, 0), stand)
    pole = column(0.013, 1.35, (0, 0, 0.02), stand, casts_shadow=False)
    shade = lamp_shade((0, 0, 1.32), 0.2, 0.28, power)
    return Piece((*foot, pole), (0.4, 0.4, 1.6)).with_others(shade)


def table_lamp(style: Style, rng: np.random.Generator, power: float = 0.22) -> Piece:
    """A lamp with a turned ceramic body."""
    profile = [(0.07, 0), (0.09, 0.06), (0.07, 0.14), (0.025, 0.2), (0.02, 0.26)]
    body = turned(profile, (0, 0, 0), m.plain(style.accent(rng), 0.06))
    return Piece(tuple(body), (0.28, 0.28, 0.46)).with_others(lamp_shade((0, 0, 0.25), 0.14, 0.19, power))


def pendant_lamp(drop: float, style: Style, power: float = 1.0) -> Piece:
    """A hanging lamp; its origin is the point on the ceiling."""
    cord = column(0.004, drop, (0, 0, -drop), m.plain("222222"), casts_shadow=False, capped=False)
    profile = [(0.24, 0.0), (0.21, 0.09), (0.12, 0.17), (0.03, 0.22)]
    hood = turned(profile, (0, 0, -drop - 0.2), m.plain(style.accents[0], 0.03), casts_shadow=False)
    bulb = ball(0.06, (0, 0, -drop - 0.16), m.plain("fff0d0"), self_lit=1.5, casts_shadow=False)
    return Piece((cord, *hood, bulb), (0.5, 0.5, 0.2), (Lamp(vector(0, 0, -drop - 0.22), 0.08, WARM * power),))


def television(width: float) -> Piece:
    """A flat screen on a small foot."""
    height = width * 0.57
    panel = box((width, 0.04, height), (0, 0, 0.06), m.plain("17181a"), faces={"front": p.screen()})
    foot = box((width * 0.4, 0.2, 0.012), (0, 0, 0), m.metal("3a3a3c"), casts_shadow=False)
    neck = box((0.08, 0.03, 0.07), (0, 0.01, 0), m.metal("3a3a3c"), casts_shadow=False)
    return Piece((panel, foot, neck), (width, 0.2, height + 0.06))


def framed(width: float, height: float, art: Material, wood: str) -> Piece:
    """A framed picture whose back is at y = 0 and whose centre is at z = 0."""
    frame = m.wood(wood)
    canvas = box((width, 0.012, height), (0, -0.006, -height / 2), frame, faces={"front": art}, detail=1.4)
    bars = [
        box((width + 0.07, 0.03, 0.035), (0, -0.015, s * (height / 2 + 0.0175) - 0.0175), frame, casts_shadow=False)
        for s in (-1, 1)
    ]
    bars += [
        box(
            (0.035, 0.03, height), (s * (width / 2 + 0.0175), -0.015, -height / 2), m.upright(frame), casts_shadow=False
        )
        for s in (-1, 1)
    ]
    return Piece((replace(canvas, casts_shadow=False), *bars), (width + 0.07, 0.03, height + 0.07))


def armchair(cloth: Material, style: Style, rng: np.random.Generator) -> Piece:
    """A sofa for one."""
    return sofa(0.95, cloth, style, rng)


def kitchen_run(width: float, style: Style, rng: np.random.Generator) -> Piece:
    """Base units with a worktop, hob, sink tap and wall units above."""
    units = max(2, round(width / 0.6))
    body = cabinet((width, 0.58, 0.88), style.second_wood, units, 1, style.metal)
    worktop = box((width + 0.02, 0.63, 0.04), (0, -0.01, 0.87), m.stone("d9d5cd", "8a8378"))
    splash = m.tiles("e9ece8", "b9b9b4", 0.1, veins=0.05)
    solids: list[Solid] = [worktop, box((width, 0.012, 0.55), (0, 0.285, 0.91), splash, casts_shadow=False)]
    above = cabinet((width, 0.34, 0.72), style.second_wood, units, 1, style.metal)
    solids += place(above.solids[1:], 0, (0, 0.12, 1.42))
    x = -width / 2 + 0.9
    solids.append(box((0.56, 0.5, 0.008), (x, -0.01, 0.91), m.plain("141416"), casts_shadow=False))
    for dx in (-0.13, 0.13):
        solids.append(column(0.085, 0.004, (x + dx, 0.05, 0.918), m.metal("4a4a4c"), casts_shadow=False))
    solids += turned([(0.1, 0), (0.105, 0.11), (0.11, 0.12)], (x + 0.13, 0.05, 0.922), m.metal("b9bcc0"))
    tap = m.metal("c2c5c8")
    solids += [column(0.014, 0.26, (width / 2 - 0.6, 0.2, 0.91), tap, casts_shadow=False)]
    solids += [_rod(vector(width / 2 - 0.6, 0.11, 1.16), vector(0, 1, 0), 0.2, 0.011, tap)]
    for i in range(3):
        at = (width / 2 - 1.0 - 0.16 * i, 0.16, 0.91)
        solids += ornament(rng, style, rng.uniform(0.14, 0.24)).placed(0, at).solids
    return Piece((*body.solids, *solids), (width + 0.02, 0.64, 2.15))


def fridge() -> Piece:
    """A tall fridge with two doors."""
    steel = m.upright(m.metal("b4b8bb"))
    body = box((0.62, 0.64, 1.85), (0, 0, 0.03), steel, faces={"front": p.fronts(steel, 1, 3, 0)})
    handles = [box((0.02, 0.03, 0.4), (0.25, -0.345, z), m.metal("6e7174"), casts_shadow=False) for z in (0.75, 1.35)]
    return Piece((body, *handles), (0.62, 0.68, 1.9))
