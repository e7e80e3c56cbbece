"""The shapes that demo scenes are made of, in metres, in a world whose z axis points up.

A scene is a closed shell of six rectangles, solids inside it (boxes, ellipsoids, frustums), and self-lit backdrops
behind the windows. Every visible surface has a texture with coordinates u (to the right) and v (downwards) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from lsplat_ns.data.demo_scenes.canvas import Canvas

Material = Callable[[Canvas], np.ndarray]  # paints linear RGB [height, width, 3]

FACES = ("left", "right", "front", "back", "bottom", "top")  # -x, +x, -y, +y, -z, +z of a box
SHELL = ("west", "east", "south", "north", "floor", "ceiling")  # the same order, seen from inside
IDENTITY = np.eye(3)


def vector(*values: float) -> np.ndarray:
    """A float64 array of the given numbers."""
    return np.array(values, dtype=np.float64)


def turn(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Rotation [3, 3]: ``roll`` about y, then ``pitch`` about x, then ``yaw`` about z (radians)."""
    (cz, sz), (cx, sx), (cy, sy) = ((np.cos(a), np.sin(a)) for a in (yaw, pitch, roll))
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return about_z @ about_x @ about_y


@dataclass(frozen=True)
class Rectangle:
    """A one-sided textured parallelogram, or the ellipse inscribed in it."""

    corner: np.ndarray  # [3], where u = v = 0: top left as seen from the visible side
    edge_u: np.ndarray  # [3]
    edge_v: np.ndarray  # [3]
    material: Material
    disc: bool = False
    holes: tuple[tuple[float, float, float, float], ...] = ()  # (u0, v0, u1, v1) cut out of it
    self_lit: float = 0.0  # > 0: shows its texture times this gain, and emits it, instead of reflecting light
    detail: float = 1.0  # texture resolution relative to the scene's
    bevelled: bool = False  # brighten the rim, as worn or rounded edges do

    @property
    def extent(self) -> tuple[float, float]:
        """Lengths (along u, along v)."""
        return float(np.linalg.norm(self.edge_u)), float(np.linalg.norm(self.edge_v))

    @property
    def normal(self) -> np.ndarray:
        """Unit vector [3] towards the visible side."""
        across = np.cross(self.edge_v, self.edge_u)
        return across / np.linalg.norm(across)

    def sample(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """World positions and normals [rows, columns, 3] at the centres of a grid over the texture."""
        u = ((np.arange(columns) + 0.5) / columns)[None, :, None]
        v = ((np.arange(rows) + 0.5) / rows)[:, None, None]
        positions = self.corner + u * self.edge_u + v * self.edge_v
        return positions, np.broadcast_to(self.normal, positions.shape)


@dataclass(frozen=True)
class Ellipsoid:
    """A solid ellipsoid; u is the azimuth around its local z axis, v the polar angle from its top."""

    centre: np.ndarray  # [3]
    radii: np.ndarray  # [3], along the local axes
    material: Material
    rotation: np.ndarray = field(default_factory=lambda: IDENTITY)  # [3, 3], world from local
    casts_shadow: bool = True
    self_lit: float = 0.0
    detail: float = 1.0

    @property
    def extent(self) -> tuple[float, float]:
        """Lengths of the equator and of half a meridian, roughly."""
        return float(np.pi * (self.radii[0] + self.radii[1])), float(np.pi * self.radii.mean())

    @property
    def half_size(self) -> np.ndarray:
        """Half lengths [3] of the bounding box around ``centre``, along the local axes."""
        return self.radii

    def sample(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """World positions and normals [rows, columns, 3] at the centres of a grid over the texture."""
        azimuth = (((np.arange(columns) + 0.5) / columns) * 2 - 1)[None, :] * np.pi
        polar = ((np.arange(rows) + 0.5) / rows)[:, None] * np.pi
        x, y = np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth)
        unit = np.stack([x, y, np.broadcast_to(np.cos(polar), x.shape)], -1)
        normals = (unit / self.radii) @ self.rotation.T
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        return self.centre + (unit * self.radii) @ self.rotation.T, normals

    def placed(self, rotation: np.ndarray, offset: np.ndarray) -> Ellipsoid:
        """A copy, rotated about the origin and then moved."""
        return replace(self, centre=rotation @ self.centre + offset, rotation=rotation @ self.rotation)

    def surfaces(self) -> list[Ellipsoid]:
        """Itself: its only surface."""
        return [self]


@dataclass(frozen=True)
class Frustum:
    """A solid truncated cone around its local z axis; u is the azimuth, v runs from the top to the bottom."""

    centre: np.ndarray  # [3], halfway up
    height: float
    radius_bottom: float
    radius_top: float
    material: Material
    rotation: np.ndarray = field(default_factory=lambda: IDENTITY)  # [3, 3], world from local
    casts_shadow: bool = True
    self_lit: float = 0.0
    capped: bool = True  # False: open ends, the inside can be seen
    detail: float = 1.0
    slope_normals: tuple[float, float] | None = (
        None  # tilt (radians, up positive) at bottom and top, for smooth shading
    )

    @property
    def extent(self) -> tuple[float, float]:
        """Circumference, and length along the side."""
        slant = np.hypot(self.height, self.radius_top - self.radius_bottom)
        return float(2 * np.pi * max(self.radius_bottom, self.radius_top)), float(slant)

    @property
    def half_size(self) -> np.ndarray:
        """Half lengths [3] of the bounding box around ``centre``, along the local axes."""
        radius = max(self.radius_bottom, self.radius_top)
        return vector(radius, radius, self.height / 2)

    def sample(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """World positions and normals [rows, columns, 3] at the centres of a grid over the side's texture."""
        azimuth = (((np.arange(columns) + 0.5) / columns) * 2 - 1)[None, :] * np.pi
        along = 1 - ((np.arange(rows) + 0.5) / rows)[:, None]  # 0 at the bottom, 1 at the top
        radius = self.radius_bottom + (self.radius_top - self.radius_bottom) * along
        tilt = np.full_like(along, np.arctan2(self.radius_bottom - self.radius_top, self.height))
        if self.slope_normals is not None:
            tilt = self.slope_normals[0] + (self.slope_normals[1] - self.slope_normals[0]) * along
        outwards = np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros_like(azimuth)], -1)
        upwards = vector(0, 0, 1)
        local = radius[..., None] * outwards + ((along - 0.5) * self.height)[..., None] * upwards
        normals = np.cos(tilt)[..., None] * outwards + np.sin(tilt)[..., None] * upwards
        return self.centre + local @ self.rotation.T, normals @ self.rotation.T

    def placed(self, rotation: np.ndarray, offset: np.ndarray) -> Frustum:
        """A copy, rotated about the origin and then moved."""
        return replace(self, centre=rotation @ self.centre + offset, rotation=rotation @ self.rotation)

    def surfaces(self) -> list[Frustum | Rectangle]:
        """The side, then the top and bottom discs if it is capped."""
        if not self.capped:
            return [self]
        x, y, z = self.rotation.T
        top, bottom = self.centre + z * self.height / 2, self.centre - z * self.height / 2
        caps = [self]
        if self.radius_top > 0:
            r = self.radius_top
            caps.append(Rectangle(top - r * x + r * y, 2 * r * x, -2 * r * y, self.material, True))
        if self.radius_bottom > 0:
            r = self.radius_bottom
            caps.append(Rectangle(bottom - r * x - r * y, 2 * r * x, 2 * r * y, self.material, True))
        return [replace(c, self_lit=self.self_lit, detail=self.detail) for c in caps]


