"""Objects to walk around: hydrants, bears, vases and the like, outdoors on a slab or indoors on a plinth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lsplat_ns.data.demo_scenes import furniture as f
from lsplat_ns.data.demo_scenes import materials as m
from lsplat_ns.data.demo_scenes import pictures as p
from lsplat_ns.data.demo_scenes import rooms
from lsplat_ns.data.demo_scenes.canvas import Canvas
from lsplat_ns.data.demo_scenes.room_builder import RoomBuilder
from lsplat_ns.data.demo_scenes.surfaces import (
    SHELL,
    Frustum,
    Material,
    Scene,
    Solid,
    Sun,
    ball,
    box,
    column,
    place,
    shell_rectangles,
    turn,
    turned,
    vector,
)

YARD = 9.0  # metres from the object to each side of the skyline
PAINTS = ("c23b2a", "d9a520", "2f6f9f", "3d7a4a", "e06a2c", "b8b4aa")


@dataclass(frozen=True)
class Subject:
    """A scene around one object."""

    scene: Scene
    centre: np.ndarray  # [3], of the object
    radius: float  # metres, of a sphere around the object
    name: str


def build_subject(rng: np.random.Generator) -> Subject:
    """Draw an object and its surroundings."""
    name = rooms.choice(rng, tuple(OBJECTS))
    solids = OBJECTS[name](rng)
    solids = place(solids, float(rng.uniform(-np.pi, np.pi)), (0, 0, 0))
    return _indoors(name, solids, rng) if rng.random() < 0.35 else _outdoors(name, solids, rng)


def _enclosing(solids: Sequence[Solid]) -> tuple[np.ndarray, float]:
    """Centre [3] and radius of a sphere around the bounding box."""
    half = [np.abs(s.rotation) @ s.half_size for s in solids]
    low = np.min([s.centre - h for s, h in zip(solids, half, strict=True)], 0)
    high = np.max([s.centre + h for s, h in zip(solids, half, strict=True)], 0)
    return (low + high) / 2, float(np.linalg.norm(high - low) / 2)


def _outdoors(name: str, solids: list[Solid], rng: np.random.Generator) -> Subject:
    paving = rooms.choice(
        rng,
        (
            m.tiles("b5afa5", "7f7a72", 0.45),
            m.bricks("9a5d4a", "8d867c", (0.2, 0.1)),
            m.speckled("a39d92", "77726a", 0.015),
            m.tiles("c9c1b0", "8f897d", 0.3, "a79f92"),
        ),
    )
    slab = box((3.4, 3.4, 0.03), (0, 0, 0), paving)
    parts: list[Solid] = [slab, *place(solids, 0, (0, 0, 0.03))]
    parts += _boundaries(rng)
    for i in range(rng.integers(5, 9)):
        angle, distance = i * 2.4 + rng.uniform(-0.4, 0.4), rng.uniform(3.9, 6.2)
        at = vector(distance * np.cos(angle), distance * np.sin(angle), 0)
        parts += place(rooms.choice(rng, PROPS)(rng), angle + np.pi / 2, at)
    lower, upper = vector(-YARD, -YARD, 0), vector(YARD, YARD, 7.0)
    view = rooms.choice(rng, (p.countryside(), p.townscape(), p.countryside("7f8f45")))
    ground = rooms.choice(
        rng, (m.speckled("5f7d3c", "87994f", 0.05), m.speckled("8b877f", "6e6a64", 0.04), m.carpet("8a7a5c", "6d7a45"))
    )
    materials = {n: _lowered(view) for n in SHELL} | {"floor": ground, "ceiling": p.clouds(float(rng.uniform(0, 0.5)))}
    shell = shell_rectangles(lower, upper, materials)
    for n in SHELL:
        shell[n] = replace(shell[n], self_lit=0.0 if n == "floor" else 0.95, detail=0.3 if n == "floor" else 0.22)
    towards = vector(*rng.normal(size=2), 0)
    towards = towards / np.linalg.norm(towards) + vector(0, 0, rng.uniform(0.7, 1.4))
    sun = Sun(towards / np.linalg.norm(towards), float(rng.uniform(2.5, 5.5)) * vector(1.0, 0.92, 0.8))
    scene = Scene(lower, upper, tuple(shell[n] for n in SHELL), tuple(parts), sun=sun, outdoors=True, brightness=0.3)
    centre, radius = _enclosing(solids)
    return Subject(scene, centre + vector(0, 0, 0.03), radius, name)


def _lowered(view: Material, horizon: float = 1.1) -> Material:
    """A picture of the outside with its horizon ``horizon`` metres above the lower edge."""

    def material(canvas: Canvas) -> np.ndarray:
        stretched = (canvas.extent[1] - horizon) / 0.62
        rows = max(canvas.height, round(canvas.height * stretched / canvas.extent[1]))
        taller = Canvas(rows, canvas.width, (canvas.extent[0], stretched), canvas.rng)
        return view(taller)[: canvas.height]

    return material


def _boundaries(rng: np.random.Generator) -> list[Solid]:
    """A hedge, wall or fence along every side of the yard."""
    solids: list[Solid] = []
    for side in range(4):
        distance, height = float(rng.uniform(6.6, 7.6)), float(rng.uniform(0.7, 1.5))
        material, thick = rooms.choice(
            rng,
            (
                (m.foliage("4f7a35"), 0.6),
                (m.bricks("a05a42"), 0.24),
                (m.upright(m.planks("8a6a48", 0.14, 2.4)), 0.06),
                (m.tiles("b9b2a4", "8a857b", 0.4), 0.3),
            ),
        )
        wall = box((2 * distance - 1.2, thick, height), (0, distance, 0), material, detail=0.5)
        cap = box((2 * distance - 1.1, thick + 0.08, 0.06), (0, distance, height), m.plain("a8a297"), detail=0.3)
        solids += place([wall, cap] if thick < 0.5 else [wall], side * np.pi / 2, (0, 0, 0))
    return solids


def _indoors(name: str, solids: list[Solid], rng: np.random.Generator) -> Subject:
    size = (float(rng.uniform(6.6, 7.4)), float(rng.uniform(6.6, 7.4)), float(rng.uniform(2.8, 3.2)))
    builder = RoomBuilder(size, rooms.draw_style(rng), rng)
    trim = m.paint("efece4", 0.02)
    rooms.cut_openings(builder, trim)
    for _ in range(4):
        rooms.on_top(builder, f.cabinet((float(rng.uniform(1.0, 1.6)), 0.42, 0.8), builder.style.second_wood, 3, 2), 3)
        builder.against_wall(f.bookshelf(float(rng.uniform(0.8, 1.4)), 1.8, builder.style, rng))
        builder.against_wall(f.plant(float(rng.uniform(1.0, 1.6)), rng), corner=True)
    for _ in range(10):
        builder.hang(rooms.art(builder))
    middle = vector(size[0] / 2, size[1] / 2, 0)
    plinth = column(0.55, 0.32, (0, 0, 0), m.upright(m.wood(builder.style.wood)))
    builder.add(rooms.rug(builder, 2.9, 2.9), 0, middle, solid=False)
    builder.solids += place([plinth, *place(solids, 0, (0, 0, 0.32))], 0, middle)
    room = rooms.finish_room(builder, "study", trim)
    centre, radius = _enclosing(solids)
    return Subject(room.scene, middle + centre + vector(0, 0, 0.32), radius, name)


def _sideways(solids: Sequence[Solid], yaw: float, at: Sequence[float]) -> list[Solid]:
    """Solids built along +z, laid down to point along -y, then turned by ``yaw`` and moved."""
    rotation = turn(yaw) @ turn(0, np.pi / 2)
    return [solid.placed(rotation, np.asarray(at, dtype=np.float64)) for solid in solids]


def _hydrant(rng: np.random.Generator) -> list[Solid]:
    body = m.speckled(*([rooms.choice(rng, PAINTS)] * 2), 0.03)
    trim = m.plain(rooms.choice(rng, (*PAINTS, "d8d4c8")), 0.1)
    steel = m.metal("7c7a76")
    k = float(rng.uniform(0.9, 1.15))
    barrel = [(0.19, 0), (0.19, 0.05), (0.135, 0.06), (0.125, 0.3), (0.12, 0.5), (0.14, 0.52)]
    crown = [(0.17, 0.52), (0.17, 0.57), (0.145, 0.58), (0.14, 0.66), (0.11, 0.73), (0.05, 0.78)]
    solids: list[Solid] = [*turned([(r, z * k) for r, z in barrel], (0, 0, 0), body)]
    solids += turned([(r, z * k) for r, z in crown], (0, 0, 0), trim)
    solids.append(column(0.035, 0.06, (0, 0, 0.775 * k), steel))
    for yaw, radius in ((0.0, 0.075), (np.pi / 2, 0.055), (-np.pi / 2, 0.055)):
        collar = column((radius * 1.3, radius * 1.25), 0.055, (0, 0, 0.175), body)
        neck = [column(radius, 0.1, (0, 0, 0.08), body), collar]
        cap = [column((radius * 1.1, radius * 0.9), 0.03, (0, 0, 0.23), trim), column(0.022, 0.05, (0, 0, 0.26), steel)]
        solids += _sideways([*neck, *cap], yaw, (0, 0, 0.42 * k))
    for level, ring in ((0.055, 0.165), (0.575 * k, 0.155)):
        for i in range(8):
            angle = i * np.pi / 4
            solids.append(ball(0.016, (ring * np.cos(angle), ring * np.sin(angle), level), steel, casts_shadow=False))
    return solids


def _bear(rng: np.random.Generator) -> list[Solid]:
    fur = m.carpet(rooms.choice(rng, ("a9713f", "c79a63", "6b4a33", "d8cdb8", "8a8f99")))
    pale = m.carpet(rooms.choice(rng, ("e3cfa8", "d9b98a")))
    dark = m.plain("241d1a")
    solids: list[Solid] = [ball((0.24, 0.2, 0.27), (0, 0, 0.3), fur), ball((0.16, 0.08, 0.19), (0, -0.135, 0.3), pale)]
    solids += [ball((0.19, 0.175, 0.175), (0, -0.02, 0.68), fur), ball((0.085, 0.08, 0.07), (0, -0.18, 0.64), pale)]
    solids.append(ball((0.03, 0.02, 0.022), (0, -0.255, 0.665), dark))
    for s in (-1, 1):
        solids += [
            ball((0.075, 0.045, 0.075), (s * 0.15, 0, 0.84), fur),
            ball((0.045, 0.02, 0.045), (s * 0.15, -0.04, 0.84), pale),
        ]
        solids.append(ball((0.022, 0.016, 0.024), (s * 0.075, -0.178, 0.72), dark))
        arm = replace(ball((0.075, 0.08, 0.19), (s * 0.27, -0.08, 0.4), fur), rotation=turn(0, 0.5, s * -0.7))
        leg = replace(ball((0.095, 0.2, 0.1), (s * 0.17, -0.2, 0.1), fur), rotation=turn(s * 0.3))
        solids += [arm, leg, ball((0.065, 0.02, 0.068), (s * 0.235, -0.39, 0.11), pale)]
    bow = m.fabric(rooms.choice(rng, rooms.ACCENTS))
    solids += [ball((0.07, 0.025, 0.045), (s * 0.06, -0.2, 0.52), bow) for s in (-1, 1)]
    return solids


def _vase(rng: np.random.Generator) -> list[Solid]:
    height = float(rng.uniform(0.55, 0.7))
    profile = [(0.2, 0), (0.3, 0.2), (0.34, 0.42), (0.28, 0.62), (0.14, 0.8), (0.12, 0.88), (0.19, 1.0)]
    ink = rooms.choice(rng, ("2f4f86", "8a3f2f", "2f6b5a"))
    glaze = rooms.choice(rng, (m.gores("e9e6dc", ink, 12), m.gores("e3d9c3", ink, 7), m.stone("dfe3df", ink, 0.12)))
    solids: list[Solid] = [*turned([(r * height, z * height) for r, z in profile], (0, 0, 0), glaze)]
    for i in range(9):
        lean, around = rng.uniform(0.1, 0.45), i * 2.4
        axis = vector(np.sin(lean) * np.cos(around), np.sin(lean) * np.sin(around), np.cos(lean))
        length = rng.uniform(0.25, 0.42)
        start = vector(0, 0, height * 0.95)
        rotation = turn(around) @ turn(0, 0, lean)
        stem = Frustum(start + axis * length / 2, length, 0.007, 0.006, m.plain("4f7a3a"), rotation)
        bloom = ball((0.055, 0.055, 0.035), start + axis * length, m.plain(rooms.choice(rng, rooms.ACCENTS), 0.2))
        heart = ball((0.022, 0.022, 0.025), start + axis * (length + 0.022), m.speckled("e0b13a", "9a6b1f", 0.006))
        solids += [stem, replace(bloom, rotation=rotation), replace(heart, rotation=rotation)]
    return solids


def _robot(rng: np.random.Generator) -> list[Solid]:
    shell = m.plain(rooms.choice(rng, PAINTS), 0.1)
    dials = p.abstract_art(("e4dfd2", *rooms.ACCENTS[:5], "30343a"))
    steel, glass = m.metal("9a9ba0"), m.plain("f4e9a8", 0.05)
    solids: list[Solid] = [
        box((0.42, 0.28, 0.4), (0, 0, 0.26), shell, faces={"front": dials, "back": p.fronts(steel, 2, 3)}),
        column(0.06, 0.06, (0, 0, 0.66), steel),
        box(
            (0.3, 0.25, 0.22),
            (0, 0, 0.71),
            shell,
            faces={"left": p.fronts(shell, 1, 4), "right": p.fronts(shell, 1, 4)},
        ),
        column(0.012, 0.1, (0, 0, 0.93), steel),
        ball(0.03, (0, 0, 1.04), m.plain("c8402f")),
        box((0.18, 0.012, 0.035), (0, -0.13, 0.75), p.fronts(steel, 6, 1, 0)),
    ]
    for s in (-1, 1):
        solids += _sideways(
            [column(0.045, 0.02, (0, 0, 0.12), steel), ball(0.032, (0, 0, 0.14), glass)], 0, (s * 0.07, 0, 0.85)
        )
        solids += [
            column((0.06, 0.05), 0.26, (s * 0.11, 0, 0), steel),
            box((0.14, 0.24, 0.06), (s * 0.11, -0.03, 0), shell),
        ]
        solids += [ball(0.065, (s * 0.25, 0, 0.58), steel), column((0.035, 0.045), 0.26, (s * 0.27, 0, 0.3), steel)]
        solids.append(ball((0.055, 0.07, 0.06), (s * 0.27, -0.02, 0.27), shell))
    return solids


def _mushrooms(rng: np.random.Generator) -> list[Solid]:
    solids: list[Solid] = [ball((0.42, 0.42, 0.07), (0, 0, 0), m.foliage("5f7a3a"))]
    for i in range(4):
        angle, distance = i * 1.9 + rng.uniform(-0.3, 0.3), (0.0, 0.22, 0.24, 0.26)[i]
        height = (0.62, 0.36, 0.28, 0.42)[i] * rng.uniform(0.85, 1.1)
        at = vector(distance * np.cos(angle), distance * np.sin(angle), 0.02)
        cap, width = m.plain(rooms.choice(rng, ("b8321f", "c9772e", "8a5a3a")), 0.12), height * 0.45
        stem = [(0.16, 0), (0.11, 0.3), (0.1, 0.75)]
        solids += turned([(r * height, z * height) for r, z in stem], at, m.upright(m.wood("e6dcc6", 0.15)))
        dome = [(width, 0.66), (width * 0.97, 0.72), (width * 0.75, 0.88), (width * 0.4, 0.98), (0.02, 1.02)]
        solids += turned([(r, z * height) for r, z in dome], at, cap)
        for _ in range(9):
            around, up = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.3)
            ring = width * 0.98 * np.cos(up)
            spot = at + vector(ring * np.cos(around), ring * np.sin(around), height * (0.68 + 0.31 * np.sin(up)))
            size = height * rng.uniform(0.025, 0.05)
            solids.append(ball((size, size, size * 0.6), spot, m.plain("f0e9da"), casts_shadow=False))
    return solids


def _chess_piece(rng: np.random.Generator) -> list[Solid]:
    stone = rooms.choice(rng, (m.stone("e4ded2", "8b7d6a", 0.2), m.stone("3d4340", "c9c2b2", 0.2), m.wood("b07a45")))
    foot = [(0.3, 0), (0.3, 0.06), (0.25, 0.1), (0.17, 0.16), (0.13, 0.3), (0.12, 0.52), (0.2, 0.58), (0.2, 0.63)]
    solids: list[Solid] = [*turned(foot, (0, 0, 0), stone)]
    if rng.random() < 0.5:
        return [*solids, ball(0.16, (0, 0, 0.76), stone)]
    solids += turned([(0.15, 0.63), (0.2, 0.7), (0.21, 0.82)], (0, 0, 0), stone)
    for i in range(6):
        merlon = box((0.13, 0.05, 0.09), (0, -0.175, 0.81), stone)
        solids += place([merlon], i * np.pi / 3, (0, 0, 0))
    return solids


def _tree(rng: np.random.Generator) -> list[Solid]:
    height = float(rng.uniform(1.2, 2.0))
    bark = m.upright(m.wood("6a5138", 0.5))
    green = m.foliage(rooms.choice(rng, ("4f7a35", "6b8a3c", "3f6b3a", "8a8a3a")))
    solids: list[Solid] = [column((0.13, 0.08), height, (0, 0, 0), bark)]
    for _ in range(5):
        spread = vector(*rng.uniform(-0.45, 0.45, 2), height + rng.uniform(0.0, 0.8))
        solids.append(ball(rng.uniform(0.45, 0.7, 3), spread, green, detail=0.5))
    return solids


def _bench(rng: np.random.Generator) -> list[Solid]:
    wood, iron = m.wood(rooms.choice(rng, rooms.WOODS)), m.plain("2d2f31")
    slats = [box((1.5, 0.09, 0.03), (0, y, 0.42), wood) for y in (-0.15, -0.04, 0.07, 0.18)]
    slats += [box((1.5, 0.025, 0.09), (0, 0.24, z), wood) for z in (0.55, 0.67, 0.79)]
    return [*slats, *(box((0.05, 0.46, 0.42), (s * 0.62, 0.03, 0), iron) for s in (-1, 1))]


def _planter(rng: np.random.Generator) -> list[Solid]:
    tub = box((0.9, 0.9, 0.5), (0, 0, 0), m.planks("93704c", 0.12, 1.0))
    bush = [ball(rng.uniform(0.28, 0.42, 3), (*rng.uniform(-0.2, 0.2, 2), 0.65), m.foliage("4c7a38")) for _ in range(3)]
    return [tub, *bush]


def _bollards(rng: np.random.Generator) -> list[Solid]:
    color = m.plain(rooms.choice(rng, PAINTS))
    return [
        part
        for x in (-0.8, 0.0, 0.8)
        for part in (column(0.07, 0.8, (x, 0, 0), color), ball(0.075, (x, 0, 0.8), color))
    ]


OBJECTS = {
    "hydrant": _hydrant,
    "bear": _bear,
    "vase": _vase,
    "robot": _robot,
    "mushrooms": _mushrooms,
    "chess": _chess_piece,
}
PROPS = (_tree, _tree, _bench, _planter, _bollards)
