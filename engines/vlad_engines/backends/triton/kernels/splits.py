"""Blocks that computed parts of one sum combine it within the same launch.

Where all blocks of a launch run at the same time, each waits for the others of its sum and combines one
share of the result. Elsewhere, whoever comes last combines everything.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from vlad_engines.backends.triton.kernels.dependency import INTERPRETED


def run_together(blocks: int) -> bool:
    """True where a launch of so many blocks surely runs them at the same time: they may wait for each other.

    Blocks of other kernels only delay them: those never wait for this launch before they end, and a
    successor starts when all of these blocks have.
    """
    return not INTERPRETED and torch.cuda.is_available() and blocks <= _multiprocessors()


@functools.cache
def _multiprocessors() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


@triton.jit
def arrive(counter_ptr):
    """Publish this block's part; returns how many parts were there before."""
    tl.debug_barrier()
    return tl.atomic_add(counter_ptr, 1, sem="acq_rel")


@triton.jit
def combines(counter_ptr, before, SPLITS: tl.constexpr, TOGETHER: tl.constexpr):
    """True where this block has to combine after `arrive`; returns when it may."""
    if TOGETHER:
        seen = before + 1
        while seen < SPLITS:
            seen = tl.atomic_add(counter_ptr, 0, sem="acquire")
        tl.debug_barrier()
        result = True
    else:
        result = before == SPLITS - 1
    return result


@triton.jit
def leave(counter_ptr, SPLITS: tl.constexpr, TOGETHER: tl.constexpr):
    """After combining: the counter is zero again when the launch ends."""
    if TOGETHER:
        # Counts on, so that whoever still waits sees no less than all parts.
        if tl.atomic_add(counter_ptr, 1, sem="relaxed") == 2 * SPLITS - 1:
            tl.store(counter_ptr, 0)
    else:
        tl.store(counter_ptr, 0)
