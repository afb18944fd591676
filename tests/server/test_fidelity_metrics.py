"""What a fidelity check found shows in `/metrics`."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry

from vlad_server.metrics import ServerMetrics


def gauges(metrics: ServerMetrics) -> tuple[float | None, ...]:
    names = ("passed", "action_cosine", "action_error_p99")
    return tuple(metrics.registry.get_sample_value(f"vlad_fidelity_{name}") for name in names)


def test_figures_of_a_compared_backend_are_published() -> None:
    metrics = ServerMetrics(CollectorRegistry())
    metrics.set_fidelity({"passed": True, "action_cosine": 0.9998, "action_error_p99": 0.02})
    assert gauges(metrics) == (1.0, 0.9998, 0.02)


def test_an_override_does_not_count_as_passed() -> None:
    metrics = ServerMetrics(CollectorRegistry())
    metrics.set_fidelity({"passed": False, "action_cosine": None, "action_error_p99": None, "override": True})
    passed, cosine, error = gauges(metrics)
    assert passed == 0.0
    assert cosine is not None
    assert error is not None
    assert math.isnan(cosine)
    assert math.isnan(error)


def test_the_reference_agrees_with_itself() -> None:
    metrics = ServerMetrics(CollectorRegistry())
    metrics.set_fidelity({"passed": True, "reference": True})
    assert gauges(metrics) == (1.0, 1.0, 0.0)
