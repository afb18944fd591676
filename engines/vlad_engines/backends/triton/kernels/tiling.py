"""Sizes of tiles, and how many of them are in flight."""

from __future__ import annotations

import functools

import torch
import triton

_MOST_STAGES = 8
_SHARE_FOR_TILES = 0.75
"""What is left over holds what the compiler needs to rearrange accumulators."""


def power_of_two_divisor(size: int, limit: int) -> int:
    """The largest power of two that divides `size` and is at most `limit`."""
    return min(size & -size, limit)


def padded_rows(rows: int) -> int:
    """Rows of a tile that holds `rows` rows: a power of two, at least the tensor cores' 16."""
    tile = 16
    while tile < rows:
        tile *= 2
    return tile


def stages_in_flight(tile_bytes: int) -> int:
    """How many tiles of `tile_bytes` shared memory can be on their way at once, 2 to 8.

    A skinny product is bound by the latency of its loads: on an H200, 8 stages instead of 4 took the
    denoise loop of pi0.5 from 5.5 to 5.0 ms.
    """
    return max(2, min(_MOST_STAGES, int(_SHARE_FOR_TILES * _shared_memory()) // tile_bytes))


@functools.cache
def _shared_memory() -> int:
    """Bytes of shared memory that one block may take."""
    if not torch.cuda.is_available():
        return 1 << 16
    device = torch.cuda.current_device()
    size: int = triton.runtime.driver.active.utils.get_device_properties(device)["max_shared_mem"]
    return size
