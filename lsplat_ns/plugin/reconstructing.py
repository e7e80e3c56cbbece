"""``lsplat reconstruct``: photos without poses become a run that nerfstudio's commands open."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lsplat_ns.data.photo_pair import pose_pair
from lsplat_ns.data.photos import Photo, read_photo
from lsplat_ns.data.structure_from_motion import PosedPhotos, reconstruct_photos
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.geometry.conventions import opengl_from_opencv
from lsplat_ns.plugin.encoding import encode_capture
from lsplat_ns.plugin.runs import StoredRun, free_folder

JPEG_QUALITY = 95
MOST_VIEWS = 6
"""Photos that the network sees of many; each one beyond the first two costs as much as these."""


def reconstruct(
    photos: tuple[Path, ...],
    run: Path,
    output: Path,
    *,
    fov_degrees: float | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Make a run that shows photos without poses through the networks of another run.

    The run's folder holds the photos as a capture (``capture/transforms.json``, for nerfstudio-data) beside config.yml
    and weights. It appears whole or not at all. The same photos and run make the same scene.

    Args:
        photos: Two photos, or more with pycolmap. Of two, the network sees both; of more, an overlapping pair and up
            to four that show something new, fused.
        run: Run folder (or its config.yml) of any latentSplat method.
        output: Run folder to make; must not exist or be empty.
        fov_degrees: Field of view of every photo across its longer side; by default that of the EXIF data.
        say: Takes the report on the poses before the network starts.

    Returns:
        The new run's config.yml.

    Raises:
        ConfigError: If there are fewer than two photos, ``run`` is no such run, or the output folder is in use.
        CheckpointMismatch: If the run has no checkpoint.
        SceneDataError: If a photo cannot be read or is too small, or no poses can be found; the message says why.
        MissingExtra: If more than two photos are given and pycolmap is not installed.
    """
    if len(photos) < 2:
        raise ConfigError(f"a scene needs two photos, but {len(photos)} {'was' if photos else 'were'} given")
    free_folder(output)
    image_size = StoredRun.open(run).config.pipeline.datamanager.preparation.image_size
    pictures = tuple(check_size(read_photo(path, fov_degrees), image_size) for path in photos)
    posed = pose_photos(pictures)
    with tempfile.TemporaryDirectory(prefix="lsplat-reconstruct-") as folder:
        capture = Path(folder) / "capture"
        write_capture(posed, capture)
        say(posed.report)  # in here: whom it tells to stop presses Ctrl-C now, and nothing may be half begun
        context, views = (0, 1) if len(posed.photos) == 2 else None, min(len(posed.photos), MOST_VIEWS)
        return encode_capture(run, capture, output, context=context, num_context_views=views, include_capture=True)


def pose_photos(photos: tuple[Photo, ...]) -> PosedPhotos:
    """Poses of two photos (one unit apart, the first at the origin), or of more by structure from motion.

    Raises:
        SceneDataError: If no poses can be found; the message says why.
        MissingExtra: If more than two photos are given and pycolmap is not installed.
    """
    if len(photos) > 2:
        return reconstruct_photos(photos)
    pair = pose_pair(*photos)
    return PosedPhotos(photos, np.stack([np.eye(4), pair.first_from_second]), pair.report())


def write_capture(posed: PosedPhotos, folder: Path) -> None:
    """Write photos and poses as nerfstudio-data reads them; file names keep the order of the photos."""
    (folder / "images").mkdir(parents=True)
    poses = opengl_from_opencv(torch.from_numpy(posed.world_from_camera)).tolist()
    frames = []
    for number, (photo, pose) in enumerate(zip(posed.photos, poses, strict=True), start=1):
        name, (height, width) = f"images/photo_{number:03d}.jpg", photo.size
        Image.fromarray(photo.image).save(folder / name, quality=JPEG_QUALITY, subsampling=0)
        camera = {"fl_x": photo.focal_px, "fl_y": photo.focal_px, "cx": width / 2, "cy": height / 2}
        frames.append({"file_path": name, "w": width, "h": height, **camera, "transform_matrix": pose})
    content = {"camera_model": "OPENCV", "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content, indent=1) + "\n")


def check_size(photo: Photo, image_size: tuple[int, int]) -> Photo:
    """The photo, if it is large enough. Raises SceneDataError if it does not cover what the network looks at."""
    (height, width), (least_height, least_width) = photo.size, image_size
    if height < least_height or width < least_width:
        raise SceneDataError(
            f"{photo.path} has {width}x{height} pixels, but the network looks at {least_width}x{least_height}; "
            f"take a larger picture"
        )
    return photo
