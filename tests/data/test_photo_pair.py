"""Poses of two photos: right on pictures whose poses are known, and refused with a reason where they cannot be told."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from demo_captures import photo, room
from parity import SHARED
from PIL import Image

from lsplat_ns.data import photo_pair
from lsplat_ns.data.demo_scenes.demo_scene import build_demo_scene
from lsplat_ns.data.photo_pair import PhotoPair, _focal_doubt, pose_pair
from lsplat_ns.data.photos import Photo
from lsplat_ns.errors import SceneDataError

SIZE = (288, 384)


def as_photo(image: np.ndarray, focal_px: float, name: str) -> Photo:
    return Photo(Path(name), image, focal_px, "stated")


@cache
def room_photo(frame: int) -> tuple[Photo, np.ndarray]:
    camera = room(SIZE).cameras[frame]
    return as_photo(photo(frame, SIZE), camera.focal_norm[0] * SIZE[1], f"{frame}.jpg"), camera.world_from_camera


@cache
def other_room_photo() -> Photo:
    scene = build_demo_scene("rooms", 11, 1, 4, (144, 192))
    return as_photo(scene.frame(0).image, scene.cameras[0].focal_norm[0] * 192, "other.jpg")


def errors_degrees(pair: PhotoPair, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Of the rotation, and of the direction of the baseline."""
    truth = np.linalg.inv(first) @ second
    estimate = pair.first_from_second
    turned = (np.trace(estimate[:3, :3].T @ truth[:3, :3]) - 1) / 2
    along = estimate[:3, 3] @ truth[:3, 3] / np.linalg.norm(truth[:3, 3])
    return tuple(float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))) for cosine in (turned, along))


@pytest.mark.parametrize("frames", [(0, 13), (2, 10), (12, 3), (5, 9)])
def test_the_second_camera_of_a_demo_room_is_found(frames: tuple[int, int]) -> None:
    (first, first_pose), (second, second_pose) = map(room_photo, frames)
    pair = pose_pair(first, second)
    rotation, direction = errors_degrees(pair, first_pose, second_pose)
    assert rotation < 0.5 and direction < 3
    assert np.linalg.norm(pair.first_from_second[:3, 3]) == pytest.approx(1)
    assert pair.inliers > 0.8 * pair.matches and min(pair.overlap) > 0.5


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not beside this checkout")
def test_the_second_camera_of_real_photos_is_found() -> None:
    from lsplat_ns.data.re10k import Re10kSplit

    split = Re10kSplit.open(SHARED / "data" / "llff_horns_re10k", "test")
    video = split.read_scene(split.scenes[0])
    for frames in ((0, 4), (3, 7), (9, 11)):
        photos = [
            as_photo(video.read_image(frame), float(video.intrinsics_norm[frame, 0, 0]) * 640, f"{frame}.jpg")
            for frame in frames
        ]
        pair = pose_pair(*photos)
        rotation, direction = errors_degrees(pair, *(video.world_from_camera[frame].numpy() for frame in frames))
        assert rotation < 1 and direction < 2, frames


def test_photos_of_different_size_and_shape_go_together() -> None:
    (first, first_pose), (second, second_pose) = map(room_photo, (2, 10))
    image = Image.fromarray(second.image).crop((48, 0, 336, 288)).resize((432, 432), Image.Resampling.LANCZOS)
    square = as_photo(np.asarray(image), second.focal_px * 1.5, "square.jpg")
    rotation, direction = errors_degrees(pose_pair(first, square), first_pose, second_pose)
    assert rotation < 0.5 and direction < 3


def test_the_same_photos_give_the_same_pose() -> None:
    pairs = [pose_pair(room_photo(0)[0], room_photo(13)[0]) for _ in range(2)]
    assert np.array_equal(pairs[0].first_from_second, pairs[1].first_from_second)
    assert pairs[0].report() == pairs[1].report()


