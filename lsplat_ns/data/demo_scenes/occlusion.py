"""Which solid a ray meets first: the visibility behind soft shadows, bounced light and camera placement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lsplat_ns.data.demo_scenes.surfaces import Box, Ellipsoid, Frustum, Solid

CLUSTER = 8  # most solids behind one bounding box
EPSILON = 1e-3


class _LocalFrames:
    """Maps from the world to the unit frames of several solids at once."""

    def __init__(self, solids: Sequence[Solid], scales: Sequence[np.ndarray]) -> None:
        matrices = [solid.rotation.T / np.asarray(scale)[:, None] for solid, scale in zip(solids, scales, strict=True)]
        self.linear = np.stack(matrices).astype(np.float32)  # [B, 3, 3]
        centres = np.stack([solid.centre for solid in solids])
        self.offset = np.einsum("bij,bj->bi", np.stack(matrices), centres).astype(np.float32)

    def axis(self, origins: np.ndarray, directions: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Local coordinate i of rays: origins and directions, each [R, B]."""
        rows = np.ascontiguousarray(self.linear[:, i].T)
        return origins @ rows - self.offset[:, i], directions @ rows


class _Cluster:
    """Neighbouring solids behind one bounding box, so that most rays can skip them all."""

    def __init__(self, solids: Sequence[Solid], members: Sequence[int]) -> None:
        bounds = np.array([_bounds(solids[i]) for i in members], dtype=np.float32)
        self.lower, self.upper = bounds[:, 0].min(0) - np.float32(1e-3), bounds[:, 1].max(0) + np.float32(1e-3)
        self.groups = []
        for kind, distances in ((Box, _box), (Ellipsoid, _ellipsoid), (Frustum, _frustum)):
            chosen = [i for i in members if isinstance(solids[i], kind)]
            if chosen:
                shapes = [solids[i] for i in chosen]
                scales = [(1.0, 1.0, s.height) if kind is Frustum else s.half_size for s in shapes]
                radii = np.array([(s.radius_bottom, s.radius_top) for s in shapes if kind is Frustum], np.float32)
                self.groups.append((np.array(chosen), _LocalFrames(shapes, scales), radii, distances))

    def met(self, origins: Sequence[np.ndarray], inverses: Sequence[np.ndarray], reach: np.ndarray) -> np.ndarray:
        """Indices of the rays that enter the bounding box before ``reach``; coordinates come one array per axis."""
        entry, leave = np.zeros_like(reach), reach
        for i in range(3):
            first, second = (self.lower[i] - origins[i]) * inverses[i], (self.upper[i] - origins[i]) * inverses[i]
            entry = np.maximum(entry, np.minimum(first, second))
            leave = np.minimum(leave, np.maximum(first, second))
        return np.flatnonzero(entry <= leave)


def _bounds(solid: Solid) -> np.ndarray:
    """World bounds [2, 3] of a solid."""
    half = np.abs(solid.rotation) @ solid.half_size
    return np.stack([solid.centre - half, solid.centre + half])


def _clusters(solids: Sequence[Solid]) -> list[list[int]]:
    """Shadow-casting solids in small groups of neighbours: halved along the longest side until they are few."""
    pending, done = [[i for i, solid in enumerate(solids) if solid.casts_shadow]], []
    while pending:
        group = pending.pop()
        if len(group) <= CLUSTER:
            done += [group] if group else []
            continue
        centres = np.array([solids[i].centre for i in group])
        order = np.argsort(centres[:, np.ptp(centres, axis=0).argmax()], kind="stable")
        middle = len(group) // 2
        pending += [[group[k] for k in order[:middle]], [group[k] for k in order[middle:]]]
    return done


