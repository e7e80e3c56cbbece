"""Furnished rooms: size, style, windows and furniture drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lsplat_ns.data.demo_scenes import fittings as fit
from lsplat_ns.data.demo_scenes import furniture as f
from lsplat_ns.data.demo_scenes import materials as m
from lsplat_ns.data.demo_scenes import pictures as p
from lsplat_ns.data.demo_scenes.room_builder import RoomBuilder
from lsplat_ns.data.demo_scenes.surfaces import (
    SHELL,
    Material,
    Scene,
    Sun,
    box,
    shell_rectangles,
    vector,
)

WALL_COLORS = ("e9e2d3", "dfe4dc", "cfd9dd", "e6d3c0", "b9c4b1", "d9cdb8", "c3cfd8", "ece9e2", "d8b9a4", "a9b8b3")
DARK_COLORS = ("5b6f63", "47596b", "8a4f41", "6b5a4c", "7c6a83", "3f5a58")
WOODS = ("b98a58", "8a5a36", "d2b183", "6b4429", "a87447", "c9a27a")
FABRICS = ("8b9096", "6f7f73", "b8a48a", "4e5f73", "9c6b52", "d0c4b0", "7d5563", "5d6b4c")
ACCENTS = ("c8553d", "e0a43b", "2f6b6a", "8fa98f", "c98b8b", "3d5a80", "d9c7a5", "7a4e6b", "588157", "b5651d")


@dataclass(frozen=True)
class Room:
    """A scene with the floor plan that camera paths are drawn in."""

    scene: Scene
    footprints: np.ndarray  # [N, 5]: x0, y0, x1, y1, top of each piece of furniture, metres
    size: tuple[float, float, float]
    name: str


def choice(rng: np.random.Generator, options: Sequence):
    """One of the options."""
    return options[int(rng.integers(len(options)))]


def draw_style(rng: np.random.Generator) -> f.Style:
    """Colours that a room repeats."""
    woods = rng.permutation(len(WOODS))
    accents = tuple(ACCENTS[i] for i in rng.permutation(len(ACCENTS))[:4])
    return f.Style(WOODS[woods[0]], WOODS[woods[1]], choice(rng, FABRICS), accents)


def build_room(rng: np.random.Generator) -> Room:
    """Draw a room: a living room, bedroom, dining kitchen or study."""
    name = choice(rng, tuple(FURNISHING))
    size = (float(rng.uniform(4.3, 6.2)), float(rng.uniform(4.3, 6.6)), float(rng.uniform(2.45, 2.95)))
    style = draw_style(rng)
    builder = RoomBuilder(size, style, rng)
    trim = m.paint(choice(rng, ("f1eee6", "e9e4d8", "f3f3f0", style.wood)), 0.02)
    cut_openings(builder, trim)
    FURNISHING[name](builder)
    for _ in range(rng.integers(4, 8)):
        builder.hang(art(builder))
    return finish_room(builder, name, trim)


def finish_room(builder: RoomBuilder, name: str, trim: Material) -> Room:
    """Add the shell, its boards and mouldings and the sun."""
    rng, size = builder.rng, builder.size
    for wall in builder.walls.values():
        builder.solids += wall.place(fit.skirting(wall, trim, builder.doors.get(wall.name)))
    if rng.random() < 0.25:
        beam = m.wood(builder.style.wood)
        for x in np.arange(0.6, size[0] - 0.3, 1.1):
            builder.solids.append(box((0.14, size[1], 0.16), (x, size[1] / 2, size[2] - 0.16), m.upright(beam)))
    rectangles = shell_rectangles(np.zeros(3), vector(*size), _shell_materials(builder, name))
    for wall_name, holes in builder.holes.items():
        rectangles[wall_name] = replace(rectangles[wall_name], holes=tuple(holes))
    sun: Sun | None = None
    if rng.random() < 0.65 and builder.windows:
        sun = fit.sun_through(builder.windows[0][0], rng, float(rng.uniform(3.5, 6)))
    scene = Scene(
        np.zeros(3),
        vector(*size),
        tuple(rectangles[n] for n in SHELL),
        tuple(builder.solids),
        tuple(builder.backdrops),
        tuple(builder.openings),
        tuple(builder.lamps),
        sun,
        brightness=float(rng.uniform(0.32, 0.4)),
    )
    return Room(scene, np.array(builder.footprints).reshape(-1, 5), size, name)


def _shell_materials(builder: RoomBuilder, name: str) -> dict[str, Material]:
    rng, style = builder.rng, builder.style
    color, other = choice(rng, WALL_COLORS), choice(rng, WALL_COLORS)
    plain = m.paint(color)
    kind = rng.integers(6)
    if kind == 0:
        plain = m.striped_paper(color, other)
    elif kind == 1:
        plain = m.motif_paper(color, other)
    elif kind == 2:
        plain = m.panelled(m.paint(choice(rng, ("f0ede4", *DARK_COLORS[:3]))), m.paint(color), 0.95)
    elif kind == 3:
        plain = m.panelled(m.wood(style.wood), m.paint(color), 0.95)
    walls = dict.fromkeys(builder.walls, plain)
    if rng.random() < 0.55:
        feature = choice(rng, (m.bricks("a05a42"), m.bricks("d5cfc4", "e8e5de"), m.paint(choice(rng, DARK_COLORS))))
        walls[choice(rng, tuple(builder.walls))] = feature
    floors = (
        m.planks(style.second_wood),
        m.planks(style.wood, 0.18, 1.6),
        m.planks("9c7650", 0.09, 0.9),
        m.tiles("d8d0c2", "a8a196", 0.42),
        m.tiles("e2ddd2", "9a958c", 0.33, "4b4f52"),
        m.carpet(choice(rng, ("a59b8c", "8c8f92", "b7a68c")), "9a9184"),
    )
    if name == "kitchen":
        floors = floors[2:5]
    return {**walls, "floor": choice(rng, floors), "ceiling": m.paint("f2f0ea", 0.02)}


def cut_openings(builder: RoomBuilder, trim: Material) -> None:
    """One or two walls with windows, and a door in another one."""
    rng = builder.rng
    order = [list(builder.walls)[i] for i in rng.permutation(4)]
    views = (p.countryside(), p.countryside("7f8f45"), p.townscape())
    curtains = choice(rng, (None, *FABRICS, "e7dfcf"))
    style = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    for name in order[: rng.integers(1, 3)]:
        wall = builder.walls[name]
        count = 2 if wall.length > 5.2 and rng.random() < 0.6 else 1
        z0, z1 = rng.uniform(0.45, 0.95), min(rng.uniform(2.0, 2.3), builder.size[2] - 0.25)
        for i in range(count):
            width = rng.uniform(1.2, 1.9) / (1 if count == 1 else 1.2)
            slot = wall.length / count
            middle = (i + 0.5) * slot + rng.uniform(-0.2, 0.2) * max(slot - width - 0.8, 0)
            add_window(builder, wall, fit.Window(middle - width / 2, z0, middle + width / 2, z1, style, curtains), trim)
        builder.backdrops.append(fit.backdrop(wall, choice(rng, views), 1.25))
    wall = builder.walls[order[2]]
    x0 = rng.uniform(0.3, wall.length - 1.3)
    color = choice(rng, ("f0ede6", builder.style.wood, choice(rng, DARK_COLORS)))
    builder.solids += wall.place(fit.door_solids(x0, 0.88, 2.05, color, trim, builder.style.metal))
    builder.doors[wall.name] = (x0 - 0.09, x0 + 0.97)
    builder.reserve(wall, x0 - 0.15, x0 + 1.05, 0.8, 0.0)


def add_window(builder: RoomBuilder, wall: fit.Wall, window: fit.Window, trim: Material) -> None:
    """Cut a window, let light in, and keep tall furniture away from it."""
    builder.holes[wall.name].append(wall.hole(window.x0, window.z0, window.x1, window.z1))
    builder.solids += wall.place(fit.window_solids(window, trim))
    builder.openings.append(fit.daylight(wall, window, vector(0.95, 1.0, 1.08) * 3.0))
    builder.windows.append((wall, window))
    builder.reserve(wall, window.x0 - 0.4, window.x1 + 0.4, 0.35, 0.3 if window.curtains else window.z0)


def art(builder: RoomBuilder) -> f.Piece:
    """A framed picture in the room's colours."""
    rng, style = builder.rng, builder.style
    width, height = rng.uniform(0.35, 0.95), rng.uniform(0.35, 0.75)
    palette = ("dfe6ea", "f0d9b5", *style.accents)
    art = p.landscape_art(palette) if rng.random() < 0.55 else p.abstract_art(("efe7d8", *style.accents, "2f3437"))
    return f.framed(float(width), float(height), art, choice(rng, (style.wood, style.second_wood, "2b2725", "d8c9a0")))


