"""What the status page costs the server, in processor time of the thread that pays.

    python benchmarks/status_page_cost.py --out docs/results/DATE-cpu-status-page.json

Processor time and not latency, so that other programs on the machine count as little as possible.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.libero import libero_observation  # noqa: E402
from vlad_configs.environments import ENVIRONMENTS  # noqa: E402
from vlad_server.status import board as board_module  # noqa: E402
from vlad_server.status.board import MAX_SAMPLES_TOLD, StatusBoard  # noqa: E402
from vlad_server.status.snapshot import Snapshot, render  # noqa: E402

MESSAGE = {
    "actions": np.random.default_rng(0).standard_normal((50, 14)),
    "policy_timing": {f"{stage}_ms": 1.0 for stage in ("preprocess", "vision", "prefix", "denoise")},
    "server_timing": {"total_ms": 10.0, "queue_ms": 1.0, "decode_ms": 0.5},
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    text = json.dumps(asyncio.run(_measure(options.repeats)), indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


async def _measure(repeats: int) -> dict[str, Any]:
    observation = libero_observation()
    board = StatusBoard(ENVIRONMENTS["LIBERO"], watched_for_s=3600.0)

    def note(robot: str) -> None:
        board.note_reply(robot, observation, MESSAGE, encode_ms=0.1, send_ms=0.1)

    def pass_by() -> None:
        for _ in range(1000):
            if board.is_watched:
                note("other")

    unwatched = _microseconds(pass_by, repeats) / 1000
    board.watch("arm")
    reply = _microseconds(lambda: note("other"), repeats)
    board_module.FRAMES_EVERY_S = 0.0
    with_frames = _microseconds(lambda: note("arm"), repeats)

    def snapshot() -> Snapshot:
        samples, skipped = board.samples_after(board.last_number - 15)
        return Snapshot(
            time.monotonic(), {}, samples, skipped, board.last_number, [], "arm", board.look_at("arm")
        )

    poll_on_loop = _microseconds(snapshot, repeats)
    small = snapshot()
    samples, skipped = board.samples_after(0)
    assert len(samples) == MAX_SAMPLES_TOLD
    full = Snapshot(
        time.monotonic(), {}, samples, skipped, board.last_number, [], "arm", board.look_at("arm")
    )
    result = {
        "unit": "microseconds of processor time, median",
        "observation": "2 cameras of 224x224; chunk of 50x14",
        "per reply, nobody looks": round(unwatched, 3),
        "per reply, somebody looks": round(reply, 1),
        "per reply whose frames are copied (5 a second of a chosen robot)": round(with_frames, 1),
        "per poll, event loop": round(poll_on_loop, 1),
        "per poll, thread, 15 replies": round(_microseconds(lambda: render(small), repeats), 1),
        f"per poll, thread, {MAX_SAMPLES_TOLD} replies": round(
            _microseconds(lambda: render(full), repeats), 1
        ),
        "bytes of a poll with 15 replies": len(render(small)),
    }
    board.close()
    return result


def _microseconds(call: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.thread_time()
        call()
        seconds.append(time.thread_time() - started)
    return 1e6 * statistics.median(seconds)


if __name__ == "__main__":
    main()
