"""Frames of a lit scene: exact visibility per sample, filtered textures, 2 x 2 samples per pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from lsplat_ns.data.demo_scenes.atlas import Atlas, pack
from lsplat_ns.data.demo_scenes.surfaces import Ellipsoid, Frustum, Rectangle, Surface

SAMPLES = 2  # per pixel and direction
NEAR = 0.03  # metres
SHARPNESS = 0.0  # added to the mip level; above 0 is softer

CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
CUBE_EDGES = tuple((i, j) for i in range(8) for j in range(i + 1, 8) if bin(i ^ j).count("1") == 1)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with OpenCV axes in the z-up world of the scene."""

    world_from_camera: np.ndarray  # [4, 4]
    focal_norm: tuple[float, float]  # fx / width, fy / height; the principal point is the centre

    @property
    def intrinsics_norm(self) -> np.ndarray:
        """Intrinsics [3, 3] of an image that spans [0, 1] x [0, 1]."""
        return np.array([[self.focal_norm[0], 0, 0.5], [0, self.focal_norm[1], 0.5], [0, 0, 1]])


@dataclass(frozen=True)
class Frame:
    """One rendered picture."""

    image: np.ndarray  # [height, width, 3] uint8, sRGB
    depth_z: np.ndarray  # [height, width] float32, metres; blends both depths on pixels that an edge crosses


class Renderer:
    """Draws textured surfaces. Build once per scene, then ask for frames."""

    def __init__(self, surfaces: Sequence[Surface], textures: Sequence[np.ndarray]) -> None:
        self._surfaces = list(surfaces)
        self._atlas: Atlas = pack(textures)
        flat = [i for i, s in enumerate(self._surfaces) if isinstance(s, Rectangle)]
        self._flat = np.array(flat, dtype=np.int64)
        self._frames = np.stack(  # columns edge_u, edge_v, corner
            [np.stack([self._surfaces[i].edge_u, self._surfaces[i].edge_v, self._surfaces[i].corner], 1) for i in flat]
        )
        self._round = np.array(
            [i for i, s in enumerate(self._surfaces) if not isinstance(s, Rectangle)], dtype=np.int64
        )
        curved = [self._surfaces[i] for i in self._round]
        corners = [s.centre + (CUBE * s.half_size) @ s.rotation.T for s in curved]
        self._round_corners = np.array(corners).reshape(-1, 8, 3)
        extents = np.array([s.extent[0] for s in curved])
        self._texels_per_metre = self._atlas.sizes[self._round, 0] / np.maximum(extents, 1e-6)

    def frame(self, camera: Camera, size: tuple[int, int]) -> Frame:
        """The picture and z-depth that ``camera`` sees, at (height, width)."""
        height, width = size[0] * SAMPLES, size[1] * SAMPLES
        buffers = _Buffers(height, width)
        focal = np.array([camera.focal_norm[0] * width, camera.focal_norm[1] * height])
        level_offset = np.zeros(len(self._surfaces), dtype=np.float32)
        level_slope = np.full(len(self._surfaces), -1.5, dtype=np.float32)
        to_camera = np.linalg.inv(camera.world_from_camera)
        self._draw_flat(buffers, to_camera, focal, level_offset)
        self._draw_round(buffers, to_camera, focal)
        level_offset[self._round], level_slope[self._round] = np.log2(self._texels_per_metre / focal[1]), -1.0
        nearness = np.maximum(buffers.nearness, 1e-9)
        surface = np.maximum(buffers.surface, 0)
        level = level_offset[surface] + level_slope[surface] * np.log2(nearness) + SHARPNESS
        colors = self._atlas.look_up(surface, buffers.u / nearness, buffers.v / nearness, level)
        pixels = cv2.resize(colors, (size[1], size[0]), interpolation=cv2.INTER_AREA)
        nearness = cv2.resize(nearness, (size[1], size[0]), interpolation=cv2.INTER_AREA)
        return Frame(pixels, 1 / nearness)

    def _draw_flat(self, buffers: _Buffers, to_camera: np.ndarray, focal: np.ndarray, level: np.ndarray) -> None:
        """Draw the rectangles near to far. A plane's (u, v, 1) / z is linear in the pixel position."""
        height, width = buffers.nearness.shape
        columns = to_camera[:3, :3] @ self._frames
        columns[:, :, 2] += to_camera[:3, 3]
        determinant = np.linalg.det(columns)
        facing = np.flatnonzero(determinant > 1e-12)  # the camera is on the visible side
        columns = columns[facing]
        u, v, corner = columns[:, :, 0], columns[:, :, 1], columns[:, :, 2]
        corners = np.stack([corner, corner + u, corner + u + v, corner + v], 1)
        boxes, depth = _screen_boxes(corners, ((0, 1), (1, 2), (2, 3), (3, 0)), focal, (height, width))
        seen = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
        rays = np.array([[1 / focal[0], 0, (0.5 - width / 2) / focal[0]],
                         [0, 1 / focal[1], (0.5 - height / 2) / focal[1]], [0, 0, 1]])  # fmt: skip
        maps = np.linalg.inv(columns) @ rays
        for j in seen[np.argsort(depth[seen], kind="stable")]:
            i = int(self._flat[facing[j]])
            buffers.draw_rectangle(i, self._surfaces[i], maps[j], boxes[j])
            texels = float(self._atlas.sizes[i].prod())
            level[i] = 0.5 * np.log2(max(abs(np.linalg.det(maps[j])) * texels, 1e-20))

    def _draw_round(self, buffers: _Buffers, to_camera: np.ndarray, focal: np.ndarray) -> None:
        """Draw ellipsoids and the sides of frustums by intersecting the rays of their screen boxes."""
        corners = self._round_corners @ to_camera[:3, :3].T + to_camera[:3, 3]
        boxes, depth = _screen_boxes(corners, CUBE_EDGES, focal, buffers.nearness.shape)
        seen = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
        for j in seen[np.argsort(depth[seen], kind="stable")]:
            i = int(self._round[j])
            buffers.draw_round(i, self._surfaces[i], to_camera, focal, boxes[j])


