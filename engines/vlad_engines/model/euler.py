"""The times of the Euler steps. Without torch, for engines that have none."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class EulerSchedule:
    """When the velocity is evaluated, and how far each step goes.

    Attributes:
        times: one per step, float32 values, the first is 1.0.
        step: what is added to the time, a negative float32 value.
    """

    times: tuple[float, ...]
    step: float


def euler_schedule(num_steps: int) -> EulerSchedule:
    """The schedule of openpi: time is accumulated in float32 until it passes half a step above 0.

    Raises:
        ValueError: for less than one step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, not {num_steps}")
    step = np.float32(-1.0 / num_steps)
    times = []
    time = np.float32(1.0)
    while time >= -step / 2:
        times.append(float(time))
        time = time + step
    return EulerSchedule(tuple(times), float(step))
