"""Similarity transforms between the frame a network predicts in and the frame a viewer shows.

latentSplat predicts in units where the two context cameras are 1 apart; nerfstudio shows a scene upright and scaled to
the unit cube. One similarity per scene joins the two, and nothing else in the package rescales a world.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lsplat_ns.geometry.conventions import to_homogeneous


@dataclass(frozen=True)
class Similarity:
    """x_b = scale * rotation @ x_a + translation."""

    scale: float = 1.0
    rotation: Tensor | None = None  # [3, 3]; None is the identity
    translation: Tensor | None = None  # [3]; None is zero

    def _rotation(self, like: Tensor) -> Tensor:
        return torch.eye(3).to(like) if self.rotation is None else self.rotation.to(like)

    def _translation(self, like: Tensor) -> Tensor:
        return torch.zeros(3).to(like) if self.translation is None else self.translation.to(like)

    def inverse(self) -> Similarity:
        """The transform from b to a."""
        like = torch.zeros(())
        rotation, translation = self._rotation(like), self._translation(like)
        return Similarity(1.0 / self.scale, rotation.T, -(rotation.T @ translation) / self.scale)

    def apply_to_points(self, points: Tensor) -> Tensor:
        """Points [..., 3] of frame a in frame b."""
        return self.scale * points @ self._rotation(points).T + self._translation(points)

    def apply_to_poses(self, world_from_camera: Tensor) -> Tensor:
        """Poses [..., 4, 4] of frame a in frame b. Camera rotations stay rotations: only positions are scaled."""
        rotation = self._rotation(world_from_camera) @ world_from_camera[..., :3, :3]
        origin = self.apply_to_points(world_from_camera[..., :3, 3])
        return to_homogeneous(torch.cat([rotation, origin[..., None]], dim=-1))

    def apply_to_covariances(self, covariances: Tensor) -> Tensor:
        """Covariances [..., 3, 3] of frame a in frame b."""
        rotation = self._rotation(covariances)
        return self.scale**2 * rotation @ covariances @ rotation.T
