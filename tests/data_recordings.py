"""The examples that the originals' loaders were recorded making, made by ours: same folders, same random numbers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from parity import PARITY, Recording
from torch import Tensor

from lsplat_ns.data.batches import PreparationConfig, in_unit_range, make_byte_example
from lsplat_ns.data.co3d import Co3dSplit
from lsplat_ns.data.posed_video import PosedVideo
from lsplat_ns.data.re10k import Re10kSplit, read_chunk, scene_video
from lsplat_ns.data.view_sampling import (
    FrameChoice,
    ViewSamplingConfig,
    read_evaluation_index,
    sample_bounded,
    sample_views,
)
from lsplat_ns.errors import SceneDataError
from lsplat_ns.scene import SceneBatch, Views

RE10K, CO3D = PARITY / "golden" / "data" / "re10k", PARITY / "golden" / "data" / "co3d"
EVALUATED = "bbbb000000000001"
"""The recorded scene of the evaluation index."""
AT_ONE_PLACE = "bbbb000000000003"
"""A recorded scene whose cameras coincide."""
PUBLISHED = PreparationConfig(frame_size=(360, 640))  # the originals insist on it
UNITS_KEPT = PreparationConfig(baseline_to_one=False)
SKIPPED_BY_THE_ORIGINAL = ("seq_badrot", "seq_small")
"""A pose that is no rotation, refused here too; frames of 256x300, which need no enlarging and are used here."""
CO3D_SAMPLING = ViewSamplingConfig(
    min_gap=16, max_gap=25, initial_min_gap=8, initial_max_gap=18, target_margin=100
)  # fmt: skip
MVLDM_SAMPLING = ViewSamplingConfig(
    num_target_views=3, without_replacement=True, min_gap=10, max_gap=28, initial_min_gap=10, initial_max_gap=28,
    target_margin=0, gap_warm_up_steps=0, margin_warm_up_steps=0,
)  # fmt: skip


@dataclass(frozen=True)
class Remade:
    """One example, made by our loader."""

    choice: FrameChoice
    example: SceneBatch  # images in [0, 1]
    reshaped: bool = False
    """Differs from upstream: of frames of many sizes, as in CO3D v1, each keeps its shape; the original squeezes them
    to a common one first. Only the poses can be compared."""

    @property
    def scene(self) -> str:
        return self.example.scene[0]


def _remade(
    video: PosedVideo,
    choice: FrameChoice,
    preparation: PreparationConfig,
    mirror: torch.Generator | None = None,
) -> Remade:
    """An example with the mistake that the original makes: it reflects the pictures, but not the principal point."""
    state = mirror.get_state() if mirror else None
    example = make_byte_example(video, choice, preparation, mirror_generator=mirror)
    if mirror and bool(torch.rand((), generator=torch.Generator().set_state(state)) >= 0.5):
        for views in (example.context, example.target):
            views.cameras.intrinsics_norm[..., 0, 2] = 1 - views.cameras.intrinsics_norm[..., 0, 2]
    floats = replace(example, context=in_unit_range(example.context), target=in_unit_range(example.target))
    sizes = {video.read_size(frame) for frame in choice.context + choice.target}
    return Remade(choice, floats, reshaped=len(sizes) > 1)


def _seeded(seed: int) -> torch.Generator:
    """Torch's global generator, from which the originals draw."""
    torch.manual_seed(seed)
    return torch.random.default_generator


# --------------------------------------------------------------------------------------------------- RealEstate10k


def re10k_drawn(
    split: str, seed: int, mirrored: bool, sampling: ViewSamplingConfig, skipped: list[str] | None = None
) -> Iterator[Remade]:
    """All random numbers in the originals' order: chunks, scenes, then per scene its frames and the reflection."""
    skipped = [] if skipped is None else skipped
    generator = _seeded(seed)
    chunks = sorted((RE10K / split).glob("*.torch"))
    for chunk in (chunks[i] for i in torch.randperm(len(chunks))):
        stored = read_chunk(chunk)
        for video in (scene_video(stored[i], chunk) for i in torch.randperm(len(stored))):
            if video.largest_fov_degrees() > PUBLISHED.max_fov_degrees:
                skipped.append("field of view")
                continue
            try:
                choice = sample_views(len(video), sampling, generator=generator)
                example = _remade(video, choice, PUBLISHED, generator if mirrored else None)
            except SceneDataError as error:
                skipped.append(error.reason)
                continue
            yield example


