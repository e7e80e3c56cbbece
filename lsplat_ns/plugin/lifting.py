"""Generated views become part of a scene: a capture of photos and generated views as one predicted scene.

Every view is encoded with its best partner among those before it, in a frame where their cameras are 1 apart, and the
results are fused in one frame. Photos come first: where layers overlap, real beats generated (``lsplat_ns.fusion``).
"""

from __future__ import annotations

from pathlib import Path

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from lsplat_ns.data.batches import cameras_of
from lsplat_ns.data.pair_selection import extend_context
from lsplat_ns.errors import SceneDataError
from lsplat_ns.plugin.captures import read_capture
from lsplat_ns.plugin.encoding import encode_capture
from lsplat_ns.plugin.runs import StoredRun

MOST_GENERATED = 8
"""Generated views that are lifted: those that show most of what nothing before them shows."""


def lift(run: Path, capture: Path, output: Path, *, most_generated: int = MOST_GENERATED) -> Path:
    """Make a run that shows a capture of photos and generated views through the networks of a latentSplat run.

    Args:
        run: Run folder (or its config.yml) of any latentSplat method.
        capture: Folder that ``lsplat generate`` wrote: its transforms.json marks generated frames.
        output: Run folder to make; must not exist or be empty. The capture is copied into it.
        most_generated: How many generated views are lifted at most.

    Returns:
        The new run's config.yml.

    Raises:
        SceneDataError: If the capture has no photo or no generated view, or cannot be read.
        ConfigError: If ``run`` is no run of a latentSplat method, or the output folder is in use.
        CheckpointMismatch: If it has no checkpoint that fits.
    """
    image_size = StoredRun.open(run).config.pipeline.datamanager.preparation.image_size
    context = _context(capture, image_size, most_generated)
    return encode_capture(run, capture, output, context=context, include_capture=True)


def _context(capture: Path, image_size: tuple[int, int], most_generated: int) -> tuple[int, ...]:
    """The photos of a capture, then the generated views to lift, as frames in the order of file names."""
    dataparser = NerfstudioDataParserConfig(data=capture.expanduser().resolve()).setup()
    video, record = read_capture(dataparser)
    if not record.generated:
        raise SceneDataError(f"{capture} marks no frame as generated; pass a folder that lsplat generate wrote")
    photos = tuple(frame for frame in range(len(video)) if frame not in record.generated)
    if not photos:
        raise SceneDataError(f"{capture} holds generated views only; lifting starts from at least one photo")
    intrinsics = cameras_of(video, tuple(range(len(video))), image_size).intrinsics_norm[0]
    return extend_context(video.world_from_camera, intrinsics, photos, len(photos) + most_generated)
