"""What is to be generated: given views and the cameras of the others, from a scene of a dataset or from photos."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lsplat_ns.data.batches import PreparationConfig, baseline_of, cameras_of, network_scale, read_views
from lsplat_ns.data.layouts import layout_of
from lsplat_ns.data.photo_pair import pose_pair
from lsplat_ns.data.photos import describe_photos, read_photo
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.geometry.trajectories import PathConfig, camera_path, poses_between
from lsplat_ns.plugin.dataparsers import Co3dDataParserConfig, Re10kDataParserConfig, SceneSetDataParser
from lsplat_ns.plugin.inspecting import open_capture
from lsplat_ns.scene import Cameras, Views

SAME_POSE = 1e-6
"""Largest difference between poses that count as one, relative to how far the cameras are from the origin."""

FARTHEST = 1e6
"""Distance from the first given view, in the network's units (training views are about 1 apart), that no path has."""

Trajectory = PathConfig | int | None
"""A path away from the first given view; a number of frames between two given views; None: the scene's own cameras."""


@dataclass(frozen=True)
class GenerationTask:
    """Given views and cameras to generate. Positions are the source's, multiplied by ``scale``.

    Raises:
        SceneDataError: If all cameras are the same, one is out of reach, or a frame is stated twice.
    """

    name: str  # scene id, or the photos' names
    context: Views  # [1, v]
    cameras: Cameras  # [1, n]
    frames: tuple[int, ...]  # n numbers, none of them the context's
    scale: float = 1.0
    off_path: tuple[int, ...] = ()  # given frames that are no neighbours of others, whatever their numbers

    def __post_init__(self) -> None:
        _refuse_repeated((*self.given, *self.frames))
        farthest = (self.cameras.origins[0] - self.context.cameras.origins[0, :1]).abs().max()
        if not float(farthest) < FARTHEST:
            raise SceneDataError(
                f"cameras of {self.name} are up to {farthest:.2g} from the first given view, but those of training are "
                "about 1 apart; choose a shorter trajectory, or a smaller scale"
            )
        poses = self.cameras.world_from_camera[0]
        span = float(poses[:, :3, 3].abs().max())
        if len(poses) > 1 and float((poses - poses[:1]).abs().max()) <= SAME_POSE * max(span, 1.0):
            raise SceneDataError(f"the {len(poses)} cameras of {self.name} are all the same; choose another trajectory")

    @property
    def turns_on_the_spot(self) -> bool:
        """Whether all cameras stand at one place, which shows no depth."""
        cameras = self.context.cameras.concat(self.cameras).world_from_camera[0]
        return baseline_of(cameras) <= SAME_POSE * max(float(cameras[:, :3, 3].abs().max()), 1.0)

    @property
    def given(self) -> tuple[int, ...]:
        """Frame numbers of the context views."""
        return tuple(self.context.frame[0].tolist())