def re10k_overfitted(seed: int = 4, chunks: int = 2, copies: int = 3) -> Iterator[Remade]:
    """A chunk full of one scene: the pair is moved to the video's start, which is how the original overfits."""
    generator = _seeded(seed)
    for count in (chunks, copies):
        torch.randperm(count)
    video = Re10kSplit.open(RE10K, "test").read_scene(EVALUATED)
    for _ in range(copies):
        drawn = sample_bounded(len(video), ViewSamplingConfig(), generator=generator)
        left = drawn.context[0]
        choice = FrameChoice(tuple(f - left for f in drawn.context), tuple(f - left for f in drawn.target))
        yield _remade(video, choice, PUBLISHED, generator)


def re10k_evaluated() -> Iterator[Remade]:
    """The entries of a scene in the evaluation index."""
    video = Re10kSplit.open(RE10K, "test").read_scene(EVALUATED)
    for choice in read_evaluation_index(RE10K / "evaluation_index.json")[EVALUATED]:
        yield _remade(video, choice, PUBLISHED)


def re10k_tested() -> Iterator[Remade]:
    """The window of the bounded sampler's test stage."""
    video = Re10kSplit.open(RE10K, "test").read_scene(EVALUATED)
    yield _remade(video, sample_bounded(len(video), ViewSamplingConfig(), stage="test"), PUBLISHED)


def as_listed(case: Recording, split: str, preparation: PreparationConfig) -> Iterator[Remade | None]:
    """The frames that a recording names; None where they are refused because the context cameras coincide."""
    source = Re10kSplit.open(RE10K, split)
    for entry in case.meta["examples"]:
        choice = FrameChoice(tuple(entry["context"]), tuple(entry["target"]))
        try:
            yield _remade(source.read_scene(entry["scene"]), choice, preparation)
        except SceneDataError as error:
            # Differs from upstream, which notices coinciding cameras only where it normalises their baseline.
            assert error.reason == "no baseline" and entry["scene"] == AT_ONE_PLACE
            yield None


# ------------------------------------------------------------------------------------------------------------ CO3D


@cache
def _co3d_folder() -> tempfile.TemporaryDirectory:
    """The recorded category where its table may be written, and its lists of frames under their published names."""
    folder = tempfile.TemporaryDirectory(prefix="recorded-co3d-")
    category, lists = Path(folder.name) / "hydrant", Path(folder.name) / "dataset_splits"
    for place in (category, lists):
        place.mkdir()
    shutil.copyfile(CO3D / "hydrant" / "frame_annotations.jgz", category / "frame_annotations.jgz")
    for which in ("train", "eval"):
        shutil.copyfile(CO3D / f"{which}_split.json", lists / f"co3d_hydrant_{which}.json")
    for sequence in (path for path in (CO3D / "hydrant").iterdir() if path.is_dir()):
        (category / sequence.name).symlink_to(sequence)
    return folder


def co3d_split(split: str) -> Co3dSplit:
    """A split of the recorded category."""
    return Co3dSplit.open(Path(_co3d_folder().name), split)


def co3d_trained(seed: int, step: int) -> Iterator[Remade]:
    """Sequences in random order, then per sequence its frames and the reflection."""
    source, generator = co3d_split("train"), _seeded(seed)
    for scene in (source.scenes[i] for i in torch.randperm(len(source.scenes), generator=generator)):
        frames = len(source.sequences[scene].rows)
        choice = sample_bounded(frames, CO3D_SAMPLING, step=step, circular=True, generator=generator)
        if scene in SKIPPED_BY_THE_ORIGINAL:
            continue  # after its frames were drawn, before the reflection
        yield _remade(source.read_scene(scene), choice, UNITS_KEPT, generator)


def co3d_tested() -> Iterator[Remade]:
    """The windows of the bounded sampler's test stage, which go around a turntable many times."""
    source = co3d_split("test")
    for scene in source.scenes:
        video = source.read_scene(scene)
        yield _remade(video, sample_bounded(len(video), CO3D_SAMPLING, stage="test", circular=True), UNITS_KEPT)