def rug(builder: RoomBuilder, width: float, depth: float) -> f.Piece:
    """A rug in the room's colours."""
    palette = [builder.style.accents[i] for i in (0, 1)] + ["e5dccb"]
    cloth = box(
        (width, depth, 0.012), (0, 0, 0), m.carpet(palette[0]), faces={"top": p.rug(palette)}, casts_shadow=False
    )
    return f.Piece((cloth,), (width, depth, 0.012))


def _cloth(builder: RoomBuilder) -> Material:
    return m.fabric(builder.style.fabric, 0.08, 0.12)


def _shelves_and_plants(builder: RoomBuilder, count: int) -> None:
    rng, style = builder.rng, builder.style
    for _ in range(count):
        kind = rng.integers(3)
        if kind == 0:
            builder.against_wall(f.bookshelf(rng.uniform(0.7, 1.2), rng.uniform(1.3, 2.0), style, rng))
        elif kind == 1:
            piece = f.cabinet((rng.uniform(0.9, 1.5), 0.44, rng.uniform(0.75, 0.95)), style.second_wood, 2, 3)
            on_top(builder, piece, 3)
        else:
            builder.against_wall(f.plant(rng.uniform(0.9, 1.7), rng), corner=True)


def on_top(builder: RoomBuilder, piece: f.Piece, count: int) -> None:
    """Stand a piece against a wall with ornaments, a plant or a lamp on it."""
    rng, style = builder.rng, builder.style
    things = [piece]
    for i in range(count):
        x = ((i + 0.5) / count - 0.5) * (piece.size[0] - 0.2)
        kind = rng.integers(4)
        thing = f.table_lamp(style, rng) if kind == 0 else f.ornament(rng, style, rng.uniform(0.15, 0.32))
        thing = f.plant(rng.uniform(0.35, 0.5), rng) if kind == 1 else thing
        things.append(thing.placed(rng.uniform(-3, 3), (x, rng.uniform(-0.05, 0.05), piece.size[2])))
    builder.against_wall(things[0].with_others(*things[1:]))


