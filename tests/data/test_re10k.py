from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import PARITY, recording
from PIL import Image

from lsplat_ns.data.batches import PreparationConfig, collate, make_example
from lsplat_ns.data.re10k import Re10kSplit
from lsplat_ns.data.streams import ExampleStream, SharedStep, StreamConfig
from lsplat_ns.data.view_sampling import FrameChoice, ViewSamplingConfig, read_evaluation_index
from lsplat_ns.errors import SceneDataError

SAMPLING = ViewSamplingConfig(
    num_target_views=2, min_gap=2, max_gap=4, initial_min_gap=2, initial_max_gap=4, target_margin=0,
    gap_warm_up_steps=0, margin_warm_up_steps=0,
)  # fmt: skip


def jpeg(seed: int, size: tuple[int, int]) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return torch.from_numpy(np.frombuffer(buffer.getvalue(), np.uint8).copy())


def scene(key: str, frames: int = 6, size: tuple[int, int] = (36, 64), step: float = 0.1) -> dict:
    rows = torch.zeros(frames, 18)
    rows[:, :4] = torch.tensor([0.8, 1.4, 0.5, 0.5])
    rows[:, 6:] = torch.eye(4)[:3].flatten()
    rows[:, 9] = torch.arange(frames) * step  # x of the camera-from-world translation
    return {
        "url": "none", "timestamps": torch.arange(frames), "cameras": rows,
        "images": [jpeg(i, size) for i in range(frames)], "key": key,
    }  # fmt: skip


def write(root: Path, chunks: dict[str, list[dict]], split: str = "train") -> Path:
    folder = root / split
    folder.mkdir(parents=True)
    for name, scenes in chunks.items():
        torch.save(scenes, folder / name)
    index = {s["key"]: name for name, scenes in chunks.items() for s in scenes}
    (folder / "index.json").write_text(json.dumps(index))
    return root


def stream(root: Path, **options) -> ExampleStream:
    config = StreamConfig(PreparationConfig(image_size=(32, 32)), SAMPLING, **options)
    return ExampleStream(Re10kSplit.open(root, "train"), config, SharedStep())


def test_examples_equal_the_recorded_ones() -> None:
    case = recording("ls_data_re10k_evaluation")
    root = PARITY / "golden" / "data" / "re10k"
    split, index = Re10kSplit.open(root, "test"), read_evaluation_index(root / "evaluation_index.json")
    choices = index["bbbb000000000001"]
    assert len(choices) == len(case.meta["examples"])
    video = split.read_scene("bbbb000000000001")
    for number, choice in enumerate(choices):
        example = make_example(video, choice, PreparationConfig())
        for name, views in (("context", example.context), ("target", example.target)):
            # The original rescales its poses in place, so later entries carry the rounding of the earlier ones.
            case.assert_close(f"{number}/{name}/extrinsics", views.cameras.world_from_camera[0], 1e-5)
            case.assert_close(f"{number}/{name}/image", views.image[0], 0.0)
            case.assert_close(f"{number}/{name}/intrinsics", views.cameras.intrinsics_norm[0], 1e-6)
            case.assert_close(f"{number}/shimmed/{name}/near", views.cameras.near, 1e-5)
            case.assert_close(f"{number}/shimmed/{name}/far", views.cameras.far, 1e-5)


def test_units_are_kept_where_the_baseline_is_not_normalised() -> None:
    case = recording("ls_data_re10k_evaluation_nobaseline")
    video = Re10kSplit.open(PARITY / "golden" / "data" / "re10k", "test").read_scene("bbbb000000000001")
    example = make_example(video, FrameChoice((5, 30), (0, 10, 17, 42)), PreparationConfig(baseline_to_one=False))
    case.assert_close("0/context/extrinsics", example.context.cameras.world_from_camera[0], 1e-6)


