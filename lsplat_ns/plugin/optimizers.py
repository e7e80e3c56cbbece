"""Optimizer and scheduler configurations that nerfstudio lacks, and a guard against gradients that are not finite.

Source: spec section 7.5. Checkpoints must hold plain floats only: torch >= 2.6 refuses the numpy scalars that
nerfstudio's own schedulers leave in them.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple, Type

import torch
from nerfstudio.engine.optimizers import OptimizerConfig, Optimizers
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from nerfstudio.utils import writer
from torch.cuda.amp import GradScaler
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lsplat_ns.plugin.ranks import average_gradients

FINE_TUNED = "lsplat_fine_tuned"
"""Attribute that marks parameters of the autoencoder, which have a learning rate and betas of their own."""
LR_FACTOR = "lsplat_lr_factor"
"""Attribute that holds a parameter's factor on the learning rate (the effective batch size)."""
ACCUMULATED = "accumulated_gradients"
"""Key in an optimizer's state of the gradients that it has not used yet."""


@dataclass
class TwoRateAdamConfig(OptimizerConfig):
    """Adam over one flat list of parameters, so that gradients are clipped jointly, with two learning rates."""

    _target: Type = torch.optim.Adam
    lr: float = 1.5e-4
    """Learning rate of the encoder; not scaled."""
    betas: Tuple[float, float] = (0.9, 0.999)
    """Adam's betas of the encoder."""
    fine_tuned_lr: float = 9e-6
    """Learning rate of the autoencoder, per example of the effective batch."""
    fine_tuned_betas: Tuple[float, float] = (0.5, 0.9)
    """Adam's betas of the autoencoder."""
    max_norm: Optional[float] = 0.5
    """Largest joint norm of the gradient."""

    def setup(self, params: List[Parameter]) -> Optimizer:
        """Build the optimizer; parameters marked as fine-tuned form the second group."""
        groups = []
        for fine_tuned in (False, True):
            members = [p for p in params if getattr(p, FINE_TUNED, False) == fine_tuned]
            if members and fine_tuned:
                lr = self.fine_tuned_lr * getattr(members[0], LR_FACTOR, 1)
                groups.append({"params": members, "lr": lr, "betas": self.fine_tuned_betas})
            elif members:
                groups.append({"params": members, "lr": self.lr, "betas": self.betas})
        return torch.optim.Adam(groups, lr=self.lr, eps=self.eps, fused=_fused(params))