def _living_room(builder: RoomBuilder) -> None:
    rng, style = builder.rng, builder.style
    width = float(rng.uniform(1.8, 2.3))
    builder.against_wall(f.sofa(width, _cloth(builder), style, rng))
    table = f.table((1.05, 0.58, 0.42), style.wood, round_top=rng.random() < 0.4)
    vase = f.ornament(rng, style, 0.2).placed(0, (0.1, 0.05, 0.42))
    bowl = f.ornament(rng, style, 0.14).placed(0, (-0.25, -0.08, 0.42))
    anchor = builder.footprints[-1]
    if builder.before(table.with_others(vase, bowl), 1.15):
        builder.footprints.append(anchor)
        builder.before(rug(builder, 2.3, 1.6), 1.2, solid=False)
        builder.footprints.pop()
    bench = f.cabinet((1.6, 0.42, 0.5), style.second_wood, 3, 1).with_others(f.television(1.1).placed(0, (0, 0, 0.5)))
    builder.against_wall(replace(bench, size=(1.63, 0.45, 1.15)))
    builder.against_wall(f.floor_lamp(style), corner=True)
    builder.against_wall(f.armchair(m.fabric(style.accent(rng), 0.08, 0.12), style, rng))
    _shelves_and_plants(builder, 4)
    _ceiling_lamp(builder, 0.35)


