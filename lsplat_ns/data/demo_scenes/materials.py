"""Procedural surface materials: each returns a function that paints a ``Canvas`` in linear RGB."""

from __future__ import annotations

import numpy as np

from lsplat_ns.data.demo_scenes.canvas import Canvas, linear, mix, ramp
from lsplat_ns.data.demo_scenes.surfaces import Material

Color = str | tuple[float, float, float]


def upright(material: Material) -> Material:
    """The material with its u direction running down the surface (wood grain along a table leg, say)."""
    return lambda canvas: np.ascontiguousarray(material(canvas.turned()).transpose(1, 0, 2))


def paint(color: Color, mottle: float = 0.022) -> Material:
    """Rolled wall paint: an even colour with faint clouds and a fine stipple."""

    def material(canvas: Canvas) -> np.ndarray:
        shade = 1 + mottle * (0.6 * canvas.noise(0.6) + 0.7 * canvas.noise(0.03, octaves=2))
        return linear(color) * (shade * canvas.grain(0.015))[..., None]

    return material


def plain(color: Color, roughness: float = 0.03) -> Material:
    """Lacquer, ceramic or plastic: nearly uniform."""
    return lambda canvas: linear(color) * (1 + roughness * canvas.noise(0.08, octaves=3))[..., None]


def metal(color: Color = "9a9a9c") -> Material:
    """Brushed metal, brushed along u."""
    return lambda canvas: linear(color) * (1 + 0.07 * canvas.noise(0.5, 0.006, 2) + 0.03 * canvas.noise(0.4))[..., None]


def wood(color: Color, contrast: float = 0.3) -> Material:
    """Planed wood, its grain along u."""

    def material(canvas: Canvas) -> np.ndarray:
        return _wood_grain(canvas, color, contrast)

    return material


def _wood_grain(canvas: Canvas, color: Color, contrast: float) -> np.ndarray:
    bend = canvas.noise(0.5, 0.12, 2)
    rings = np.sin((canvas.v * 55 + 2.2 * bend + 0.8 * canvas.noise(0.25, 0.02, 2)) * 2.2)
    fibres = canvas.noise(0.18, 0.005, 2)
    tone = np.clip(0.5 + 0.22 * rings + 0.25 * fibres + 0.15 * canvas.noise(0.4, 0.08, 1), 0, 1.2)
    light = linear(color)
    dark = light * np.float32(1 - contrast) * np.array([1.0, 0.92, 0.85], dtype=np.float32)
    return mix(dark, light, tone)


def planks(color: Color, width: float = 0.12, length: float = 1.1, contrast: float = 0.3) -> Material:
    """Floor boards along u: staggered joints, every board with its own tone and grain."""

    def material(canvas: Canvas) -> np.ndarray:
        grain = _wood_grain(canvas, color, contrast)
        rows = int(canvas.extent[1] / width) + 2
        row = np.minimum((canvas.v / width).astype(np.int64), rows - 1)
        stagger = canvas.rng.random(rows).astype(np.float32)[row] * length
        along = canvas.u + stagger
        board = (along / length).astype(np.int64)
        columns = int(board.max()) + 1
        tone = 1 + 0.16 * canvas.rng.standard_normal((rows, columns)).astype(np.float32)
        warmth = 0.03 * canvas.rng.standard_normal((rows, columns)).astype(np.float32)
        shift = canvas.rng.integers(0, canvas.width, (rows, columns))
        x = (np.arange(canvas.width)[None, :] + shift[row, board]) % canvas.width
        grain = grain[np.arange(canvas.height)[:, None], x]
        tint = np.stack([1 + warmth, np.ones_like(warmth), 1 - warmth], -1)
        boards = grain * (tone[..., None] * tint)[row, board]
        across_gap = (canvas.v + width / 2) % width - width / 2
        along_gap = (along + length / 2) % length - length / 2
        gap = np.maximum(canvas.lines(across_gap, 0.003), canvas.lines(along_gap, 0.003))
        return boards * (1 - 0.6 * gap)[..., None]

    return material


def tiles(color: Color, grout: Color, size: float = 0.3, other: Color | None = None, veins: float = 0.12) -> Material:
    """Square tiles with grout, optionally in a chequered pattern."""

    def material(canvas: Canvas) -> np.ndarray:
        column, row = (canvas.u / size).astype(np.int64), (canvas.v / size).astype(np.int64)
        tone = 1 + 0.05 * canvas.rng.standard_normal((int(row.max()) + 1, int(column.max()) + 1)).astype(np.float32)
        cloud = canvas.noise(0.25, octaves=4)
        vein = np.exp(-np.abs(cloud) * 9)
        base = linear(color)
        if other is not None:
            base = mix(base, linear(other), ((row + column) % 2).astype(np.float32))
        base = base * (tone[row, column] * (1 + 0.4 * veins * cloud - veins * vein) * canvas.grain(0.01))[..., None]
        gaps = [canvas.lines((p + size / 2) % size - size / 2, 0.006) for p in (canvas.u, canvas.v)]
        return mix(base, linear(grout), np.maximum(*gaps))

    return material