@dataclass(frozen=True)
class SceneRequest:
    """A scene of a dataset, and which of its frames are given."""

    data: Path
    """RealEstate10k chunks, CO3D, or a capture with a transforms.json."""
    scene: str | None = None
    """Scene id; or a number, which counts the scenes of the evaluation index (else of the dataset) from 0."""
    index: Path | None = None
    """Evaluation index; by default the one that belongs to the data."""
    split: str = "test"
    """Split that holds the scene."""
    context: tuple[int, ...] | None = None
    """Given frames; by default the first context frame of the scene's entry in the index, else frame 0."""
    limit_frames: int | None = None
    """Take the first so many of the scene's own cameras."""
    scale: float | None = None
    """Factor on camera positions; by default 1 / the distance of the given frames, as in training. One given frame
    takes that of the two context frames of the scene's entry in the index, or 1, as published, where it has one."""

    def __post_init__(self) -> None:
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"a scale is a positive factor on camera positions, not {self.scale:g}")

    def task(self, size: tuple[int, int], trajectory: Trajectory) -> GenerationTask:
        """Read the given frames at ``size`` (height, width).

        Raises:
            SceneDataError: If there is no such scene or frame, one is stated twice, cannot be read or is too small.
            ConfigError: If the request contradicts the data.
        """
        video, entry = self._find()
        if self.context is None and not entry.context:
            raise SceneDataError(f"the evaluation index gives scene {video.scene} no context frame; state a --context")
        given = entry.context[:1] if self.context is None else tuple(self.context)
        if not given:
            raise ConfigError("--context takes the number of a given frame, or more")
        video.check_frames(given)
        _refuse_repeated(given)
        for frame in given:
            _check_covers(f"frame {frame} of scene {video.scene}", video.read_size(frame), size)
        measured = given if len(given) > 1 else entry.context[:2]
        scale = network_scale(video, measured, PreparationConfig(size)) if self.scale is None else self.scale
        context = read_views(video, given, size, scale)
        if trajectory is not None:
            return _task_of_path(video.scene, context, trajectory, scale)
        frames = self._own_frames(video, entry, given)
        return GenerationTask(video.scene, context, cameras_of(video, frames, size, scale), frames, scale)

    def _own_frames(self, video: PosedVideo, entry: FrameChoice, given: tuple[int, ...]) -> tuple[int, ...]:
        """Targets of the entry, then those of its context frames that are not given, as in the original."""
        wanted = dict.fromkeys((*entry.target, *entry.context))
        frames = tuple(frame for frame in wanted if frame not in given)[: self.limit_frames]
        if not frames:
            raise SceneDataError(f"scene {video.scene} has no camera besides the given frames; state a --trajectory")
        video.check_frames(frames)
        return frames

    def _find(self) -> tuple[PosedVideo, FrameChoice]:
        layout = layout_of(self.data)
        if layout == "capture":
            if self.index is not None:
                raise ConfigError(f"{self.data} is a capture, which has no evaluation index; leave out --index")
            video = open_capture(self.data).source.videos[0]
            if self.scene not in (None, "0", video.scene):
                raise SceneDataError(f"no scene {self.scene!r} in {self.data}; it holds {video.scene} alone")
            return video, _whole(video)
        kind = Co3dDataParserConfig if layout == "co3d" else Re10kDataParserConfig
        dataparser = kind(data=self.data, evaluation_index=self.index, scene_split=self.split).setup()
        choices = dataparser.evaluation_choices()
        scene = _resolve(self.scene, dataparser, tuple(choices))
        video = dataparser.read_scene(scene)
        return video, choices[scene][0] if scene in choices else _whole(video)


@dataclass(frozen=True)
class PhotoRequest:
    """One photo; or two of one place, whose relative pose is estimated and whose cameras are then 1 apart."""

    photos: tuple[Path, ...]
    fov_degrees: float | None = None
    """Field of view across the longer side; by default that of the EXIF data."""

    def __post_init__(self) -> None:
        if len(self.photos) not in (1, 2):
            raise ConfigError(f"views are generated from one or two photos, but {len(self.photos)} were given")

    def task(self, size: tuple[int, int], trajectory: PathConfig | int) -> tuple[GenerationTask, str]:
        """Read the photos at ``size``. The first one's camera is the origin. Returns a report on them as well.

        Raises:
            SceneDataError: If a photo cannot be read or is too small, or two have no relative pose.
            ConfigError: If a path between photos is asked for and there is one.
        """
        photos = [read_photo(path, self.fov_degrees) for path in self.photos]
        for photo in photos:
            _check_covers(str(photo.path), photo.size, size)
        poses, report = torch.eye(4)[None], "\n".join(describe_photos(photos))
        if len(photos) == 2:
            pair = pose_pair(*photos)
            poses, report = torch.stack([torch.eye(4), torch.from_numpy(pair.first_from_second).float()]), pair.report()
        intrinsics = torch.stack([torch.from_numpy(photo.intrinsics_norm).float() for photo in photos])
        video = PosedVideo(
            scene=" and ".join(photo.path.stem for photo in photos),
            world_from_camera=poses,
            intrinsics_norm=intrinsics,
            read_image=lambda frame: photos[frame].image,
            read_size=lambda frame: photos[frame].size,
        )
        context = read_views(video, tuple(range(len(photos))), size)
        return _task_of_path(video.scene, context, trajectory, 1.0), report


