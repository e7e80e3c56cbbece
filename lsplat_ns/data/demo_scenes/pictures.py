"""Painted pictures: views behind windows, framed art, rugs, book spines, doors and cabinet fronts, skylines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lsplat_ns.data.demo_scenes.canvas import Canvas, linear, mix, ramp
from lsplat_ns.data.demo_scenes.materials import Color
from lsplat_ns.data.demo_scenes.surfaces import Material


def _sky(canvas: Canvas, horizon: float, cloudiness: float) -> np.ndarray:
    """A sky [height, width, 3] that pales towards the horizon, a fraction of the height from the top."""
    height = np.clip(1 - canvas.v / (horizon * canvas.extent[1]), 0, 1)
    sky = mix(linear("e9f1f7"), linear("7fb0e0"), height**0.8 * np.ones_like(canvas.u))
    span = canvas.extent[0]
    cloud = canvas.noise(span * 0.16, span * 0.06, 5)
    return mix(sky, linear("fbfbfa"), ramp(0.55 - cloudiness, 1.5 - cloudiness, cloud) * 0.9)


def _hills(canvas: Canvas, level: float, swing: float, cell: float) -> np.ndarray:
    """Rows (in metres from the top) of a rolling outline [1, width] around a fraction ``level`` of the height."""
    strip = Canvas(2, canvas.width, canvas.extent, canvas.rng).noise(cell * canvas.extent[0], octaves=5)[:1]
    return (level + swing * strip) * canvas.extent[1]


def countryside(green: Color = "6f8f4a", cloudiness: float = 0.35) -> Material:
    """Sky, hills, trees and a lawn: what is seen through a window."""

    def material(canvas: Canvas) -> np.ndarray:
        view = _sky(canvas, 0.55, cloudiness)
        unit = canvas.extent[1]
        leaves = canvas.noise(0.03 * unit, octaves=4)
        layers = (
            (0.50, 0.03, 0.3, mix(linear(green), linear("a9bfd0"), 0.65), 0.05),
            (0.56, 0.02, 0.15, mix(linear(green), linear("b5c4b8"), 0.3), 0.12),
            (0.60, 0.05, 0.05, linear(green) * 0.55, 0.5),
            (0.72, 0.01, 0.4, linear(green) * 1.15, 0.15),
        )
        for level, swing, cell, color, texture in layers:
            outline = _hills(canvas, level, swing, cell) + 0.006 * unit * leaves * (texture > 0.3)
            cover = ramp(-0.004 * unit, 0.004 * unit, canvas.v - outline)
            view = mix(view, color * (1 + texture * leaves)[..., None], cover)
        return np.maximum(view, 0)

    return material


def townscape(walls: Sequence[Color] = ("b08d74", "c9bda8", "8f8a86", "a8604a"), cloudiness: float = 0.3) -> Material:
    """Sky over a street of houses with windows, trees in front of them."""

    def material(canvas: Canvas) -> np.ndarray:
        view, (span, unit), rng = _sky(canvas, 0.6, cloudiness), canvas.extent, canvas.rng
        left = 0.0
        while left < span:
            width, top = rng.uniform(0.1, 0.22) * unit * 1.6, rng.uniform(0.22, 0.5) * unit
            columns = slice(int(left / span * canvas.width), int((left + width) / span * canvas.width))
            u, v = canvas.u[:, columns] - left, canvas.v - top
            wall = linear(walls[rng.integers(len(walls))]) * rng.uniform(0.8, 1.1)
            pitch_u, pitch_v = width / rng.integers(3, 6), 0.1 * unit
            glass = ramp(0.30, 0.27, np.abs((u / pitch_u) % 1 - 0.5)) * ramp(
                0.30, 0.27, np.abs((v / pitch_v) % 1 - 0.5)
            )
            facade = mix(wall, linear("4b5863"), glass)
            facade = mix(facade, linear("5b4038"), (v < 0.035 * unit) * np.ones_like(u))
            view[:, columns] = mix(view[:, columns], facade, (v > 0) * np.ones_like(u))
            left += width
        leaves = canvas.noise(0.03 * unit, octaves=4)
        trees = _hills(canvas, 0.72, 0.09, 0.07) + 0.012 * unit * leaves
        view = mix(
            view, linear("5d7a42") * (0.8 + 0.4 * leaves)[..., None], ramp(-0.01, 0.01, (canvas.v - trees) / unit)
        )
        return np.maximum(view * (1 + 0.03 * leaves)[..., None], 0)

    return material


def clouds(cloudiness: float = 0.3) -> Material:
    """A sky seen from below, with the haze of the horizon towards the edges."""

    def material(canvas: Canvas) -> np.ndarray:
        x, y = canvas.u / canvas.extent[0] * 2 - 1, canvas.v / canvas.extent[1] * 2 - 1
        edge = np.maximum(np.abs(x), np.abs(y))
        sky = mix(linear("7fb0e0"), linear("e9f1f7"), np.clip(edge, 0, 1) ** 3)
        cloud = canvas.noise(canvas.extent[0] * 0.2, octaves=5)
        return mix(sky, linear("fbfbfa"), ramp(0.55 - cloudiness, 1.5 - cloudiness, cloud) * 0.9)

    return material


def landscape_art(palette: Sequence[Color]) -> Material:
    """A loosely painted landscape in a mat."""

    def material(canvas: Canvas) -> np.ndarray:
        colors = [linear(c) for c in palette]
        unit = canvas.extent[1]
        brush = canvas.noise(0.05, 0.015, 3)
        art = mix(colors[0], colors[1], np.clip(canvas.v / unit + 0.15 * brush, 0, 1))
        for i, level in enumerate((0.45, 0.6, 0.75)):
            outline = _hills(canvas, level, 0.07, 0.3)
            color = colors[(2 + i) % len(colors)] * (1 + 0.2 * brush)[..., None]
            art = mix(art, color, ramp(-0.01, 0.01, (canvas.v - outline) / unit + 0.01 * brush))
        return _mat(canvas, art)

    return material


def abstract_art(palette: Sequence[Color]) -> Material:
    """Overlapping discs and bars in a mat."""

    def material(canvas: Canvas) -> np.ndarray:
        rng, (width, height) = canvas.rng, canvas.extent
        art = np.broadcast_to(linear(palette[0]), (canvas.height, canvas.width, 3))
        for i in range(rng.integers(5, 10)):
            color = linear(palette[1 + i % (len(palette) - 1)])
            x, y = rng.uniform(0.15, 0.85, 2) * (width, height)
            if rng.random() < 0.5:
                radius = rng.uniform(0.08, 0.3) * min(width, height)
                cover = ramp(canvas.texel, -canvas.texel, np.hypot(canvas.u - x, canvas.v - y) - radius)
            else:
                half = rng.uniform(0.03, 0.3, 2) * (width, height)
                cover = canvas.lines(canvas.u - x, 2 * half[0]) * canvas.lines(canvas.v - y, 2 * half[1])
            art = mix(art, color, cover * 0.92)
        return _mat(canvas, art * (1 + 0.06 * canvas.noise(0.03))[..., None])

    return material


def _mat(canvas: Canvas, art: np.ndarray, share: float = 0.13) -> np.ndarray:
    """The picture within a pale passe-partout."""
    (width, height), border = canvas.extent, share * min(canvas.extent)
    depth = np.minimum(np.minimum(canvas.u, width - canvas.u), np.minimum(canvas.v, height - canvas.v)) - border
    framed = mix(linear("efece4"), art, ramp(-canvas.texel / 2, canvas.texel / 2, depth))
    return framed * (1 - 0.3 * canvas.lines(depth, 0.004))[..., None]


def rug(palette: Sequence[Color], pitch: float = 0.22) -> Material:
    """A woven rug: nested borders around a field of diamonds."""

    def material(canvas: Canvas) -> np.ndarray:
        colors = [linear(c) for c in palette]
        (width, height) = canvas.extent
        depth = np.minimum(np.minimum(canvas.u, width - canvas.u), np.minimum(canvas.v, height - canvas.v))
        x = np.abs((canvas.u - width / 2 + pitch * 50.5) % pitch / pitch * 2 - 1)
        y = np.abs((canvas.v - height / 2 + pitch * 50.5) % pitch / pitch * 2 - 1)
        diamond = x + y
        soft = max(0.03, canvas.texel / pitch * 3)
        field = mix(colors[0], colors[1], ramp(0.9 + soft, 0.9 - soft, diamond))
        field = mix(field, colors[2], ramp(0.45 + soft, 0.45 - soft, diamond))
        zigzag = np.abs((canvas.u + canvas.v) % 0.1 / 0.1 * 2 - 1)
        border = mix(colors[2], colors[1], ramp(0.5 - 2 * soft, 0.5 + 2 * soft, zigzag))
        step = canvas.texel
        cloth = mix(border, field, ramp(0.17 - step, 0.17 + step, depth))
        for at, color in ((0.17, colors[0]), (0.06, colors[0]), (0.0, colors[2])):
            cloth = mix(cloth, color, canvas.lines(depth - at, 0.03))
        pile = 1 + 0.1 * canvas.noise(0.02, octaves=2) + 0.06 * canvas.noise(0.4)
        return cloth * (pile * canvas.grain(0.06))[..., None]

    return material


def books(palette: Sequence[Color], back: Color = "3a2f28", fill: float = 0.9) -> Material:
    """A row of book spines standing in a dark compartment."""

    def material(canvas: Canvas) -> np.ndarray:
        rng, (width, height) = canvas.rng, canvas.extent
        shade = np.clip(0.25 + canvas.v / height * 0.3, 0, 1) * np.ones_like(canvas.u)
        row = linear(back) * shade[..., None].astype(np.float32)
        left = 0.01
        while left < width * fill:
            thick, top = rng.uniform(0.018, 0.05), height * rng.uniform(0.08, 0.35)
            first, last = (round(e / width * canvas.width) for e in (left, left + thick))
            if rng.random() < 0.93 and last > first:
                u = (canvas.u[:, first:last] - left) / thick
                spine = linear(palette[rng.integers(len(palette))]) * rng.uniform(0.75, 1.15)
                rounded = (0.75 + 0.35 * np.sin(np.clip(u, 0, 1) * np.pi)) * np.ones_like(canvas.v)
                label = canvas.lines(canvas.v - top - rng.uniform(0.04, 0.1), rng.uniform(0.01, 0.05))
                body = mix(spine, linear("d9c48c"), label * 0.8 * np.ones_like(u)) * rounded[..., None]
                row[:, first:last] = mix(row[:, first:last], body, (canvas.v > top) * np.ones_like(u))
            left += thick + rng.choice([0.001, 0.002, 0.03], p=[0.6, 0.33, 0.07])
        return row * canvas.grain(0.02)[..., None]

    return material


def fronts(base: Material, columns: int, rows: int, inset: float = 0.05, gap: float = 0.01) -> Material:
    """Door leaves or drawers: a grid of gaps, each field with a bevelled inner panel if ``inset`` > 0."""

    def material(canvas: Canvas) -> np.ndarray:
        pitch_u, pitch_v = canvas.extent[0] / columns, canvas.extent[1] / rows
        u, v = canvas.u % pitch_u, canvas.v % pitch_v
        depth = np.minimum(np.minimum(u, pitch_u - u), np.minimum(v, pitch_v - v))
        surface = base(canvas)
        if gap > 0:
            surface = surface * (1 - 0.75 * canvas.lines(depth, gap))[..., None]
        if inset > 0:
            slope = canvas.lines(depth - inset, 0.018)
            towards_light = np.where(v < pitch_v / 2, -0.35, 0.25) * np.ones_like(u)
            surface = surface * (1 + slope * towards_light)[..., None]
        return surface

    return material


def screen() -> Material:
    """A dark television with a faint reflection of the room."""

    def material(canvas: Canvas) -> np.ndarray:
        slope = (canvas.u / canvas.extent[0] + canvas.v / canvas.extent[1]) / 2
        sheen = 0.02 + 0.05 * ramp(0.6, 0.2, slope) + 0.01 * canvas.noise(0.5)
        glass = np.repeat(np.maximum(sheen, 0.008)[..., None], 3, -1) * linear("d8e0ea")
        depth = np.minimum(
            np.minimum(canvas.u, canvas.extent[0] - canvas.u), np.minimum(canvas.v, canvas.extent[1] - canvas.v)
        )
        return mix(linear("17181a"), glass, ramp(0.012, 0.016, depth))

    return material
