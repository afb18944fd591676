"""From sizes to scales, and from numbers to float8."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
MOST = torch.finfo(FLOAT8).max
MARGIN = 2.0
"""How much larger than in calibration an input may be; float8 loses only its smallest numbers by it."""

_LEAST_SCALE = torch.finfo(torch.float32).tiny
"""bfloat16 holds it too. Nothing may be divided by zero, whatever a checkpoint is like."""


def input_scale(peak: float) -> float:
    """By what inputs are divided before they become float8.

    Args:
        peak: their largest magnitude in calibration.
    """
    return max(MARGIN * peak / MOST, _LEAST_SCALE)


def column_scales(weight: Tensor) -> Tensor:
    """By what the weights of each output are divided, `[out]` float32, for a matrix `[out, in]`."""
    return (weight.float().abs().amax(dim=1) / MOST).clamp(min=_LEAST_SCALE)


def divided_columns(weight: Tensor, scales: Tensor) -> Tensor:
    """`[out, in]` float8 of a matrix `[out, in]` and `scales` `[out]`."""
    return to_float8(weight.float() / scales.float()[:, None])


def to_float8(x: Tensor) -> Tensor:
    """Round to the nearest; what is too large becomes the largest number there is."""
    return x.clamp(-MOST, MOST).to(FLOAT8)
