"""Scenes from stock nerfstudio dataparsers: any capture that nerfstudio can read becomes a posed video."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, Optional, Tuple

import numpy as np
import torch
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, Cameras, CameraType
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image
from rich.markup import escape

from lsplat_ns.data.batches import PreparationConfig, baseline_of, cameras_of
from lsplat_ns.data.pair_selection import ONE_PLACE, choose_context
from lsplat_ns.data.photos import eight_bit_rgb, formats_of
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.transforms_json import check_transforms
from lsplat_ns.data.undistortion import Lens, PinholeView
from lsplat_ns.data.view_sampling import FrameChoice, spread_choice
from lsplat_ns.errors import ConfigError, LsplatError, SceneDataError
from lsplat_ns.geometry.conventions import intrinsics_norm_from_px, opencv_from_opengl
from lsplat_ns.geometry.similarity import Similarity
from lsplat_ns.plugin.active_scene import ActiveScene, CaptureRecord

LENSES: dict[int, Lens] = {
    CameraType.PERSPECTIVE.value: "radial-tangential",
    CameraType.FISHEYE.value: "fisheye",
}
"""Camera models that can be turned into pinhole cameras."""
LARGEST_ASPECT_ERROR = 0.01
"""A photo whose aspect ratio is farther from its camera's is the wrong photo, or turned."""
ONE_CAMERA_PLACE = (
    "the cameras of {} all stand at one place, or there is only one; a scene needs photos from two places"
)


@dataclass
class CaptureContextConfig:
    """Which frames of a capture the network sees."""

    context: Optional[Tuple[int, ...]] = None
    """Frames of a capture that the network sees, two or more, counted from 0 in the order of file names (2 before 10);
    more than two are encoded in pairs and fused. By default they are chosen."""
    context_choice: Literal["overlap", "first-last", "centred"] = "overlap"
    """How they are chosen: a pair with overlap and parallax, the first and the last frame, or a centred pair."""
    num_context_views: int = 2
    """How many frames context-choice overlap takes; it stops earlier where no further frame fits."""
    context_gap: int = 45
    """Largest gap of the centred pair, in frames."""

    def __post_init__(self) -> None:
        if self.context is not None and (len(self.context) < 2 or len(set(self.context)) < len(self.context)):
            raise ConfigError(f"context needs at least two different frames, not {' '.join(map(str, self.context))}")
        if self.num_context_views < 2:
            raise ConfigError(f"num-context-views must be at least 2, but is {self.num_context_views}")


@dataclass(frozen=True)
class _Photo:
    """One photo with its camera. Reading it raises SceneDataError."""

    file: Path
    pose: torch.Tensor  # [4, 4] world from camera
    intrinsics: tuple[tuple[float, ...], ...]  # normalised, of the photo
    distortion: tuple[float, ...]  # six parameters as nerfstudio stores them
    lens: Lens
    camera_size: tuple[int, int]  # (height, width) that the camera states

    def pinhole(self, size: tuple[int, int]) -> PinholeView:
        """The way to the picture, for a photo of ``size`` (height, width)."""
        stated_height, stated_width = self.camera_size
        height, width = size
        if min(self.camera_size) < 1:
            raise SceneDataError(f"the camera of {self.file} states a size of {stated_width}x{stated_height} pixels")
        if abs(width * stated_height / (height * stated_width) - 1) > LARGEST_ASPECT_ERROR:
            turned = abs(height * stated_height / (width * stated_width) - 1) <= LARGEST_ASPECT_ERROR
            raise SceneDataError(
                f"{self.file} has {width}x{height} pixels, but its camera is one for {stated_width}x{stated_height}"
                + ("; turn its pixels: nerfstudio does not follow the EXIF orientation" if turned else "")
            )
        return _pinhole_view(self.intrinsics, self.distortion, self.lens, size)

    def picture(self) -> np.ndarray:
        """The pinhole picture uint8 [height, width, 3]."""
        with self._open() as photo:
            return self.pinhole(photo.size[::-1]).apply(np.asarray(eight_bit_rgb(photo)))

    def picture_size(self) -> tuple[int, int]:
        """Its (height, width), without decoding the photo."""
        with self._open() as photo:
            return self.pinhole(photo.size[::-1]).size

    @contextmanager
    def _open(self) -> Iterator[Image.Image]:
        try:
            with Image.open(self.file, formats=formats_of(self.file)) as photo:
                yield photo
        except Image.UnidentifiedImageError:
            raise SceneDataError(f"cannot read image {self.file}: it is no picture") from None
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
            raise SceneDataError(f"cannot read image {self.file}: {reason}") from None


