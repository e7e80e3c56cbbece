from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from re10k_chunks import scene, write

from lsplat_ns.data.batches import (
    PreparationConfig,
    collate,
    in_unit_range,
    make_byte_example,
    make_example,
    read_views,
)
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.re10k import Re10kSplit
from lsplat_ns.data.transforms import byte_tensor, rescale_and_crop
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import ConfigError, SceneDataError

SMALL = PreparationConfig(image_size=(32, 32))


def video_of(root: Path, key: str, split: str = "train") -> PosedVideo:
    return Re10kSplit.open(root, split).read_scene(key)


# ------------------------------------------------------------------------------------------------------ examples


def test_examples_of_one_scene_do_not_disturb_each_other(tmp_path: Path) -> None:
    video = video_of(write(tmp_path / "d", {"0.torch": [scene("a", step=0.5)]}), "a")
    before = video.world_from_camera.clone()
    wide, narrow = FrameChoice((0, 4), (2,)), FrameChoice((1, 2), (3,))
    first = make_example(video, wide, SMALL)
    make_example(video, narrow, SMALL)
    again = make_example(video, wide, SMALL)
    torch.testing.assert_close(again.target.cameras, first.target.cameras, rtol=0, atol=0)
    torch.testing.assert_close(video.world_from_camera, before, rtol=0, atol=0)
    centres = first.context.cameras.origins[0]
    assert float((centres[0] - centres[1]).norm()) == pytest.approx(1.0)


def test_bytes_hold_the_same_example_as_floats(tmp_path: Path) -> None:
    video = video_of(write(tmp_path / "d", {"0.torch": [scene("a")]}), "a")
    choice = FrameChoice((0, 4), (2, 2, 4))
    packed, example = make_byte_example(video, choice, SMALL), make_example(video, choice, SMALL)
    assert packed.target.image.dtype == torch.uint8 and example.target.image.dtype == torch.float32
    torch.testing.assert_close(in_unit_range(packed.target).image, example.target.image, rtol=0, atol=0)
    torch.testing.assert_close(packed.target.cameras, example.target.cameras, rtol=0, atol=0)


def test_a_frame_drawn_several_times_is_decoded_once(tmp_path: Path) -> None:
    video = video_of(write(tmp_path / "d", {"0.torch": [scene("a")]}), "a")
    read = []
    counting = replace(video, read_picture=lambda frame: read.append(frame) or video.read_picture(frame))
    example = make_example(counting, FrameChoice((0, 4), (4, 2, 2, 0)), SMALL)
    assert sorted(read) == [0, 2, 4]
    assert example.target.frame[0].tolist() == [4, 2, 2, 0]
    torch.testing.assert_close(example.target.image[0, 0], example.context.image[0, 1], rtol=0, atol=0)
    torch.testing.assert_close(example.target.image[0, 1], example.target.image[0, 2], rtol=0, atol=0)


def test_half_of_the_examples_are_reflected(tmp_path: Path) -> None:
    video = video_of(write(tmp_path / "d", {"0.torch": [scene("a")]}), "a")
    choice, generator = FrameChoice((0, 4), (2,)), torch.Generator().manual_seed(0)
    plain = make_byte_example(video, choice, SMALL).context
    reflected = torch.stack(
        [byte_tensor(rescale_and_crop(video.read_image(f), (32, 32), mirrored=True)) for f in (0, 4)]
    )
    count = 0
    for _ in range(40):
        context = make_byte_example(video, choice, SMALL, mirror_generator=generator).context
        flipped = torch.equal(context.image[0], reflected)
        assert flipped or torch.equal(context.image, plain.image)
        towards = context.cameras.origins[0, 1, 0] / plain.cameras.origins[0, 1, 0]
        assert float(towards) == pytest.approx(-1.0 if flipped else 1.0)
        count += flipped
    assert 10 <= count <= 30


def test_coinciding_cameras_and_small_images_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("still", step=0.0), scene("small")]})
    choice = FrameChoice((0, 4), (2,))
    for units in (True, False):
        with pytest.raises(SceneDataError, match="apart") as caught:
            make_example(video_of(root, "still"), choice, replace(SMALL, baseline_to_one=units))
        assert caught.value.reason == "no baseline"
    with pytest.raises(SceneDataError, match="64x36 is smaller than the 128x128") as caught:
        make_example(video_of(root, "small"), choice, PreparationConfig(image_size=(128, 128)))
    assert caught.value.reason == "image size"


def test_frames_of_any_size_above_the_target_are_used_unless_a_size_is_asked_for(tmp_path: Path) -> None:
    video = video_of(write(tmp_path / "d", {"0.torch": [scene("a", size=(50, 70))]}), "a")
    choice = FrameChoice((0, 4), (2,))
    assert make_example(video, choice, SMALL).target.size == (32, 32)
    assert make_example(video, choice, replace(SMALL, frame_size=(50, 70))).target.size == (32, 32)
    with pytest.raises(SceneDataError, match="70x50 pixels, but frame-size asks for 640x360") as caught:
        make_example(video, choice, replace(SMALL, frame_size=(360, 640)))
    assert caught.value.reason == "image size"


def test_one_context_view_keeps_its_units(tmp_path: Path) -> None:
    video = video_of(write(tmp_path / "d", {"0.torch": [scene("a", step=0.3)]}), "a")
    example = make_example(video, FrameChoice((0,), (4,)), SMALL)
    np.testing.assert_allclose(example.target.cameras.origins[0, 0], video.world_from_camera[4, :3, 3])


def test_collating_keeps_every_example(tmp_path: Path) -> None:
    video = video_of(write(tmp_path / "d", {"0.torch": [scene("a")]}), "a")
    examples = [make_example(video, FrameChoice((0, 4), (t, 2)), SMALL) for t in (1, 2, 3)]
    batch = collate(examples)
    assert batch.context.image.shape == (3, 2, 3, 32, 32) and batch.target.frame[:, 0].tolist() == [1, 2, 3]
    assert batch.scene == ("a", "a", "a")
    torch.testing.assert_close(batch.target.image[1], examples[1].target.image[0])


def test_examples_of_different_numbers_of_views_are_not_collated(tmp_path: Path) -> None:
    video = video_of(write(tmp_path / "d", {"0.torch": [scene("a")]}), "a")
    examples = [make_example(video, FrameChoice((0, 4), targets), SMALL) for targets in ((1,), (1, 2))]
    with pytest.raises(ConfigError, match="batch-size 1"):
        collate(examples)


def test_views_are_floats_in_0_1(tmp_path: Path) -> None:
    video = video_of(write(tmp_path / "d", {"0.torch": [scene("a")]}), "a")
    image = read_views(video, (0, 3), (32, 32)).image
    assert image.shape == (1, 2, 3, 32, 32) and 0 <= float(image.min()) < 0.3 and 0.7 < float(image.max()) <= 1
