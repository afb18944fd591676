"""Counters that cost a fraction of a microsecond: no lock, no checks, rendered when somebody asks.

The client library takes a lock for each increment and looks for exemplars and labels. That is for counters
that any thread may write; these belong to the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector


class PlainCounter:
    """One series. Written by a single thread, read by any."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, amount: float = 1) -> None:
        """Add to it; never less than nothing."""
        self.value += amount


class PlainCounters(Collector):
    """A metric with one series for each value of its label, or a single one without label.

    Args:
        name, text: of the metric, as Prometheus shows them.
        label: name of the label; None for a metric without.
        values: of the label; each has its series from the start.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        text: str,
        *,
        label: str | None = None,
        values: Sequence[str] = (),
    ) -> None:
        self._name, self._text, self._label = name, text, label
        self.series = {value: PlainCounter() for value in (values if label else ("",))}
        registry.register(self)

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Called by the registry for each scrape."""
        family = CounterMetricFamily(self._name, self._text, labels=[self._label] if self._label else [])
        for value, counter in self.series.items():
            family.add_metric([value] if self._label else [], counter.value)
        return [family]
