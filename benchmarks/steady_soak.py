"""Robots that behave, at a steady rate and for long: is a reply lost or doubled, does memory grow?

Run from the repository root: `python -m benchmarks.steady_soak`, `--help` lists the options. Half of the
robots are in lock-step, half stream; each sends at its rate and keeps a ledger: what it sent
must end exactly once, as a chunk or, in a stream, as superseded by a newer observation. The policy is
scripted, so that each chunk is known. `benchmarks/soak.py` is the one with vandals in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import logging
import os
import pathlib
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import Robot, connect_robot
from tests.support.scripted_worker import expected_chunk

SERVICE_S = 0.005
REPLY_TIMEOUT_S = 30.0
SAMPLES = 720
"""Of a run; every 5 s of an hour."""

SHORTEST_PERIOD_S = 0.25
_OBSERVATION = libero_observation()


class LedgerError(Exception):
    """A reply that is lost, doubled, mixed up or an error; the text says which."""


@dataclasses.dataclass
class Ledger:
    """What one robot sent, and how it ended.

    Attributes:
        late_ticks: control periods in which nothing was sent, because the reply before had not come.
        reply_s: seconds from sending an observation to its chunk.
    """

    session: str
    sent: int = 0
    chunks: int = 0
    superseded: int = 0
    late_ticks: int = 0
    reply_s: list[float] = dataclasses.field(default_factory=list)
    _open: dict[int, float] = dataclasses.field(default_factory=dict)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @property
    def open(self) -> int:
        """Observations that have not ended."""
        return len(self._open)

    def send(self, robot: Robot, *, stream: bool) -> None:
        """Send the next observation; its state tells which one it is."""
        number = self.sent
        with self._lock:
            self._open[number] = time.perf_counter()
            self.sent += 1
        robot.send(
            {
                **_OBSERVATION,
                "observation/state": np.arange(8.0) + number,
                "vlad/session": self.session,
                "vlad/observation_id": number,
                **({"vlad/stream": True} if stream else {}),
            }
        )

    def receive(self, robot: Robot) -> None:
        """Wait for a reply and strike it off.

        Raises:
            LedgerError: for a reply that nobody waits for, or with the wrong chunk in it.
        """
        reply = robot.receive(REPLY_TIMEOUT_S)
        now = time.perf_counter()
        if "error" in reply:
            raise LedgerError(f"{self.session}: {reply}")
        number = reply["observation_id"]
        with self._lock:
            for observation_id in (number, *reply["superseded"]):
                if observation_id not in self._open:
                    raise LedgerError(f"{self.session}: observation {observation_id} ended twice")
            self.reply_s.append(now - self._open.pop(number))
            for observation_id in reply["superseded"]:
                del self._open[observation_id]
        if reply["session"] != self.session:
            raise LedgerError(f"{self.session}: got a reply of {reply['session']}")
        if not np.array_equal(reply["actions"], expected_chunk(np.arange(8.0) + number, 7)):
            raise LedgerError(f"{self.session}: the chunk of another observation came for {number}")
        self.chunks += 1
        self.superseded += len(reply["superseded"])


def lock_step(ledger: Ledger, robot: Robot, hz: float, stop: threading.Event) -> None:
    """One observation per control period, the next one after its reply."""
    due = time.monotonic()
    while not stop.wait(max(0.0, due - time.monotonic())):
        ledger.send(robot, stream=False)
        ledger.receive(robot)
        due += 1 / hz
        while due < time.monotonic():
            due += 1 / hz
            ledger.late_ticks += 1


def stream(ledger: Ledger, robot: Robot, hz: float, stop: threading.Event) -> None:
    """One observation per control period, come what may; replies are read beside."""
    failed = threading.Event()

    def send() -> None:
        due = time.monotonic()
        while not failed.is_set() and not stop.wait(max(0.0, due - time.monotonic())):
            ledger.send(robot, stream=True)
            due += 1 / hz

    sender = threading.Thread(target=send)
    sender.start()
    try:
        while sender.is_alive() or ledger.open:
            if ledger.open:
                ledger.receive(robot)
            else:
                time.sleep(0.001)
    finally:
        failed.set()
        sender.join()


BEHAVIOURS: tuple[Callable[[Ledger, Robot, float, threading.Event], None], ...] = (lock_step, stream)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Memory at one time of the run, in MB."""

    minute: float
    server_mb: float
    worker_mb: float
    replies: int


