"""One demo scene in memory: built, lit, and ready to be photographed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lsplat_ns.data.demo_scenes.camera_motion import glide, orbit
from lsplat_ns.data.demo_scenes.lighting import BakeConfig, bake
from lsplat_ns.data.demo_scenes.objects import Subject, build_subject
from lsplat_ns.data.demo_scenes.renderer import Camera, Frame, Renderer
from lsplat_ns.data.demo_scenes.rooms import Room, build_room

Kind = Literal["rooms", "objects"]
KIND_NUMBER = {"rooms": 0, "objects": 1}


@dataclass(frozen=True)
class DemoScene:
    """A scene with its camera path, in a z-up world in metres."""

    key: str
    place: Room | Subject
    cameras: tuple[Camera, ...]
    size: tuple[int, int]  # (height, width)
    renderer: Renderer

    def frame(self, index: int) -> Frame:
        """The picture and the z-depth of one frame of the path."""
        return self.renderer.frame(self.cameras[index], self.size)


def scene_key(kind: Kind, seed: int, index: int) -> str:
    """The scene id: unique per kind, seed and index."""
    return f"{kind}_{seed}_{index:05d}"


def build_demo_scene(kind: Kind, seed: int, index: int, frames: int, size: tuple[int, int]) -> DemoScene:
    """Build and light scene ``index`` of a seed. Everything random in it follows from (kind, seed, index).

    ``size`` (height, width) also sets the resolution of textures and, for thumbnails, of the light.
    """
    rng = np.random.default_rng([seed, KIND_NUMBER[kind], index])
    place = build_room(rng) if kind == "rooms" else build_subject(rng)
    cameras = glide(place, frames, size, rng) if kind == "rooms" else orbit(place, frames, size, rng)
    pixels = max(size)
    texel = float(np.clip(1.6 / pixels, 0.002, 0.05))
    surfaces, textures = bake(place.scene, BakeConfig(texel, 0.09 * max(1.0, 128 / pixels)), rng)
    return DemoScene(scene_key(kind, seed, index), place, tuple(cameras), size, Renderer(surfaces, textures))
