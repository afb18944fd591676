"""Programmatic dependent launch: a kernel starts while its predecessor ends, and fetches weights meanwhile.

Weights never depend on the predecessor, so a block asks for its own before it waits. Only one kernel
runs ahead, because each lets its successor start after its own wait.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

INTERPRETED = triton.knobs.runtime.interpret

LAUNCH: dict[str, Any] = {"OVERLAP": False} if INTERPRETED else {"OVERLAP": True, "launch_pdl": True}
"""Options for launching a kernel that calls `wait_for_predecessor(OVERLAP)`."""


@triton.jit
def prefetch_rows(pointer, stride, ROWS: tl.constexpr, LENGTH: tl.constexpr, OVERLAP: tl.constexpr):
    """Ask for ROWS rows of LENGTH bf16 entries, `stride` entries apart, to be brought into L2."""
    if OVERLAP:
        lines: tl.constexpr = LENGTH // 64
        # Only a hint: lengths of small networks that are no power of two do without.
        if lines > 0 and lines & (lines - 1) == 0:
            row = tl.arange(0, ROWS)[:, None]
            line = tl.arange(0, lines)[None, :]
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; // $0",
                "=r,l",
                [pointer + row * stride + line * 64],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )


@triton.jit
def wait_for_predecessor(OVERLAP: tl.constexpr):
    """Everything that earlier kernels wrote is visible after this; the successor may start now."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