def _task_of_path(name: str, context: Views, trajectory: PathConfig | int, scale: float) -> GenerationTask:
    """A path through the network's units. Given views are frames 0, 1, ...; between two views, the ends of the path."""
    poses, given, off_path = context.cameras.world_from_camera[0], context.frame.shape[1], ()
    if isinstance(trajectory, PathConfig):
        path = camera_path(poses[0], trajectory)
        numbers, frames = tuple(range(given)), tuple(range(given, given + len(path)))
        off_path = numbers[1:]
    else:
        if given != 2:
            raise ConfigError(f"trajectory between goes from one given view to another, but {given} are given")
        if trajectory < 1:
            raise ConfigError(f"a camera path needs 1 frame or more, not {trajectory}")
        fractions = torch.arange(1, trajectory + 1) / (trajectory + 1)
        path = poses_between(poses[0], poses[1], fractions)
        numbers, frames = (0, trajectory + 1), tuple(range(1, trajectory + 1))
    context = Views(context.image, context.cameras, torch.tensor(numbers)[None])
    return GenerationTask(name, context, _like_first(path, context.cameras), frames, scale, off_path)


def _like_first(poses: Tensor, cameras: Cameras) -> Cameras:
    """Cameras [1, n] at poses [n, 4, 4] with the intrinsics of the first of ``cameras``."""
    ones = torch.ones(1, len(poses))
    return Cameras(poses[None], cameras.intrinsics_norm[:, :1].expand(1, len(poses), 3, 3).contiguous(), ones, ones)


def _whole(video: PosedVideo) -> FrameChoice:
    """As in the published evaluation index: everything from the first frame."""
    if len(video) < 2:
        raise SceneDataError(f"scene {video.scene} has one frame; give a photo with --image instead")
    return FrameChoice((0,), tuple(range(1, len(video))))


def _resolve(wanted: str | None, dataparser: SceneSetDataParser, listed: Sequence[str]) -> str:
    """The id of a scene. Whatever is an id is one; other numbers count the evaluation index in its order."""
    config = dataparser.config
    scenes = dataparser.split(config.scene_split).scenes
    counted = listed or scenes
    place, span = config.data / config.scene_split, f"a number from 0 to {len(counted) - 1}"
    if wanted is None:
        raise ConfigError(f"state the scene of {place} with --scene: {span}, or an id such as {counted[0]}")
    known = set(scenes)
    if wanted in known:
        return wanted
    by_number = wanted.isdecimal() and wanted not in listed and int(wanted) < len(counted)
    scene = counted[int(wanted)] if by_number else wanted
    if scene in known:
        return scene
    if scene in listed:
        number = f"scene {wanted} is {scene}, which" if by_number else f"scene {scene}"
        raise SceneDataError(f"{number} is in the evaluation index, but not in {place}")
    nearest = difflib.get_close_matches(wanted, scenes, n=1, cutoff=0.0)
    raise SceneDataError(f"no scene {wanted!r} in {place}; give {span}, or an id; the nearest is {nearest[0]}")


def _refuse_repeated(frames: Sequence[int]) -> None:
    repeated = [frame for frame, times in Counter(frames).items() if times > 1]
    if repeated:
        raise SceneDataError(f"frame {repeated[0]} is stated twice; given and generated frames must all differ")


def _check_covers(what: str, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    if size[0] < wanted[0] or size[1] < wanted[1]:
        raise SceneDataError(
            f"{what} has {size[1]}x{size[0]} pixels, but views of {wanted[1]}x{wanted[0]} are generated; take a larger "
            f"picture, or lower --size",
            reason="image size",
        )
