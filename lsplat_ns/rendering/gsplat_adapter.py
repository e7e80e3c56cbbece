"""The one place that calls gsplat. Works with gsplat 1.4 and 1.5."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from lsplat_ns.errors import MissingExtra
from lsplat_ns.rendering.rasterization import Ellipsoids, Maps, PixelCameras
from lsplat_ns.scene import map_tensors

TILE = 16
"""Side of the screen tiles that Gaussians are sorted into, in pixels."""
CHANNELS_AT_ONCE = 32
"""More channels than this do not fit into the kernels' shared memory."""


def rasterize_with_gsplat(
    ellipsoids: Ellipsoids,
    values: Tensor,
    cameras: PixelCameras,
    size: tuple[int, int],
    blur: float = 0.3,
    attached: int | None = None,
) -> Maps:
    """Splat one scene into V views with gsplat's CUDA kernels (classic mode, float32).

    Takes and gives what :func:`lsplat_ns.rendering.reference.rasterize_in_pytorch` does; ``blur`` is added to the
    variances on screen, in px^2. Gaussians are projected and sorted once, also where some channels are not attached to
    the geometry; those are blended on their own. Raises MissingExtra when gsplat cannot run.
    """
    channels = values.shape[-1]
    attached = channels if attached is None else attached
    parts = []
    planes = cameras.z_min.tolist()
    same = len(set(planes)) == 1  # gsplat has one near plane per call
    for views in [slice(0, len(planes))] if same else [slice(i, i + 1) for i in range(len(planes))]:
        projected = project(ellipsoids, cameras.at(views), size, planes[views.start], blur)
        screen = sort(projected, size)
        maps = screen.draw(projected.with_depth(values[views, :, :attached]))
        if attached < channels:
            rest, _ = screen.detach().blend(values[views, :, attached:])
            maps = replace(maps, values=torch.cat([maps.values, rest.permute(0, 3, 1, 2)], 1))
        parts.append(maps)
    return Maps.concat(parts)


@dataclass(frozen=True)
class Projected:
    """Gaussians projected into V views."""

    means: Tensor  # [V, G, 2] px
    conics: Tensor  # [V, G, 3]
    opacities: Tensor  # [V, G]
    depth_z: Tensor  # [V, G]
    radii: Tensor  # [V, G] px, 0 where nothing is seen

    def with_depth(self, values: Tensor) -> Tensor:
        """Values [V, G, C] and, behind them, the depth: what :meth:`Screen.draw` draws."""
        return torch.cat([values, self.depth_z[..., None]], -1)


@dataclass(frozen=True)
class Screen:
    """Projected Gaussians, and which of them touch which tile, nearest first."""

    projected: Projected
    tile_offsets: Tensor  # [V, tile rows, tile columns]
    order: Tensor  # [touches]
    size: tuple[int, int]

    def detach(self) -> Screen:
        """The same, out of reach of gradients."""
        return replace(self, projected=map_tensors(self.projected, torch.detach))

    def draw(self, values: Tensor) -> Maps:
        """Maps of :meth:`Projected.with_depth`."""
        drawn, alpha = self.blend(values)
        return Maps(drawn[..., :-1].permute(0, 3, 1, 2), drawn[..., -1], alpha[..., 0])

    def blend(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Maps [V, height, width, C] of values [V, G, C], and alpha [V, height, width, 1]."""
        (height, width), projected = self.size, self.projected
        drawn = [
            _gsplat().rasterize_to_pixels(
                projected.means, projected.conics, part, projected.opacities, width, height, TILE, self.tile_offsets,
                self.order,
            )
            for part in values.split(CHANNELS_AT_ONCE, -1)
        ]  # fmt: skip
        maps = drawn[0][0] if len(drawn) == 1 else torch.cat([maps for maps, _ in drawn], -1)
        return maps, drawn[0][1]


def project(
    ellipsoids: Ellipsoids, cameras: PixelCameras, size: tuple[int, int], near: float, blur: float
) -> Projected:
    """Project Gaussians [G] into V views; never waits for the GPU.

    The triangle of the covariances is taken by slices, because gsplat's own indexing would wait.
    """
    height, width = size
    rows = [ellipsoids.covariances[:, row, row:] for row in range(3)]
    radii, means, depth_z, conics, _ = _gsplat().fully_fused_projection(
        ellipsoids.means, torch.cat(rows, -1), None, None, cameras.camera_from_world, cameras.intrinsics_px,
        width, height, eps2d=blur, near_plane=near, radius_clip=0.0, packed=False,
    )  # fmt: skip
    opacities = ellipsoids.opacities.expand(len(means), -1).contiguous()
    return Projected(means, conics, opacities, depth_z, radii)


def sort(projected: Projected, size: tuple[int, int]) -> Screen:
    """Find what touches each tile, nearest first. Waits for the GPU, to learn how much that is."""
    gsplat, (height, width), views = _gsplat(), size, len(projected.means)
    tiles = math.ceil(width / TILE), math.ceil(height / TILE)
    means, radii = projected.means, projected.radii
    _, touches, order = gsplat.isect_tiles(means, radii, projected.depth_z, TILE, *tiles, packed=False)
    return Screen(projected, gsplat.isect_offset_encode(touches, views, *tiles), order, size)


@cache
def gsplat_status() -> str | None:
    """Why gsplat cannot run here, in one line with the fix, or None when it can. Compiles and imports nothing."""
    if not torch.cuda.is_available():
        return "gsplat needs a CUDA device and torch sees none; use the reference backend"
    spec = find_spec("gsplat")
    if spec is None or not spec.submodule_search_locations:
        return "gsplat is not installed; run `pip install gsplat`, or use the reference backend"
    folder = Path(next(iter(spec.submodule_search_locations)))
    if any(file.suffix in {".so", ".pyd"} for file in folder.glob("csrc*")):
        return None
    missing = [program for program in ("nvcc", "ninja") if shutil.which(program) is None]
    if not missing:
        return None
    return (
        f"gsplat has no compiled CUDA kernels and cannot build them, because {' and '.join(missing)} is not on the "
        f"PATH; install it, or a gsplat wheel built for torch {torch.__version__}, or use the reference backend"
    )


@cache
def _gsplat() -> ModuleType:
    """The gsplat package with working kernels. The first call may compile them, which takes minutes."""
    problem = gsplat_status()
    if problem is not None:
        raise MissingExtra(problem)
    try:
        import gsplat
        from gsplat.cuda import _backend
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingExtra(
            f"gsplat's CUDA kernels could not be built or loaded ({error}); install a gsplat wheel built for torch "
            f"{torch.__version__}, or use the reference backend"
        ) from error
    if _backend._C is None:
        raise MissingExtra("gsplat was installed without CUDA kernels; reinstall it, or use the reference backend")
    return gsplat
