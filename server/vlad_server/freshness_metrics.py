"""How old what robots get is: by the time it is computed, by the time it leaves, in steps of control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from vlad_server.latency_histogram import LatencyHistograms

AGE_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.010, 0.020, 0.030, 0.040, 0.050, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.5, 1.0, 2.0, 5.0, 10.0),
)
"""Seconds."""

STEP_BUCKETS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 50)
"""Control steps; the longest published chunks have 50 actions."""


class FreshnessMetrics:
    """Recorded once for each chunk that is sent."""

    def __init__(self, registry: CollectorRegistry, namespace: str) -> None:
        def histogram(name: str, text: str, bounds: tuple[float, ...]) -> Any:
            return LatencyHistograms(registry, f"{namespace}_{name}", text, bounds).series[""]

        self._observation_age = histogram(
            "observation_age_seconds", "Observation received to its computation begun.", AGE_BUCKETS
        )
        self._elapsed_steps = histogram(
            "chunk_elapsed_steps",
            "Control steps from an observation to its chunk, of clients that give vlad/control_hz.",
            STEP_BUCKETS,
        )
        self._rtc_delay = histogram(
            "rtc_delay_steps",
            "Control steps at the head of a continued chunk that the robot executes meanwhile.",
            STEP_BUCKETS,
        )
        self._misses = Counter(
            "deadline_misses",
            "Chunks sent after their vlad/deadline_ms.",
            namespace=namespace,
            registry=registry,
        )

    def note_chunk(
        self,
        *,
        received: float,
        started: float,
        sent: float,
        expires: float | None,
        control_hz: float | None,
        rtc: Mapping[str, Any] | None,
    ) -> None:
        """A chunk was sent.

        Args:
            received, started, sent: time.perf_counter() of its observation, its computation and its reply.
            expires: when it became useless; None for never.
            control_hz: actions per second of its robot; None where the client does not say.
            rtc: what became of the continuation that was asked for; None where none was.
        """
        self._observation_age.observe(max(0.0, started - received))
        if control_hz is not None:
            self._elapsed_steps.observe((sent - received) * control_hz)
        if rtc is not None and rtc["mode"] != "off":
            self._rtc_delay.observe(rtc["delay"])
        if expires is not None and sent > expires:
            self._misses.inc()