@lru_cache(maxsize=256)
def _pinhole_view(
    intrinsics: tuple[tuple[float, ...], ...], distortion: tuple[float, ...], lens: Lens, size: tuple[int, int]
) -> PinholeView:
    """The photos of a capture often share one camera, and a fisheye's way takes a while to find."""
    return PinholeView.of(torch.tensor(intrinsics), torch.tensor(distortion), lens, size)


def open_dataparser(config: DataParserConfig) -> DataParser:
    """A dataparser that is ready to read. Raises SceneDataError where it looks into its folder at once, and fails."""
    if isinstance(config, ColmapDataParserConfig):
        config = _without_questions(config)
    try:
        return config.setup()
    except LsplatError:
        raise
    except Exception as error:  # each dataparser has its own ways to fail
        raise SceneDataError(f"{_name_of(config)} cannot read {config.data}: {_in_one_line(error)}") from None


def _without_questions(config: ColmapDataParserConfig) -> ColmapDataParserConfig:
    """Read neither points nor smaller copies of large photos, which nerfstudio wants to make, and asks before it does.

    Copies that are there are used, or those of the factor that is stated.
    """
    photos = config.data / config.images_path
    factor = config.downscale_factor
    if factor is None and not any(photos.parent.glob(f"{glob.escape(photos.name)}_[0-9]*")):
        factor = 1
    return replace(config, load_3D_points=False, downscale_factor=factor)


def _name_of(config: DataParserConfig) -> str:
    """What a dataparser is called on the command line."""
    return next((name for name, known in all_dataparsers.items() if type(known) is type(config)), type(config).__name__)


def _in_one_line(error: Exception) -> str:
    """What an exception of foreign code says, with its type where the message alone is no sentence."""
    message = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__} {message}".strip() if " " not in message else message


def video_from_dataparser(dataparser: DataParser) -> PosedVideo:
    """All images of a capture, train and held-out ones, ordered by the numbers in file names, in nerfstudio's frame.

    Photos of lenses with distortion are undistorted, and every photo is cut so that its principal point is its centre.

    Raises:
        SceneDataError: If the dataparser cannot read the capture, or it holds no two photos from different places.
    """
    return read_capture(dataparser)[0]


def active_scene_from_dataparser(
    dataparser: DataParser, preparation: PreparationConfig, config: CaptureContextConfig
) -> ActiveScene:
    """A capture as active scene; nerfstudio's frame is the capture's own, so that camera paths and exports line up.

    The dataset's frame becomes that of the first context camera, in units of the first pair's baseline: what the
    network predicts then depends neither on the units nor on the orientation that a capture happens to have.

    Raises:
        SceneDataError: If the capture cannot be read, a stated frame does not exist, or no pair can be used.
    """
    video, record = read_capture(dataparser)
    context = _context(video, preparation, config)
    video.check_frames(context)
    readable, reasons = readable_frames(video)
    if reasons:
        CONSOLE.print(
            f"[yellow]{len(reasons)} of {len(video)} photos cannot be looked at, such as: {escape(reasons[0])}"
        )
    others = tuple(i for i in readable if i not in context)
    choice = FrameChoice(context, others or context)  # a capture of two photos is looked at through those
    first = video.world_from_camera[context[0]]
    baseline = baseline_of(video.world_from_camera[list(context[:2])])
    if baseline <= ONE_PLACE * baseline_of(video.world_from_camera):
        raise SceneDataError(
            f"context frames {context[0]} and {context[1]} of {video.scene} stand at one place; choose others"
        )
    nerfstudio_from_video = Similarity(baseline, first[:3, :3], first[:3, 3])
    poses = nerfstudio_from_video.inverse().apply_to_poses(video.world_from_camera)
    return ActiveScene(replace(video, world_from_camera=poses), choice, preparation, nerfstudio_from_video, record)