def _screen_boxes(corners: np.ndarray, edges: Sequence[tuple[int, int]], focal: np.ndarray, size: tuple[int, int]):
    """Pixel boxes [N, 4] (left, top, right, bottom) around hulls of camera-space corners, and nearest depths [N]."""
    height, width = size
    first, second = (corners[:, [e[k] for e in edges]] for k in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (NEAR - first[..., 2:]) / (second[..., 2:] - first[..., 2:])
    crossing = (t > 0) & (t < 1)
    cut = np.where(crossing, first + np.nan_to_num(t, posinf=0, neginf=0) * (second - first), 0.0)
    cut[..., 2] = NEAR
    points = np.concatenate([corners, cut], 1)
    valid = np.concatenate([corners[..., 2] >= NEAR, crossing[..., 0]], 1)
    x, y = (points[..., k] / np.maximum(points[..., 2], NEAR) * focal[k] for k in (0, 1))
    x, y = x + width / 2 - 0.5, y + height / 2 - 0.5
    low, high = (lambda a: np.where(valid, a, np.inf).min(1)), (lambda a: np.where(valid, a, -np.inf).max(1))
    left, top = np.clip(np.floor(low(x)), 0, width), np.clip(np.floor(low(y)), 0, height)
    right, bottom = np.clip(np.ceil(high(x)) + 1, 0, width), np.clip(np.ceil(high(y)) + 1, 0, height)
    return np.stack([left, top, right, bottom], 1).astype(np.int64), low(points[..., 2])


class _Buffers:
    """What each sample sees: 1 / z, u / z, v / z and the surface's index."""

    def __init__(self, height: int, width: int) -> None:
        self.nearness = np.zeros((height, width), dtype=np.float32)
        self.u, self.v = np.zeros_like(self.nearness), np.zeros_like(self.nearness)
        self.surface = np.full((height, width), -1, dtype=np.int32)

    def draw_rectangle(self, index: int, surface: Rectangle, pixel_map: np.ndarray, box: np.ndarray) -> None:
        left, top, right, bottom = (int(b) for b in box)
        area = (slice(top, bottom), slice(left, right))
        x = np.arange(left, right, dtype=np.float32)
        y = np.arange(top, bottom, dtype=np.float32)
        (nearness, u, v) = (
            (pixel_map[k, 0] * x).astype(np.float32)[None, :]
            + (pixel_map[k, 1] * y + pixel_map[k, 2]).astype(np.float32)[:, None]
            for k in (2, 0, 1)
        )
        mask = nearness > np.maximum(self.nearness[area], 0)
        if not mask.any():
            return
        if surface.disc:
            half = nearness * np.float32(0.5)
            mask &= (u - half) ** 2 + (v - half) ** 2 <= half * half
        else:
            mask &= (u >= 0) & (u <= nearness) & (v >= 0) & (v <= nearness)
        for u0, v0, u1, v1 in surface.holes:
            mask &= (u < u0 * nearness) | (u > u1 * nearness) | (v < v0 * nearness) | (v > v1 * nearness)
        self.write(index, area, mask, (nearness, u, v))

    def draw_round(
        self, index: int, surface: Ellipsoid | Frustum, to_camera: np.ndarray, focal: np.ndarray, box: np.ndarray
    ) -> None:
        height, width = self.nearness.shape
        left, top, right, bottom = (int(b) for b in box)
        area = (slice(top, bottom), slice(left, right))
        x = ((np.arange(left, right) + 0.5 - width / 2) / focal[0])[None, :]
        y = ((np.arange(top, bottom) + 0.5 - height / 2) / focal[1])[:, None]
        axes = (to_camera[:3, :3] @ surface.rotation).T
        centre = to_camera[:3, :3] @ surface.centre + to_camera[:3, 3]
        scale = surface.radii if isinstance(surface, Ellipsoid) else np.array([1.0, 1.0, surface.height])
        origin = (-(axes @ centre) / scale).astype(np.float32)
        axes = axes / scale[:, None]
        direction = [
            (axes[k, 0] * x).astype(np.float32) + (axes[k, 1] * y + axes[k, 2]).astype(np.float32) for k in range(3)
        ]
        trace = _trace_ellipsoid if isinstance(surface, Ellipsoid) else _trace_frustum
        z = trace(surface, origin, direction)
        nearness = np.where(z > NEAR, 1 / z, 0)
        mask = nearness > self.nearness[area]
        if mask.any():
            z = np.where(mask, z, 0)
            local = [o + z * d for o, d in zip(origin, direction, strict=True)]
            u = np.arctan2(local[1], local[0]) * np.float32(0.5 / np.pi) + np.float32(0.5)
            if isinstance(surface, Ellipsoid):
                v = np.arccos(np.clip(local[2], -1, 1)) / np.float32(np.pi)
            else:
                v = np.float32(0.5) - local[2]
            self.write(index, area, mask, (nearness, u * nearness, v * nearness))

    def write(self, index: int, area: tuple[slice, slice], mask: np.ndarray, values: tuple[np.ndarray, ...]) -> None:
        for buffer, value in zip((self.nearness, self.u, self.v), values, strict=True):
            np.copyto(buffer[area], value, where=mask)
        self.surface[area][mask] = index


def _trace_ellipsoid(_: Ellipsoid, origin: np.ndarray, direction: list[np.ndarray]) -> np.ndarray:
    """Depth [h, w], infinite for none, of rays in the unit ball's frame."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    a, b, c = dx * dx + dy * dy + dz * dz, ox * dx + oy * dy + oz * dz, ox * ox + oy * oy + oz * oz - 1
    root = b * b - a * c
    return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)


def _trace_frustum(surface: Frustum, origin: np.ndarray, direction: list[np.ndarray]) -> np.ndarray:
    """Depth [h, w], infinite for none, in a frame where the frustum's z spans [-1/2, 1/2] and x, y are metres."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    slope = np.float32(surface.radius_top - surface.radius_bottom)
    radius, change = np.float32((surface.radius_top + surface.radius_bottom) / 2) + slope * oz, slope * dz
    a = dx * dx + dy * dy - change * change
    a = np.where(np.abs(a) < 1e-9, np.float32(1e-9), a)
    b, c = ox * dx + oy * dy - radius * change, ox * ox + oy * oy - radius * radius
    root = b * b - a * c
    spread = np.sqrt(np.maximum(root, 0))
    z = np.full(a.shape, np.inf, dtype=np.float32)
    for t in ((-b - spread) / a, (-b + spread) / a):
        np.copyto(z, t, where=(root > 0) & (t > NEAR) & (np.abs(oz + t * dz) <= 0.5) & (t < z))
    return z
