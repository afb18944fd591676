"""Rotary position embedding in the "rotate half" layout: the head's first half pairs with its second."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BASE = 10000.0


def rope_tables(head_dim: int, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions 0 .. length-1, each `[length, head_dim / 2]` float32.

    Computed on the CPU whatever the default device, so that every device rotates by the same angles, and
    with numpy: torch's first cosine in a process can be 1.5e-4 wrong in the part that a second thread
    computes (torch 2.13 with MKL 2024.2, in one of about 50 processes on a busy machine).
    """
    exponents = torch.arange(0, head_dim, 2, device="cpu", dtype=torch.float32) / head_dim
    frequencies = 1.0 / _BASE**exponents
    # float32 angles, as in openpi; only their cosines and sines are taken more exactly.
    angles = (torch.arange(length, device="cpu", dtype=torch.float32)[:, None] * frequencies).double().numpy()
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return torch.from_numpy(cos), torch.from_numpy(sin)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads by their positions.

    Args:
        x: `[B, heads, T, head_dim]`.
        cos, sin: `[B or 1, 1, T, head_dim / 2]` in the dtype of `x`.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