def bricks(color: Color, mortar: Color = "b9b2a6", size: tuple[float, float] = (0.22, 0.075)) -> Material:
    """A running bond of bricks, each of its own tone."""

    def material(canvas: Canvas) -> np.ndarray:
        row = (canvas.v / size[1]).astype(np.int64)
        along = canvas.u + (row % 2) * size[0] / 2
        column = (along / size[0]).astype(np.int64)
        count = (int(row.max()) + 1, int(column.max()) + 1)
        tone = 1 + 0.17 * canvas.rng.standard_normal(count).astype(np.float32)
        hue = 0.08 * canvas.rng.standard_normal(count).astype(np.float32)
        tint = np.stack([1 + hue, np.ones_like(hue), 1 - hue], -1) * tone[..., None]
        rough = 1 + 0.12 * canvas.noise(0.05, octaves=3)
        body = linear(color) * np.clip(tint[row, column], 0.3, 2) * rough[..., None]
        wobble = 0.002 * canvas.noise(0.06, octaves=2)
        across = (canvas.v + size[1] / 2) % size[1] - size[1] / 2 + wobble
        sideways = (along + size[0] / 2) % size[0] - size[0] / 2 + wobble
        joint = np.maximum(canvas.lines(across, 0.012), canvas.lines(sideways, 0.012))
        return mix(body, linear(mortar) * rough[..., None] * 0.9, joint)

    return material


def fabric(color: Color, blotch: float = 0.1, weave: float = 0.10) -> Material:
    """Woven upholstery."""

    def material(canvas: Canvas) -> np.ndarray:
        threads = 0.5 * canvas.noise(0.03, 0.008, 2) + 0.5 * canvas.noise(0.008, 0.03, 2)
        shade = 1 + blotch * canvas.noise(0.3) + weave * threads
        return linear(color) * (shade * canvas.grain(weave * 0.5))[..., None]

    return material


def plaid(color: Color, stripe: Color, pitch: float = 0.16) -> Material:
    """Crossing bands on cloth."""

    def material(canvas: Canvas) -> np.ndarray:
        bands = sum(0.4 * canvas.lines((p + pitch / 2) % pitch - pitch / 2, pitch * 0.35) for p in (canvas.u, canvas.v))
        thin = sum(0.3 * canvas.lines(p % pitch - pitch / 2, pitch * 0.06) for p in (canvas.u, canvas.v))
        cloth = mix(linear(color), linear(stripe), np.clip(bands + thin, 0, 1))
        return cloth * ((1 + 0.06 * canvas.noise(0.2)) * canvas.grain(0.05))[..., None]

    return material


def carpet(color: Color, other: Color | None = None) -> Material:
    """Deep pile in one or two blended colours."""

    def material(canvas: Canvas) -> np.ndarray:
        pile = 1 + 0.1 * canvas.noise(0.02, octaves=2) + 0.07 * canvas.noise(0.5)
        base = linear(color)
        if other is not None:
            base = mix(base, linear(other), ramp(-0.5, 0.5, canvas.noise(0.25, octaves=3)))
        return base * (pile * canvas.grain(0.09))[..., None]

    return material


def stone(color: Color, vein: Color, scale: float = 0.4) -> Material:
    """Polished stone with veins."""

    def material(canvas: Canvas) -> np.ndarray:
        cloud, fine = canvas.noise(scale, octaves=5), canvas.noise(scale / 3, octaves=3)
        veins = np.exp(-np.abs(cloud) * 14) * ramp(-0.3, 0.8, fine)
        return mix(linear(color) * (1 + 0.06 * fine)[..., None], linear(vein), np.clip(veins, 0, 1))

    return material


def speckled(color: Color, other: Color, cell: float = 0.02) -> Material:
    """Two colours in irregular spots: gravel, terrazzo, foliage from afar."""

    def material(canvas: Canvas) -> np.ndarray:
        weight = ramp(-0.4, 0.6, canvas.noise(cell, octaves=2) + 0.5 * canvas.noise(cell * 8, octaves=2))
        return mix(linear(color), linear(other), weight) * canvas.grain(0.05)[..., None]

    return material


