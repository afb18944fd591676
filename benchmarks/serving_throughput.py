"""What lock-step robots get from a daemon: requests per second and waits, by schedule and robots.

Run from the repository root: `python -m benchmarks.serving_throughput --checkpoint random:pi05
--backend triton [--devices 0,1] [--robots 1,2,4,8] [--out FILE.json]`. Each robot is a process of its own,
sends two raw 224x224 images and waits for its chunk. The schedules: `together` may compute requests in
batches, and prepares the next ones meanwhile; `one by one` computes each request alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.run_facts import run_facts, summary
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot, pack, unpack
from vlad_engines.bench.loopback import running_daemon

WARM_UP_S = 0.8
READY_TIMEOUT_S = 60.0


def drive(index: int, port: int, ready: Any, begin: Any, seconds: float, results: Any) -> None:
    """One robot, in its own process: sends the next request when the reply is there."""
    message = pack(libero_observation(index))
    waits, computed = [], []
    with connect_robot(port) as robot:
        ready.release()
        begin.wait()
        started_at = time.perf_counter()
        while (now := time.perf_counter()) < started_at + WARM_UP_S + seconds:
            robot.connection.send(message)
            reply = unpack(robot.connection.recv(READY_TIMEOUT_S))
            if now >= started_at + WARM_UP_S:
                waits.append(time.perf_counter() - now)
                computed.append(reply["policy_timing"]["infer_ms"])
    results.put((waits, computed))


def measure(port: int, robots: int, seconds: float) -> dict[str, Any]:
    """Throughput and waits of some robots together.

    Raises:
        queue.Empty: where a robot never finished.
    """
    context = multiprocessing.get_context("spawn")
    ready, begin, results = context.Semaphore(0), context.Event(), context.Queue()
    processes = [
        context.Process(target=drive, args=(index, port, ready, begin, seconds, results), daemon=True)
        for index in range(robots)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        if not ready.acquire(timeout=READY_TIMEOUT_S):
            raise TimeoutError("a robot did not connect")
    begin.set()
    waits, computed = zip(*(results.get(timeout=READY_TIMEOUT_S) for _ in processes), strict=True)
    for process in processes:
        process.join()
    together = [wait for each in waits for wait in each]
    return {
        "robots": robots,
        "requests_per_s": round(sum(len(each) / sum(each) for each in waits), 1),
        "wait": summary(together),
        "policy_ms_p50": summary([1e-3 * each for some in computed for each in some])["p50_ms"],
        "served_min": min(map(len, waits)),
        "served_max": max(map(len, waits)),
    }


@contextlib.contextmanager
def daemon(args: argparse.Namespace, sizes: str, devices: str) -> Iterator[tuple[int, float]]:
    """A running daemon: its port, and the seconds that it took to become ready."""
    options = ["--env", "LIBERO", "--checkpoint", args.checkpoint, "--backend", args.backend]
    options += ["--batch-sizes", sizes]
    options += ["--precision", args.precision] if args.precision else []
    options += ["--devices", devices] if devices else []
    with running_daemon(options) as ready:
        yield ready


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every schedule on every choice of devices."""
    rows = []
    for devices in args.devices.split(";"):
        for schedule in args.schedules.split(","):
            sizes = args.batch_sizes if schedule == "together" else "1"
            with daemon(args, sizes, devices) as (port, startup_s):
                for robots in map(int, args.robots.split(",")):
                    row = {
                        "schedule": schedule,
                        "batch_sizes": sizes,
                        "devices": devices or "default",
                        "startup_s": round(startup_s, 1),
                        **measure(port, robots, args.seconds),
                    }
                    rows.append(row)
                    _show(row)
    return rows


def _show(row: dict[str, Any]) -> None:
    wait = row["wait"]
    print(
        f"{row['devices']:>8}  {row['schedule']:>10}  {row['robots']:3} robots  "
        f"{row['requests_per_s']:7.1f} requests/s  p50 {wait['p50_ms']:8.2f}  p99 {wait['p99_ms']:8.2f} ms",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="random:pi05_dummy", help="checkpoint, or random weights")
    parser.add_argument("--backend", default="pytorch")
    parser.add_argument("--precision", default=None, help="default: the backend's")
    parser.add_argument("--batch-sizes", default="1,2,4,8", help="of the schedule `together`")
    parser.add_argument(
        "--devices", default="", help="choices of devices, such as '0;0,1'; default: the daemon's"
    )
    parser.add_argument("--schedules", default="together,one by one")
    parser.add_argument("--robots", default="1,2,4,8")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    parser.add_argument("--out", type=pathlib.Path, help="write the result as JSON")
    args = parser.parse_args(arguments)
    result = {**run_facts(), "checkpoint": args.checkpoint, "backend": args.backend, "rows": run(args)}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
