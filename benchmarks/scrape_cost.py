"""What a scrape of the metrics costs the server's event loop.

Run from the repository root: `python -m benchmarks.scrape_cost [--scrapes N] [--out FILE]`. An event loop as
the daemon's, with all its metrics and its monitoring thread, counts by how much a timer of 1 ms is late. The
worst of each scrape is compared with the worst of an equally long while without one; both take turns. The
scraper is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

import numpy as np
import uvloop
from prometheus_client import CollectorRegistry, generate_latest

from vlad_server.app import GIL_SWITCH_S
from vlad_server.exposition import Exposition
from vlad_server.health import Pulse
from vlad_server.metrics import ServerMetrics
from vlad_server.monitoring import MonitoringServer
from vlad_server.readiness import Readiness

TICK_S = 0.001
RENDERINGS = 200

_SCRAPER = """
import http.client, sys
for line in sys.stdin:
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    connection.request("GET", "/metrics")
    size = len(connection.getresponse().read())
    connection.close()
    print(size, flush=True)
"""


class _Probe:
    """Counts by how much a timer is late."""

    def __init__(self) -> None:
        self._worst = 0.0

    async def run(self) -> None:
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            self._worst = max(self._worst, time.perf_counter() - due)

    async def worst(self, what: asyncio.Future[Any]) -> tuple[float, float]:
        """The worst delay while `what` goes on, and how long that took; seconds."""
        self._worst, began = 0.0, time.perf_counter()
        await what
        took = time.perf_counter() - began
        await asyncio.sleep(2 * TICK_S)
        return self._worst, took


async def lag(scrapes: int) -> dict[str, Any]:
    """Milliseconds of lag with and without a scrape."""
    sys.setswitchinterval(GIL_SWITCH_S)
    metrics = ServerMetrics(CollectorRegistry())
    server = MonitoringServer(
        "127.0.0.1", 0, registry=metrics.registry, readiness=Readiness(metrics), pulse=Pulse()
    )
    scraper = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _SCRAPER, str(server.port)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert scraper.stdin is not None
    assert scraper.stdout is not None
    probe = _Probe()
    ticking = asyncio.create_task(probe.run())
    quiet, scraped, took = [], [], [0.01]
    for _ in range(scrapes):
        quiet.append((await probe.worst(asyncio.ensure_future(asyncio.sleep(took[-1]))))[0])
        scraper.stdin.write(b"\n")
        worst, seconds = await probe.worst(asyncio.ensure_future(scraper.stdout.readline()))
        scraped.append(worst)
        took.append(seconds)
    ticking.cancel()
    scraper.stdin.close()
    await scraper.wait()
    server.close()
    return {
        "worst_lag_ms": {"quiet": _percentiles(quiet), "scraped": _percentiles(scraped)},
        "added_ms": round(1e3 * float(np.median(scraped) - np.median(quiet)), 3),
        "scrape_ms": _percentiles(took[1:]),
    }


def rendering() -> dict[str, Any]:
    """Milliseconds of CPU to render all metrics, and with the client library."""
    registry = CollectorRegistry()
    ServerMetrics(registry)
    exposition = Exposition(registry)
    own, library = [], []
    for _ in range(RENDERINGS):
        began = time.thread_time()
        text = exposition.render()
        middle = time.thread_time()
        generate_latest(registry)
        own.append(middle - began)
        library.append(time.thread_time() - middle)
    return {
        "bytes": len(text),
        "lines": text.count(b"\n"),
        "own_ms": round(1e3 * float(np.median(own)), 3),
        "library_ms": round(1e3 * float(np.median(library)), 3),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{level}": round(1e3 * float(np.percentile(seconds, level)), 3) for level in (50, 95, 99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scrapes", type=int, default=500)
    parser.add_argument("--out", type=pathlib.Path, help="write the result as JSON")
    args = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "command": f"python -m benchmarks.scrape_cost --scrapes {args.scrapes}",
        "machine": {
            "cpu_count": os.cpu_count(),
            "arch": platform.machine(),
            "python": platform.python_version(),
        },
        "rendering_cpu": rendering(),
        **uvloop.run(lag(args.scrapes)),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
