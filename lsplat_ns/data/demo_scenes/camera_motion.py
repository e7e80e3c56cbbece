"""Smooth camera paths: glides through furnished rooms and full orbits around objects."""

from __future__ import annotations

import numpy as np

from lsplat_ns.data.demo_scenes.objects import Subject
from lsplat_ns.data.demo_scenes.occlusion import Occluders
from lsplat_ns.data.demo_scenes.renderer import Camera
from lsplat_ns.data.demo_scenes.rooms import Room
from lsplat_ns.data.demo_scenes.surfaces import vector

METRES_PER_FRAME = 0.024
PATH_LENGTH = (0.6, 2.4)  # metres, shortest and longest
CANDIDATES = 48
FOV_Y = (np.deg2rad(60.0), np.deg2rad(72.0))


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """world_from_camera [4, 4] (OpenCV axes) of an upright camera at ``eye`` that looks at ``target``; z is up."""
    forward = target - eye
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, vector(0, 0, 1))
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = eye
    return pose


def focal_norm(fov_y: float, size: tuple[int, int]) -> tuple[float, float]:
    """(fx / width, fy / height) for square pixels and a vertical field of view in radians, at (height, width)."""
    fy = 0.5 / np.tan(fov_y / 2)
    return float(fy * size[0] / size[1]), float(fy)


def glide(room: Room, frames: int, size: tuple[int, int], rng: np.random.Generator) -> list[Camera]:
    """A slow walk through free space with a gently panning gaze, as in a video of a flat for sale.

    Draws candidate paths and keeps the one with the most furniture in view and nothing close before the lens.
    """
    occluders = Occluders(room.scene.solids)
    focal = focal_norm(float(rng.uniform(*FOV_Y)), size)
    length = float(np.clip(METRES_PER_FRAME * (frames - 1), *PATH_LENGTH))
    best, best_score = None, -np.inf
    for margin in (0.42, 0.3, 0.2, 0.12):
        for _ in range(CANDIDATES):
            path = _candidate(room, length, margin, rng)
            if path is None:
                continue
            score = _score(room, occluders, *path, focal)
            if score > best_score:
                best, best_score = path, score
        if best is not None:
            break
        length *= 0.75
    eyes, targets = best if best is not None else _standing(room)
    s = np.linspace(0, 1, frames)
    s = 0.6 * s + 0.4 * s * s * (3 - 2 * s)
    positions, gazes = _bezier(eyes, s), _bezier(targets, s)
    sway = 0.012 * np.sin(2 * np.pi * (s[:, None] * [1.0, 1.3, 2.0] + rng.random(3)))
    return [Camera(look_at(p, g), focal) for p, g in zip(positions + sway, gazes, strict=True)]


def _bezier(points: np.ndarray, s: np.ndarray) -> np.ndarray:
    s = s[:, None]
    return (1 - s) ** 2 * points[0] + 2 * s * (1 - s) * points[1] + s**2 * points[2]


def _standing(room: Room) -> tuple[np.ndarray, np.ndarray]:
    """A short path high up in the middle of a room that is crammed with furniture."""
    middle = vector(room.size[0] / 2, room.size[1] / 2, room.size[2] - 0.6)
    step = vector(0.15, 0.1, 0)
    target = vector(room.size[0] / 2, room.size[1], 0.8)
    return np.stack([middle - step, middle, middle + step]), np.stack([target] * 3)