@dataclass(frozen=True)
class Box:
    """A solid cuboid. Its front is the local -y side."""

    centre: np.ndarray  # [3]
    half_size: np.ndarray  # [3]
    material: Material
    rotation: np.ndarray = field(default_factory=lambda: IDENTITY)  # [3, 3], world from local
    faces: dict[str, Material] = field(default_factory=dict)  # other materials for some of FACES
    casts_shadow: bool = True
    self_lit: float = 0.0
    detail: float = 1.0

    def placed(self, rotation: np.ndarray, offset: np.ndarray) -> Box:
        """A copy, rotated about the origin and then moved."""
        return replace(self, centre=rotation @ self.centre + offset, rotation=rotation @ self.rotation)

    def surfaces(self) -> list[Rectangle]:
        """Its six sides in the order of ``FACES``."""
        x, y, z = self.rotation.T * self.half_size[:, None]
        frames = ((-x, -y, -z), (x, y, -z), (-y, x, -z), (y, -x, -z), (-z, x, y), (z, x, -y))  # outwards, u, v
        bevelled = bool(self.half_size.min() > 0.008)
        return [
            Rectangle(
                self.centre + out - u - v,
                2 * u,
                2 * v,
                self.faces.get(name, self.material),
                self_lit=self.self_lit,
                detail=self.detail,
                bevelled=bevelled,
            )
            for name, (out, u, v) in zip(FACES, frames, strict=True)
        ]


Solid = Box | Ellipsoid | Frustum
Surface = Rectangle | Ellipsoid | Frustum


def box(size: Sequence[float], at: Sequence[float], material: Material, **options) -> Box:
    """A box of the given (x, y, z) size whose bottom centre is at ``at``."""
    centre = np.asarray(at, dtype=np.float64) + vector(0, 0, size[2] / 2)
    return Box(centre, np.asarray(size, dtype=np.float64) / 2, material, **options)


def column(radius: float | tuple[float, float], height: float, at: Sequence[float], material: Material, **options):
    """An upright frustum with a (bottom, top) radius whose bottom centre is at ``at``."""
    bottom, top = radius if isinstance(radius, tuple) else (radius, radius)
    centre = np.asarray(at, dtype=np.float64) + vector(0, 0, height / 2)
    return Frustum(centre, height, bottom, top, material, **options)