def test_coinciding_cameras_and_small_images_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("still", step=0.0), scene("small")]})
    split = Re10kSplit.open(root, "train")
    with pytest.raises(SceneDataError, match="apart"):
        make_example(split.read_scene("still"), FrameChoice((0, 4), (2,)), PreparationConfig(image_size=(32, 32)))
    with pytest.raises(SceneDataError, match="64x36 is smaller than the 128x128"):
        make_example(split.read_scene("small"), FrameChoice((0, 4), (2,)), PreparationConfig(image_size=(128, 128)))


def test_collating_keeps_every_example(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a"), scene("b")]})
    examples = [example for example, _ in zip(iter(stream(root)), range(3), strict=False)]
    batch = collate(examples)
    assert batch.context.image.shape == (3, 2, 3, 32, 32) and batch.target.frame.shape == (3, 2)
    assert batch.scene == tuple(e.scene[0] for e in examples)
    torch.testing.assert_close(batch.target.image[1], examples[1].target.image[0])


def test_the_same_seed_gives_the_same_examples_and_another_rank_others(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {f"{i}.torch": [scene(f"s{i}")] for i in range(4)})

    def first(**options) -> list[tuple]:
        pairs = zip(iter(stream(root, **options)), range(6), strict=False)
        return [(e.scene, e.context.frame.tolist(), e.target.frame.tolist()) for e, _ in pairs]

    assert first(seed=1) == first(seed=1)
    assert first(seed=1) != first(seed=2)
    ranks = [{scene for scene, *_ in first(rank=rank, world_size=2)} for rank in (0, 1)]
    assert not ranks[0] & ranks[1]


def test_unusable_examples_are_counted_and_the_rest_is_used(tmp_path: Path) -> None:
    broken = scene("broken")
    broken["cameras"][2] = float("nan")
    root = write(tmp_path / "d", {"0.torch": [scene("short", frames=2), broken, scene("good")]})
    source = stream(root)
    examples = iter(source)
    assert next(examples).scene == ("good",)
    seen = {next(examples).scene for _ in range(3)}
    assert seen == {("good",)}
    assert any("2 frames" in reason for reason in source.skipped) or any("NaN" in r for r in source.skipped)


def test_a_dataset_without_a_usable_scene_says_why(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("short", frames=2)]})
    with pytest.raises(SceneDataError, match=r"no scene can be used.*has 2 frames"):
        next(iter(stream(root)))


def test_a_chunk_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a")]})
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    (root / "train" / "0.torch").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(SceneDataError, match=r"cannot read chunk .*0\.torch"):
        Re10kSplit.open(root, "train").read_scene("a")
    assert not marker.exists()


def test_a_chunk_cut_in_half_is_named_in_one_line(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a")]})
    path = root / "train" / "0.torch"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SceneDataError) as caught:
        Re10kSplit.open(root, "train").read_scene("a")
    assert "0.torch" in str(caught.value) and "\n" not in str(caught.value)


def test_a_frame_cut_in_half_is_named(tmp_path: Path) -> None:
    cut = scene("cut")
    cut["images"][3] = cut["images"][3][: len(cut["images"][3]) // 2]
    root = write(tmp_path / "d", {"0.torch": [cut]})
    video = Re10kSplit.open(root, "train").read_scene("cut")
    with pytest.raises(SceneDataError, match="frame 3 of scene cut"):
        video.read_image(3)


def test_broken_folders_are_explained(tmp_path: Path) -> None:
    def message(root: Path) -> str:
        with pytest.raises(SceneDataError) as caught:
            Re10kSplit.open(root, "train")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no data folder" in message(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "index.json is missing" in message(tmp_path / "empty")
    root = write(tmp_path / "d", {"0.torch": [scene("a")]})
    (root / "train" / "0.torch").unlink()
    assert "names chunk 0.torch, which is not in" in message(root)
    (root / "train" / "index.json").write_text('{"a": "../../secret.torch"}')
    assert "outside" in message(root)
    (root / "train" / "index.json").write_text("{}")
    assert "lists no scene" in message(root)


def test_an_unknown_scene_is_answered_with_known_ones(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("room-1"), scene("room-2")]})
    with pytest.raises(SceneDataError, match=r"no scene room-9 in .*room-1"):
        Re10kSplit.open(root, "train").read_scene("room-9")
