"""A registry as Prometheus' text format, version 0.0.4, at a tenth of what the client library takes for it.

A scrape is rendered on a thread of its own, but under the same GIL as the event loop. The library escapes
every label of every sample anew; here what stands before a value is kept, and whoever waits for the GIL gets
it after each metric.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from vlad_server.latency_histogram import HistogramFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PAUSE_S = 0.0001
"""After each metric. Giving the GIL up for no time at all mostly gets it back before the event loop wakes."""

_TYPES = {"unknown": "untyped", "info": "gauge", "stateset": "gauge"}
_VALUES = {math.inf: "+Inf", -math.inf: "-Inf"}


class Exposition:
    """Renders one registry, for any number of threads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._starts: dict[tuple[str, ...], str] = {}

    def render(self) -> bytes:
        """The present values. When counters were created is left out: nobody asks, each is a line more."""
        return ("\n".join(self._lines()) + "\n").encode()

    def _lines(self) -> Iterator[str]:
        for family in self._registry.collect():
            time.sleep(PAUSE_S)
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            yield f"# HELP {name} {_escaped(family.documentation)}"
            yield f"# TYPE {name} {_TYPES.get(family.type, family.type)}"
            if isinstance(family, HistogramFamily):
                yield from family.lines()
            else:
                yield from self._samples(family)

    def _samples(self, family: Metric) -> Iterator[str]:
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                yield self._start(sample) + _number(sample.value)

    def _start(self, sample: Sample) -> str:
        key = (sample.name, *sample.labels, *sample.labels.values())
        start = self._starts.get(key)
        if start is None:
            pairs = ",".join(f'{name}="{_quoted(value)}"' for name, value in sample.labels.items())
            start = self._starts[key] = f"{sample.name}{{{pairs}}} " if pairs else f"{sample.name} "
        return start


def _number(value: float) -> str:
    if value in _VALUES:
        return _VALUES[value]
    return "NaN" if math.isnan(value) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')