class Occluders:
    """The shadow-casting solids of a scene, ready for ray queries. Directions need not have unit length."""

    def __init__(self, solids: Sequence[Solid]) -> None:
        self._clusters = [_Cluster(solids, members) for members in _clusters(solids)]

    def first_hit(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances in units of ``directions`` (infinite for none) and solid indices (-1 for none), each [R].

        A ray that starts inside a box hits it at once.
        """
        nearest = np.full(len(origins), np.inf, dtype=np.float32)
        solid = np.full(len(origins), -1)
        columns, inverses = _columns(origins), _inverses(directions)
        for cluster in self._clusters:
            rays = cluster.met(columns, inverses, nearest)
            for chosen, t in _distances(cluster, origins[rays], directions[rays]):
                best = t.argmin(1)
                shortest = np.take_along_axis(t, best[:, None], 1)[:, 0]
                closer = shortest < nearest[rays]
                nearest[rays[closer]], solid[rays[closer]] = shortest[closer], chosen[best[closer]]
        return nearest, solid

    def blocked(self, origins: np.ndarray, directions: np.ndarray, reach: float = 1.0) -> np.ndarray:
        """Whether anything lies between each origin and ``origin + reach * direction``: [R], boolean."""
        limit = np.full(len(origins), reach, dtype=np.float32)  # becomes negative once a ray is blocked
        columns, inverses = _columns(origins), _inverses(directions)
        for cluster in self._clusters:
            rays = cluster.met(columns, inverses, limit)
            for _, t in _distances(cluster, origins[rays], directions[rays]):
                limit[rays[t.min(1) < limit[rays]]] = -1
        return limit < 0

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Whether each point [P, 3] lies within a solid: [P], boolean."""
        found = np.zeros(len(points), dtype=bool)
        for cluster in self._clusters:
            near = np.flatnonzero(((points > cluster.lower) & (points < cluster.upper)).all(1))
            for _, frames, radii, distances in cluster.groups:
                local = np.einsum("bij,pj->pbi", frames.linear, points[near]) - frames.offset
                if distances is _box:
                    within = (np.abs(local) < 1).all(-1)
                elif distances is _ellipsoid:
                    within = (local**2).sum(-1) < 1
                else:
                    radius = radii.mean(1) + (radii[:, 1] - radii[:, 0]) * local[..., 2]
                    within = (np.abs(local[..., 2]) < 0.5) & ((local[..., :2] ** 2).sum(-1) < radius**2)
                found[near] |= within.any(-1)
        return found


def _columns(vectors: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(vectors[:, i]) for i in range(3)]


def _inverses(directions: np.ndarray) -> list[np.ndarray]:
    with np.errstate(divide="ignore"):
        return [np.clip(1 / column, -1e8, 1e8) for column in _columns(directions)]


def _distances(cluster: _Cluster, origins: np.ndarray, directions: np.ndarray) -> Iterator:
    """Solid indices [B] and entry distances [R, B] of each kind of solid in the cluster, for rays that meet it."""
    if len(origins):
        for chosen, frames, radii, distances in cluster.groups:
            yield chosen, distances(frames, radii, origins, directions)


def _box(frames: _LocalFrames, _: np.ndarray, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Entry distances [R, B] into boxes that span [-1, 1]^3 locally; 0 from inside, infinite for a miss."""
    minus_entry = minus_exit = None
    for i in range(3):
        origin, direction = frames.axis(origins, directions, i)
        with np.errstate(divide="ignore"):
            inverse = np.reciprocal(direction, out=direction)
        np.clip(inverse, -1e8, 1e8, out=inverse)
        middle = np.multiply(origin, inverse, out=origin)
        half = np.abs(inverse, out=inverse)
        near, far = middle + half, np.subtract(middle, half, out=middle)
        minus_entry = near if minus_entry is None else np.minimum(minus_entry, near, out=minus_entry)
        minus_exit = far if minus_exit is None else np.maximum(minus_exit, far, out=minus_exit)
    hit = (minus_exit < minus_entry) & (minus_exit < -EPSILON)
    entry = np.maximum(np.negative(minus_entry, out=minus_entry), 0, out=minus_entry)
    return np.where(hit, entry, np.inf)


def _ellipsoid(frames: _LocalFrames, _: np.ndarray, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Entry distances [R, B] into unit balls, locally; rays that start inside or on the surface pass."""
    a = b = c = np.float32(0)
    for i in range(3):
        origin, direction = frames.axis(origins, directions, i)
        a, b, c = a + direction * direction, b + origin * direction, c + origin * origin
    root = b * b - a * (c - 1)
    entry = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.where((root > 0) & (entry > EPSILON), entry, np.inf)


def _frustum(frames: _LocalFrames, radii: np.ndarray, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Entry distances [R, B] into closed frustums with z in [-1/2, 1/2] locally."""
    (ox, dx), (oy, dy), (oz, dz) = (frames.axis(origins, directions, i) for i in range(3))
    slope = radii[:, 1] - radii[:, 0]
    radius, change = radii.mean(1) + slope * oz, slope * dz
    a = dx * dx + dy * dy - change * change
    b = ox * dx + oy * dy - radius * change
    c = ox * ox + oy * oy - radius * radius
    a = np.where(np.abs(a) < 1e-9, 1e-9, a)
    root = b * b - a * c
    spread = np.sqrt(np.maximum(root, 0))
    nearest = np.full(a.shape, np.inf, dtype=np.float32)
    for t in ((-b - spread) / a, (-b + spread) / a):
        fits = (root > 0) & (t > EPSILON) & (np.abs(oz + t * dz) <= 0.5)
        nearest = np.where(fits & (t < nearest), t, nearest)
    dz = np.where(np.abs(dz) < 1e-9, 1e-9, dz)
    for level, column in ((-0.5, 0), (0.5, 1)):
        t = (level - oz) / dz
        fits = (t > EPSILON) & ((ox + t * dx) ** 2 + (oy + t * dy) ** 2 <= radii[:, column] ** 2)
        nearest = np.where(fits & (t < nearest), t, nearest)
    return nearest
