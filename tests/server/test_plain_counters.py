"""Counters without locks show what the client library's own would."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, generate_latest

from vlad_server.exposition import Exposition
from vlad_server.plain_counters import PlainCounters


def test_they_are_rendered_as_the_library_renders_its_own() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    plain = PlainCounters(ours, "robots_seen", "Robots.", label="kind", values=("arm", "hand")).series
    lone = PlainCounters(ours, "bytes", "Bytes.").series[""]
    counter = Counter("robots_seen", "Robots.", ["kind"], registry=theirs)
    other = Counter("bytes", "Bytes.", registry=theirs)
    for kind, amount in (("arm", 1.0), ("hand", 2.5), ("hand", 3.0)):
        plain[kind].inc(amount)
        counter.labels(kind).inc(amount)
    lone.inc(7)
    other.inc(7)
    assert Exposition(ours).render() == Exposition(theirs).render()
    lines = generate_latest(theirs).decode().splitlines()
    assert generate_latest(ours).decode().splitlines() == [line for line in lines if "_created" not in line]


def test_every_label_value_exists_from_the_start() -> None:
    registry = CollectorRegistry()
    PlainCounters(registry, "ends", "Ends.", label="how", values=("well", "badly"))
    assert b'ends_total{how="badly"} 0.0' in Exposition(registry).render()
