"""Every metric of the daemon, in one place, on a registry of its own.

Children are made once and kept as attributes, so that every label value exists from the start and
recording costs a microsecond. Rendering happens on the thread of `monitoring.py`, never on the loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)

from vlad_server.doctor.examination import KINDS as OBSERVATION_WARNINGS
from vlad_server.engine_metrics import EngineMetrics
from vlad_server.freshness_metrics import FreshnessMetrics
from vlad_server.latency_histogram import LatencyHistogram, LatencyHistograms
from vlad_server.plain_counters import PlainCounter, PlainCounters

NAMESPACE = "vlad"

REQUEST_BUCKETS = (
    *(0.002, 0.004, 0.006, 0.008, 0.010, 0.0125, 0.015, 0.0175, 0.020, 0.025, 0.030, 0.0333, 0.040, 0.050),
    *(0.0667, 0.075, 0.100, 0.150, 0.200, 0.500, 1.0, 2.0, 5.0, 10.0),
)
"""Seconds; the control periods of 50, 30, 20, 15 and 10 Hz are bounds, so shares within them are exact."""

STAGE_BUCKETS = (
    *(0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.010, 0.0125, 0.015, 0.020),
    *(0.030, 0.050, 0.100, 0.200, 0.500, 1.0, 2.0, 5.0, 10.0),
)
RTT_BUCKETS = (0.00025, 0.0005, 0.001, 0.002, 0.005, 0.010, 0.020, 0.050, 0.100, 0.200, 0.500, 1.0, 5.0)
LAG_BUCKETS = (0.001, 0.002, 0.005, 0.010, 0.020, 0.050, 0.100, 0.500)

OUTCOMES = (
    *("ok", "invalid", "engine_error", "worker_lost", "cancelled"),
    *("busy", "expired", "superseded", "reset", "limited"),
)
CONNECTION_OUTCOMES = ("accepted", "unauthorized", "draining", "forbidden_origin", "at_capacity")
ACTION_LIMITS = ("low", "high", "step")
STAGES = ("decode", "preprocess", "vision", "prefix", "denoise", "postprocess", "encode", "send")
STATES = ("starting", "loading", "ready", "restarting", "draining", "failed")
CLOSE_CODES = ("1000", "1001", "1003", "1006", "1007", "1008", "1009", "1011", "1012", "1013", "other")


class ServerMetrics:
    """The daemon's metrics; attributes are ready-made children."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        self.requests = PlainCounters(
            registry,
            f"{NAMESPACE}_requests",
            "Requests by how they ended; each ends once.",
            label="outcome",
            values=OUTCOMES,
        ).series
        attempts = self._counter("connection_attempts_total", "Websocket handshakes by outcome.", "outcome")
        self.connection_attempts = {outcome: attempts.labels(outcome) for outcome in CONNECTION_OUTCOMES}
        disconnects = self._counter("disconnects_total", "Closed connections by close code.", "code")
        self._disconnects = {code: disconnects.labels(code) for code in CLOSE_CODES}
        self.received_bytes = self._plain_counter("received_bytes", "Payload bytes of requests.")
        self.sent_bytes = self._plain_counter("sent_bytes", "Payload bytes of replies.")
        self.send_timeouts = self._counter(
            "send_timeouts_total", "Connections aborted because the client did not read its reply."
        )
        self.worker_restarts = self._counter("worker_restarts_total", "Engine workers started again.")
        self.worker_hangs = self._counter(
            "worker_hangs_total", "Engine workers that were killed because they answered nothing any more."
        )
        violations = self._counter(
            "action_limit_violations_total", "Actions outside the limits of --action-limits.", "limit"
        )
        self.action_limit_violations = {limit: violations.labels(limit) for limit in ACTION_LIMITS}
        self.workers_ready = self._gauge("workers_ready", "Engine workers that take requests.")
        self.sessions = self._gauge(
            "sessions", "Sessions of robots that name themselves, with and without connection."
        )
        self.observations_examined = self._counter(
            "observations_examined_total", "Observations that were looked at for likely mistakes."
        )
        warnings = self._counter(
            "observation_warnings_total", "Likely mistakes found in examined observations.", "kind"
        )
        self.observation_warnings = {kind: warnings.labels(kind) for kind in OBSERVATION_WARNINGS}
        self.recorder_dropped = self._counter(
            "recorder_dropped_total",
            "Requests left out of the recording: the disk was too slow, or recording has stopped.",
        )
        self.recorder_stops = self._counter(
            "recorder_stops_total", "Recordings that ended early: the disk is full, or the recorder died."
        )
        self.recorder_queued_bytes = self._gauge(
            "recorder_queued_bytes", "Requests and replies that wait for the recorder."
        )
        self.recorder_active = self._gauge("recorder_active", "1 while requests are recorded, else 0.")

        self.request_duration = self._histogram(
            "request_duration_seconds", "Frame received to reply handed to the transport.", REQUEST_BUCKETS
        )
        self.request_queue_duration = self._histogram(
            "request_queue_duration_seconds", "Decoded to begun by the engine worker.", REQUEST_BUCKETS
        )
        self.stages = LatencyHistograms(
            registry,
            f"{NAMESPACE}_stage_duration_seconds",
            "Time per stage; stages may overlap.",
            STAGE_BUCKETS,
            label="stage",
            values=STAGES,
        ).series
        self.freshness = FreshnessMetrics(registry, NAMESPACE)
        self.engine = EngineMetrics(registry, NAMESPACE)
        self.client_rtt = self._histogram(
            "client_rtt_seconds", "Round trip of a keepalive ping to each client.", RTT_BUCKETS
        )
        self.event_loop_lag = self._histogram(
            "event_loop_lag_seconds", "Delay of a 50 ms timer on the server's event loop.", LAG_BUCKETS
        )

        in_flight = self._gauge("requests_in_flight", "Requests by where they are now.", "phase")
        self.in_flight = {phase: in_flight.labels(phase) for phase in ("queued", "running")}
        self.connections = self._gauge("connections", "Open websocket connections.")
        state = self._gauge("state", "1 for the daemon's present state, 0 for the others.", "state")
        self._states = {name: state.labels(name) for name in STATES}
        last_progress = self._gauge(
            "last_progress_timestamp_seconds", "Unix time of the last message from the engine worker."
        )
        self.last_progress_s = 0.0
        last_progress.set_function(lambda: self.last_progress_s)
        self._build_info = self._gauge(
            "build_info", "1; what is being served.", "version", "backend", "precision", "model", "env"
        )

        self.image_tokens_kept = self._gauge(
            "image_tokens_kept", "Image tokens in the prefix of the last pruned request; 0 without pruning."
        )
        self.image_tokens_voted = self._gauge(
            "image_tokens_voted",
            "Image tokens with a vote in the last pruned request; 0 without pruning.",
        )
        self._component_info = self._gauge(
            "component_info",
            "1; what runs each component. How often: vlad_stage_duration_seconds_count of the stage.",
            *("component", "engine", "precision", "version"),
        )

        self.fidelity_passed = self._gauge(
            "fidelity_passed", "1 where the backend is close enough to the float32 reference, else 0."
        )
        self.fidelity_action_cosine = self._gauge(
            "fidelity_action_cosine", "Least cosine of its actions with those of the float32 reference."
        )
        self.fidelity_action_error_p99 = self._gauge(
            "fidelity_action_error_p99", "p99 of its normalised action error against the float32 reference."
        )

    def set_state(self, current: str) -> None:
        """Mark `current`, one of `STATES`, as the present state."""
        for name, gauge in self._states.items():
            gauge.set(1.0 if name == current else 0.0)

    def set_build_info(self, *, version: str, backend: str, precision: str, model: str, env: str) -> None:
        """Publish what is being served, replacing what was published before."""
        self._build_info.clear()
        self._build_info.labels(version, backend, precision, model, env).set(1)

    def set_components(self, components: Mapping[str, Mapping[str, Any]]) -> None:
        """Publish the metadata entry `components`, replacing what was published before."""
        self._component_info.clear()
        for name, part in components.items():
            labels = (str(part.get(key, "")) for key in ("engine", "precision", "version"))
            self._component_info.labels(name, *labels).set(1)

    def set_fidelity(self, fidelity: Mapping[str, Any]) -> None:
        """Publish the metadata entry `fidelity`. Figures that do not exist are NaN."""
        exact = bool(fidelity.get("reference"))
        self.fidelity_passed.set(1.0 if fidelity.get("passed") else 0.0)
        for gauge, name, value_of_reference in (
            (self.fidelity_action_cosine, "action_cosine", 1.0),
            (self.fidelity_action_error_p99, "action_error_p99", 0.0),
        ):
            value = value_of_reference if exact else fidelity.get(name)
            gauge.set(math.nan if value is None else value)

    def request_counts(self) -> dict[str, int]:
        """Requests so far by outcome."""
        return {outcome: int(counter.value) for outcome, counter in self.requests.items()}

    def worker_counts(self) -> dict[str, int]:
        """Engine workers: how many are ready, were started again, were killed because they hung."""
        return {
            "ready": _value(self.workers_ready),
            "restarts": _value(self.worker_restarts),
            "hangs": _value(self.worker_hangs),
        }

    def note_pruning(self, policy_timing: Mapping[str, float]) -> None:
        """Publish what token pruning did to a request, where it did anything."""
        if "image_tokens_kept" in policy_timing:
            self.image_tokens_kept.set(policy_timing["image_tokens_kept"])
            self.image_tokens_voted.set(policy_timing["image_tokens_voted"])

    def count_disconnect(self, code: int) -> None:
        """Count a closed connection under its close code."""
        self._disconnects.get(str(code), self._disconnects["other"]).inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=NAMESPACE, registry=self.registry)

    def _plain_counter(self, name: str, text: str) -> PlainCounter:
        return PlainCounters(self.registry, f"{NAMESPACE}_{name}", text).series[""]

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=NAMESPACE, registry=self.registry)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> LatencyHistogram:
        return LatencyHistograms(self.registry, f"{NAMESPACE}_{name}", text, bounds).series[""]


def _value(metric: Counter | Gauge) -> int:
    """The present value of a child; reading it renders nothing."""
    return int(next(iter(next(iter(metric.collect())).samples)).value)