def run(
    seconds: float, robots: int, hz: float, report: Callable[[Sample], None] = lambda _: None
) -> dict[str, Any]:
    """Let `robots` robots run at `hz`, and judge.

    Args:
        report: called with each sample of memory.

    Returns:
        `failures`, texts, empty where all went well; ledgers and the daemon's own counters; samples.
    """
    with start_scripted_daemon(infer_s=SERVICE_S) as daemon:
        daemon.wait_ready()
        stop, failures = threading.Event(), list[str]()
        ledgers = [Ledger(f"{BEHAVIOURS[n % 2].__name__} {n}") for n in range(robots)]
        pids: list[int] = []

        def behave(number: int) -> None:
            try:
                with connect_robot(daemon.port) as robot:
                    pids.append(robot.metadata["pid"])
                    BEHAVIOURS[number % 2](ledgers[number], robot, hz, stop)
            except Exception as error:
                failures.append(f"{ledgers[number].session}: {type(error).__name__}: {error}")

        threads = [threading.Thread(target=behave, args=(number,)) for number in range(robots)]
        for thread in threads:
            thread.start()
        samples = _watch(daemon, pids, ledgers, seconds, failures, report)
        stop.set()
        for thread in threads:
            thread.join(2 * REPLY_TIMEOUT_S)
        failures += [f"{ledger.session}: {ledger.open} without a reply" for ledger in ledgers if ledger.open]
        outcomes = {
            outcome: int(daemon.metric("vlad_requests_total", outcome=outcome))
            for outcome in ("ok", "superseded", "cancelled", "worker_lost", "engine_error", "busy")
        }
        restarts = int(daemon.metric("vlad_worker_restarts_total"))
        if (exit_code := daemon.stop()) or "Traceback" in daemon.log():
            failures.append(f"exit code {exit_code}; log:\n{daemon.log()}")
    expected = {
        "ok": sum(led.chunks for led in ledgers),
        "superseded": sum(led.superseded for led in ledgers),
    }
    failures += [
        f"the daemon counts {count} {name}, the robots {expected.get(name, 0)}"
        for name, count in outcomes.items()
        if count != expected.get(name, 0)
    ]
    return {
        "failures": failures,
        "robots": [_summary(ledger) for ledger in ledgers],
        "lost": sum(ledger.open for ledger in ledgers),
        "outcomes": outcomes,
        "worker_restarts": restarts,
        "server_mb_per_hour": slope([sample.minute for sample in samples], [s.server_mb for s in samples]),
        "worker_mb_per_hour": slope([sample.minute for sample in samples], [s.worker_mb for s in samples]),
        "samples": [[*dataclasses.astuple(sample)] for sample in samples],
    }


def _watch(
    daemon: Daemon,
    pids: Sequence[int],
    ledgers: Sequence[Ledger],
    seconds: float,
    failures: Sequence[str],
    report: Callable[[Sample], None],
) -> list[Sample]:
    period, samples = max(SHORTEST_PERIOD_S, seconds / SAMPLES), list[Sample]()
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds and not failures:
        time.sleep(period)
        server = daemon.metric("process_resident_memory_bytes")
        worker = _resident_bytes(pids[0]) if pids else 0
        replies = sum(ledger.chunks for ledger in ledgers)
        sample = Sample(round(elapsed / 60, 3), round(server / 1e6, 2), round(worker / 1e6, 2), replies)
        samples.append(sample)
        report(sample)
    return samples


def _resident_bytes(pid: int) -> int:
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def _summary(ledger: Ledger) -> dict[str, Any]:
    p50, p99 = np.percentile(ledger.reply_s, [50, 99]) if ledger.reply_s else (np.nan, np.nan)
    return {
        "session": ledger.session,
        "sent": ledger.sent,
        "chunks": ledger.chunks,
        "superseded": ledger.superseded,
        "late_ticks": ledger.late_ticks,
        "reply_p50_ms": round(1e3 * float(p50), 2),
        "reply_p99_ms": round(1e3 * float(p99), 2),
    }


def slope(minutes: Sequence[float], megabytes: Sequence[float]) -> float:
    """MB per hour of a straight line through the second half of a run; the first half is warming up."""
    half = len(minutes) // 2
    if half < 2:
        raise ValueError(f"a slope needs at least 4 samples, there are {len(minutes)}")
    return round(60 * float(np.polyfit(minutes[half:], megabytes[half:], 1)[0]), 3)


def draw(samples: Sequence[Sequence[float]], path: pathlib.Path, title: str) -> None:
    """Write a PNG: resident memory of server and worker, and replies per second, over the run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    minute, server, worker, replies = np.array(samples).T
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    memory, rate = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    memory.plot(minute, server, color="#0072B2", label="server")
    memory.plot(minute, worker, color="#E69F00", label="engine worker (scripted)")
    memory.set_ylim(0, 1.25 * max(server.max(), worker.max()))
    memory.set_ylabel("resident MB")
    memory.legend(loc="lower right")
    memory.set_title(title, fontsize=10)
    rate.plot(minute[1:], np.diff(replies) / np.maximum(60 * np.diff(minute), 1e-9), color="#009E73")
    rate.set_ylim(bottom=0)
    rate.set_ylabel("replies per second")
    rate.set_xlabel("minutes")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--robots", type=int, default=4)
    parser.add_argument("--hz", type=float, default=30.0)
    parser.add_argument("--out", type=pathlib.Path, help="write the result as JSON, and a plot beside it")
    args = parser.parse_args()
    logging.getLogger("websockets.client").setLevel(logging.CRITICAL)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    printed: set[int] = set()

    def report(sample: Sample) -> None:
        if (minute := int(sample.minute)) not in printed:
            printed.add(minute)
            print(
                f"minute {sample.minute:6.2f}  replies {sample.replies:7d}  "
                f"server {sample.server_mb:6.1f} MB  worker {sample.worker_mb:6.1f} MB",
                flush=True,
            )

    command = f"python -m benchmarks.steady_soak --minutes {args.minutes:g} --robots {args.robots}"
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit,
        "command": f"{command} --hz {args.hz:g}",
        "machine": {
            "cpu_count": os.cpu_count(),
            "arch": platform.machine(),
            "python": platform.python_version(),
        },
        **run(60 * args.minutes, args.robots, args.hz, report),
    }
    print(json.dumps({name: value for name, value in result.items() if name != "samples"}, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result) + "\n")
        title = f"{args.robots} robots at {args.hz:g} Hz, commit {commit}: {result['lost']} lost replies"
        draw(result["samples"], args.out.with_suffix(".png"), title)
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    main()
