"""Rotary position embedding in the "rotate half" layout: the head's first half pairs with its second."""

from __future__ import annotations

import torch
from torch import Tensor

_BASE = 10000.0


def rope_tables(head_dim: int, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions 0 .. length-1, each `[length, head_dim / 2]` float32.

    Computed on the CPU whatever the default device, so that every device rotates by the same angles.
    """
    exponents = torch.arange(0, head_dim, 2, device="cpu", dtype=torch.float32) / head_dim
    frequencies = 1.0 / _BASE**exponents
    angles = torch.arange(length, device="cpu", dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads by their positions.

    Args:
        x: `[B, heads, T, head_dim]`.
        cos, sin: `[B or 1, 1, T, head_dim / 2]` in the dtype of `x`.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
