"""Scenes from stock nerfstudio dataparsers: any capture that nerfstudio can read becomes a posed video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from PIL import Image, UnidentifiedImageError

from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.view_sampling import FrameChoice, spread_choice
from lsplat_ns.errors import SceneDataError
from lsplat_ns.geometry.conventions import intrinsics_norm_from_px, opencv_from_opengl
from lsplat_ns.geometry.similarity import Similarity
from lsplat_ns.plugin.active_scene import ActiveScene


def video_from_dataparser(dataparser: DataParser) -> PosedVideo:
    """All images of a capture, train and held-out ones, ordered by file name, in nerfstudio's frame.

    Raises:
        SceneDataError: If the dataparser cannot read the capture.
    """
    data = Path(dataparser.config.data)
    if not data.exists():
        raise SceneDataError(f"no data at {data}; pass a folder that {type(dataparser).__name__} can read with --data")
    frames: dict[Path, tuple[torch.Tensor, torch.Tensor]] = {}
    for split in ("train", "test"):
        try:
            outputs = dataparser.get_dataparser_outputs(split=split)
        except Exception as error:  # each dataparser has its own ways to fail
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SceneDataError(f"{type(dataparser).__name__} cannot read {data}: {reason}") from error
        frames.update(_frames_of(outputs))
    if not frames:
        raise SceneDataError(f"{type(dataparser).__name__} found no image in {data}")
    files = sorted(frames)

    def open_image(frame: int) -> Image.Image:
        try:
            return Image.open(files[frame])
        except (OSError, UnidentifiedImageError):
            raise SceneDataError(f"cannot read image {files[frame]}") from None

    def read_image(frame: int) -> np.ndarray:
        picture = open_image(frame)
        if picture.mode in ("RGBA", "LA", "P"):  # nerfstudio shows transparent pixels on white
            white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        return np.asarray(picture.convert("RGB"))

    def read_size(frame: int) -> tuple[int, int]:
        width, height = open_image(frame).size
        return height, width

    poses = torch.stack([frames[file][0] for file in files])
    intrinsics = torch.stack([frames[file][1] for file in files])
    return PosedVideo(data.stem or data.resolve().name, poses, intrinsics, read_image, read_size)


def _frames_of(outputs: DataparserOutputs) -> dict[Path, tuple[torch.Tensor, torch.Tensor]]:
    """Pose and normalised intrinsics by image file."""
    cameras = outputs.cameras
    poses = opencv_from_opengl(cameras.camera_to_worlds)
    intrinsics = intrinsics_norm_from_px(
        *(getattr(cameras, name)[:, 0] for name in ("fx", "fy", "cx", "cy", "width", "height"))
    )
    return {file: (poses[i], intrinsics[i]) for i, file in enumerate(outputs.image_filenames)}


def active_scene_from_dataparser(
    dataparser: DataParser, preparation: PreparationConfig, context: tuple[int, ...] | None, context_gap: int
) -> ActiveScene:
    """A capture as active scene; nerfstudio's frame is the capture's own, so that camera paths and exports line up.

    Args:
        dataparser: Any stock dataparser.
        preparation: Image size and units of the network.
        context: Context frames; None takes a centred pair, ``context_gap`` apart at most.
        context_gap: See ``context``.
    """
    video = video_from_dataparser(dataparser)
    if context is None:
        choice = spread_choice(len(video), context_gap)
    else:
        video.check_frames(context)
        choice = FrameChoice(context, tuple(i for i in range(len(video)) if i not in context))
    return ActiveScene(video, choice, preparation, Similarity())
