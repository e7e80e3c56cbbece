"""The noise schedule that MV-LDM was trained with, and the solvers that run it backwards.

Linear betas and noise prediction: not the schedule of Stable Diffusion 2.1, whose weights the network starts from.
Source: MV-LDM's scheduler configuration; DDIM (arXiv 2010.02502), DPM-Solver++ (2211.01095), UniPC (2302.04867);
velocity (2202.00512, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lsplat_ns.errors import ConfigError

TIMESTEPS = 1000
"""Noise levels of training; level 0 is almost clean."""
BETA_FIRST, BETA_LAST = 1e-4, 0.02

Prediction = Literal["noise", "velocity"]
"""What a denoiser predicts. "noise": as published. "velocity": the derivative of the noisy latents by the angle between
signal and noise. The loss then counts an error of the clean latents in full at high noise levels, too, where that of
noise hardly counts it: there a network that is trained from scratch learns what context views are for."""
DIFFUSERS_NAMES: dict[Prediction, str] = {"noise": "epsilon", "velocity": "v_prediction"}


@dataclass(frozen=True)
class SolverConfig:
    """How noise is turned into latents. The defaults are the published ones."""

    kind: Literal["ddim", "dpm-solver++", "unipc"] = "ddim"
    """"ddim": as published; "dpm-solver++", "unipc": of second order, for 10 to 25 steps."""
    steps: int = 70
    """Calls of the network per group of views."""

    def __post_init__(self) -> None:
        if self.kind not in ("ddim", "dpm-solver++", "unipc"):
            raise ConfigError(f"no solver {self.kind!r}; take ddim, dpm-solver++ or unipc")
        if not 1 <= self.steps <= TIMESTEPS:
            raise ConfigError(f"a solver takes 1 to {TIMESTEPS} steps, not {self.steps}")

    @property
    def first_level(self) -> int:
        """The noise level that pure noise is taken for at the start. Far below the highest, signal is expected already.

        The published spacing of ddim is the whole part of TIMESTEPS / steps: of many counts it leaves out high levels.
        """
        return (self.steps - 1) * (TIMESTEPS // self.steps) if self.kind == "ddim" else TIMESTEPS - 1


def signal_shares(device: torch.device | str = "cpu") -> Tensor:
    """Share of the clean signal's variance that each noise level leaves, float32 [TIMESTEPS], from high to low."""
    betas = torch.linspace(BETA_FIRST, BETA_LAST, TIMESTEPS, dtype=torch.float32)
    return (1 - betas).cumprod(0).to(device)


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Latents [b, ...] at noise levels ``timesteps`` [b]. Differentiable to both inputs."""
    share = _shares_at(timesteps, clean)
    return share.sqrt() * clean + (1 - share).sqrt() * noise


def prediction_target(clean: Tensor, noise: Tensor, timesteps: Tensor, prediction: Prediction) -> Tensor:
    """What a denoiser should predict [b, ...] of latents that :func:`add_noise` made noisy."""
    if prediction == "noise":
        return noise
    share = _shares_at(timesteps, clean)
    return share.sqrt() * noise - (1 - share).sqrt() * clean


def _shares_at(timesteps: Tensor, latents: Tensor) -> Tensor:
    return signal_shares(latents.device)[timesteps].view(-1, *(1,) * (latents.ndim - 1))


def build_scheduler(config: SolverConfig, prediction: Prediction = "noise") -> Any:
    """diffusers' scheduler of a configuration, with its timesteps set on the CPU.

    Multistep solvers remember earlier steps: take a new one for every run.
    """
    import diffusers

    trained = {
        "num_train_timesteps": TIMESTEPS,
        "beta_start": BETA_FIRST,
        "beta_end": BETA_LAST,
        "beta_schedule": "linear",
        "prediction_type": DIFFUSERS_NAMES[prediction],
    }
    if config.kind == "ddim":
        scheduler = diffusers.DDIMScheduler(
            **trained, clip_sample=False, set_alpha_to_one=True, steps_offset=0, timestep_spacing="leading"
        )
    else:
        # From the noisiest level on: with few steps the published spacing would start where signal is expected already.
        kinds = {"dpm-solver++": diffusers.DPMSolverMultistepScheduler, "unipc": diffusers.UniPCMultistepScheduler}
        scheduler = kinds[config.kind](**trained, solver_order=2, timestep_spacing="trailing", final_sigmas_type="zero")
    scheduler.set_timesteps(config.steps)
    return scheduler


def timesteps_of(config: SolverConfig) -> tuple[int, ...]:
    """The noise levels at which a solver calls the network, noisiest first."""
    return tuple(int(timestep) for timestep in build_scheduler(config).timesteps)


def solve(
    predict: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    config: SolverConfig,
    prediction: Prediction = "noise",
) -> Iterator[Tensor]:
    """Run a solver from pure noise, one step per value taken from the iterator.

    Coefficients stay on the CPU as numbers and noise levels are put on the device beforehand, so that no step waits for
    a GPU; except those of UniPC, which diffusers computes there.

    Args:
        predict: The noise in latents, or their velocity, of the latents and their noise level (int64 [], on their
            device).
        start: Standard normal noise [b, ...], float32, of three axes or more.
        config: Which solver, how many steps.
        prediction: Which of the two it is.

    Yields:
        The latents after each step; the last ones are clean.
    """
    scheduler = build_scheduler(config, prediction)
    on_device = scheduler.timesteps.to(start.device)
    latents = start
    for timestep, level in zip(scheduler.timesteps, on_device, strict=True):
        latents = scheduler.step(predict(latents, level).float(), timestep, latents, return_dict=False)[0]
        yield latents
