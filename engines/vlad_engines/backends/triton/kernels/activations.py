"""Activations behind a matrix product: GeGLU of a merged gate/up product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def gelu_tanh(x):
    """x * sigmoid(2 u) with u = sqrt(2/pi) (x + 0.044715 x^3), which is the tanh form of GELU."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


FLOAT8_MOST = tl.constexpr(448.0)
"""The largest number of float8 e4m3fn, which has no infinity to overflow to."""


@triton.jit
def clamped(x):
    """What float8 e4m3fn can hold of x."""
    return tl.minimum(tl.maximum(x, -FLOAT8_MOST), FLOAT8_MOST)


@triton.jit
def _geglu(
    product_ptr,
    scale_ptr,
    out_ptr,
    factor,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    QUANTISE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    gate = tl.load(product_ptr + row * 2 * HIDDEN + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(product_ptr + row * 2 * HIDDEN + HIDDEN + columns, mask=inside, other=0.0).to(tl.float32)
    if QUANTISE:
        gate *= tl.load(scale_ptr + columns, mask=inside, other=0.0)
        up *= tl.load(scale_ptr + HIDDEN + columns, mask=inside, other=0.0)
    hidden = gelu_tanh(gate) * up
    if QUANTISE:
        hidden = clamped(hidden * factor)
    tl.store(out_ptr + row * HIDDEN + columns, hidden.to(out_ptr.dtype.element_ty), mask=inside)


def geglu(
    product: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    factor: float | None = None,
) -> None:
    """`out = gelu(product[:, :hidden]) * product[:, hidden:]`.

    Args:
        product: `[M, 2 * hidden]`, gate columns first.
        out: `[M, hidden]`.
        scale, factor: both or none. `[2 * hidden]` float32 by which the product is multiplied first, and
            what the result is multiplied by before it becomes float8, as `out` then is.
    """
    rows, hidden = out.shape
    block = min(triton.next_power_of_2(hidden), 4096)
    _geglu[(rows, triton.cdiv(hidden, block))](
        product,
        product if scale is None else scale,
        out,
        1.0 if factor is None else factor,
        HIDDEN=hidden,
        BLOCK=block,
        QUANTISE=factor is not None,
        num_warps=8,
    )