def _context(video: PosedVideo, preparation: PreparationConfig, config: CaptureContextConfig) -> tuple[int, ...]:
    if config.context is not None:
        return tuple(config.context)
    if config.context_choice == "first-last":
        return 0, len(video) - 1
    if config.context_choice == "centred" and len(video) > 2:
        return spread_choice(len(video), config.context_gap).context
    return best_pair(video, preparation, config.num_context_views)


def best_pair(video: PosedVideo, preparation: PreparationConfig, count: int = 2) -> tuple[int, ...]:
    """The readable frames with the best overlap and parallax. Raises SceneDataError if no two frames can be used."""
    frames, reasons = readable_frames(video)
    if len(frames) < 2:
        raise SceneDataError(reasons[0])
    intrinsics = cameras_of(video, frames, preparation.image_size).intrinsics_norm[0]
    chosen = choose_context(video.world_from_camera[list(frames)], intrinsics, count)
    return tuple(frames[i] for i in chosen)


def readable_frames(video: PosedVideo) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Frames whose pictures are there and fit their cameras, judged by their headers; and why the others are not."""
    frames, reasons = [], []
    for frame in range(len(video)):
        try:
            video.read_size(frame)
        except SceneDataError as error:
            reasons.append(str(error))
        else:
            frames.append(frame)
    return tuple(frames), tuple(reasons)


def read_capture(dataparser: DataParser) -> tuple[PosedVideo, CaptureRecord]:
    """As :func:`video_from_dataparser`, with what nerfstudio knows of the capture besides."""
    data, name = Path(dataparser.config.data), _name_of(dataparser.config)
    if not data.exists():
        raise SceneDataError(f"no data at {data}; pass a folder that {name} can read with --data")
    splits = _splits(dataparser, data)
    found = {photo.file: photo for outputs in splits for photo in _photos_of(outputs, data)}
    photos = [found[file] for file in sorted(found, key=_by_number)]
    if len(photos) < 2:
        count = f"{len(photos)} image" if photos else "no image"
        raise SceneDataError(f"{name} found {count} in {data}; the network needs at least two")
    transform, scale = splits[0].dataparser_transform, splits[0].dataparser_scale
    poses = torch.stack([photo.pose for photo in photos])
    _refuse_one_place(data, poses, transform, scale)
    video = PosedVideo(
        scene=capture_name(data),
        world_from_camera=poses,
        intrinsics_norm=torch.stack([photo.pinhole(photo.camera_size).intrinsics_norm for photo in photos]),
        read_image=lambda frame: photos[frame].picture(),
        read_size=lambda frame: photos[frame].picture_size(),
    )
    files = tuple(photo.file for photo in photos)
    known = generated_files(data)
    generated = frozenset(number for number, file in enumerate(files) if file.resolve() in known)
    return video, CaptureRecord(files, transform, scale, generated)


def _by_number(file: Path) -> tuple[list[list[str | int]], Path]:
    """Sorts ``r_9.png`` before ``r_10.png``, as the frames were taken; numbers stand at odd places."""
    parts = [re.split(r"(\d+)", part) for part in file.parts]
    return [[int(text) if place % 2 else text for place, text in enumerate(part)] for part in parts], file


def capture_name(data: Path) -> str:
    """The scene id of a capture."""
    return data.stem or data.resolve().name


def generated_files(data: Path) -> frozenset[Path]:
    """Pictures of a capture that a network generated: frames with ``"generated": true`` in its transforms.json."""
    file = data / "transforms.json" if data.is_dir() else data
    if file.suffix != ".json" or not file.is_file():
        return frozenset()
    try:
        frames = [frame for frame in json.loads(file.read_text())["frames"] if frame.get("generated") is True]
        return frozenset((file.parent / frame["file_path"]).resolve() for frame in frames)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset()  # not one of ours: nerfstudio-data's files are checked, other dataparsers read other files


def _splits(dataparser: DataParser, data: Path) -> list[DataparserOutputs]:
    """What the dataparser says of its splits. A capture may lack a split, but not all of them."""
    file = data / "transforms.json" if data.is_dir() else data
    if isinstance(dataparser.config, NerfstudioDataParserConfig) and file.exists():
        check_transforms(file, CAMERA_MODEL_TO_TYPE)
    splits, reasons = [], {}
    for split in ("train", "val", "test"):
        try:
            outputs = dataparser.get_dataparser_outputs(split=split)
            if outputs.image_filenames and outputs.cameras.shape != (len(outputs.image_filenames),):
                raise ValueError("its cameras are not one for each image")  # instant-ngp-data's, of a single image
            splits.append(outputs)
        except ZeroDivisionError:  # nerfstudio divides by the spread of the cameras
            raise SceneDataError(ONE_CAMERA_PLACE.format(data)) from None
        except Exception as error:  # each dataparser has its own ways to fail
            reasons[split] = _in_one_line(error)
    name = _name_of(dataparser.config)
    if not splits:
        raise SceneDataError(f"{name} cannot read {data}: {reasons['train']}{_hint(dataparser.config)}")
    for split, reason in reasons.items():
        _say_once(f"{name} leaves out the {split} split of {data}: {reason}")
    return splits


def _hint(config: DataParserConfig) -> str:
    """Where else a COLMAP model lies, in the layout that COLMAP itself leaves; empty where that is no help."""
    if not isinstance(config, ColmapDataParserConfig) or (config.data / config.colmap_path).exists():
        return ""
    found = next((place for place in ("sparse/0", "sparse") if (config.data / place).is_dir()), None)
    return "" if found is None else f" State --colmap-path {found}"


@cache
def _say_once(note: str) -> None:
    """Print a note, the first time that a capture of this process has it."""
    CONSOLE.print(f"[yellow]{escape(note)}")


def _photos_of(outputs: DataparserOutputs, data: Path) -> Iterator[_Photo]:
    cameras: Cameras = outputs.cameras
    poses = opencv_from_opengl(cameras.camera_to_worlds)
    intrinsics = intrinsics_norm_from_px(
        *(getattr(cameras, name)[:, 0] for name in ("fx", "fy", "cx", "cy", "width", "height"))
    )
    for i, file in enumerate(outputs.image_filenames):
        kind = int(cameras.camera_type[i])
        if kind not in LENSES:
            raise SceneDataError(
                f"{data} has {CameraType(kind).name.lower()} cameras; the network needs pinhole ones, with or without "
                f"distortion, or fisheyes"
            )
        yield _Photo(
            file=file,
            pose=poses[i],
            intrinsics=tuple(map(tuple, intrinsics[i].tolist())),
            distortion=(0.0,) * 6
            if cameras.distortion_params is None
            else tuple(cameras.distortion_params[i].tolist()),
            lens=LENSES[kind],
            camera_size=(int(cameras.height[i]), int(cameras.width[i])),
        )


def _refuse_one_place(data: Path, poses: torch.Tensor, transform: torch.Tensor, scale: float) -> None:
    """Refuse cameras that differ by rounding only, which nerfstudio's scaling would blow up."""
    original = Similarity(1.0, transform[:, :3], transform[:, 3]).inverse().apply_to_points(poses[:, :3, 3] / scale)
    if baseline_of(poses) / scale <= ONE_PLACE * float(original.abs().max()):
        raise SceneDataError(ONE_CAMERA_PLACE.format(data))
