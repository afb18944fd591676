"""The merged gate/up product with GeGLU on its sums, so that the product itself is never stored.

Sums stay float32 until the result is rounded; a product that is stored rounds gate and up before.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from vlad_engines.backends.triton.kernels.activations import clamped, gelu_tanh
from vlad_engines.float8.scales import FLOAT8


class Tiling(NamedTuple):
    """What one program computes at a time, and with what.

    Attributes:
        rows, columns: of the result's tile; there are sums for gate and for up.
        depth: how much of the depth is loaded at once.
        warps, stages: of a program, and how many loads it has in shared memory.
        programs: on each multiprocessor.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    programs: int = 1


TILINGS: dict[torch.dtype, tuple[Tiling, ...]] = {
    torch.bfloat16: (
        Tiling(128, 128, 64, warps=8, stages=4),
        Tiling(128, 128, 64, warps=8, stages=3),
        Tiling(256, 64, 64, warps=8, stages=4),
        Tiling(128, 64, 64, warps=4, stages=3, programs=2),
    ),
    FLOAT8: (
        Tiling(128, 64, 128, warps=8, stages=6),
        Tiling(128, 64, 128, warps=8, stages=4),
        Tiling(64, 128, 128, warps=8, stages=4),
        Tiling(64, 64, 128, warps=4, stages=3, programs=2),
    ),
}
"""For each dtype of inputs, those that are worth measuring. None of them spills registers."""


# Otherwise numbers of rows that 16 divides, and those that it does not, would need a kernel each.
@triton.jit(do_not_specialize=["rows"])
def _gated_product(
    x_desc,
    weight_desc,
    scale_ptr,
    out_desc,
    rows,
    factor,
    HIDDEN: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    QUANTISE: tl.constexpr,
):
    row_tiles = tl.cdiv(rows, BLOCK_ROWS)
    tiles = row_tiles * tl.cdiv(HIDDEN, BLOCK_COLUMNS)
    # Neighbours share weights: those exceed L2, the rows do not. Flattened, the next tile's loads are on
    # their way while this one's sums are turned into results.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row = (tile % row_tiles) * BLOCK_ROWS
        column = (tile // row_tiles) * BLOCK_COLUMNS
        sums = tl.zeros((BLOCK_ROWS, 2 * BLOCK_COLUMNS), tl.float32)
        for step in range(tl.cdiv(DEPTH, BLOCK_DEPTH)):
            x = x_desc.load([row, step * BLOCK_DEPTH])
            weight = weight_desc.load([0, column, step * BLOCK_DEPTH])
            weight = tl.reshape(weight, (2 * BLOCK_COLUMNS, BLOCK_DEPTH)).T
            if QUANTISE:
                # Tensor cores of Hopper add float8 products with fewer bits than float32 has. The compiler's
                # own way around that (max_num_imprecise_acc) adds before the product has been waited for.
                sums += tl.dot(x, weight)
            else:
                sums = tl.dot(x, weight, sums)
        halves = tl.reshape(sums, (BLOCK_ROWS, 2, BLOCK_COLUMNS))
        gate, up = tl.split(tl.permute(halves, (0, 2, 1)))
        if QUANTISE:
            columns = column + tl.arange(0, BLOCK_COLUMNS)
            inside = columns < HIDDEN
            gate *= tl.load(scale_ptr + columns, mask=inside, other=0.0)[None, :]
            up *= tl.load(scale_ptr + HIDDEN + columns, mask=inside, other=0.0)[None, :]
        hidden = gelu_tanh(gate) * up
        if QUANTISE:
            hidden = clamped(hidden * factor)
        out_desc.store([row, column], hidden.to(out_desc.dtype))


def gated_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    tiling: Tiling,
    *,
    scale: torch.Tensor | None = None,
    factor: float | None = None,
) -> None:
    """`out = gelu(x weight[:hidden]^T) * (x weight[hidden:]^T)`, GELU in its tanh form.

    Args:
        x: `[M, depth]`, of the dtype of `weight`.
        weight: `[2 * hidden, depth]`, gate's rows first.
        out: `[M, hidden]`.
        tiling: which one computes changes the order of sums, so bits.
        scale, factor: both or none, as for `activations.geglu`; then all of x, weight and out are float8.
    """
    (rows, depth), hidden = x.shape, out.shape[1]
    tiles = triton.cdiv(rows, tiling.rows) * triton.cdiv(hidden, tiling.columns)
    _gated_product[(min(tiles, tiling.programs * _multiprocessors(x.device)),)](
        TensorDescriptor.from_tensor(x, [tiling.rows, tiling.depth]),
        TensorDescriptor.from_tensor(weight.view(2, hidden, depth), [2, tiling.columns, tiling.depth]),
        out if scale is None else scale,
        TensorDescriptor.from_tensor(out, [tiling.rows, tiling.columns]),
        rows,
        1.0 if factor is None else factor,
        HIDDEN=hidden,
        DEPTH=depth,
        BLOCK_ROWS=tiling.rows,
        BLOCK_COLUMNS=tiling.columns,
        BLOCK_DEPTH=tiling.depth,
        QUANTISE=factor is not None,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """1 in the interpreter, whose programs run one after the other."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