def _candidate(room: Room, length: float, margin: float, rng: np.random.Generator):
    """Control points [3, 3] of the positions and of the gaze, or None if the path is not free."""
    width, depth, height = room.size
    eye_height = rng.uniform(1.25, min(1.6, height - 0.75))
    start = vector(rng.uniform(0.5, width - 0.5), rng.uniform(0.5, depth - 0.5), eye_height)
    heading = rng.uniform(-np.pi, np.pi)
    end = start + length * vector(np.cos(heading), np.sin(heading), rng.uniform(-0.05, 0.05))
    sideways = vector(-np.sin(heading), np.cos(heading), 0)
    eyes = np.stack([start, (start + end) / 2 + rng.uniform(-0.2, 0.2) * length * sideways, end])
    if not is_free(room, _bezier(eyes, np.linspace(0, 1, 24)), margin):
        return None
    gaze = vector(rng.uniform(0, width), rng.uniform(0, depth), rng.uniform(0.75, 1.15))
    drift = rng.uniform(-0.5, 0.5, 3) * vector(1, 1, 0.15) * length
    targets = np.stack([gaze - drift, gaze, gaze + drift])
    distances = np.linalg.norm((eyes - targets)[:, :2], axis=1)
    turn = np.diff(np.unwrap(np.arctan2(*(targets - eyes)[:, 1::-1].T)))
    if distances.min() < 2.0 or np.abs(turn.sum()) > 0.6:
        return None
    return eyes, targets


def is_free(room: Room, points: np.ndarray, margin: float) -> bool:
    """Whether a camera at every one of the points [P, 3] keeps ``margin`` metres from walls and tall furniture."""
    upper = np.array(room.size)
    if (points < margin).any() or (points > upper - margin).any():
        return False
    for x0, y0, x1, y1, top in room.footprints:
        x, y, z = points.T
        within = (x > x0 - margin) & (x < x1 + margin) & (y > y0 - margin) & (y < y1 + margin)
        if (within & (z < top + 0.45)).any():
            return False
    return True


def _score(
    room: Room, occluders: Occluders, eyes: np.ndarray, targets: np.ndarray, focal: tuple[float, float]
) -> float:
    """Prefers much furniture and depth in view, some window, and nothing within a metre."""
    grid = np.stack(np.meshgrid(np.linspace(-0.45, 0.45, 9), np.linspace(-0.45, 0.45, 7)), -1).reshape(-1, 2)
    rays = np.concatenate([grid / np.array(focal), np.ones((len(grid), 1))], 1)
    total = 0.0
    for eye, target in zip(eyes, targets, strict=True):
        directions = (rays @ look_at(eye, target)[:3, :3].T).astype(np.float32)
        origins = np.repeat(eye[None], len(rays), 0).astype(np.float32)
        t, solid = occluders.first_hit(origins, directions)
        walls = np.where(directions > 0, room.scene.upper, room.scene.lower)
        with np.errstate(divide="ignore"):
            t_wall = ((walls - origins) / directions).min(1)
        seen = (solid >= 0) & (t < t_wall)
        depth = np.minimum(t, t_wall)
        variety = len(np.unique(solid[seen])) / 20
        through = np.zeros(len(rays), dtype=bool)
        for opening in room.scene.openings:
            through |= opening.passes(origins, directions)
        total += (
            0.8 * (through & ~seen).mean()
            + 1.2 * seen.mean()
            + variety
            + 0.2 * depth.mean()
            - 3.0 * (depth < 0.9).mean()
        )
    return total


def orbit(subject: Subject, frames: int, size: tuple[int, int], rng: np.random.Generator) -> list[Camera]:
    """One full turn around an object at a gently varying height; frame 0 follows the last one."""
    focal = focal_norm(float(np.deg2rad(rng.uniform(44, 52))), size)
    distance = float(np.clip(2.9 * subject.radius, 1.5, 2.5)) * max(1.0, focal[0] / focal[1])
    start, way = rng.uniform(0, 2 * np.pi), (-1) ** int(rng.integers(2))
    angle = start + way * np.arange(frames) / frames * 2 * np.pi
    elevation = rng.uniform(0.22, 0.5) + 0.08 * np.sin(angle + rng.uniform(0, 6))
    around = np.stack([np.cos(angle) * np.cos(elevation), np.sin(angle) * np.cos(elevation), np.sin(elevation)], 1)
    reach = distance * (1 + 0.05 * np.sin(2 * angle + rng.uniform(0, 6)))
    wander = 0.03 * subject.radius * np.stack([np.sin(angle), np.cos(2 * angle), np.sin(3 * angle)], 1)
    eyes, gazes = subject.centre + reach[:, None] * around, subject.centre + wander
    return [Camera(look_at(e, g), focal) for e, g in zip(eyes, gazes, strict=True)]
