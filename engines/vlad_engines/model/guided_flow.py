"""Euler integration that continues an earlier chunk. Formulas: `vlad_engines.processing.guidance`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vlad_engines.model.euler import EulerSchedule


class FlowGuidance(NamedTuple):
    """`Guidance` of B samples on the device.

    Attributes:
        weights, target: `[B, H, A]` float32.
        gains: `[B, N]` float32.
        frozen: `[B]` int32.
    """

    weights: Tensor
    target: Tensor
    gains: Tensor
    frozen: Tensor

    def frozen_actions(self) -> Tensor:
        """Which actions stay as the target has them, `[B, H]` bool."""
        return torch.arange(self.target.shape[1], device=self.frozen.device) < self.frozen[:, None]


def guided_path(
    velocity: Callable[[int, Tensor], Tensor],
    noise: Tensor,
    schedule: EulerSchedule,
    guidance: FlowGuidance,
    *,
    through_network: bool = False,
) -> Iterator[Tensor]:
    """Integrate from noise to actions. Without weights and frozen actions it is `euler_path`, bit for bit.

    Args:
        velocity: maps the index of a step and the present `[B, H, A]` to its velocity, same shape.
        noise: `[B, H, A]` float32.
        through_network: pull the correction back through the network (`guided_vjp`). Runs `velocity` with
            gradients, so it must not be called in inference mode.

    Yields:
        `[B, H, A]` float32 after every step; the last one is the actions.
    """
    frozen = guidance.frozen_actions()[:, :, None]
    x = noise
    for index, time in enumerate(schedule.times):
        x = torch.where(frozen, guidance.target, x)
        if through_network:
            v, correction = _pulled_back(velocity, index, x, time, guidance)
        else:
            v = velocity(index, x)
            correction = guidance.weights * (guidance.target - (x - time * v))
        plain = x + schedule.step * v
        # Chosen, not only multiplied by a weight of 0: that would turn -0.0 into 0.0 and infinity into NaN.
        moved = correction if through_network else guidance.weights
        guided = torch.where(moved != 0, plain + guidance.gains[:, index, None, None] * correction, plain)
        x = torch.where(frozen, guidance.target, guided)
        yield x


def _pulled_back(
    velocity: Callable[[int, Tensor], Tensor], index: int, x: Tensor, time: float, guidance: FlowGuidance
) -> tuple[Tensor, Tensor]:
    """The velocity, and the weighted error of the expected actions times their Jacobian at `x`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(index, x)
        expected = x - time * v
        error = guidance.weights * (guidance.target - expected.detach())
        (correction,) = torch.autograd.grad(expected, x, error)
    # The Jacobian also reaches columns that only pad the robot's actions.
    return v.detach(), correction * (guidance.weights != 0).any(dim=1, keepdim=True)
