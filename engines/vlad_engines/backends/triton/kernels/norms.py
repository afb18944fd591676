"""Residual sums and norms in one pass: the residual is read and written once between two matrix products."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vlad_engines.backends.triton.kernels.activations import clamped

EPSILON = 1e-6


@triton.jit
def _residual_rms_norm(
    residual_ptr,
    branch_ptr,
    branch_scale_ptr,
    weight_ptr,
    normed_ptr,
    factor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    QUANTISE: tl.constexpr,
    EPS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    x = tl.load(residual_ptr + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        branch = tl.load(branch_ptr + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        if HAS_SCALE:
            branch *= tl.load(branch_scale_ptr + columns, mask=inside, other=0.0)
        x += branch
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + row * WIDTH + columns, rounded, mask=inside)
        x = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / WIDTH + EPS)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    normed = x * scale * (1.0 + weight)
    if QUANTISE:
        normed = clamped(normed * factor)
    tl.store(normed_ptr + row * WIDTH + columns, normed.to(normed_ptr.dtype.element_ty), mask=inside)


def residual_rms_norm(
    residual: torch.Tensor,
    branch: torch.Tensor | None,
    weight: torch.Tensor,
    normed: torch.Tensor,
    *,
    branch_scale: torch.Tensor | None = None,
    factor: float | None = None,
) -> None:
    """`residual += branch`, then its RMS norm with weight 1 + w into `normed`.

    Args:
        residual, branch, normed: `[M, width]`, contiguous; branch None leaves the residual as it is.
        weight: `[width]` float32.
        branch_scale: `[width]` float32 by which the branch is multiplied first; None for 1.
        factor: by which the norm is multiplied before it becomes float8, as `normed` then is.
    """
    rows, width = residual.shape
    block = triton.next_power_of_2(width)
    _residual_rms_norm[(rows,)](
        residual,
        residual if branch is None else branch,
        weight if branch_scale is None else branch_scale,
        weight,
        normed,
        1.0 if factor is None else factor,
        WIDTH=width,
        BLOCK=block,
        HAS_BRANCH=branch is not None,
        HAS_SCALE=branch_scale is not None,
        QUANTISE=factor is not None,
        EPS=EPSILON,
        num_warps=4 if block <= 2048 else 8,
    )


@triton.jit
def _residual_layer_norm(
    residual_ptr,
    branch_ptr,
    branch_bias_ptr,
    weight_ptr,
    bias_ptr,
    normed_ptr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    EPS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    x = tl.load(residual_ptr + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        x += tl.load(branch_ptr + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        x += tl.load(branch_bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + row * WIDTH + columns, rounded, mask=inside)
        x = rounded.to(tl.float32)
    mean = tl.sum(x, axis=0) / WIDTH
    centred = tl.where(inside, x - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / WIDTH + EPS)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    normed = centred * scale * weight + bias
    tl.store(normed_ptr + row * WIDTH + columns, normed.to(normed_ptr.dtype.element_ty), mask=inside)


def residual_layer_norm(
    residual: torch.Tensor,
    branch: tuple[torch.Tensor, torch.Tensor] | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    normed: torch.Tensor,
) -> None:
    """`residual += branch + branch bias`, then its layer norm into `normed`.

    Args:
        residual, normed: `[M, width]`, contiguous.
        branch: a `[M, width]` matrix product and the `[width]` bias that it lacks; None adds nothing.
        weight, bias: `[width]` of the norm.
    """
    rows, width = residual.shape
    product, product_bias = (residual, weight) if branch is None else branch
    _residual_layer_norm[(rows,)](
        residual,
        product,
        product_bias,
        weight,
        bias,
        normed,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        HAS_BRANCH=branch is not None,
        EPS=EPSILON,
        num_warps=4,
    )
