"""Claims about the noise schedule and its solvers."""

import pytest
import torch
from mvldm_recordings import schedule_outputs
from parity import recording
from torch import Tensor

from lsplat_ns.diffusion.schedule import (
    TIMESTEPS,
    SolverConfig,
    add_noise,
    build_scheduler,
    prediction_target,
    signal_shares,
    solve,
    timesteps_of,
)
from lsplat_ns.errors import ConfigError

MEAN, SPREAD = 0.3, 0.5
KINDS = ("ddim", "dpm-solver++", "unipc")


def exact_noise(latents: Tensor, level: Tensor) -> Tensor:
    """The best prediction of noise in data that are normal with MEAN and SPREAD."""
    share = signal_shares()[level]
    variance = share * SPREAD**2 + 1 - share
    return (1 - share).sqrt() * (latents - share.sqrt() * MEAN) / variance


def solution(kind: str, steps: int, start: Tensor) -> Tensor:
    return list(solve(exact_noise, start, SolverConfig(kind, steps)))[-1]


def test_schedule_noising_and_ddim_equal_the_recorded_original() -> None:
    case = recording("mv_scheduler")
    for name, value in schedule_outputs(case).items():
        case.assert_close(name, value, 1e-6)


@pytest.mark.parametrize("steps", [1, 5, 25, 50, 70, 1000])
def test_ddim_s_timesteps_equal_the_recorded_original(steps: int) -> None:
    recording("mv_scheduler").assert_close(
        f"timesteps/{steps}", torch.tensor(timesteps_of(SolverConfig(steps=steps))), 0
    )


def test_the_first_and_last_ddim_steps_equal_the_recorded_original() -> None:
    case = recording("mv_scheduler")
    x, noise = case.input("x"), case.input("eps")
    for steps in (5, 50, 70):
        first = next(solve(lambda *_: noise, x, SolverConfig(steps=steps)))
        case.assert_close(f"first_step/{steps}", first, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_solver_finds_the_data_where_the_noise_is_predicted_perfectly(kind: str) -> None:
    start = torch.linspace(-2, 2, 41)[None, :, None]
    found = solution(kind, 200, start)
    assert (found - (MEAN + SPREAD * start)).abs().max() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_velocity_leads_every_solver_to_the_same_data_as_the_noise_that_it_stands_for(kind: str) -> None:
    start = torch.linspace(-2, 2, 41)[None, :, None]

    def exact_velocity(latents: Tensor, level: Tensor) -> Tensor:
        share, noise = signal_shares()[level], exact_noise(latents, level)
        clean = (latents - (1 - share).sqrt() * noise) / share.sqrt()
        return prediction_target(clean, noise, level[None], "velocity")

    (*_, found) = solve(exact_velocity, start, SolverConfig(kind, 20), "velocity")
    assert (found - solution(kind, 20, start)).abs().max() < 1e-4


def test_velocity_is_what_diffusers_calls_so_and_noise_is_the_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 2, 4, 5, generator=generator) for _ in range(2))
    levels = torch.tensor([0, 500, 999])
    expected = build_scheduler(SolverConfig()).get_velocity(clean, noise, levels)
    torch.testing.assert_close(prediction_target(clean, noise, levels, "velocity"), expected)
    assert prediction_target(clean, noise, levels, "noise") is noise


@pytest.mark.parametrize("kind", KINDS[1:])
def test_solvers_of_second_order_do_in_25_steps_better_than_ddim_in_the_published_70(kind: str) -> None:
    start = torch.linspace(-2, 2, 41)[None, :, None]
    expected = MEAN + SPREAD * start
    error, of_ddim = (
        (solution(k, steps, start) - expected).abs().mean() for k, steps in ((kind, 25), ("ddim", SolverConfig().steps))
    )
    assert error < of_ddim


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_a_solver_calls_the_network_once_per_step_from_noisy_to_clean(kind: str, steps: int) -> None:
    levels: list[int] = []

    def predict(latents: Tensor, level: Tensor) -> Tensor:
        assert level.shape == () and level.dtype == torch.int64
        levels.append(int(level))
        return latents

    results = list(solve(predict, torch.ones(1, 2, 1), SolverConfig(kind, steps)))
    assert len(results) == steps and all(result.isfinite().all() for result in results)
    assert tuple(levels) == timesteps_of(SolverConfig(kind, steps)) == tuple(sorted(set(levels), reverse=True))
    assert 0 <= levels[-1] <= levels[0] < TIMESTEPS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 70, 100, 334, 501, 600, 1000])
def test_a_config_tells_the_level_at_which_its_solver_starts(kind: str, steps: int) -> None:
    config = SolverConfig(kind, steps)
    assert config.first_level == timesteps_of(config)[0]


def test_a_solver_works_step_by_step_and_keeps_nothing_for_the_next_run() -> None:
    calls = []
    config = SolverConfig("dpm-solver++", 6)
    path = solve(lambda latents, level: calls.append(level) or exact_noise(latents, level), torch.ones(1, 3, 1), config)
    assert not calls
    next(path)
    assert len(calls) == 1
    assert torch.equal(
        solution("dpm-solver++", 6, torch.ones(1, 3, 1)), solution("dpm-solver++", 6, torch.ones(1, 3, 1))
    )


def test_each_sample_of_a_batch_has_its_own_noise_level() -> None:
    clean, noise = torch.ones(2, 3, 1), torch.zeros(2, 3, 1)
    noisy = add_noise(clean, noise, torch.tensor([0, 999]))
    shares = signal_shares()
    assert torch.equal(noisy[:, 0, 0], shares[[0, 999]].sqrt())


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 to 1000 steps, not 0"):
        SolverConfig(steps=0)
    with pytest.raises(ConfigError, match="no solver 'euler'"):
        SolverConfig("euler")
