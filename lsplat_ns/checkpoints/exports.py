"""Predicted scenes as files: PLY and .splat for other viewers, npz with everything.

Other viewers draw the splatted colour. The picture that latentSplat decodes from splatted features is sharper, and no
file of Gaussians can hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lsplat_ns.data.atomic_files import replacing
from lsplat_ns.distributions import DiagonalGaussian
from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.covariance import scales_and_quaternions
from lsplat_ns.geometry.harmonics import coefficient_count, rgb_from_dc, rotate_harmonics, to_3dgs_harmonics
from lsplat_ns.geometry.similarity import Similarity
from lsplat_ns.scene import Gaussians, VariationalGaussians

FAINTEST = 1 / 255
"""Rasterisers skip Gaussians of lower opacity."""
SMALLEST_SCALE = 1e-12
OPACITY_MARGIN = 1e-6
"""Keeps logits finite."""
COLORS = 3
NPZ_FORMAT = "lsplat-gaussians-1"


@dataclass(frozen=True)
class ViewerGaussians:
    """Gaussians in the form that 3D Gaussian splatting viewers read."""

    means: Tensor  # [N, 3]
    scales: Tensor  # [N, 3], standard deviations
    quaternions_wxyz: Tensor  # [N, 4], unit, from the Gaussian's axes to the world
    opacities: Tensor  # [N], in [0, 1]
    harmonics: Tensor  # [N, 3, K] in the basis of 3DGS, K = 1, 4, 9 or 16; colour is 1/2 + their sum, clamped at 0

    @property
    def count(self) -> int:
        """Number of Gaussians."""
        return len(self.means)

    @property
    def opacity_logits(self) -> Tensor:
        """Opacities [N] as files store them."""
        return torch.logit(self.opacities, eps=OPACITY_MARGIN)

    @property
    def log_scales(self) -> Tensor:
        """Scales [N, 3] as files store them."""
        return self.scales.clamp_min(SMALLEST_SCALE).log()


@torch.no_grad()
def viewer_gaussians(
    gaussians: Gaussians | VariationalGaussians,
    similarity: Similarity | None = None,
    *,
    degree: int = 3,
    keep: Literal["finite", "visible"] = "finite",
) -> ViewerGaussians:
    """A scene as other viewers want it. Nothing is re-centred.

    Args:
        gaussians: One scene [1, G] in the network's frame.
        similarity: From that frame to the viewer's; positions, sizes, orientations and harmonics all follow it.
        degree: Highest harmonic band, 0 to 3.
        keep: The Gaussians whose numbers are finite, or of these the ones that are not too faint to be drawn.
    """
    similarity = similarity or Similarity()
    harmonics = to_3dgs_harmonics(gaussians.color_harmonics[0].float())[..., : coefficient_count(degree)]
    if similarity.rotation is not None:
        harmonics = _rotate_3dgs_harmonics(harmonics, similarity.rotation.to(harmonics))
    covariances = similarity.apply_to_covariances(gaussians.covariances[0].float())
    means, opacities = similarity.apply_to_points(gaussians.means[0].float()), gaussians.opacities[0].float()
    kept = means.isfinite().all(-1) & covariances.isfinite().flatten(1).all(-1) & opacities.isfinite()
    kept &= harmonics.isfinite().flatten(1).all(-1)
    if keep == "visible":
        kept &= opacities >= FAINTEST
    scales, quaternions = scales_and_quaternions(covariances[kept])
    return ViewerGaussians(means[kept], scales, quaternions, opacities[kept], harmonics[kept])


def _rotate_3dgs_harmonics(coefficients: Tensor, rotation: Tensor) -> Tensor:
    """Turn functions in the basis of 3DGS: the result at R d is the input at d.

    The basis of 3DGS at (x, y, z) is the regular one of ``geometry.harmonics`` at (y, z, x).
    """
    order = [1, 2, 0]
    return rotate_harmonics(coefficients, rotation[order][:, order], consistent=True)


def write_ply(
    path: Path, gaussians: Gaussians | VariationalGaussians, similarity: Similarity | None = None, **options: object
) -> int:
    """Write the PLY of 3D Gaussian splatting, which most viewers open.

    Opacities are logits, scales logarithms, rotations (w, x, y, z) in world axes, harmonics in the order of 3DGS (all
    coefficients of red, then green, then blue).

    Args:
        path: Replaced as a whole; its folder is made.
        gaussians: One scene [1, G].
        similarity: See :func:`viewer_gaussians`.
        options: ``degree`` and ``keep`` of :func:`viewer_gaussians`; faint Gaussians are left out by default.

    Returns:
        Number of Gaussians written.

    Raises:
        SceneDataError: If the disk is full or the file cannot be written.
    """
    splats = viewer_gaussians(gaussians, similarity, **{"keep": "visible", **options})
    rest = splats.harmonics[:, :, 1:].flatten(1)
    columns = [
        splats.means,
        torch.zeros_like(splats.means),
        splats.harmonics[:, :, 0],
        rest,
        splats.opacity_logits[:, None],
        splats.log_scales,
        splats.quaternions_wxyz,
    ]
    names = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(COLORS))]
    names += [f"f_rest_{i}" for i in range(rest.shape[1])]
    names += ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    header = ["ply", "format binary_little_endian 1.0", "comment written by lsplat-ns"]
    header += [f"element vertex {splats.count}", *(f"property float {name}" for name in names), "end_header", ""]
    with replacing(path) as partial, partial.open("wb") as file:
        file.write("\n".join(header).encode())
        file.write(_numpy(torch.cat(columns, dim=1)).astype("<f4", copy=False).tobytes())
    return splats.count


def read_ply(path: Path) -> ViewerGaussians:
    """Read the PLY of 3D Gaussian splatting, of any harmonic degree up to 3.

    Raises:
        SceneDataError: If the file is not such a PLY, or is cut short.
    """
    try:
        content = path.read_bytes()
        header, _, body = content.partition(b"end_header\n")
        lines = header.decode("ascii").splitlines()
        if lines[:2] != ["ply", "format binary_little_endian 1.0"]:
            raise ValueError("only binary little-endian PLY files are read")
        (count,) = [int(line.split()[2]) for line in lines if line.startswith("element vertex ")]
        kinds = {"float": "<f4", "double": "<f8", "uchar": "u1"}
        properties = [line.split() for line in lines if line.startswith("property ")]
        vertices = np.frombuffer(body, np.dtype([(name, kinds[kind]) for _, kind, name in properties]), count)
        rest = sum(name.startswith("f_rest_") for name in vertices.dtype.names)

        def columns(*names: str) -> Tensor:
            return torch.from_numpy(np.stack([vertices[name].astype(np.float32) for name in names], axis=-1))

        constant = columns(*(f"f_dc_{i}" for i in range(COLORS)))[:, :, None]
        bands = columns(*(f"f_rest_{i}" for i in range(rest))).unflatten(1, (COLORS, -1)) if rest else constant[..., :0]
        return ViewerGaussians(
            means=columns("x", "y", "z"),
            scales=columns("scale_0", "scale_1", "scale_2").exp(),
            quaternions_wxyz=torch.nn.functional.normalize(columns(*(f"rot_{i}" for i in range(4))), dim=-1),
            opacities=columns("opacity")[:, 0].sigmoid(),
            harmonics=torch.cat([constant, bands], dim=-1),
        )
    except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise SceneDataError(f"{path} is no PLY of Gaussians: {error}") from None


def write_splat(path: Path, gaussians: Gaussians | VariationalGaussians, similarity: Similarity | None = None) -> int:
    """Write antimatter15's .splat: 32 bytes per Gaussian, without view dependence, most visible first.

    Position and scale as three floats each, colour and opacity as four bytes, rotation (w, x, y, z) as four bytes.

    Returns:
        Number of Gaussians written; faint ones are left out.

    Raises:
        SceneDataError: If the disk is full or the file cannot be written.
    """
    splats = viewer_gaussians(gaussians, similarity, degree=0, keep="visible")
    order = (splats.opacities * splats.scales.prod(-1)).argsort(descending=True)
    rgba = torch.cat([rgb_from_dc(splats.harmonics[:, :, 0]), splats.opacities[:, None]], dim=1)
    records = np.zeros(
        splats.count, np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])
    )
    records["position"] = _numpy(splats.means[order])
    records["scale"] = _numpy(splats.scales[order])
    records["color"] = _numpy((rgba[order] * 255).round().clamp(0, 255))
    records["rotation"] = _numpy((splats.quaternions_wxyz[order] * 128 + 128).round().clamp(0, 255))
    with replacing(path) as partial:
        partial.write_bytes(records.tobytes())
    return splats.count


def write_npz(path: Path, gaussians: VariationalGaussians, similarity: Similarity | None = None) -> int:
    """Write everything that a prediction holds, so that it can be sampled and decoded again.

    Arrays are in the network's frame and basis: means, covariances, opacities, color_harmonics, feature_mean,
    feature_logvar (absent without variance), and similarity_{scale,rotation,translation} to the viewer's frame.

    Returns:
        Number of Gaussians written; all of them.

    Raises:
        SceneDataError: If the disk is full or the file cannot be written.
    """
    similarity = similarity or Similarity()
    arrays = {
        "means": gaussians.means,
        "covariances": gaussians.covariances,
        "opacities": gaussians.opacities,
        "color_harmonics": gaussians.color_harmonics,
        "feature_mean": gaussians.features.mean,
        "similarity_rotation": torch.eye(3) if similarity.rotation is None else similarity.rotation,
        "similarity_translation": torch.zeros(3) if similarity.translation is None else similarity.translation,
    }
    if gaussians.features.logvar is not None:
        arrays["feature_logvar"] = gaussians.features.logvar
    plain = {name: _numpy(value) for name, value in arrays.items()}
    content = BytesIO()  # a zip file that a full disk cuts short complains once more when it is thrown away
    np.savez(content, format=NPZ_FORMAT, similarity_scale=float(similarity.scale), **plain)
    with replacing(path) as partial:
        partial.write_bytes(content.getbuffer())
    return gaussians.count


def read_npz(path: Path) -> tuple[VariationalGaussians, Similarity]:
    """Read what :func:`write_npz` wrote.

    Raises:
        SceneDataError: If the file is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if str(arrays.pop("format")) != NPZ_FORMAT:
            raise ValueError("another format")
        scale = float(arrays.pop("similarity_scale"))
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        features = DiagonalGaussian(tensors.pop("feature_mean"), tensors.pop("feature_logvar", None))
        frame = Similarity(scale, tensors.pop("similarity_rotation"), tensors.pop("similarity_translation"))
        return VariationalGaussians(features=features, **tensors), frame
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SceneDataError(f"{path} is no npz file of Gaussians: {error}") from None


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().float().cpu().numpy()
