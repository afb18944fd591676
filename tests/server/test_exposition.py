"""Our rendering of the metrics says what the Prometheus client's own would."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vlad_server.exposition import Exposition
from vlad_server.metrics import ServerMetrics


def _families(text: str) -> dict[str, tuple[str, str, dict[object, float]]]:
    return {
        family.name: (
            family.type,
            family.documentation,
            {(s.name, *sorted(s.labels.items())): s.value for s in family.samples},
        )
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
    }


def test_every_metric_of_the_daemon_is_rendered_as_the_library_would() -> None:
    registry = CollectorRegistry()
    metrics = ServerMetrics(registry)
    metrics.set_build_info(version="1", backend="x", precision="bf16", model="pi05", env="LIBERO")
    metrics.request_duration.observe(0.012)
    metrics.stages["vision"].observe(11.0)
    ours = _families(Exposition(registry).render().decode())
    theirs = _families(generate_latest(registry).decode())
    assert ours.keys() == theirs.keys()
    for name in ours:
        if not name.startswith(("process_", "python_gc_")):
            assert ours[name] == theirs[name]


def test_odd_values_and_labels_survive() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("odd", "A \\ and a\nline.", ["a", "b"], registry=registry)
    for number, label in enumerate(('quo"te', "back\\slash", "new\nline", "ö")):
        gauge.labels(label, "x").set(number)
    gauge.labels("x", "1").set(math.inf)
    gauge.labels("x", "2").set(-math.inf)
    Counter("some", "Counted.", registry=registry).inc(1e20)
    Info("version", "Told.", registry=registry).info({"v": "1"})
    expected = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    assert Exposition(registry).render().decode().splitlines() == expected


def test_a_figure_that_is_not_known_is_nan() -> None:
    registry = CollectorRegistry()
    Gauge("unknown", "Not known.", registry=registry).set(math.nan)
    assert b"unknown NaN\n" in Exposition(registry).render()


def test_a_second_scrape_shows_new_values_and_labels() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("g", "A text.", ["a"], registry=registry)
    exposition = Exposition(registry)
    gauge.labels("x").set(1)
    assert b'g{a="x"} 1.0\n' in exposition.render()
    gauge.clear()
    gauge.labels("y").set(2)
    text = exposition.render()
    assert b'g{a="y"} 2.0\n' in text
    assert b'"x"' not in text