@dataclass
class ScaledAdamConfig(OptimizerConfig):
    """Adam whose learning rate is per example of the effective batch (the discriminator's)."""

    _target: Type = torch.optim.Adam
    lr: float = 9e-6
    """Learning rate per example."""
    betas: Tuple[float, float] = (0.5, 0.9)
    """Adam's betas."""

    def setup(self, params: List[Parameter]) -> Optimizer:
        """Build the optimizer."""
        factor = getattr(params[0], LR_FACTOR, 1) if params else 1
        return torch.optim.Adam(params, lr=self.lr * factor, betas=self.betas, eps=self.eps, fused=_fused(params))


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (the denoiser's of MV-LDM)."""

    _target: Type = torch.optim.AdamW
    lr: float = 2e-5
    """Learning rate; not scaled."""
    betas: Tuple[float, float] = (0.9, 0.999)
    """Adam's betas."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    max_norm: Optional[float] = 0.1
    """Largest norm of the gradient."""

    def setup(self, params: List[Parameter]) -> Optimizer:
        """Build the optimizer."""
        rates = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        return torch.optim.AdamW(params, **rates, fused=_fused(params))


def _fused(params: List[Parameter]) -> Optional[bool]:
    """Whether one kernel updates all parameters, on a GPU. None is torch's default."""
    return True if params and params[0].is_cuda else None


@dataclass
class LinearWarmupConfig(SchedulerConfig):
    """Learning rates rise linearly to their full value, then stay, or fall along a cosine for short trainings."""

    _target: Type = field(default_factory=lambda: LinearWarmup)
    """target class to instantiate"""
    warm_up_steps: int = 2000
    """Steps until the full rate."""
    initial_factor: float = 5e-4
    """Factor at step 0."""
    decay_steps: Optional[int] = None
    """Step at which the rates have fallen to final-factor; by default they do not fall."""
    final_factor: float = 0.03
    """Factor from decay-steps on."""


class LinearWarmup(Scheduler):
    """Scheduler of :class:`LinearWarmupConfig`."""

    config: LinearWarmupConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """The torch scheduler; ``lr_init`` is ignored, since every parameter group has its own rate."""
        return LambdaLR(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """Factor on the learning rates after ``step`` steps, a Python float."""
        config = self.config
        progress = min(step / max(config.warm_up_steps, 1), 1.0)
        factor = config.initial_factor + (1.0 - config.initial_factor) * progress
        if config.decay_steps is not None:
            fall = 0.5 - 0.5 * math.cos(math.pi * min(step / max(config.decay_steps, 1), 1.0))
            factor *= 1.0 - (1.0 - config.final_factor) * fall
        return factor


class GuardedOptimizers(Optimizers):
    """nerfstudio's optimizers, except that a step whose gradient is not finite changes no parameter, and is counted.

    Gradients are averaged over ranks first, so that all of them decide alike. With a gradient scaler, the scaler
    decides, as usual. Gradients accumulated over several steps are averaged, so that rates and limits keep their
    meaning; a checkpoint between these steps holds them. Rates, betas and the like are those of the options, also after
    loading a checkpoint.

    Args:
        config: Optimizer and scheduler of each group.
        param_groups: Parameters of each group.
        accumulated: Over how many steps each group's gradients are accumulated, 1 where it is not stated.
    """

    def __init__(
        self,
        config: Dict[str, Any],
        param_groups: Dict[str, List[Parameter]],
        accumulated: Optional[Mapping[str, int]] = None,
    ) -> None:
        super().__init__(config, param_groups)
        self._accumulated = {group: (accumulated or {}).get(group, 1) for group in param_groups}
        self.skipped_steps = 0
        self.skipped_in_a_row = 0

    def optimizer_scaler_step_some(self, grad_scaler: GradScaler, param_groups: List[str]) -> None:
        """Clip the gradients of some groups and step their optimizers; all of them or, if any is not finite, none."""
        if not param_groups:  # gradients are being accumulated: no step is taken, and none is skipped
            return
        average_gradients(parameter for group in param_groups for parameter in self.parameters[group])
        for group in param_groups:
            gradients = [p.grad for p in self.parameters[group] if p.grad is not None]
            if gradients and self._accumulated[group] > 1:
                torch._foreach_div_(gradients, self._accumulated[group])
        if grad_scaler.is_enabled():
            super().optimizer_scaler_step_some(grad_scaler, param_groups)
            return
        limits = {group: self.config[group]["optimizer"].max_norm for group in param_groups}
        norms = [clip_grad_norm_(self.parameters[g], math.inf if n is None else n) for g, n in limits.items()]
        if not math.isfinite(float(sum(norms))):
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            return
        self.skipped_in_a_row = 0
        for group in param_groups:
            if any(parameter.grad is not None for parameter in self.parameters[group]):
                self.optimizers[group].step()

    def state_dicts(self, steps_done: int) -> Dict[str, Dict[str, Any]]:
        """Each optimizer's state after so many steps, with the gradients that it has accumulated and not used yet.

        These are averaged over ranks, of which only one writes the state: to be called on all of them.
        """
        states = {}
        for name, optimizer in self.optimizers.items():
            states[name] = optimizer.state_dict()
            if steps_done % self._accumulated[name]:
                average_gradients(self.parameters[name])
                states[name][ACCUMULATED] = [parameter.grad for parameter in self.parameters[name]]
        return states

    def load_optimizers(self, loaded_state: Dict[str, Any]) -> None:
        """Take moments and accumulated gradients from :meth:`state_dicts`, and nothing that options say.

        A group that the state lacks starts anew.

        Raises:
            ValueError: If a group has other parameters.
        """
        for name, optimizer in self.optimizers.items():
            if name not in loaded_state:
                continue
            state, options = loaded_state[name], optimizer.state_dict()["param_groups"]
            groups = [
                {**own, "params": stored["params"]} for own, stored in zip(options, state["param_groups"], strict=True)
            ]
            optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
            if ACCUMULATED in state:
                for parameter, gradient in zip(self.parameters[name], state[ACCUMULATED], strict=True):
                    parameter.grad = None if gradient is None else gradient.to(parameter.device)

    def load_schedulers(self, loaded_state: Dict[str, Any]) -> None:
        """Go on at the stored place in each schedule, with the rates that the options have there."""
        for name, scheduler in self.schedulers.items():
            if name not in loaded_state:
                continue
            scheduler.load_state_dict({**loaded_state[name], "base_lrs": scheduler.base_lrs})
            rates = scheduler.get_last_lr()  # where they follow from the steps before
            if isinstance(scheduler, LambdaLR):  # as all of ours: where they follow from the place alone
                factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
                rates = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
            for group, rate in zip(self.optimizers[name].param_groups, rates, strict=True):
                group["lr"] = rate

    def scheduler_step_all(self, step: int) -> None:
        """Step all schedulers, also after a skipped step, and log the rate of every parameter group."""
        super().scheduler_step_all(step)
        for name, optimizer in self.optimizers.items():
            for group, suffix in zip(optimizer.param_groups, ("", "_fine_tuned"), strict=False):
                writer.put_scalar(name=f"learning_rate/{name}{suffix}", scalar=group["lr"], step=step)