def test_the_report_names_inliers_angles_overlap_and_focal_lengths() -> None:
    pair = pose_pair(room_photo(0)[0], room_photo(13)[0])
    report = pair.report()
    for words in (
        f"{pair.inliers} of {pair.matches} matching points", f"turned by {pair.rotation_degrees:.1f} degrees",
        f"{pair.triangulation_degrees:.1f} degrees (median)", f"overlap: {pair.overlap[0]:.0%} of 0.jpg",
        "384x288 pixels, field of view", "(stated)",
    ):  # fmt: skip
        assert words in report, report


@pytest.mark.parametrize("degrees", [0, 4, 15])
def test_a_camera_that_only_turned_is_refused(degrees: float) -> None:
    first, _ = room_photo(4)
    rotation, _ = cv2.Rodrigues(np.radians([0.2 * degrees, degrees, 0.1 * degrees]))
    warp = first.intrinsics_px @ rotation @ np.linalg.inv(first.intrinsics_px)
    turned = cv2.warpPerspective(first.image, warp, SIZE[::-1], flags=cv2.INTER_CUBIC)
    with pytest.raises(SceneDataError, match=r"no baseline between 4\.jpg and turned\.jpg.*step sideways"):
        pose_pair(first, as_photo(turned, first.focal_px, "turned.jpg"))


@pytest.mark.parametrize("by", ["rotation", "lines of sight"])
def test_a_step_too_small_to_tell_depth_is_refused(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "lines of sight":  # they decide where photos are large: a rotation then explains less of a small step
        monkeypatch.setattr(photo_pair, "LARGEST_ROTATION_SHARE", 1.0)
    camera, further = (room(SIZE).cameras[frame] for frame in (4, 6))
    near = camera.world_from_camera.copy()
    near[:3, 3] += 0.3 * (further.world_from_camera[:3, 3] - near[:3, 3])
    moved = room(SIZE).renderer.frame(replace(camera, world_from_camera=near), SIZE).image
    words = {"rotation": "turns on the spot", "lines of sight": r"lines of sight meet at 0\.\d degrees"}[by]
    with pytest.raises(SceneDataError, match=f"no baseline.*{words}"):
        pose_pair(room_photo(4)[0], as_photo(moved, room_photo(4)[0].focal_px, "near.jpg"))


def test_photos_of_different_places_are_refused() -> None:
    with pytest.raises(SceneDataError, match=r"matching points.*(different things|too wide)"):
        pose_pair(room_photo(4)[0], other_room_photo())


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not beside this checkout")
@pytest.mark.parametrize("frames", [(1, 9), (4, 12), (1, 12)])
def test_too_wide_a_gap_is_refused(frames: tuple[int, int]) -> None:
    folder = SHARED / "data" / "fox" / "images"
    photos = [
        as_photo(np.asarray(Image.open(folder / f"frame_{frame:05d}.jpg").convert("RGB")), 458.0, f"{frame}.jpg")
        for frame in frames
    ]
    with pytest.raises(SceneDataError, match=r"gap between .* is too wide"):
        pose_pair(*photos)
    assert _focal_doubt(*photos) == ", or the field of view is not the stated one (--fov)"
    assert _focal_doubt(*(replace(photo, focal_source="EXIF") for photo in photos)) == ""


def test_views_that_share_little_are_refused() -> None:
    (first, _), (second, _) = map(room_photo, (0, 13))
    middle = Image.fromarray(second.image).crop((112, 84, 272, 204)).resize(SIZE[::-1], Image.Resampling.LANCZOS)
    close_up = as_photo(np.asarray(middle), second.focal_px * 2.4, "close-up.jpg")
    with pytest.raises(SceneDataError, match=r"too wide: they share [12]\d% of the view"):
        pose_pair(first, close_up)


def test_blank_photos_are_refused() -> None:
    blank = as_photo(np.full((*SIZE, 3), 240, np.uint8), 300.0, "blank.jpg")
    with pytest.raises(SceneDataError, match=r"only 0 matching points.*too little texture"):
        pose_pair(blank, room_photo(4)[0])
