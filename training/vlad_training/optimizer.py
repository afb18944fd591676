"""AdamW, its learning rate, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from vlad_configs.training import LearningRate, TrainConfig


def learning_rate(schedule: LearningRate, step: int) -> float:
    """The rate of a step, counted from 0."""
    if step < schedule.warmup_steps:
        first = schedule.peak / (schedule.warmup_steps + 1)
        return first + (schedule.peak - first) * step / schedule.warmup_steps
    share = min(1.0, (step - schedule.warmup_steps) / (schedule.decay_steps - schedule.warmup_steps))
    return schedule.final + (schedule.peak - schedule.final) * 0.5 * (1 + math.cos(math.pi * share))


def make_optimizer(parameters: Iterable[Tensor], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all parameters alike, as published."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate.peak,
        betas=(0.9, config.beta2),
        eps=1e-8,
        weight_decay=config.weight_decay,
    )


class MovingAverage:
    """Exponential moving average of parameters, float32, begun at their present values."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Move towards `parameters` by 1 - decay."""
        targets = [parameters[name].detach() for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), targets, 1 - self.decay)
