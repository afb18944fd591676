"""Our histograms say what the Prometheus client's own would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from vlad_server.latency_histogram import LatencyHistograms

BOUNDS = (0.001, 0.0125, 0.5, 1.0)


@given(st.lists(st.floats(0, 2) | st.sampled_from(BOUNDS), max_size=30))
def test_both_render_the_same(seconds: list[float]) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    expected = Histogram("x_seconds", "A text.", ["stage"], registry=theirs, buckets=BOUNDS)
    histograms = LatencyHistograms(ours, "x_seconds", "A text.", BOUNDS, label="stage", values=("a", "b"))
    for label in ("a", "b"):
        expected.labels(label)
    for value in seconds:
        expected.labels("a").observe(value)
        histograms.series["a"].observe(value)
    assert _lines(ours) == _lines(theirs)


def test_a_metric_without_label_has_its_series_from_the_start() -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    Histogram("x_seconds", "A text.", registry=theirs, buckets=BOUNDS)
    LatencyHistograms(ours, "x_seconds", "A text.", BOUNDS)
    assert _lines(ours) == _lines(theirs)


def _lines(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return sorted(line for line in lines if "_created" not in line)
