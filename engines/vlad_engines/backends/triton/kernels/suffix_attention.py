"""Attention of the few suffix rows over prefix and suffix keys, split over the keys to fill the GPU.

The splits of a tile of rows combine their results within the launch, see `splits`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vlad_engines.backends.triton.kernels.dependency import LAUNCH, prefetch_rows, wait_for_predecessor
from vlad_engines.backends.triton.kernels.splits import arrive, combines, leave, run_together
from vlad_engines.backends.triton.workspace import Workspace


@triton.jit
def _suffix_attention(
    query_ptr,
    key_ptr,
    value_ptr,
    length_ptr,
    out_ptr,
    partial_ptr,
    statistics_ptr,
    counter_ptr,
    cache_stride,
    prefix,
    SUFFIX: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HAS_STATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_BLOCK: tl.constexpr,
    SHARES: tl.constexpr,
    TOGETHER: tl.constexpr,
    SCALE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    # The prefix part of the cache is older than the predecessor; only the suffix part is new.
    sample = tl.program_id(2).to(tl.int64)
    split = tl.program_id(1)
    if (split + 1) * BLOCK_KEYS <= prefix:
        ahead = sample * cache_stride + split * BLOCK_KEYS * HEAD_DIM
        prefetch_rows(key_ptr + ahead, HEAD_DIM, BLOCK_KEYS, HEAD_DIM, OVERLAP)
        prefetch_rows(value_ptr + ahead, HEAD_DIM, BLOCK_KEYS, HEAD_DIM, OVERLAP)
    wait_for_predecessor(OVERLAP)
    row_block = tl.program_id(0)
    rows: tl.constexpr = SUFFIX * HEADS
    row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = row < rows
    entry = tl.arange(0, HEAD_DIM)
    at = (sample * rows + row)[:, None] * HEAD_DIM + entry[None, :]
    queries = tl.load(query_ptr + at, mask=inside[:, None], other=0.0)
    length = tl.load(length_ptr + sample)

    key = split * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    exists = (key < length) | ((key >= prefix) & (key < prefix + SUFFIX))
    cache = sample * cache_stride + key[:, None] * HEAD_DIM + entry[None, :]
    keys = tl.load(key_ptr + cache, mask=exists[:, None], other=0.0)
    values = tl.load(value_ptr + cache, mask=exists[:, None], other=0.0)
    logits = tl.dot(queries, tl.trans(keys)) * (SCALE * 1.4426950408889634)
    seen = tl.broadcast_to(exists[None, :], (BLOCK_ROWS, BLOCK_KEYS))
    if HAS_STATE:
        # The state token opens a block of its own: it does not see the actions behind it.
        seen = seen & ((row[:, None] >= HEADS) | (key[None, :] <= prefix))
    logits = tl.where(seen, logits, float("-inf"))
    highest = tl.max(logits, axis=1)
    reference = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(logits - reference[:, None])
    mixed = tl.dot(weights.to(values.dtype), values)

    block = (sample * tl.num_programs(0) + row_block) * SPLITS
    local = tl.arange(0, BLOCK_ROWS)
    tl.store(partial_ptr + ((block + split) * BLOCK_ROWS + local)[:, None] * HEAD_DIM + entry[None, :], mixed)
    tl.store(statistics_ptr + ((block + split) * 2) * BLOCK_ROWS + local, highest)
    tl.store(statistics_ptr + ((block + split) * 2 + 1) * BLOCK_ROWS + local, tl.sum(weights, axis=1))
    counter = counter_ptr + sample * tl.num_programs(0) + row_block
    before = arrive(counter)
    if combines(counter, before, SPLITS, TOGETHER):
        # Each of SHARES splits takes a share of the columns, or the last one takes them all.
        turn = split if TOGETHER else 0
        if turn < SHARES:
            part = tl.arange(0, SPLITS_BLOCK)[:, None]
            theirs = statistics_ptr + (block + part) * 2 * BLOCK_ROWS + local[None, :]
            peaks = tl.load(theirs, mask=part < SPLITS, other=float("-inf"), cache_modifier=".cg")
            totals = tl.load(theirs + BLOCK_ROWS, mask=part < SPLITS, other=0.0, cache_modifier=".cg")
            top = tl.max(peaks, axis=0)
            total = tl.sum(totals * tl.exp2(peaks - top[None, :]), axis=0)
            share: tl.constexpr = HEAD_DIM // SHARES
            column = turn * share + tl.arange(0, share)
            combined = tl.zeros((BLOCK_ROWS, share), tl.float32)
            for other in tl.static_range(SPLITS):
                origin = (block + other) * BLOCK_ROWS
                peak = tl.load(statistics_ptr + 2 * origin + local, cache_modifier=".cg")
                place = (origin + local)[:, None] * HEAD_DIM + column[None, :]
                mine = tl.load(partial_ptr + place, cache_modifier=".cg")
                combined += mine * tl.exp2(peak - top)[:, None]
            combined = combined / total[:, None]
            to = (sample * rows + row)[:, None] * HEAD_DIM + column[None, :]
            tl.store(out_ptr + to, combined.to(out_ptr.dtype.element_ty), mask=inside[:, None])
        leave(counter, SPLITS, TOGETHER)


class SuffixAttention:
    """Launches the kernel over its scratch memory.

    Args:
        samples: B.
        prefix: rows of the cache that belong to the prefix, padding included.
        suffix: rows behind them.
        has_state: True where the first suffix row is pi0's state token.
        alone: nothing else runs on the GPU meanwhile, so that blocks may well wait for each other.
    """

    NUM_WARPS = 8

    def __init__(
        self,
        *,
        samples: int,
        prefix: int,
        suffix: int,
        heads: int,
        head_dim: int,
        has_state: bool,
        alone: bool,
        workspace: Workspace,
    ) -> None:
        self._prefix, self._suffix, self._has_state = prefix, suffix, has_state
        # Few rows need many splits to fill the GPU; many rows fill it, and then combining costs more.
        rows = samples * suffix * heads
        self._block_keys = 64 if rows <= 256 else 128
        self._block_rows = 16 if rows <= 512 else 32
        self._blocks = triton.cdiv(suffix * heads, self._block_rows)
        self._splits = triton.cdiv(prefix + suffix, self._block_keys)
        parts = samples * self._blocks * self._splits
        size = parts * self._block_rows
        self._partial = workspace.get("attention.partial", size * head_dim, dtype=torch.float32)
        self._statistics = workspace.get("attention.statistics", size * 2, dtype=torch.float32)
        self._together = alone and run_together(parts)
        # Of the columns of a tile, one for each block that combines: a power of two.
        self._shares = 1 << (self._splits.bit_length() - 1) if self._together else 1
        # All zero between launches.
        self._counters = workspace.get("attention.counters", samples * self._blocks, dtype=torch.int32)

    def __call__(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        lengths: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Attend.

        Args:
            queries, out: `[B * suffix, heads, head_dim]`.
            keys, values: one layer's cache `[B, prefix + suffix, head_dim]`.
            lengths: `[B]` int32, prefix tokens that are seen.
        """
        heads, head_dim = queries.shape[1:]
        _suffix_attention[(self._blocks, self._splits, lengths.shape[0])](
            queries,
            keys,
            values,
            lengths,
            out,
            self._partial,
            self._statistics,
            self._counters,
            keys.stride(0),
            self._prefix,
            SUFFIX=self._suffix,
            HEADS=heads,
            HEAD_DIM=head_dim,
            HAS_STATE=self._has_state,
            BLOCK_ROWS=self._block_rows,
            BLOCK_KEYS=self._block_keys,
            SPLITS=self._splits,
            SPLITS_BLOCK=triton.next_power_of_2(self._splits),
            SHARES=self._shares,
            TOGETHER=self._together,
            SCALE=head_dim**-0.5,
            num_warps=self.NUM_WARPS,
            num_stages=3,
            **LAUNCH,
        )
