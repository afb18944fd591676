"""Who may see whom, and grouped-query attention with a float32 softmax."""

from __future__ import annotations

import torch
from torch import Tensor

MASK_FILL = -2.3819763e38
"""Added to the float32 logit of a key that a query must not see. Finite, so that a row without any visible
key becomes uniform instead of NaN."""


def block_mask(valid: Tensor, block_starts: Tensor) -> Tensor:
    """The block rule of pi0: a token sees its own block and all earlier ones.

    Args:
        valid: `[B, T]` bool, False for padding, which neither sees nor is seen.
        block_starts: `[B, T]` bool or integer, nonzero where a token opens a new block.

    Returns:
        `[B, T, T]` bool: may query i (second axis) attend key j (last axis).
    """
    block = block_starts.long().cumsum(dim=1)
    earlier = block[:, None, :] <= block[:, :, None]
    return earlier & valid[:, None, :] & valid[:, :, None]


def additive_mask(allowed: Tensor) -> Tensor:
    """Turn a bool mask into float32 for adding to logits: 0 where allowed, `MASK_FILL` elsewhere."""
    fill = torch.full((), MASK_FILL, dtype=torch.float32, device=allowed.device)
    return torch.where(allowed, 0.0, fill)


def grouped_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Scaled dot-product attention in which groups of query heads share a key/value head.

    Args:
        queries: `[B, heads, T, head_dim]`.
        keys, values: `[B, kv_heads, K, head_dim]`; heads is a multiple of kv_heads.
        bias: `[B or 1, T or 1, K]` float32 from `additive_mask`, or None where every query sees every key.

    Returns:
        `[B, T, heads * head_dim]` in the dtype of `values`; the softmax runs in float32.
    """
    batch, heads, length, head_dim = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    # One matrix product per shared head instead of a copy of the keys per query head.
    # Scaling the queries is exact for the head widths in use (powers of 4) and touches fewer numbers.
    stacked = (queries * head_dim**-0.5).reshape(batch, kv_heads, group * length, head_dim)
    logits = torch.matmul(stacked, keys.transpose(2, 3)).float()
    if bias is not None:
        per_head = logits.view(batch, kv_heads, group, length, -1) + bias[:, None, None]
        logits = per_head.view(batch, kv_heads, group * length, -1)
    probabilities = torch.softmax(logits, dim=-1).to(values.dtype)
    mixed = torch.matmul(probabilities, values).view(batch, heads, length, head_dim)
    return mixed.transpose(1, 2).reshape(batch, length, heads * head_dim)