def ball(radii: float | Sequence[float], at: Sequence[float], material: Material, **options) -> Ellipsoid:
    """An ellipsoid with the given radii (one number: a sphere) around ``at``."""
    return Ellipsoid(np.asarray(at, dtype=np.float64), np.ones(3) * np.asarray(radii), material, **options)


def turned(profile: Sequence[tuple[float, float]], at: Sequence[float], material: Material, **options) -> list[Frustum]:
    """A turned body: frustums through (radius, height) points from bottom to top, shaded as one smooth curve."""
    points = np.asarray(profile, dtype=np.float64)
    steps = np.diff(points, axis=0)
    assert (steps[:, 1] > 0).all(), "a profile must rise from point to point"
    slopes = np.arctan2(-steps[:, 0], steps[:, 1])
    knots = np.concatenate([slopes[:1], (slopes[1:] + slopes[:-1]) / 2, slopes[-1:]])
    base = np.asarray(at, dtype=np.float64)
    parts = []
    for i, ((r0, z0), (r1, z1)) in enumerate(pairwise(points)):
        last = i == len(steps) - 1
        centre = base + vector(0, 0, (z0 + z1) / 2)
        tilts = (float(knots[i]), float(knots[i + 1]))
        parts.append(Frustum(centre, z1 - z0, r0, r1, material, capped=last, slope_normals=tilts, **options))
    return parts


def place(solids: Sequence[Solid], yaw: float, at: Sequence[float]) -> list[Solid]:
    """Solids turned about the vertical axis through the origin, then moved to ``at``."""
    rotation, offset = turn(yaw), np.asarray(at, dtype=np.float64)
    return [solid.placed(rotation, offset) for solid in solids]


@dataclass(frozen=True)
class Opening:
    """A hole in the shell through which daylight falls."""

    corner: np.ndarray  # [3], on the outer side of the wall
    edge_u: np.ndarray  # [3]
    edge_v: np.ndarray  # [3]
    inwards: np.ndarray  # [3], unit vector
    radiance: np.ndarray  # [3], of the daylight behind it

    def passes(self, points: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Whether rays from points [P, 3] along directions [P or 1, 3] leave through it: [P], boolean."""
        slope = directions @ self.inwards
        t = ((self.corner - points) @ self.inwards) / np.where(slope < -1e-3, slope, -1e-3)
        local = points + t[:, None] * directions - self.corner
        u = local @ self.edge_u / (self.edge_u @ self.edge_u)
        v = local @ self.edge_v / (self.edge_v @ self.edge_v)
        return (slope < -1e-3) & (t > 0) & (u > 0) & (u < 1) & (v > 0) & (v < 1)


@dataclass(frozen=True)
class Lamp:
    """A small glowing ball."""

    centre: np.ndarray  # [3]
    radius: float
    intensity: np.ndarray  # [3]


@dataclass(frozen=True)
class Sun:
    """Parallel light; indoors it only enters through the openings."""

    towards: np.ndarray  # [3], unit vector from the scene to the sun
    irradiance: np.ndarray  # [3], on a surface that faces it


@dataclass(frozen=True)
class Scene:
    """Everything that light and cameras see. The shell's rectangles are in the order of ``SHELL``."""

    lower: np.ndarray  # [3], corner of the shell
    upper: np.ndarray  # [3]
    shell: tuple[Rectangle, ...]
    solids: tuple[Solid, ...]
    backdrops: tuple[Rectangle, ...] = ()
    openings: tuple[Opening, ...] = ()
    lamps: tuple[Lamp, ...] = ()
    sun: Sun | None = None
    outdoors: bool = False  # the sun is not limited to the openings
    brightness: float = 0.3  # what the average lit surface shows, linear


def shell_rectangles(lower: np.ndarray, upper: np.ndarray, materials: dict[str, Material]) -> dict[str, Rectangle]:
    """The six inner sides of a cuboid room, by the names in ``SHELL``."""
    (x0, y0, z0), (x1, y1, z1) = lower, upper
    width, depth, height = (float(s) for s in upper - lower)
    frames = {  # corner, u, v
        "west": ((x0, y0, z1), (0, depth, 0), (0, 0, -height)),
        "east": ((x1, y1, z1), (0, -depth, 0), (0, 0, -height)),
        "south": ((x1, y0, z1), (-width, 0, 0), (0, 0, -height)),
        "north": ((x0, y1, z1), (width, 0, 0), (0, 0, -height)),
        "floor": ((x0, y1, z0), (width, 0, 0), (0, -depth, 0)),
        "ceiling": ((x0, y0, z1), (width, 0, 0), (0, depth, 0)),
    }
    return {name: Rectangle(*(vector(*v) for v in frame), materials[name]) for name, frame in frames.items()}
