"""Prefix attention: RoPE and the split of the merged projection, then flash attention over one shared head.

Heads are stored in pair order: entries 2i and 2i+1 hold what the "rotate half" layout keeps at i and
i + head_dim/2. Queries and keys share the order, so their products are those of the original layout.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vlad_engines.backends.triton.kernels.activations import clamped
from vlad_engines.backends.triton.kernels.tiling import power_of_two_divisor

BLOCK_KEYS = 32


@triton.jit
def rotate_pairs(x, cos, sin, ROWS: tl.constexpr, PAIRS: tl.constexpr):
    """RoPE of `[ROWS, 2 * PAIRS]` in pair order by `[ROWS, PAIRS]` angles."""
    first, second = tl.split(tl.reshape(x, (ROWS, PAIRS, 2)))
    rotated = tl.join(first * cos - second * sin, second * cos + first * sin)
    return tl.reshape(rotated, (ROWS, 2 * PAIRS))


@triton.jit
def _split_heads(
    product_ptr,
    cos_ptr,
    sin_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    scale_ptr,
    position_ptr,
    cache_stride,
    tokens,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KEYS_ONLY: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    sample = row // tokens
    token = row % tokens
    pair = tl.arange(0, HEAD_DIM // 2)[None, :]
    entry = tl.arange(0, HEAD_DIM)[None, :]
    position = tl.load(position_ptr + row) if HAS_POSITIONS else token
    cos = tl.load(cos_ptr + position * (HEAD_DIM // 2) + pair)
    sin = tl.load(sin_ptr + position * (HEAD_DIM // 2) + pair)
    width: tl.constexpr = HEAD_DIM * ((0 if KEYS_ONLY else HEADS) + 2)
    base = product_ptr + row * width
    if not KEYS_ONLY:
        heads = tl.arange(0, HEADS)[:, None]
        queries = tl.load(base + heads * HEAD_DIM + entry).to(tl.float32)
        if HAS_SCALE:
            queries *= tl.load(scale_ptr + heads * HEAD_DIM + entry)
        cos_all = tl.broadcast_to(cos, (HEADS, HEAD_DIM // 2))
        sin_all = tl.broadcast_to(sin, (HEADS, HEAD_DIM // 2))
        queries = rotate_pairs(queries, cos_all, sin_all, HEADS, HEAD_DIM // 2)
        tl.store(query_ptr + (row * HEADS + heads) * HEAD_DIM + entry, queries.to(query_ptr.dtype.element_ty))
        base += HEADS * HEAD_DIM
        scale_ptr += HEADS * HEAD_DIM
    keys = tl.load(base + entry).to(tl.float32)
    values = tl.load(base + HEAD_DIM + entry).to(tl.float32)
    if HAS_SCALE:
        keys *= tl.load(scale_ptr + entry)
        values *= tl.load(scale_ptr + HEAD_DIM + entry)
    keys = rotate_pairs(keys, cos, sin, 1, HEAD_DIM // 2)
    target = sample * cache_stride + token * HEAD_DIM + entry
    tl.store(key_ptr + target, keys.to(key_ptr.dtype.element_ty))
    tl.store(value_ptr + target, values.to(value_ptr.dtype.element_ty))


def split_heads(
    product: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    queries: torch.Tensor | None,
    keys: torch.Tensor,
    values: torch.Tensor,
    tokens: int,
    *,
    scale: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> None:
    """Rotate and store what the merged projection computed; keys and values go straight into the cache.

    Args:
        product: `[B * tokens, (heads + 2) * head_dim]`, or `[.., 2 * head_dim]` without queries.
        cos, sin: `[positions, head_dim / 2]` float32.
        queries: `[B * tokens, heads, head_dim]`, or None where only keys and values are wanted.
        keys, values: one layer's cache `[B, rows, head_dim]`; the first `tokens` rows are written.
        scale: a float32 number for each column of the product, by which it is multiplied first.
        positions: `[B, tokens]` int32, rows of `cos` and `sin`; None where each token's is its index.
    """
    head_dim = keys.shape[-1]
    _split_heads[(product.shape[0],)](
        product,
        cos,
        sin,
        product if queries is None else queries,
        keys,
        values,
        cos if scale is None else scale,
        product if positions is None else positions,
        keys.stride(0),
        tokens,
        HEADS=1 if queries is None else queries.shape[1],
        HEAD_DIM=head_dim,
        KEYS_ONLY=queries is None,
        HAS_SCALE=scale is not None,
        HAS_POSITIONS=positions is not None,
        num_warps=4,
    )


@triton.jit
def _prefix_attention(
    query_ptr,
    key_ptr,
    value_ptr,
    length_ptr,
    out_ptr,
    cache_stride,
    rows,
    factor,
    HEAD_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    KEY_BLOCKS: tl.constexpr,
    SCALE: tl.constexpr,
    QUANTISE: tl.constexpr,
):
    sample = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = row < rows
    entry = tl.arange(0, HEAD_DIM)
    at = (sample * rows + row)[:, None] * HEAD_DIM + entry[None, :]
    queries = tl.load(query_ptr + at, mask=inside[:, None], other=0.0)
    length = tl.load(length_ptr + sample)
    highest = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    mixed = tl.zeros((BLOCK_ROWS, HEAD_DIM), tl.float32)
    for block in range(KEY_BLOCKS):
        key = block * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
        seen = key < length
        cache = sample * cache_stride + key[:, None] * HEAD_DIM + entry[None, :]
        keys = tl.load(key_ptr + cache, mask=seen[:, None], other=0.0)
        # Base-2 exponentials: the scale carries log2(e).
        logits = tl.dot(queries, tl.trans(keys)) * (SCALE * 1.4426950408889634)
        logits = tl.where(seen[None, :], logits, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(logits, axis=1))
        weights = tl.exp2(logits - new_highest[:, None])
        shrink = tl.exp2(highest - new_highest)
        total = total * shrink + tl.sum(weights, axis=1)
        values = tl.load(value_ptr + cache, mask=seen[:, None], other=0.0)
        mixed = mixed * shrink[:, None] + tl.dot(weights.to(values.dtype), values)
        highest = new_highest
    mixed = mixed / total[:, None]
    if QUANTISE:
        mixed = clamped(mixed * factor)
    tl.store(out_ptr + at, mixed.to(out_ptr.dtype.element_ty), mask=inside[:, None])


def prefix_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    out: torch.Tensor,
    tokens: int,
    *,
    factor: float | None = None,
) -> None:
    """Every query sees the first `lengths[b]` keys of its sample.

    Args:
        queries, out: `[B * tokens, heads, head_dim]`.
        keys, values: one layer's cache `[B, rows, head_dim]`.
        lengths: `[B]` int32 on the device, at least 1.
        factor: by which the result is multiplied before it becomes float8, as `out` then is.
    """
    heads, head_dim = queries.shape[1:]
    rows = tokens * heads
    block_rows = max(16, power_of_two_divisor(rows, 64))
    _prefix_attention[(triton.cdiv(rows, block_rows), lengths.shape[0])](
        queries,
        keys,
        values,
        lengths,
        out,
        keys.stride(0),
        rows,
        1.0 if factor is None else factor,
        HEAD_DIM=head_dim,
        BLOCK_ROWS=block_rows,
        BLOCK_KEYS=BLOCK_KEYS,
        KEY_BLOCKS=triton.cdiv(tokens, BLOCK_KEYS),
        SCALE=head_dim**-0.5,
        QUANTISE=factor is not None,
        num_warps=4,
        # One request leaves multiprocessors half empty, so that loads need more of a head start.
        num_stages=3 if lengths.shape[0] == 1 else 2,
    )