def co3d_evaluated() -> Iterator[Remade]:
    """Both intrinsics formats, an index that wraps around, and near and far, which replace the original's planes."""
    source, index = co3d_split("test"), read_evaluation_index(CO3D / "evaluation_index.json")
    for scene in (scene for scene in source.scenes if scene in index):
        for choice in index[scene]:
            yield _remade(source.read_scene(scene), choice, UNITS_KEPT)


# ------------------------------------------------------------------------------------------------------ comparison

CASES: dict[str, Callable[[Recording], Iterator[Remade | None]]] = {
    "ls_data_re10k_evaluation": lambda case: re10k_evaluated(),
    "ls_data_re10k_evaluation_nobaseline": lambda case: as_listed(case, "test", UNITS_KEPT),
    "ls_data_re10k_bounded_train": lambda case: re10k_drawn("train", 0, True, ViewSamplingConfig()),
    "ls_data_re10k_bounded_val": lambda case: re10k_drawn("test", 2, False, ViewSamplingConfig()),
    "ls_data_re10k_bounded_test": lambda case: re10k_tested(),
    "ls_data_re10k_overfit": lambda case: re10k_overfitted(),
    "ls_data_co3d_evaluation": lambda case: co3d_evaluated(),
    "ls_data_co3d_bounded_train": lambda case: co3d_trained(5, 0),
    "ls_data_co3d_bounded_train_step25k": lambda case: co3d_trained(6, 25_000),
    "ls_data_co3d_bounded_test": lambda case: co3d_tested(),
    "mv_data_bounded_train": lambda case: re10k_drawn("train", 0, False, MVLDM_SAMPLING),
    "mv_data_bounded_train_aug": lambda case: re10k_drawn("train", 1, True, MVLDM_SAMPLING),
    "mv_data_bounded_val": lambda case: re10k_drawn("test", 2, False, MVLDM_SAMPLING),
    "mv_data_random": lambda case: as_listed(case, "train", PUBLISHED),
    "mv_data_video": lambda case: as_listed(case, "test", PUBLISHED),
}
"""Every recorded loader."""
LIMITS = {"images": 0.0, "poses": 1e-5, "intrinsics": 1e-6, "near and far": 1e-5}
"""Largest deviation in standard deviations. The original rescales RealEstate10k's poses in place, so its later entries
carry the rounding of the earlier ones."""


def deviations(case: Recording) -> Iterator[tuple[str, dict[str, float]]]:
    """Stage by stage the deviations of all examples by their recorded names, one array in memory at a time.

    Raises:
        AssertionError: If an example is missing, one too many, of another scene, or of other frames.
    """
    expected, found = case.meta["examples"], {stage: {} for stage in LIMITS}
    number = -1
    for number, made in enumerate(CASES[case.name](case)):
        if made is None:
            continue
        entry = expected[number]
        frames = list(made.choice.context), list(made.choice.target)
        assert (made.scene, *frames) == (entry["scene"], entry["context"], entry["target"])
        for name, views in (("context", made.example.context), ("target", made.example.target)):
            for stage, outputs in _outputs(f"{number}", name, views, case.name.startswith("ls")).items():
                if not made.reshaped or stage == "poses":
                    found[stage] |= {output: _deviation(case, output, value) for output, value in outputs.items()}
    assert number + 1 == len(expected)
    yield from ((stage, named) for stage, named in found.items() if named)


def _deviation(case: Recording, output: str, value: Tensor) -> float:
    error = case.error(output, value)
    return float("inf") if error["nonfinite_mismatch"] else error["rel"]


def _outputs(number: str, name: str, views: Views, bounds: bool) -> dict[str, dict[str, Tensor]]:
    """What is compared of the views of an example, by stage and recorded name."""
    cameras = views.cameras
    outputs = {
        "images": {f"{number}/{name}/image": views.image[0]},
        "poses": {f"{number}/{name}/extrinsics": cameras.world_from_camera[0]},
        "intrinsics": {f"{number}/{name}/intrinsics": cameras.intrinsics_norm[0]},
    }
    if bounds:
        near, far = (f"{number}/shimmed/{name}/{bound}" for bound in ("near", "far"))
        outputs["near and far"] = {near: cameras.near, far: cameras.far}
    return outputs
