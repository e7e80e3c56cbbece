"""The one place that calls gsplat. Works with gsplat 1.4 and 1.5."""

from __future__ import annotations

import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from lsplat_ns.errors import MissingExtra
from lsplat_ns.rendering.rasterization import Ellipsoids, Maps, PixelCameras


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
    variances on screen, in px^2. Channels that are not attached to the geometry cost a second pass. Raises
    MissingExtra when gsplat cannot run.
    """
    channels = values.shape[-1]
    attached = channels if attached is None else attached
    maps, alpha = _per_near_plane(ellipsoids, values[..., :attached], cameras, size, blur, with_depth=True)
    drawn, depth_z = maps[..., :attached], maps[..., attached]
    if attached < channels:
        rest, _ = _per_near_plane(
            ellipsoids.detach(), values[..., attached:], cameras.detach(), size, blur, with_depth=False
        )
        drawn = torch.cat([drawn, rest], -1)
    return Maps(drawn.permute(0, 3, 1, 2), depth_z, alpha[..., 0])


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


def _per_near_plane(
    ellipsoids: Ellipsoids, values: Tensor, cameras: PixelCameras, size: tuple[int, int], blur: float, with_depth: bool
) -> tuple[Tensor, Tensor]:
    """Maps [V, height, width, C (+ 1)] and alpha [V, height, width, 1]; gsplat has one near plane per call."""
    planes = cameras.z_min.tolist()
    groups = [slice(0, len(planes))] if len(set(planes)) == 1 else [slice(i, i + 1) for i in range(len(planes))]
    drawn = []
    for views in groups:
        maps, alpha, _ = _gsplat().rasterization(
            means=ellipsoids.means,
            quats=None,
            scales=None,
            covars=ellipsoids.covariances,
            opacities=ellipsoids.opacities,
            colors=values[views],
            viewmats=cameras.camera_from_world[views],
            Ks=cameras.intrinsics_px[views],
            width=size[1],
            height=size[0],
            near_plane=planes[views.start],
            eps2d=blur,
            radius_clip=0.0,
            packed=False,
            render_mode=("RGB+D" if values.shape[-1] else "D") if with_depth else "RGB",
        )
        drawn.append((maps, alpha))
    return tuple(torch.cat(parts) for parts in zip(*drawn, strict=True))
