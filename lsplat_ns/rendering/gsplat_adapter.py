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
        screen = _project(ellipsoids, cameras.at(views), size, planes[views.start], blur)
        depth_z = screen.depth_z[..., None]
        drawn, alpha = screen.blend(torch.cat([values[views, :, :attached], depth_z], -1))
        depth_z = drawn[..., attached]
        drawn = drawn[..., :attached]
        if attached < channels:
            rest, _ = screen.detach().blend(values[views, :, attached:])
            drawn = torch.cat([drawn, rest], -1)
        parts.append(Maps(drawn.permute(0, 3, 1, 2), depth_z, alpha[..., 0]))
    return Maps.concat(parts)


@dataclass(frozen=True)
class _Screen:
    """Gaussians projected into V views, and which of them touch which tile, nearest first."""

    means: Tensor  # [V, G, 2] px
    conics: Tensor  # [V, G, 3]
    opacities: Tensor  # [V, G]
    depth_z: Tensor  # [V, G]
    tile_offsets: Tensor  # [V, tile rows, tile columns]
    order: Tensor  # [touches]
    size: tuple[int, int]

    def detach(self) -> _Screen:
        """The same, out of reach of gradients."""
        return replace(self, means=self.means.detach(), conics=self.conics.detach(), opacities=self.opacities.detach())

    def blend(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Maps [V, height, width, C] of values [V, G, C], and alpha [V, height, width, 1]."""
        drawn = [
            _gsplat().rasterize_to_pixels(
                self.means, self.conics, part, self.opacities, self.size[1], self.size[0], TILE, self.tile_offsets,
                self.order,
            )
            for part in values.split(CHANNELS_AT_ONCE, -1)
        ]  # fmt: skip
        maps = drawn[0][0] if len(drawn) == 1 else torch.cat([maps for maps, _ in drawn], -1)
        return maps, drawn[0][1]


def _project(ellipsoids: Ellipsoids, cameras: PixelCameras, size: tuple[int, int], near: float, blur: float) -> _Screen:
    """Project and sort. The triangle of the covariances is taken by slices: gsplat's own indexing waits for the GPU."""
    gsplat, (height, width) = _gsplat(), size
    rows = [ellipsoids.covariances[:, row, row:] for row in range(3)]
    radii, means, depth_z, conics, _ = gsplat.fully_fused_projection(
        ellipsoids.means, torch.cat(rows, -1), None, None, cameras.camera_from_world, cameras.intrinsics_px,
        width, height, eps2d=blur, near_plane=near, radius_clip=0.0, packed=False,
    )  # fmt: skip
    tiles = math.ceil(width / TILE), math.ceil(height / TILE)
    _, touches, order = gsplat.isect_tiles(means, radii, depth_z, TILE, *tiles, packed=False)
    offsets = gsplat.isect_offset_encode(touches, len(means), *tiles)
    opacities = ellipsoids.opacities.expand(len(means), -1)
    return _Screen(means, conics, opacities, depth_z, offsets, order, size)


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