def striped_paper(color: Color, other: Color, pitch: float = 0.14) -> Material:
    """Wallpaper with vertical stripes."""

    def material(canvas: Canvas) -> np.ndarray:
        wide = canvas.lines((canvas.u + pitch / 2) % pitch - pitch / 2, pitch * 0.5)
        thin = canvas.lines(canvas.u % pitch - pitch / 2, pitch * 0.07)
        weight = np.broadcast_to(np.maximum(wide * 0.8, thin), (canvas.height, canvas.width))
        return mix(linear(color), linear(other), weight) * (1 + 0.04 * canvas.noise(0.3))[..., None]

    return material


def gores(color: Color, other: Color, count: int) -> Material:
    """A turned body in ``count`` pairs of upright segments, as wide as the body is at each height."""

    def material(canvas: Canvas) -> np.ndarray:
        phase = (canvas.u / canvas.extent[0] * count) % 1 * np.ones_like(canvas.v)
        soft = max(0.02, count / canvas.width)
        weight = ramp(soft, -soft, np.abs(phase - 0.5) - 0.22)
        return mix(linear(color), linear(other), weight) * (1 + 0.05 * canvas.noise(0.06))[..., None]

    return material


def motif_paper(color: Color, other: Color, pitch: float = 0.34) -> Material:
    """Wallpaper with a repeated leaf ornament."""

    def material(canvas: Canvas) -> np.ndarray:
        row = np.floor(canvas.v / pitch)
        x = ((canvas.u + (row % 2) * pitch / 2) % pitch) / pitch * 2 - 1
        y = (canvas.v % pitch) / pitch * 2 - 1
        angle, radius = np.arctan2(y, x), np.hypot(x, y)
        petals = radius - 0.62 * np.abs(np.cos(angle * 2.5)) ** 0.6 - 0.08
        ring = np.abs(radius - 0.86) - 0.03
        soft = max(canvas.texel / pitch * 2, 0.02)
        weight = ramp(soft, -soft, np.minimum(petals, ring)) * (0.8 + 0.2 * np.cos(angle * 10))
        paper = mix(linear(color), linear(other), weight.astype(np.float32) * 0.75)
        return paper * (1 + 0.04 * canvas.noise(0.3))[..., None]

    return material


def panelled(lower: Material, upper: Material, height: float, panel: float = 0.55) -> Material:
    """A wall whose lowest ``height`` metres are panelled in wood or paint."""

    def material(canvas: Canvas) -> np.ndarray:
        edge = canvas.extent[1] - height
        below = lower(canvas)
        local_v, pitch = canvas.v - edge, canvas.extent[0] / max(1, round(canvas.extent[0] / panel))
        frame_u = np.minimum(canvas.u % pitch, pitch - canvas.u % pitch) - 0.07
        frame_v = np.minimum(local_v - 0.07, height - 0.2 - local_v)
        inside = np.minimum(frame_u, frame_v)
        groove = canvas.lines(inside, 0.018)
        lip = canvas.lines(inside - 0.02, 0.012)
        below = below * (1 - 0.3 * groove + 0.15 * lip)[..., None]
        rail = canvas.lines(local_v - 0.02, 0.05) * np.ones_like(canvas.u)
        below = below * (1 + 0.1 * rail - 0.3 * canvas.lines(local_v - 0.055, 0.012))[..., None]
        return mix(upper(canvas), below, (local_v > 0) * np.ones_like(canvas.u))

    return material


def foliage(color: Color) -> Material:
    """Leaves seen from a little distance."""

    def material(canvas: Canvas) -> np.ndarray:
        light = ramp(-1, 1, canvas.noise(0.05, octaves=3))
        return mix(linear(color) * 0.45, linear(color) * 1.3, light) * canvas.grain(0.06)[..., None]

    return material


def leaf(color: Color) -> Material:
    """One leaf, with a pale midrib along v and side veins."""

    def material(canvas: Canvas) -> np.ndarray:
        angle = canvas.u / canvas.extent[0] * 2 * np.pi
        rib = np.abs(np.sin(angle * 1)) ** 18
        veins = 0.12 * np.sin(canvas.v * 260 + 3 * np.cos(angle))
        return linear(color) * (1 + 0.35 * rib + veins + 0.08 * canvas.noise(0.05))[..., None]

    return material


def curtain(color: Color, fold: float = 0.11) -> Material:
    """Cloth that hangs in vertical folds, with the shading of the folds painted on."""

    def material(canvas: Canvas) -> np.ndarray:
        sway = 0.02 * canvas.noise(0.3, 1.5, 2)
        phase = (canvas.u + sway) / fold * 2 * np.pi
        shade = 0.78 + 0.22 * np.sin(phase) + 0.06 * np.sin(phase * 2.3 + 1)
        cloth = linear(color) * (shade * canvas.grain(0.03))[..., None]
        hem = canvas.lines(canvas.v - canvas.extent[1] + 0.08, 0.01)
        return cloth * (1 - 0.25 * hem)[..., None]

    return material
