"""The expert's matrices in the order in which the blocks of `denoise_loop.cu` read them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCKS = 128
"""Of the kernel; each owns `UNIT` columns of the residual stream."""

UNIT = 8
"""Columns of a matrix instruction."""

_CHUNK = 8192
"""Weights that are copied at once."""


def pack_layer(qkv: Tensor, out: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """One layer's matrices in the order in which the blocks of the kernel read them.

    Args:
        qkv: `[(heads + 2) * 256, 1024]`. out: `[1024, heads * 256]`. gate, up: `[mlp_dim, 1024]`.
        down: `[1024, mlp_dim]`.

    Returns:
        `[128, chunks, 8192]`; blocks without a last unit of `qkv` have zeros there.
    """
    units = _units(qkv)
    per_block = math.ceil(len(units) / BLOCKS)
    missing = per_block * BLOCKS - len(units)
    units = torch.cat((units, units.new_zeros(missing, units.shape[1])))
    by_block = units.view(per_block, BLOCKS, -1).transpose(0, 1)
    gate_up = torch.stack((_units(gate), _units(up)), dim=1).view(BLOCKS, -1)
    parts = (by_block, _projection(out), gate_up, _projection(down))
    return torch.cat([part.reshape(BLOCKS, -1, _CHUNK) for part in parts], dim=1)


def _units(weight: Tensor) -> Tensor:
    """Groups of 8 rows; within each, the 8 entries of k that a lane reads at once stand together."""
    rows, depth = weight.shape
    blocks = weight.reshape(rows // UNIT, UNIT, depth // 32, 4, 8)
    return blocks.permute(0, 2, 1, 3, 4).reshape(rows // UNIT, UNIT * depth)


def _projection(weight: Tensor) -> Tensor:
    """Each block of a pair gets both units of the pair, in its half of the depth: `[128, units]`."""
    rows, depth = weight.shape
    parts = weight.view(rows, 2, depth // 2048, 1024).permute(1, 2, 0, 3)  # [member, part, row, k]
    units = torch.stack([torch.stack([_units(part) for part in member]) for member in parts])
    pairs = units.view(2, depth // 2048, BLOCKS // 2, 2, -1)  # [member, part, pair, unit, ...]
    return pairs.permute(2, 0, 1, 3, 4).reshape(BLOCKS, -1)
