"""Claims about long sequences: resumed ones are the uninterrupted ones, and they can be watched and cancelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lsplat_ns.diffusion.sampler import (
    GeneratedGroup,
    GenerationProgress,
    GroupNoise,
    SamplingConfig,
    generate,
)
from lsplat_ns.diffusion.schedule import SolverConfig
from lsplat_ns.diffusion.view_plan import ViewGroup, ViewPlanConfig, plan_views
from lsplat_ns.errors import ConfigError, GenerationCancelled, LsplatError, SceneDataError
from lsplat_ns.mvldm import MultiViewDiffusion, tiny_multi_view_diffusion
from lsplat_ns.scene import Cameras, Views

COUNT, STEPS = 9, 3
FRAMES = tuple(range(11, 11 + COUNT))
CONFIG = SamplingConfig(SolverConfig(steps=STEPS), guidance=2.0, seed=7)


def cameras(count: int) -> Cameras:
    poses = torch.eye(4).repeat(1, count, 1, 1)
    poses[0, :, 0, 3] = torch.arange(count) * 0.1
    intrinsics = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]).repeat(1, count, 1, 1)
    return Cameras(poses, intrinsics, torch.ones(1, count), torch.ones(1, count))


def given(frame: int = 10) -> Views:
    image = torch.rand(1, 1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    return Views(image, cameras(1), torch.tensor([[frame]]))


PATH = cameras(COUNT + 1).select(slice(1, None))
PLAN = plan_views([10], FRAMES, ViewPlanConfig(anchors=2))


@pytest.fixture(scope="module")
def model() -> MultiViewDiffusion:
    torch.manual_seed(0)
    network = MultiViewDiffusion(tiny_multi_view_diffusion()).eval()
    for parameter in network.denoiser.parameters():  # nothing may stay zero, as it starts
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


class PngFolder(Mapping[int, Tensor]):
    """Frames kept as a caller would: 8-bit files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __iter__(self) -> Iterator[int]:
        return (int(path.stem) for path in self.folder.glob("*.png"))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def write(self, group: GeneratedGroup) -> None:
        for frame, image in zip(group.frames, group.images, strict=True):
            pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(self.folder / f"{frame}.png")

    def __getitem__(self, frame: int) -> Tensor:
        path = self.folder / f"{frame}.png"
        if not path.is_file():
            raise KeyError(frame)
        pixels = np.asarray(Image.open(path))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


@dataclass
class Recorder:
    """Stands for a model: draws an image of its own noise and of what it is given, and notes it."""

    calls: list[tuple[Views, Cameras, GroupNoise, int]] = field(default_factory=list)

    def latent_shape(self, image_size: tuple[int, int]) -> tuple[int, int, int]:
        return 3, *image_size

    def sample(
        self,
        context: Views,
        targets: Cameras,
        noise: GroupNoise,
        config: SamplingConfig,
        *,
        reference: int,
        on_step: Callable[[int], None] | None,
    ) -> Tensor:
        self.calls.append((context, targets, noise, reference))
        for step in range(config.solver.steps + 1):
            on_step(step)
        return (noise.targets + context.image.mean()).sigmoid()


def by_frame(groups: list[GeneratedGroup]) -> dict[int, Tensor]:
    return {frame: image for group in groups for frame, image in zip(group.frames, group.images, strict=True)}


def test_groups_come_in_the_plan_s_order_with_every_frame_once(model: MultiViewDiffusion) -> None:
    groups = list(generate(model, given(), PATH, FRAMES, PLAN, CONFIG))
    assert [group.frames for group in groups] == [group.targets for group in PLAN]
    assert [group.number for group in groups] == list(range(len(PLAN)))
    images = torch.stack(list(by_frame(groups).values()))
    assert images.shape == (COUNT, 3, 16, 24) and images.std() > 0.01
    assert torch.equal(images, (images * 255).round() / 255)


@pytest.mark.parametrize("stored_groups", [1, 2])
def test_a_sequence_that_goes_on_from_stored_files_is_the_uninterrupted_one(
    model: MultiViewDiffusion, stored_groups: int, tmp_path: Path
) -> None:
    whole = by_frame(list(generate(model, given(), PATH, FRAMES, PLAN, CONFIG)))
    folder = PngFolder(tmp_path)
    for group in generate(model, given(), PATH, FRAMES, PLAN, CONFIG, finished=folder):
        folder.write(group)
        if group.number + 1 == stored_groups:
            break  # as when the process ends here
    (tmp_path / f"{PLAN[0].targets[-1]}.png").rename(tmp_path / "kept")  # and a group was half written
    rest = list(generate(model, given(), PATH, FRAMES, PLAN, CONFIG, finished=folder))
    assert [group.number for group in rest] == [0, *range(stored_groups, len(PLAN))]
    for frame, image in by_frame(rest).items():
        assert torch.equal(image, whole[frame])


def test_finished_frames_serve_as_context_and_are_not_generated_again() -> None:
    recorder = Recorder()
    stored = {frame: torch.full((3, 16, 24), 0.25) for frame in PLAN[0].targets}
    list(generate(recorder, given(), PATH, FRAMES, PLAN, CONFIG, finished=stored))
    assert len(recorder.calls) == len(PLAN) - 1
    assert (recorder.calls[0][0].image[:, 1] == 0.25).all()
    everything = dict.fromkeys(FRAMES, torch.zeros(3, 16, 24))
    assert not list(generate(recorder, given(), PATH, FRAMES, PLAN, CONFIG, finished=everything))
    assert len(recorder.calls) == len(PLAN) - 1


