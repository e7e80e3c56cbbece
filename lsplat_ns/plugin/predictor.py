"""The Python API: from arrays of images and cameras to Gaussians and rendered views, in the caller's own frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsplat_ns.acceleration import accelerate
from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.undistortion import PinholeView
from lsplat_ns.data.user_arrays import (
    as_array,
    check_convention,
    check_views,
    images_from_arrays,
    intrinsics_from_arrays,
    poses_from_arrays,
)
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import CheckpointMismatch, ConfigError
from lsplat_ns.fusion import predict_scene
from lsplat_ns.geometry.similarity import Similarity
from lsplat_ns.latentsplat import LatentSplat, LatentSplatConfig
from lsplat_ns.plugin.active_scene import ActiveScene
from lsplat_ns.plugin.drawing import view_outputs, with_spread
from lsplat_ns.plugin.runs import StoredRun
from lsplat_ns.scene import Cameras, Gaussians

NETWORK_KEYS, DISCRIMINATOR_KEYS = "_model.network.", "discriminator."
PLANES = {"depth_z": "depth", "alpha": "accumulation", "uncertainty": "uncertainty"}
"""Fields of a rendered view with one channel, and what the viewer calls them."""


def load(run: str | Path, device: str | None = None) -> Predictor:
    """The network of a run: one trained here, or an original checkpoint after ``lsplat import``.

    Args:
        run: The run's folder, or its config.yml. Both are trusted, as by every nerfstudio tool.
        device: Where to compute; by default the GPU if there is one. A GPU works in mixed precision, unless the run's
            configuration says otherwise.

    Raises:
        ConfigError: If there is no run of a latentSplat method.
        CheckpointMismatch: If it has no checkpoint, or one that does not fit.
    """
    stored = StoredRun.open(Path(run).expanduser())
    model = stored.config.pipeline.model
    # Captures and callers may have principal points off the centre; the network itself sees centred pictures only.
    splatting = replace(model.network.splatting, principal_point="true")
    network = load_network(stored, replace(model.network, splatting=splatting), device)
    return Predictor(network, stored.config.pipeline.datamanager.preparation, stored.steps_done)


def load_network(stored: StoredRun, config: LatentSplatConfig, device: str | None = None) -> LatentSplat:
    """The network of a stored run, in eval mode on a device, accelerated as the run's configuration says.

    Raises:
        CheckpointMismatch: If the weights do not fit ``config``.
    """
    network = LatentSplat(config, discriminator=False)
    weights = {
        key.removeprefix(NETWORK_KEYS): value
        for key, value in stored.pipeline_state.items()
        if key.startswith(NETWORK_KEYS) and not key.startswith(NETWORK_KEYS + DISCRIMINATOR_KEYS)
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        details = " ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise CheckpointMismatch(
            f"the checkpoint of {stored.folder} does not fit its config.yml: {details[:400]}"
        ) from None
    network.eval().requires_grad_(False).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    acceleration = stored.config.pipeline.model.acceleration
    if acceleration != "off":
        accelerate(network, compiled=acceleration == "compiled")
    return network


@dataclass(frozen=True)
class RenderedView:
    """What a scene looks like from one camera, or from several (leading axis). All float32 numpy arrays."""

    image: np.ndarray  # [..., height, width, 3], decoded, sRGB in [0, 1]
    splat: np.ndarray  # [..., height, width, 3], the splatted colour on black, in [0, 1]
    depth_z: np.ndarray  # [..., height, width], along the camera's z axis, in the caller's units
    alpha: np.ndarray  # [..., height, width], how much the Gaussians cover, in [0, 1]
    uncertainty: np.ndarray  # [..., height, width], about 0 where the network is sure, 1 where it saw nothing


@dataclass(frozen=True, repr=False)
class Predictor:
    """A trained network that predicts scenes from posed images. Make one with :func:`load`."""

    network: LatentSplat
    preparation: PreparationConfig
    steps_done: int

    @torch.no_grad()
    def predict(
        self,
        images: Any,
        world_from_camera: Any,
        intrinsics_norm: Any,
        *,
        seed: int | None = None,
        check_poses: bool = True,
    ) -> Scene:
        """Predict the scene that images show.

        Arrays may be numpy's, torch's, or lists of them. Images are scaled and cropped to the size of the network. More
        than two are encoded in pairs and fused.

        Args:
            images: Two or more of [height, width, 3] (or [3, height, width]), uint8 or floats in [0, 1]; sizes may
                differ, and must not be below the network's.
            world_from_camera: Poses [views, 4, 4], camera to world, OpenCV axes (+x right, +y down, +z forward), in any
                frame and units.
            intrinsics_norm: Intrinsics [views, 3, 3], or one [3, 3] for all: the first row divided by the image's
                width, the second by its height.
            seed: Draws a sample instead of the mode; the same seed draws the same scene.
            check_poses: Compare the poses with points that match in the first two images, so that poses of another
                convention are noticed. Takes tenths of a second.

        Raises:
            SceneDataError, ShapeMismatch: If the inputs cannot be right; one line says why, and what to do.
        """
        pictures = images_from_arrays(images)
        sizes = [picture.shape[:2] for picture in pictures]
        poses = poses_from_arrays(world_from_camera, len(pictures))
        intrinsics = intrinsics_from_arrays(intrinsics_norm, sizes)
        check_views(poses, intrinsics)
        if check_poses:
            check_convention(pictures, poses, intrinsics)
        origin = poses[0, :3, 3].copy()
        unit = float(np.linalg.norm(poses[1, :3, 3] - origin)) if self.preparation.baseline_to_one else 1.0
        views = [
            PinholeView.of(torch.from_numpy(matrix), torch.zeros(6), "radial-tangential", size)
            for matrix, size in zip(intrinsics, sizes, strict=True)
        ]
        video = PosedVideo(
            scene="images",
            world_from_camera=_normalised(poses, origin, unit),
            intrinsics_norm=torch.stack([view.intrinsics_norm for view in views]),
            read_image=lambda frame: views[frame].apply(pictures[frame]),
            read_size=lambda frame: views[frame].size,
        )
        frames = tuple(range(len(pictures)))
        active = ActiveScene(video, FrameChoice(frames, frames), self.preparation, Similarity())
        device = next(self.network.parameters()).device
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        predicted = predict_scene(
            self.network,
            [pair.to(device) for pair in active.pairs],
            step=max(self.steps_done - 1, 0),
            deterministic=seed is None,
            generator=generator,
        ).gaussians
        gaussians = predicted.mode() if seed is None else predicted.sample(generator)
        shown = with_spread(gaussians, predicted.features)
        near, far = (bound.to(device) for bound in active.bounds)
        return Scene(self, gaussians, shown, (near, far), origin, unit, seed)


@dataclass(frozen=True, repr=False)
class Scene:
    """A predicted scene. Made by :meth:`Predictor.predict`."""

    predictor: Predictor
    _network_gaussians: Gaussians  # in the network's frame: the caller's, moved by -origin and divided by unit
    _shown: Gaussians
    _bounds: tuple[torch.Tensor, torch.Tensor]
    _origin: np.ndarray
    _unit: float
    _seed: int | None

    @property
    def gaussians(self) -> Gaussians:
        """The Gaussians [1, G] in the caller's frame and units, float32, on the network's device.

        Harmonics are in latentSplat's basis; ``lsplat export`` writes files for other viewers.
        """
        there = self._network_gaussians
        origin = torch.from_numpy(self._origin).to(there.means)
        return replace(there, means=there.means * self._unit + origin, covariances=there.covariances * self._unit**2)

    @torch.no_grad()
    def render(self, world_from_camera: Any, intrinsics_norm: Any, size: tuple[int, int]) -> RenderedView:
        """Render views. The same scene and camera give the same picture.

        The picture is decoded near the network's own size, as in the viewer, and resized.

        Args:
            world_from_camera: One pose [4, 4], or several [views, 4, 4], in the frame of the images' poses.
            intrinsics_norm: Intrinsics [3, 3] for all, or [views, 3, 3].
            size: Height and width in pixels.

        Raises:
            SceneDataError, ShapeMismatch: If cameras cannot be right.
            ConfigError: If the size is not positive.
        """
        if len(size) != 2 or min(size) < 1 or any(int(side) != side for side in size):
            raise ConfigError(f"size must be a height and a width in pixels, but is {tuple(size)}")
        size, poses = (int(size[0]), int(size[1])), as_array(world_from_camera)
        single = poses.ndim == 2
        poses = poses_from_arrays(poses[None] if single else poses)
        intrinsics = torch.from_numpy(intrinsics_from_arrays(intrinsics_norm, [size] * len(poses))).float()
        network, (near, far) = self.predictor.network, self._bounds
        normalised = _normalised(poses, self._origin, self._unit)
        views = [
            view_outputs(
                network,
                self._shown,
                Cameras(pose[None, None].to(near), matrix[None, None].to(near), near, far),
                size,
                short_side=min(self.predictor.preparation.image_size),
                decode=True,
                seed=self._seed,
                units_per_network_unit=self._unit,
                background=torch.zeros(3),
            )
            for pose, matrix in zip(normalised, intrinsics, strict=True)
        ]

        def stacked(name: str) -> np.ndarray:
            maps = np.stack([view[name].float().cpu().numpy() for view in views])
            return maps[0] if single else maps

        planes = {field: stacked(name)[..., 0] for field, name in PLANES.items()}
        return RenderedView(stacked("rgb"), stacked("rgb_splat"), **planes)


def _normalised(poses: np.ndarray, origin: np.ndarray, unit: float) -> torch.Tensor:
    """The caller's poses [n, 4, 4] in the network's frame, float32; moved in float64, as they may lie far away."""
    moved = poses.copy()
    moved[:, :3, 3] = (moved[:, :3, 3] - origin) / unit
    return torch.from_numpy(moved).float()
