"""Ends the process when its event loop is stuck, so that whoever supervises it can start another.

A daemon whose loop hangs looks alive to the kernel and answers nobody. It says where it hangs, and goes.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable

from vlad_server.health import Pulse

TICK_S = 1.0
STUCK_AFTER_TICKS = 30
EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h: a defect, not a wrong option, so a restart may help."""

LAST_WORDS_S = 5.0
"""What is read of the stacks in this time is read; the exit waits no longer."""


class LoopWatchdog:
    """Watches the pulse of the event loop from a daemon thread.

    Time is counted in turns of this thread and not read from a clock: where the whole process was stopped,
    or the machine slept, this thread did not turn either, and nothing is taken for stuck.

    Args:
        pulse: beaten by the loop far more often than once in `tick_s`.
        on_stuck: called once, on the watchdog's thread.
    """

    def __init__(
        self,
        pulse: Pulse,
        *,
        tick_s: float = TICK_S,
        stuck_after_ticks: int = STUCK_AFTER_TICKS,
        on_stuck: Callable[[], None] | None = None,
    ) -> None:
        self._pulse = pulse
        self._tick_s = tick_s
        self._stuck_after_ticks = stuck_after_ticks
        self._on_stuck = on_stuck or end_process
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching; what follows may block as long as it likes."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        last_beat, ticks = self._pulse.last_beat, 0
        while not self._closed.wait(self._tick_s):
            if self._pulse.last_beat != last_beat:
                last_beat, ticks = self._pulse.last_beat, 0
                continue
            ticks += 1
            if ticks >= self._stuck_after_ticks:
                self._on_stuck()
                return


def end_process() -> None:
    """Write every thread's stack to stderr and exit, also where nobody reads it."""
    writing = threading.Thread(target=_write_stacks, name="last words", daemon=True)
    writing.start()
    writing.join(LAST_WORDS_S)
    os._exit(EXIT_CODE)


def _write_stacks() -> None:
    # Not straight to stderr: faulthandler holds the GIL while it writes, and then nobody could exit.
    stacks = os.memfd_create("stacks")
    os.write(stacks, f"the event loop is stuck; every thread's stack, then exit code {EXIT_CODE}\n".encode())
    faulthandler.dump_traceback(file=stacks, all_threads=True)
    remaining = memoryview(os.pread(stacks, os.fstat(stacks).st_size, 0))
    while remaining:
        remaining = remaining[os.write(sys.stderr.fileno(), remaining) :]
