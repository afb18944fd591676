"""Flow matching: time runs from 1 (noise) to 0 (actions) and is integrated with Euler steps in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vlad_engines.model.euler import EulerSchedule, euler_schedule

__all__ = ["EulerSchedule", "euler_path", "euler_schedule", "time_embedding"]

_MIN_PERIOD = 4e-3
_MAX_PERIOD = 4.0


def euler_path(
    velocity: Callable[[int, Tensor], Tensor], noise: Tensor, schedule: EulerSchedule
) -> Iterator[Tensor]:
    """Integrate from noise to actions.

    Args:
        velocity: maps the index of a step and the present `[B, H, A]` to its velocity, same shape.
        noise: `[B, H, A]` float32.

    Yields:
        `[B, H, A]` float32 after every step; the last one is the actions.
    """
    x = noise
    for index in range(len(schedule.times)):
        x = x + schedule.step * velocity(index, x)
        yield x


def time_embedding(time: Tensor, width: int) -> Tensor:
    """Sines, then cosines of `time` at `width / 2` periods from 4e-3 to 4, geometrically spaced.

    Args:
        time: `[B]` float32.

    Returns:
        `[B, width]` float32. Angles are formed in float64: in float32 the shortest period alone would
        cost 1e-4 in the velocity.
    """
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=time.device)
    period = _MIN_PERIOD * (_MAX_PERIOD / _MIN_PERIOD) ** fraction
    angles = time.double()[:, None] * (2.0 * math.pi / period)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).float()
