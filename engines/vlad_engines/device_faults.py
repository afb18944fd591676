"""What a failed request says about the device: out of memory, lost for this process, or nothing.

A device that is out of memory serves the next request once what the failed one held is free. After an illegal
access or an uncorrectable bit every later call of the process fails as well, so the process goes, and the
server starts another. Imports no torch that is not there already.
"""

from __future__ import annotations

import collections
import gc
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Literal

from vlad_configs.errors import ObservationError

logger = logging.getLogger("vlad.worker")

Fault = Literal["out_of_memory", "lost"]

EXIT_CODE = 70
MAX_OUT_OF_MEMORY = 3
"""Within `OUT_OF_MEMORY_WINDOW_S`: then memory is in pieces or leaks, and only a new process gets it back."""

OUT_OF_MEMORY_WINDOW_S = 60.0

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
_LOST = (
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "device-side assert triggered",
    "unspecified launch failure",
    "misaligned address",
    "uncorrectable ecc error",
    "hardware stack error",
    "invalid program counter",
    "the launch timed out and was terminated",
    "gpu is lost",
)
"""In the words of the CUDA runtime (`cudaGetErrorString`), which torch, PyCUDA and Triton pass on."""


def fault_of(error: BaseException | None) -> Fault | None:
    """What an error, or one that it came from, says about the device."""
    while error is not None and not isinstance(error, ObservationError):
        text = str(error).lower()
        if any(words in text for words in _LOST):
            return "lost"
        if isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
            return "out_of_memory"
        error = error.__cause__ or error.__context__
    return None


class DeviceFaults:
    """Reacts to the failures of one process.

    Args:
        exit_process: ends it at once; called on the thread of `react`.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        exit_process: Callable[[int], None] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exit_process = exit_process
        self._clock = clock
        self._recent: collections.deque[float] = collections.deque(maxlen=MAX_OUT_OF_MEMORY)

    def react(self, error: BaseException) -> None:
        """Free what a failed request held, or end the process where the device is lost to it."""
        fault = fault_of(error)
        if fault == "lost":
            self._end(f"the device is lost to this process: {error}")
        elif fault == "out_of_memory":
            _free(error)
            now = self._clock()
            self._recent.append(now)
            if len(self._recent) == MAX_OUT_OF_MEMORY and now - self._recent[0] < OUT_OF_MEMORY_WINDOW_S:
                self._end(f"out of memory {MAX_OUT_OF_MEMORY} times within {OUT_OF_MEMORY_WINDOW_S:.0f} s")

    def _end(self, reason: str) -> None:
        logger.critical("%s; this engine worker ends with exit code %d", reason, EXIT_CODE)
        sys.stderr.flush()
        self._exit_process(EXIT_CODE)


def _free(error: BaseException) -> None:
    """Let go of the tensors in the frames that failed, and of what the allocator keeps for later."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
