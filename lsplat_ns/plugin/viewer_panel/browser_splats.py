"""The scene as splats that the browser itself draws: they are sent once, and flying then asks nothing of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lsplat_ns.geometry.harmonics import rgb_from_dc
from lsplat_ns.plugin.viewer_panel.widgets import VISER_NERFSTUDIO_SCALE_RATIO

if TYPE_CHECKING:
    from viser import SceneApi

    from lsplat_ns.geometry.similarity import Similarity
    from lsplat_ns.scene import Gaussians

NODE = "/lsplat/splats"
FAINTEST = 1 / 255
"""Opacity below which a Gaussian is not sent."""
LEAST_VARIANCE = 1e-8
"""Added to the variances, in viser's units: the message holds a Cholesky factor, which flat Gaussians do not have."""


class BrowserSplats:
    """The splats in every tab."""

    def __init__(self, scene: SceneApi) -> None:
        # viser 0.2.7 has the call under a private name; later versions publish it.
        self._add: Any = getattr(scene, "add_gaussian_splats", None) or getattr(scene, "_add_gaussian_splats", None)
        self._handle: Any = None

    @property
    def available(self) -> bool:
        """Whether the installed viser can draw splats."""
        return self._add is not None

    def show(self, gaussians: Gaussians, nerfstudio_from_network: Similarity) -> None:
        """Send Gaussians [1, G] of the network's frame, in the colour that they have from everywhere."""
        gaussians = gaussians.select(gaussians.opacities[0] >= FAINTEST)
        means = nerfstudio_from_network.apply_to_points(gaussians.means[0].double().cpu())
        covariances = nerfstudio_from_network.apply_to_covariances(gaussians.covariances[0].double().cpu())
        covariances = covariances * VISER_NERFSTUDIO_SCALE_RATIO**2 + LEAST_VARIANCE * torch.eye(3).double()
        rgb = rgb_from_dc(gaussians.color_harmonics[0, :, :, 0]).clamp(0, 1)
        self._handle = self._add(
            NODE,
            centers=(means * VISER_NERFSTUDIO_SCALE_RATIO).numpy(),
            covariances=covariances.numpy(),
            rgbs=rgb.cpu().numpy(),
            opacities=gaussians.opacities[0, :, None].cpu().numpy(),
        )

    def hide(self) -> bool:
        """Take them away. Says whether there were any."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()
        return handle is not None
