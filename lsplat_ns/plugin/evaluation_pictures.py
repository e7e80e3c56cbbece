"""Pictures and videos of an evaluation that need the network: maps of illustrated scenes, and camera paths.

Source: spec section 8.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lsplat_ns.data.video import write_video
from lsplat_ns.evaluation.entries import Entry, EvaluationData, LoadedEntry, spread_out
from lsplat_ns.evaluation.illustration import (
    TargetMaps,
    depth_picture,
    layout_file,
    shown_targets,
    uncertainty_picture,
    write_illustration,
)
from lsplat_ns.evaluation.protocol import Draw, entry_seed
from lsplat_ns.evaluation.scene_pages import VIDEOS, video_stem
from lsplat_ns.geometry.validation_trajectories import Trajectory, validation_trajectory
from lsplat_ns.latentsplat import LatentSplat
from lsplat_ns.plugin.drawing import view_outputs, with_spread
from lsplat_ns.scene import Cameras, Gaussians, Views

FRAMES_PER_SECOND = 30
ENTRIES_PER_SCENE = 2
"""Illustrated entries of a scene: on RealEstate10k, one with interpolated and one with extrapolated targets."""


class Illustrator:
    """Writes maps, cameras and videos of some scenes, evenly spread, while they are evaluated.

    Args:
        network: In eval mode.
        data: What is evaluated.
        root: Folder of the evaluation.
        scenes: How many scenes to illustrate.
        videos: Camera paths to film in them.
        seed: The evaluation's; None where it takes modes.
    """

    def __init__(
        self,
        network: LatentSplat,
        data: EvaluationData,
        root: Path,
        *,
        scenes: int,
        videos: Sequence[Trajectory],
        seed: int | None,
    ) -> None:
        names = list(dict.fromkeys(entry.scene for entry in data.entries))
        chosen = {names[i] for i in spread_out(len(names), scenes)}
        by_scene: dict[str, list[Entry]] = {name: [] for name in chosen}
        for entry in data.entries:
            if entry.scene in chosen and entry.choice.target:
                by_scene[entry.scene].append(entry)
        self._wanted = {entry.key: entry for entries in by_scene.values() for entry in entries[:ENTRIES_PER_SCENE]}
        self._network, self._root, self._videos, self._seed = network, root, videos, seed

    def missing(self) -> list[Entry]:
        """Entries to illustrate whose pictures or videos are not there, as when they were not asked for before."""
        return [entry for entry in self._wanted.values() if not all(file.is_file() for file in self._files(entry))]

    def _files(self, entry: Entry) -> list[Path]:
        layout = layout_file(self._root, entry.scene, entry.choice.context, entry.choice.target)
        return [layout, *(video_file(self._stem(entry), name) for name in self._videos)]

    def _stem(self, entry: Entry) -> Path:
        return self._root / VIDEOS / video_stem(entry.scene, entry.choice.context)

    @torch.no_grad()
    def show(self, entry: Entry, loaded: LoadedEntry, draw: Draw) -> None:
        """Illustrate an entry if it is one of those."""
        if entry.key not in self._wanted:
            return
        device = draw.image.device
        shown = with_spread(draw.gaussians, draw.distribution.features)
        target = loaded.example.target.to(device)
        maps = []
        for i in shown_targets(len(entry.choice.target)):
            view = view_outputs(
                self._network, shown, target.cameras.select([i]), target.size, short_side=min(target.size),
                decode=False, seed=None, units_per_network_unit=1.0, background=torch.zeros(3),
            )  # fmt: skip
            splat, depth, uncertainty = (
                view[name].float().cpu().numpy() for name in ("rgb_splat", "depth", "uncertainty")
            )
            maps.append(TargetMaps(entry.choice.target[i], splat, depth[..., 0].clip(1e-6), uncertainty[..., 0]))
        write_illustration(self._root, loaded, maps)
        seed = None if self._seed is None else entry_seed(entry.scene, entry.choice.context, self._seed)
        write_videos(self._network, shown, loaded.example.context.to(device), self._videos, self._stem(entry), seed)


def video_file(stem: Path, name: Trajectory) -> Path:
    """The file of a camera path's video."""
    return stem.with_name(f"{stem.name}_{name}.mp4")


def write_videos(
    network: LatentSplat,
    shown: Gaussians,
    context: Views,
    names: Sequence[Trajectory],
    stem: Path,
    seed: int | None,
) -> None:
    """Write ``<stem>_<name>.mp4`` for each camera path that is not there yet.

    Args:
        network: In eval mode.
        shown: The scene [1, G] from ``drawing.with_spread``.
        context: Views [1, 2] on the network's device, whose cameras the paths connect.
        names: Camera paths.
        stem: Beginning of the files' names.
        seed: Of the latent noise, the same in every frame; None shows the mode.

    Raises:
        SceneDataError: If a file cannot be written.
    """
    for name in names:
        path = video_file(stem, name)
        if not path.is_file():
            write_video(path, _frames(network, shown, context, name, seed), FRAMES_PER_SECOND)


def _frames(
    network: LatentSplat, shown: Gaussians, context: Views, name: Trajectory, seed: int | None
) -> Iterator[np.ndarray]:
    """Picture, depth and uncertainty beside each other: uint8 [height, 3 * width, 3], even sides.

    Colours of the maps keep the range of the first frame, else they would flicker.
    """
    poses = context.cameras.world_from_camera[0].cpu()
    path, fractions = validation_trajectory(name, poses[0], poses[1])
    height, width = (side // 2 * 2 for side in context.size)
    depth_range = uncertainty_range = None
    for pose, fraction in zip(path, fractions.tolist(), strict=True):
        camera = _camera(context.cameras, pose, fraction)
        view = view_outputs(
            network, shown, camera, (height, width), short_side=min(context.size), decode=True, seed=seed,
            units_per_network_unit=1.0, background=torch.zeros(3),
        )  # fmt: skip
        maps = {name: view[name][..., 0].float().cpu().numpy() for name in ("depth", "uncertainty")}
        if depth_range is None:
            depth_range = np.quantile(np.log(maps["depth"].clip(1e-6)), (0.01, 0.99))
            uncertainty_range = np.quantile(maps["uncertainty"], (0.05, 0.95))
        picture = (255 * view["rgb"]).floor().byte().cpu().numpy()
        pictures = (
            picture,
            depth_picture(maps["depth"], depth_range),
            uncertainty_picture(maps["uncertainty"], uncertainty_range),
        )
        yield np.concatenate(pictures, axis=1)


def _camera(context: Cameras, pose: torch.Tensor, fraction: float) -> Cameras:
    """One camera [1, 1] on the path, intrinsics blended between those of the two context cameras."""
    inside = min(max(fraction, 0.0), 1.0)
    first = context.select([0])
    intrinsics = torch.lerp(context.intrinsics_norm[:, :1], context.intrinsics_norm[:, 1:2], inside)
    return replace(first, world_from_camera=pose[None, None].to(first.near), intrinsics_norm=intrinsics)
