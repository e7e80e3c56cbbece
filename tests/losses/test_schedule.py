"""Claims about the schedule: the recorded activity of every group, and what each step must compute."""

from dataclasses import fields, replace

import pytest
import yaml
from parity import recording

from lsplat_ns.errors import ConfigError
from lsplat_ns.losses import AdversarialConfig, DepthTerm, LossSchedule, LossTerm

NO_GAN = AdversarialConfig(loss="none")
EXPERIMENTS = {
    "re10k": LossSchedule(),
    "co3d_hydrant_kl": LossSchedule(gaussian=(LossTerm("kl", 0.1),)),
    "co3d_hydrant_det": LossSchedule(adversarial=NO_GAN),
}
RECORDED_GROUPS = {
    "gaussian": "gaussian",
    "context": "context_autoencoder",
    "target_autoencoder": "target_autoencoder",
    "target_render_image": "render_image",
    "target_render_latent": "render_latent",
    "target_combined": "combined",
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_active_losses_equal_the_recorded_schedule(experiment: str) -> None:
    schedule = EXPERIMENTS[experiment]
    for step, recorded in recording("ls_loss_schedule").meta[experiment].items():
        plan = schedule.plan(int(step), color_in_skip=True)
        assert recorded.keys() == RECORDED_GROUPS.keys()
        for original, group in RECORDED_GROUPS.items():
            expected = recorded[original]
            assert [term.name for term in schedule.active(group, int(step))] == expected["nll"]
            assert (group in schedule.active_groups(int(step))) == expected["active"]
            adversarial = plan.discriminate and group == "combined"
            assert adversarial == expected["generator"] == expected["discriminator"]


def test_published_weights() -> None:
    schedule = LossSchedule()
    assert schedule.render_image == (LossTerm("mse", 10.0, 0), LossTerm("lpips", 0.5, 50_000))
    assert schedule.combined == (LossTerm("l1", 1.0, 100_000), LossTerm("lpips", 1.0, 100_000))
    assert schedule.adversarial == AdversarialConfig("hinge", 0.5, 1.0, 125_000)


def _needs(schedule: LossSchedule, step: int, color_in_skip: bool = True) -> set[str]:
    plan = schedule.plan(step, color_in_skip)
    return {field.name for field in fields(plan) if getattr(plan, field.name)}


def test_each_phase_computes_only_what_its_losses_need() -> None:
    schedule = LossSchedule()
    assert _needs(schedule, 0) == {"render_color"}
    assert _needs(schedule, 50_000) == {"render_color", "perceptual"}
    assert _needs(schedule, 100_000) == {"render_color", "perceptual", "render_features", "decode"}
    assert _needs(schedule, 125_000) == {"render_color", "perceptual", "render_features", "decode", "discriminate"}


def test_color_is_rendered_for_the_skip_input_even_without_a_loss_on_it() -> None:
    schedule = LossSchedule(render_image=(), adversarial=NO_GAN)
    assert _needs(schedule, 0) == set()
    assert "render_color" in _needs(schedule, 100_000, color_in_skip=True)
    assert "render_color" not in _needs(schedule, 100_000, color_in_skip=False)


def test_optional_groups_ask_for_their_inputs() -> None:
    quiet = LossSchedule(render_image=(), combined=(), adversarial=NO_GAN)
    assert _needs(replace(quiet, context_autoencoder=(LossTerm("mse"),)), 0) == {"encode_context"}
    assert _needs(replace(quiet, target_autoencoder=(LossTerm("mse"),)), 0) == {"encode_target"}
    assert _needs(replace(quiet, render_latent=(LossTerm("mse"),)), 0) == {"encode_target", "render_features"}
    assert _needs(replace(quiet, depth=DepthTerm(weight=0.1)), 0) == {"render_depth"}


def test_a_scaled_schedule_runs_through_the_same_phases_sooner() -> None:
    published = LossSchedule(depth=DepthTerm(weight=1.0, starts_at_step=2_000))
    short = published.scaled(1 / 1000)
    assert short.depth.starts_at_step == 2
    for step in (0, 49, 50, 99, 100, 124, 125, 200):
        assert short.plan(step, True) == published.plan(1000 * step, True)


def test_dropping_lpips_drops_nothing_else() -> None:
    schedule = LossSchedule()
    dropped = schedule.without("lpips")
    assert schedule.uses("lpips") and not dropped.uses("lpips")
    assert dropped == replace(schedule, render_image=schedule.render_image[:1], combined=schedule.combined[:1])


def test_without_a_discriminator_none_is_ever_asked_for() -> None:
    assert LossSchedule().uses_discriminator
    schedule = LossSchedule(adversarial=NO_GAN)
    assert not schedule.uses_discriminator and not schedule.plan(10**9, True).discriminate


def test_adversarial_losses_need_an_earlier_loss_to_be_weighed_against() -> None:
    with pytest.raises(ConfigError, match="combined"):
        LossSchedule(combined=(LossTerm("l1", 1.0, 130_000),))
    with pytest.raises(ConfigError, match="combined"):
        LossSchedule(combined=())


def test_a_term_in_the_wrong_group_is_refused() -> None:
    with pytest.raises(ConfigError, match="kl"):
        LossSchedule(render_image=(LossTerm("kl"),))
    with pytest.raises(ConfigError, match="lpips"):
        LossSchedule(render_latent=(LossTerm("lpips"),))


def test_a_schedule_survives_being_written_to_a_config_file() -> None:
    schedule = LossSchedule(gaussian=(LossTerm("kl", 0.1),))
    assert yaml.load(yaml.dump(schedule), Loader=yaml.UnsafeLoader) == schedule
