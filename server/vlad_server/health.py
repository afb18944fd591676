"""Answers of the health paths; the same on the policy port and on the metrics port."""

from __future__ import annotations

import dataclasses
import time
from http import HTTPStatus

from vlad_server.readiness import Readiness

HEALTH_PATHS = ("/livez", "/readyz", "/healthz")

LOOP_STUCK_AFTER_S = 10.0


@dataclasses.dataclass
class Pulse:
    """When the event loop last turned; written by the loop, read by any thread."""

    last_beat: float = dataclasses.field(default_factory=time.monotonic)

    def beat(self) -> None:
        """Note that the loop turns."""
        self.last_beat = time.monotonic()

    @property
    def alive(self) -> bool:
        """False once the loop has not turned for `LOOP_STUCK_AFTER_S` seconds."""
        return time.monotonic() - self.last_beat < LOOP_STUCK_AFTER_S


def answer(path: str, readiness: Readiness, pulse: Pulse) -> tuple[HTTPStatus, str] | None:
    """Status and body for a health path, None for any other path.

    `/livez` tells whether the process turns, `/readyz` and `/healthz` whether it serves actions now.
    `/healthz` answers `OK` and a newline when ready, as openpi's server does.
    """
    path = path.partition("?")[0]
    if path not in HEALTH_PATHS:
        return None
    if path == "/livez":
        if pulse.alive and readiness.state != "failed":
            return HTTPStatus.OK, "OK\n"
        return HTTPStatus.SERVICE_UNAVAILABLE, "the event loop is stuck\n"
    if readiness.is_ready and pulse.alive:
        return HTTPStatus.OK, "OK\n"
    return HTTPStatus.SERVICE_UNAVAILABLE, f"{readiness.state}: {readiness.explanation}\n"
