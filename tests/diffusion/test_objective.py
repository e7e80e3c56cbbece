"""Claims about the training step: it equals the recorded original, and its choices have the stated frequencies."""

from dataclasses import replace

import pytest
import torch
from mvldm_recordings import loaded_model, split_views, training_draw, training_outputs

from lsplat_ns.diffusion.objective import TrainingConfig, TrainingDraw, draw_training_step
from lsplat_ns.diffusion.schedule import signal_shares
from lsplat_ns.errors import ConfigError
from lsplat_ns.scene import SceneBatch

DRAWS = 2000


def draw(generator: torch.Generator, config: TrainingConfig | None = None, context: int = 2) -> TrainingDraw:
    return draw_training_step(2, context, 3, (4, 1, 1), config or TrainingConfig(), generator)


@pytest.fixture(scope="module")
def many() -> list[TrainingDraw]:
    generator = torch.Generator().manual_seed(0)
    return [draw(generator) for _ in range(DRAWS)]


def share(choices: list[bool]) -> float:
    return sum(choices) / len(choices)


def test_recorded_training_steps_have_the_same_inputs_and_losses() -> None:
    case, model = loaded_model("mv_training_step")
    outputs = training_outputs(case, model)
    assert sum(name.endswith("loss") for name in outputs) == 8
    assert {name.split("/")[1] for name in outputs} == {"loss", "denoiser_input"}
    for name, value in outputs.items():
        case.assert_close(name, value, 1e-5)


def test_every_view_is_context_or_target_once_and_one_or_both_context_views_are_kept(many: list[TrainingDraw]) -> None:
    assert {each.views for each in many} == {(0, 1, 2, 3, 4), (0, 2, 3, 4, 1), (1, 2, 3, 4, 0)}
    assert all(each.context_count == (2 if each.views[1] == 1 else 1) for each in many)
    assert abs(share([each.context_count == 1 for each in many]) - 0.5) < 0.05
    assert abs(share([each.views[0] == 1 for each in many]) - 0.25) < 0.05


def test_poses_are_relative_to_a_kept_context_view_half_of_the_time(many: list[TrainingDraw]) -> None:
    relative = [each for each in many if each.reference is not None]
    assert abs(len(relative) / DRAWS - 0.5) < 0.05
    assert all(each.reference < each.context_count for each in relative)  # the original's may be a target
    assert {each.reference for each in relative if each.context_count == 2} == {0, 1}


def test_context_is_dropped_as_often_as_stated_and_never_where_that_is_switched_off(many: list[TrainingDraw]) -> None:
    assert abs(share([each.drop_context for each in many]) - 0.1) < 0.03
    generator = torch.Generator().manual_seed(0)
    assert not any(draw(generator, TrainingConfig(drop_context=0)).drop_context for _ in range(200))
    assert all(draw(generator, TrainingConfig(drop_context=1)).drop_context for _ in range(200))


def test_every_sample_has_a_noise_level_of_its_own_from_the_whole_range(many: list[TrainingDraw]) -> None:
    levels = torch.stack([each.timesteps for each in many])
    assert levels.shape == (DRAWS, 2) and levels.min() < 10 and levels.max() > 989
    assert (levels[:, 0] != levels[:, 1]).float().mean() > 0.99
    assert abs(levels.float().mean() - 499.5) < 20


def test_the_same_generator_state_gives_the_same_step() -> None:
    first, second = (draw(torch.Generator().manual_seed(5)) for _ in range(2))
    assert first.views == second.views and first.reference == second.reference
    assert torch.equal(first.target_noise, second.target_noise) and torch.equal(first.timesteps, second.timesteps)


def test_more_than_two_context_views_are_taken_as_well() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = set()
    for _ in range(100):
        each = draw(generator, context=4)
        assert sorted(each.views) == list(range(7)) and each.target_noise.shape[1] == 7 - each.context_count
        counts.add(each.context_count)
    assert counts == {1, 2, 3, 4}


def test_the_loss_is_that_of_target_views_and_reaches_the_denoiser_alone() -> None:
    case, model = loaded_model("mv_training_step")
    batch = SceneBatch(*split_views(case), ("a", "b"))
    step = training_draw(case, case.meta["rows"][1])
    loss = model.training_loss(batch, step)
    loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    assert loss.shape == () and loss.dtype == torch.float32
    assert reached and all(name.startswith("denoiser.") for name in reached)
    unreached = {name for name, _ in model.denoiser.named_parameters() if f"denoiser.{name}" not in reached}
    assert unreached and all(".attn2." in name or ".norm2." in name for name in unreached)  # of the absent text


def test_a_network_that_predicts_velocity_is_judged_by_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    case, model = loaded_model("mv_training_step")
    batch, step = SceneBatch(*split_views(case), ("a", "b")), training_draw(case, case.meta["rows"][1])
    monkeypatch.setattr(model.denoiser, "forward", lambda inputs, *_: inputs[:, :4])  # the noisy latents themselves
    monkeypatch.setattr(model, "config", replace(model.config, prediction="velocity"))
    with torch.no_grad():
        loss = model.training_loss(batch, step)
        clean = model.encode(batch.context.concat(batch.target).select(list(step.views)).image, step.encoding_noise)
    clean = clean[:, step.context_count :]
    share = signal_shares()[step.timesteps].view(-1, 1, 1, 1, 1)
    signal, noise = share.sqrt(), (1 - share).sqrt()
    noisy = signal * clean + noise * step.target_noise
    torch.testing.assert_close(loss, (noisy - signal * step.target_noise + noise * clean).square().mean())


def test_dropping_context_hides_it_from_the_targets() -> None:
    case, model = loaded_model("mv_training_step")
    context, target = split_views(case)
    step = replace(training_draw(case, case.meta["rows"][1]), drop_context=True)
    changed = replace(context, image=1 - context.image)
    with torch.no_grad():
        losses = [model.training_loss(SceneBatch(each, target, ("a", "b")), step) for each in (context, changed)]
    assert losses[0] == losses[1]


def test_impossible_probabilities_are_refused() -> None:
    with pytest.raises(ConfigError, match="drop_context is a probability"):
        TrainingConfig(drop_context=1.5)
