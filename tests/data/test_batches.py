from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import PARITY, Recording, recording
from re10k_chunks import scene, write

from lsplat_ns.data.batches import PreparationConfig, collate, make_byte_example, make_example, read_views
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.re10k import Re10kSplit, read_chunk, scene_video
from lsplat_ns.data.transforms import byte_tensor, rescale_and_crop
from lsplat_ns.data.view_sampling import (
    FrameChoice,
    ViewSamplingConfig,
    read_evaluation_index,
    sample_bounded,
    sample_views,
)
from lsplat_ns.errors import ConfigError, SceneDataError
from lsplat_ns.scene import SceneBatch

SMALL = PreparationConfig(image_size=(32, 32))
MVLDM_SAMPLING = ViewSamplingConfig(
    num_target_views=3, without_replacement=True, min_gap=10, max_gap=28, initial_min_gap=10, initial_max_gap=28,
    target_margin=0, gap_warm_up_steps=0, margin_warm_up_steps=0,
)  # fmt: skip


def check(case: Recording, number: int, example: SceneBatch, *, bounds: bool = True) -> None:
    """Images exactly, cameras to round-off."""
    for name, views in (("context", example.context), ("target", example.target)):
        # The original rescales its poses in place, so later entries carry the rounding of the earlier ones.
        case.assert_close(f"{number}/{name}/extrinsics", views.cameras.world_from_camera[0], 1e-5)
        case.assert_close(f"{number}/{name}/image", views.image[0], 0.0)
        case.assert_close(f"{number}/{name}/intrinsics", views.cameras.intrinsics_norm[0], 1e-6)
        if bounds:
            case.assert_close(f"{number}/shimmed/{name}/near", views.cameras.near, 1e-5)
            case.assert_close(f"{number}/shimmed/{name}/far", views.cameras.far, 1e-5)


def video_of(root: Path, key: str, split: str = "train") -> PosedVideo:
    return Re10kSplit.open(root, split).read_scene(key)


# ------------------------------------------------------------------------------------- equality with the originals


def test_evaluation_examples_equal_the_recorded_ones() -> None:
    case = recording("ls_data_re10k_evaluation")
    root = PARITY / "golden" / "data" / "re10k"
    choices = read_evaluation_index(root / "evaluation_index.json")["bbbb000000000001"]
    assert len(choices) == len(case.meta["examples"])
    video = video_of(root, "bbbb000000000001", "test")
    for number, choice in enumerate(choices):
        check(case, number, make_example(video, choice, PreparationConfig()))


def test_units_are_kept_where_the_baseline_is_not_normalised() -> None:
    case = recording("ls_data_re10k_evaluation_nobaseline")
    video = video_of(PARITY / "golden" / "data" / "re10k", "bbbb000000000001", "test")
    example = make_example(video, FrameChoice((5, 30), (0, 10, 17, 42)), PreparationConfig(baseline_to_one=False))
    check(case, 0, example)


def test_test_windows_equal_the_recorded_one() -> None:
    case = recording("ls_data_re10k_bounded_test")
    (expected,) = case.meta["examples"]
    video = video_of(PARITY / "golden" / "data" / "re10k", expected["scene"], "test")
    choice = sample_bounded(len(video), ViewSamplingConfig(), stage="test")
    assert (list(choice.context), list(choice.target)) == (expected["context"], expected["target"])
    check(case, 0, make_example(video, choice, PreparationConfig()))


@pytest.mark.parametrize(
    ("name", "split", "seed", "mirrored", "sampling"),
    [
        ("ls_data_re10k_bounded_train", "train", 0, True, ViewSamplingConfig()),
        ("ls_data_re10k_bounded_val", "test", 2, False, ViewSamplingConfig()),
        ("mv_data_bounded_train", "train", 0, False, MVLDM_SAMPLING),
        ("mv_data_bounded_train_aug", "train", 1, True, MVLDM_SAMPLING),
        ("mv_data_bounded_val", "test", 2, False, MVLDM_SAMPLING),
    ],
)
def test_drawn_examples_equal_the_recorded_ones(
    name: str, split: str, seed: int, mirrored: bool, sampling: ViewSamplingConfig
) -> None:
    """All random numbers in the originals' order: chunks, scenes, then per scene its frames and the reflection."""
    case = recording(name)
    preparation = PreparationConfig(frame_size=(360, 640))  # the originals insist on it
    skipped = []
    torch.manual_seed(seed)
    generator = torch.random.default_generator
    chunks = sorted((PARITY / "golden" / "data" / "re10k" / split).glob("*.torch"))
    number = 0
    for chunk in (chunks[i] for i in torch.randperm(len(chunks))):
        stored = read_chunk(chunk)
        for video in (scene_video(stored[i], chunk) for i in torch.randperm(len(stored))):
            if video.largest_fov_degrees() > preparation.max_fov_degrees:
                skipped.append("field of view")
                continue
            try:
                choice = sample_views(len(video), sampling, generator=generator)
                state = generator.get_state()
                reflected = mirrored and bool(torch.rand((), generator=generator) >= 0.5)
                generator.set_state(state)
                mirror_generator = generator if mirrored else None
                packed = make_byte_example(video, choice, preparation, mirror_generator=mirror_generator)
            except SceneDataError as error:
                skipped.append(error.reason)
                continue
            expected = case.meta["examples"][number]
            assert (video.scene, list(choice.context), list(choice.target)) == (
                expected["scene"], expected["context"], expected["target"],
            )  # fmt: skip
            if reflected:  # the original leaves the principal point where it was
                for views in (packed.context, packed.target):
                    views.cameras.intrinsics_norm[..., 0, 2] = 1 - views.cameras.intrinsics_norm[..., 0, 2]
            check(case, number, in_floats(packed), bounds=name.startswith("ls"))
            number += 1
    assert number == len(case.meta["examples"])
    assert {"train": "field of view", "test": "no baseline"}[split] in skipped
    assert split == "train" or "image size" in skipped


def in_floats(example: SceneBatch) -> SceneBatch:
    parts = {name: getattr(example, name) for name in ("context", "target")}
    return replace(example, **{n: replace(v, image=v.image.float() / 255) for n, v in parts.items()})


def test_mvldms_random_views_and_videos_equal_the_recorded_ones() -> None:
    root = PARITY / "golden" / "data" / "re10k"
    for name, split in (("mv_data_random", "train"), ("mv_data_video", "test")):
        case = recording(name)
        for number, example in enumerate(case.meta["examples"]):
            choice = FrameChoice(tuple(example["context"]), tuple(example["target"]))
            made = make_example(video_of(root, example["scene"], split), choice, PreparationConfig())
            check(case, number, made, bounds=False)


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
    torch.testing.assert_close(in_floats(packed).target.image, example.target.image, rtol=0, atol=0)
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
