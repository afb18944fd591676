"""Memory of a process that does the same thing again and again: keep what comes back, collect seldom."""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

KEPT_BYTES = 32 << 20
"""Free memory that the process keeps; also the size from which a block is the kernel's business again."""

COLLECT_AFTER = 20_000
"""Objects that may be made before cycles among them are looked for; a request leaves none."""


def collect_seldom() -> None:
    """Leave what exists now out of garbage collection for good, and look at the rest less often."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 10, 10)


def keep_freed_memory() -> None:
    """Reuse the blocks of one request for the next one. Does nothing where there is no glibc.

    By default glibc gives blocks of 128 KiB and more back at once. A request with two images takes six of
    them, and each comes back from the kernel as pages to be cleared, at the price of a fault per page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