def test_a_group_sees_its_context_with_its_cameras_and_the_plan_s_reference() -> None:
    recorder = Recorder()
    images = by_frame(list(generate(recorder, given(), PATH, FRAMES, PLAN, CONFIG)))
    for (context, targets, noise, reference), group in zip(recorder.calls, PLAN, strict=True):
        assert tuple(context.frame[0].tolist()) == group.context
        assert group.context[reference] == group.reference
        positions = [round(10 * float(x)) for x in context.cameras.origins[0, :, 0]]
        assert positions == [frame - 10 for frame in group.context]
        assert [round(10 * float(x)) for x in targets.origins[0, :, 0]] == [frame - 10 for frame in group.targets]
        assert noise.context.shape[:2] == (1, len(group.context)) and noise.targets.shape[:2] == targets.near.shape
        for place, frame in enumerate(group.context[1:], start=1):
            assert torch.equal(context.image[0, place], images[frame])


def test_seed_and_group_number_alone_decide_the_noise() -> None:
    group = ViewGroup((0,), (1, 2), 0)
    noise = GroupNoise.draw(group, 3, (4, 2, 2), 7)
    again = GroupNoise.draw(ViewGroup((5,), (8, 9), 5), 3, (4, 2, 2), 7)
    assert torch.equal(noise.targets, again.targets) and torch.equal(noise.context, again.context)
    for number, seed in ((4, 7), (3, 8), (7, 3)):
        assert not torch.equal(noise.targets, GroupNoise.draw(group, number, (4, 2, 2), seed).targets)
    assert abs(GroupNoise.draw(group, 0, (4, 64, 64), 0).targets.std() - 1) < 0.02


def test_the_same_seed_gives_the_same_images_and_another_one_others(model: MultiViewDiffusion) -> None:
    plan = PLAN[:1]
    first, second, other = (
        by_frame(list(generate(model, given(), PATH, FRAMES, plan, replace(CONFIG, seed=seed)))) for seed in (7, 7, 8)
    )
    assert all(torch.equal(first[frame], second[frame]) for frame in first)
    assert not any(torch.equal(first[frame], other[frame]) for frame in first)


def test_progress_counts_every_step_of_every_group() -> None:
    seen: list[GenerationProgress] = []
    list(generate(Recorder(), given(), PATH, FRAMES, PLAN, CONFIG, on_step=seen.append))
    assert [(p.group, p.step) for p in seen] == [(g, s) for g in range(len(PLAN)) for s in range(STEPS + 1)]
    shares = [p.share for p in seen]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1


def test_cancelling_takes_effect_before_the_next_step_and_keeps_what_was_delivered(model: MultiViewDiffusion) -> None:
    steps: list[GenerationProgress] = []
    delivered = []
    stop_at = (1, 2)
    groups = generate(
        model, given(), PATH, FRAMES, PLAN, CONFIG,
        on_step=steps.append, cancelled=lambda: (steps[-1].group, steps[-1].step) == stop_at,
    )  # fmt: skip
    with pytest.raises(GenerationCancelled, match=f"cancelled in group 2 of {len(PLAN)}"):
        delivered.extend(groups)
    assert [group.number for group in delivered] == [0]
    assert (steps[-1].group, steps[-1].step) == stop_at


def test_nothing_is_computed_before_the_next_group_is_asked_for() -> None:
    recorder = Recorder()
    groups = generate(recorder, given(), PATH, FRAMES, PLAN, CONFIG)
    assert not recorder.calls
    next(groups)
    assert len(recorder.calls) == 1


def test_images_that_are_not_finite_are_one_clear_line_and_nothing_is_delivered(monkeypatch) -> None:
    monkeypatch.setattr(Recorder, "sample", lambda self, context, *_, **__: torch.full((1, 2, 3, 16, 24), torch.nan))
    with pytest.raises(LsplatError, match=r"images of group 1 are not finite numbers; generate in float32"):
        next(generate(Recorder(), given(), PATH, FRAMES, PLAN, CONFIG))


@pytest.mark.parametrize("kind", ["dpm-solver++", "unipc"])
def test_every_solver_generates_in_few_steps(model: MultiViewDiffusion, kind: str) -> None:
    config = replace(CONFIG, solver=SolverConfig(kind, 4))
    (group,) = generate(model, given(), PATH, FRAMES, PLAN[:1], config)
    assert group.images.isfinite().all() and group.images.std() > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": FRAMES[:-1]}, "need cameras"),
        ({"context": given(3)}, "needs context 10"),
        ({"plan": [ViewGroup((10,), (99,), 10)]}, "needs camera 99"),
        ({"plan": PLAN[1:]}, "needs context"),
        ({"finished": {PLAN[0].targets[-1]: torch.zeros(3, 8, 8)}}, "is no 24x16 image"),
    ],
)
def test_inputs_that_do_not_belong_together_are_one_clear_line(arguments: dict, message: str) -> None:
    call = {"context": given(), "cameras": PATH, "frames": FRAMES, "plan": PLAN, "config": CONFIG, **arguments}
    with pytest.raises(SceneDataError, match=message) as caught:
        list(generate(Recorder(), **call))
    assert "\n" not in str(caught.value)


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="guidance must be 0 or more"):
        SamplingConfig(guidance=-1.0)
    with pytest.raises(ConfigError, match="guidance must be 0 or more"):
        SamplingConfig(guidance=float("nan"))
    with pytest.raises(ConfigError, match="guidance must be 0 or more and finite, not inf"):
        SamplingConfig(guidance=float("inf"))
    with pytest.raises(ConfigError, match="a seed is a number"):
        SamplingConfig(seed=-1)
