"""What `--record` costs a robot: latency with and without it, in turn, for a ratio that other load spares.

Run from the repository root: `python -m benchmarks.recording_cost [--infer-ms MS] [--rounds N] [--out FILE]`.
Two daemons with a scripted policy run side by side, one of them recording. A robot asks the one a few times
at control rate, then the other, and so on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.run_facts import summary
from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.robot import Robot, connect_robot, pack
from vlad_configs.environments import ENVIRONMENTS
from vlad_engines.fidelity.observations import recorded_observations
from vlad_server.recordings.reader import open_recording

OBSERVATIONS = pathlib.Path(__file__).parents[1] / "examples" / "data" / "libero_observations.npz"
WARM_UP_ROUNDS = 5
TURN = 10
"""Requests to one daemon before it is the other one's turn."""


def _turn(robot: Robot, messages: list[bytes], first: int, period_s: float) -> list[float]:
    seconds = []
    due = time.perf_counter()
    for number in range(first, first + TURN):
        started = time.perf_counter()
        robot.connection.send(messages[number % len(messages)])
        robot.connection.recv()
        seconds.append(time.perf_counter() - started)
        due += period_s
        time.sleep(max(0.0, due - time.perf_counter()))
    return seconds


def _loop_cpu_s(daemon: Daemon) -> float:
    """Processor seconds of the thread that runs the event loop: what no other load adds to."""
    schedstat = pathlib.Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/schedstat")
    return int(schedstat.read_text().split()[0]) * 1e-9


def measure(infer_s: float, rounds: int, control_hz: float) -> dict[str, Any]:
    """Latencies of both, the ratio of their medians, and its spread over the rounds."""
    messages = [pack(each) for each in recorded_observations(OBSERVATIONS, ENVIRONMENTS["LIBERO"])]
    plain: list[list[float]] = []
    recorded: list[list[float]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        start_scripted_daemon(infer_s=infer_s) as one,
        start_scripted_daemon("--record", folder, infer_s=infer_s) as other,
    ):
        with connect_robot(one.port) as first, connect_robot(other.port) as second:
            for number in range(rounds):
                if number == WARM_UP_ROUNDS:
                    before = [_loop_cpu_s(daemon) for daemon in (one, other)]
                turns = [(first, plain), (second, recorded)]
                for robot, times in turns if number % 2 else reversed(turns):
                    times.append(_turn(robot, messages, number * TURN, 1 / control_hz))
            after = [_loop_cpu_s(daemon) for daemon in (one, other)]
        dropped = other.metric("vlad_recorder_dropped_total")
        other.stop()
        files = list(pathlib.Path(folder).iterdir())
        kept = sum(1 for path in files for _ in open_recording(path).exchanges())
        file_bytes = sum(path.stat().st_size for path in files)
    medians = [np.median(np.array(times[WARM_UP_ROUNDS:]), axis=1) for times in (plain, recorded)]
    ratios = np.sort(medians[1] / medians[0])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    requests = TURN * (rounds - WARM_UP_ROUNDS)
    loop_ms = [round(1e3 * (end - begin) / requests, 4) for begin, end in zip(before, after, strict=True)]
    flat = [np.ravel(times[WARM_UP_ROUNDS:]).tolist() for times in (plain, recorded)]
    return {
        "infer_ms": 1e3 * infer_s,
        "control_hz": control_hz,
        "plain": summary(flat[0]),
        "recording": summary(flat[1]),
        "p50_ratio": round(float(np.median(flat[1]) / np.median(flat[0])), 4),
        "p25_ratio": round(float(np.percentile(flat[1], 25) / np.percentile(flat[0], 25)), 4),
        "event_loop_cpu_ms_per_request": {"plain": loop_ms[0], "recording": loop_ms[1]},
        "ratio_of_neighbouring_rounds": {
            "median": round(float(middle), 4),
            "quartiles": [round(float(low), 4), round(float(high), 4)],
            "rounds": len(ratios),
        },
        "recorded": kept,
        "dropped": int(dropped),
        "bytes_per_request": round(file_bytes / max(1, kept)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--infer-ms", type=float, default=20.0, help="what the scripted policy takes")
    parser.add_argument("--control-hz", type=float, default=20.0, help="how often the robot asks")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=pathlib.Path, help="write the result as JSON")
    args = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "command": f"python -m benchmarks.recording_cost --infer-ms {args.infer_ms:g} "
        f"--control-hz {args.control_hz:g} --rounds {args.rounds}",
        "machine": {
            "cpu_count": os.cpu_count(),
            "load_average": [round(load, 1) for load in os.getloadavg()],
            "arch": platform.machine(),
            "python": platform.python_version(),
        },
        "result": measure(1e-3 * args.infer_ms, args.rounds, args.control_hz),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
