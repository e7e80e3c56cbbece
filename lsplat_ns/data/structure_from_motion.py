"""Three and more photos without poses: structure from motion by pycolmap, an optional extra."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from lsplat_ns.data.photos import Photo, describe_photos
from lsplat_ns.errors import MissingExtra, SceneDataError


@dataclass(frozen=True)
class PosedPhotos:
    """Photos with poses in one frame of arbitrary units."""

    photos: tuple[Photo, ...]  # focal lengths as refined
    world_from_camera: np.ndarray  # [n, 4, 4] OpenCV axes
    report: str


def reconstruct_photos(photos: tuple[Photo, ...]) -> PosedPhotos:
    """Poses and focal lengths of photos that overlap in a chain or more. Photos that fit nowhere are left out.

    Photos of one size and focal length are taken to come from one camera.

    Raises:
        MissingExtra: If pycolmap is not installed.
        SceneDataError: If fewer than two photos can be joined.

    Source: Schoenberger and Frahm 2016 (COLMAP).
    """
    try:
        import pycolmap
    except ImportError:
        raise MissingExtra(
            "more than two photos need pycolmap: pip install 'lsplat-ns[colmap]', or pass two photos"
        ) from None
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)
    pycolmap.set_random_seed(0)
    names = [f"{number:04d}.png" for number in range(len(photos))]
    with tempfile.TemporaryDirectory(prefix="lsplat-photos-") as folder:
        root = Path(folder)
        images, database = root / "images", root / "features.db"
        images.mkdir()
        cameras = defaultdict(list)
        for name, photo in zip(names, photos, strict=True):
            Image.fromarray(photo.image).save(images / name, compress_level=1)
            cameras[photo.size, photo.focal_px].append(name)
        for ((height, width), focal_px), of_camera in cameras.items():
            options = pycolmap.ImageReaderOptions(
                camera_model="SIMPLE_PINHOLE", camera_params=f"{focal_px},{width / 2},{height / 2}"
            )
            pycolmap.extract_features(database, images, of_camera, pycolmap.CameraMode.SINGLE, options)
        pycolmap.match_exhaustive(database)
        models = pycolmap.incremental_mapping(database, images, root / "models").values()
        best = max(models, key=lambda model: model.num_reg_images(), default=None)
        if best is None or best.num_reg_images() < 2:
            raise SceneDataError(
                f"the {len(photos)} photos cannot be joined: they share too little, or were taken from one place"
            )
        return _posed(photos, names, best)


def _posed(photos: tuple[Photo, ...], names: list[str], model) -> PosedPhotos:
    """The photos that a pycolmap reconstruction has placed, in their order."""
    kept, poses, left_out = [], [], []
    for name, photo in zip(names, photos, strict=True):
        image = model.find_image_with_name(name)
        if image is None or not image.has_pose:
            left_out.append(photo.path.name)
            continue
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().inverse().matrix()
        poses.append(pose)
        kept.append(replace(photo, focal_px=float(image.camera.focal_length), focal_source="refined", notes=()))
    lines = [
        *describe_photos(kept),
        *(f"Warning: {name} fits nowhere and is left out" for name in left_out),
        f"{len(kept)} of {len(photos)} photos are placed, with {model.num_points3D()} points at a mean reprojection "
        f"error of {model.compute_mean_reprojection_error():.2f} pixels",
    ]
    return PosedPhotos(tuple(kept), np.stack(poses), "\n".join(lines))
