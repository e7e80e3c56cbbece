"""The only place where axes or units of cameras change.

Inside this package cameras are ``world_from_camera`` with OpenCV axes (+x right, +y down, +z forward) and
``intrinsics_norm``. nerfstudio has OpenGL axes (+x right, +y up, -z forward) and pixel intrinsics; RealEstate10k stores
the inverse pose; CO3D has PyTorch3D's axes (+x left, +y up, +z forward), row vectors and normalised device coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_homogeneous(pose: Tensor) -> Tensor:
    """Rigid transforms [..., 3, 4] or [..., 4, 4] as float32 [..., 4, 4]."""
    pose = pose.float()
    if pose.shape[-2] == 4:
        return pose
    last = pose.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*pose.shape[:-2], 1, 4)
    return torch.cat([pose, last], dim=-2)


def opencv_from_opengl(world_from_camera_gl: Tensor) -> Tensor:
    """nerfstudio's camera poses [..., 3 or 4, 4] as ``world_from_camera`` [..., 4, 4]; integers become float."""
    pose = to_homogeneous(world_from_camera_gl)
    return pose * pose.new_tensor([1.0, -1.0, -1.0, 1.0])


def opengl_from_opencv(world_from_camera: Tensor) -> Tensor:
    """The inverse of :func:`opencv_from_opengl`; nerfstudio's ``Cameras`` take the first three rows."""
    return opencv_from_opengl(world_from_camera)  # the flip of two axes is its own inverse


def intrinsics_norm_from_px(fx: Tensor, fy: Tensor, cx: Tensor, cy: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """Pixel intrinsics (pixel centres at +1/2), each [...], as ``intrinsics_norm`` [..., 3, 3]."""
    fx, fy, cx, cy = (torch.as_tensor(value).float() for value in (fx, fy, cx, cy))
    matrix = torch.zeros(*fx.shape, 3, 3, device=fx.device)
    matrix[..., 0, 0], matrix[..., 0, 2] = fx / width, cx / width
    matrix[..., 1, 1], matrix[..., 1, 2] = fy / height, cy / height
    matrix[..., 2, 2] = 1.0
    return matrix


def intrinsics_px_from_norm(intrinsics_norm: Tensor, size: tuple[int, int]) -> Tensor:
    """``intrinsics_norm`` [..., 3, 3] in pixels of an image of ``size`` (height, width)."""
    height, width = size
    return intrinsics_norm * intrinsics_norm.new_tensor([[width], [height], [1.0]])


def cameras_from_re10k_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """RealEstate10k camera rows [n, 18] as (world_from_camera [n, 4, 4], intrinsics_norm [n, 3, 3]).

    A row holds normalised fx, fy, cx, cy, two unused numbers, and the 3x4 camera-from-world matrix, row by row.
    """
    rows = rows.float()
    intrinsics = torch.eye(3).repeat(len(rows), 1, 1)
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = rows[:, 0], rows[:, 1]
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = rows[:, 2], rows[:, 3]
    camera_from_world = to_homogeneous(rows[:, 6:].reshape(-1, 3, 4))
    return torch.linalg.inv(camera_from_world), intrinsics


def cameras_from_pytorch3d(
    rotation: Tensor, translation: Tensor, focal_ndc: Tensor, principal_ndc: Tensor, size_px: Tensor, isotropic: Tensor
) -> tuple[Tensor, Tensor]:
    """PyTorch3D cameras, as CO3D stores them, as (world_from_camera [n, 4, 4], intrinsics_norm [n, 3, 3]).

    A world point, a row vector, has the camera coordinates ``point @ rotation + translation``. Focal length and
    principal point are (x, y) in normalised device coordinates: their unit is half the image's shorter side on both
    axes (``ndc_isotropic``), or half the width and half the height (``ndc_norm_image_bounds``).

    Args:
        rotation: [n, 3, 3].
        translation: [n, 3].
        focal_ndc: [n, 2].
        principal_ndc: [n, 2], from the image centre, +x left and +y up.
        size_px: [n, 2], (height, width) of the images.
        isotropic: Bool [n], which of the two units holds.

    Raises:
        torch.linalg.LinAlgError: If a pose cannot be inverted.
    """
    flip = torch.tensor([-1.0, -1.0, 1.0])
    camera_from_world = torch.cat([(rotation.float() * flip).mT, (translation.float() * flip)[..., None]], dim=-1)
    sides = size_px.float().flip(-1)
    unit_norm = torch.where(isotropic[:, None], sides.amin(-1, keepdim=True) / sides, torch.ones_like(sides)) / 2
    intrinsics = torch.eye(3).repeat(len(rotation), 1, 1)
    intrinsics[:, [0, 1], [0, 1]] = focal_ndc.float() * unit_norm
    intrinsics[:, :2, 2] = 0.5 - principal_ndc.float() * unit_norm
    return torch.linalg.inv(to_homogeneous(camera_from_world)), intrinsics


def z_up_rotation(world_from_camera: Tensor) -> Tensor:
    """A rotation [3, 3] that turns the mean up direction of OpenCV cameras [n, 4, 4] to +z.

    nerfstudio's viewer orbits about +z, while a predicted scene lives in whatever frame its dataset chose.
    """
    up = -world_from_camera[:, :3, 1].double().mean(0)
    up = up / up.norm().clamp_min(1e-12)
    target = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    axis, cosine = torch.linalg.cross(up, target), torch.dot(up, target)
    if cosine < -1 + 1e-9:  # upside down: any half turn about a horizontal axis
        return torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    skew = torch.zeros(3, 3, dtype=torch.float64)
    skew[0, 1], skew[0, 2], skew[1, 2] = -axis[2], axis[1], -axis[0]
    skew = skew - skew.T
    return (torch.eye(3, dtype=torch.float64) + skew + skew @ skew / (1 + cosine)).float()