def _bedroom(builder: RoomBuilder) -> None:
    rng, style = builder.rng, builder.style
    bed = f.bed(float(rng.uniform(1.4, 1.7)), style, rng)
    stands = []
    for s in (-1, 1):
        x = s * (bed.size[0] / 2 + 0.3)
        back = bed.size[1] / 2 - 0.22
        stand = f.cabinet((0.45, 0.38, 0.5), style.wood, 1, 2).with_others(
            f.table_lamp(style, rng).placed(0, (0, 0, 0.5))
        )
        stands.append(stand.placed(0, (x, back, 0)))
    group = bed.with_others(*stands)
    builder.against_wall(replace(group, size=(bed.size[0] + 1.1, bed.size[1], 1.1)))
    if builder.footprints:
        builder.before(rug(builder, 2.6, 1.5), 0.75, solid=False)
    builder.against_wall(f.cabinet((float(rng.uniform(1.2, 1.8)), 0.58, 2.05), style.second_wood, 3, 1))
    on_top(builder, f.cabinet((1.2, 0.46, 0.85), style.wood, 2, 3), 3)
    builder.against_wall(f.armchair(m.fabric(style.accent(rng), 0.08), style, rng))
    _shelves_and_plants(builder, 2)
    _ceiling_lamp(builder, 0.3)


def _kitchen(builder: RoomBuilder) -> None:
    rng, style = builder.rng, builder.style
    builder.against_wall(f.kitchen_run(float(rng.choice([2.4, 3.0])), style, rng))
    builder.against_wall(f.fridge())
    _dining_group(builder)
    on_top(builder, f.cabinet((1.5, 0.45, 0.85), style.wood, 3, 1), 3)
    _shelves_and_plants(builder, 3)


def _study(builder: RoomBuilder) -> None:
    rng, style = builder.rng, builder.style
    for _ in range(2):
        builder.against_wall(f.bookshelf(rng.uniform(1.0, 1.6), rng.uniform(1.8, 2.2), style, rng))
    desk = f.table((1.5, 0.7, 0.75), style.wood)
    screen = f.television(0.62).placed(0, (0, 0.15, 0.75))
    desk = desk.with_others(screen, f.table_lamp(style, rng).placed(0, (0.58, 0.15, 0.75)))
    if builder.against_wall(desk) is not None:
        builder.before(f.chair(style.wood, m.fabric(style.accent(rng))), 0.62, turned=True)
    builder.against_wall(f.sofa(1.6, _cloth(builder), style, rng))
    builder.before(rug(builder, 2.2, 1.5), 1.1, solid=False)
    builder.against_wall(f.floor_lamp(style), corner=True)
    _shelves_and_plants(builder, 3)
    _ceiling_lamp(builder, 0.35)


def _dining_group(builder: RoomBuilder) -> None:
    """A table in the middle of the room with chairs around it and a lamp above."""
    rng, style = builder.rng, builder.style
    middle = vector(builder.size[0] * rng.uniform(0.42, 0.58), builder.size[1] * rng.uniform(0.42, 0.58), 0)
    table = f.table((1.4, 0.85, 0.75), style.wood, round_top=rng.random() < 0.4)
    table = table.with_others(f.ornament(rng, style, 0.26).placed(0, (0.1, 0, 0.75)))
    yaw = float(rng.integers(2)) * np.pi / 2
    whole = (table.size[0] + 0.5, table.size[1] + 0.7, 0.94)
    if not builder.fits(whole, yaw, middle):
        return
    seat = m.fabric(style.accent(rng))
    group = table
    for x in (-0.33, 0.33):
        for s in (-1, 1):
            spot = (x, s * (table.size[1] / 2 + 0.1), 0)
            pose = (0.0 if s > 0 else np.pi) + rng.uniform(-0.15, 0.15)
            group = group.with_others(f.chair(style.wood, seat).placed(pose, spot))
    builder.add(replace(group, size=whole), yaw, middle)
    builder.add(rug(builder, 2.4, 2.0), yaw, middle, solid=False)
    builder.add(f.pendant_lamp(0.75, style), 0, middle + vector(0, 0, builder.size[2]), solid=False)


def _ceiling_lamp(builder: RoomBuilder, drop: float) -> None:
    at = vector(builder.size[0] / 2, builder.size[1] / 2, builder.size[2])
    builder.add(f.pendant_lamp(drop, builder.style), 0, at, solid=False)


FURNISHING = {"living": _living_room, "bedroom": _bedroom, "kitchen": _kitchen, "study": _study}
