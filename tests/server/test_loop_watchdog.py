"""A stuck event loop ends its process, with a word about where it hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from vlad_server import loop_watchdog
from vlad_server.health import Pulse
from vlad_server.loop_watchdog import LoopWatchdog

PROGRAM = """
import asyncio, time
from vlad_server.health import Pulse
from vlad_server.loop_watchdog import LoopWatchdog

async def beat(pulse):
    while True:
        pulse.beat()
        await asyncio.sleep(0.002)

async def main():
    pulse = Pulse()
    beating = asyncio.create_task(beat(pulse))
    watchdog = LoopWatchdog(pulse, tick_s=0.02, stuck_after_ticks=10)
    await asyncio.sleep(0.5)
    print("still here", flush=True)
    where_it_hangs()

def where_it_hangs():
    time.sleep(60)

asyncio.run(main())
"""


def test_a_loop_that_turns_is_left_alone_and_one_that_hangs_is_ended_with_its_stack() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert result.returncode == loop_watchdog.EXIT_CODE
    assert result.stdout == "still here\n"
    assert "the event loop is stuck; every thread's stack, then exit code 70" in result.stderr
    assert "in where_it_hangs" in result.stderr


def test_it_ends_even_where_nobody_reads_what_it_says() -> None:
    full_pipe = "import os\nos.set_blocking(2, False)\ntry:\n    while os.write(2, bytes(4096)): pass\n"
    full_pipe += "except BlockingIOError: pass\nos.set_blocking(2, True)\n"
    unread, theirs = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", full_pipe + PROGRAM],
        env={"PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"still here\n"
            stuck = time.monotonic()
            assert process.wait(40) == loop_watchdog.EXIT_CODE
            assert loop_watchdog.LAST_WORDS_S - 1 < time.monotonic() - stuck < loop_watchdog.LAST_WORDS_S + 15
        finally:
            process.kill()
    os.close(unread)


def test_a_closed_watchdog_ends_nothing() -> None:
    stuck = threading.Event()
    watchdog = LoopWatchdog(Pulse(), tick_s=0.05, stuck_after_ticks=2, on_stuck=stuck.set)
    watchdog.close()
    assert not stuck.wait(0.2)


def test_it_counts_its_own_turns_and_reads_no_clock() -> None:
    stuck = threading.Event()
    pulse = Pulse()
    pulse.last_beat = -1e9  # as after a night's sleep of the machine
    watchdog = LoopWatchdog(pulse, tick_s=0.01, stuck_after_ticks=1000, on_stuck=stuck.set)
    assert not stuck.wait(0.2)
    watchdog.close()
