"""How long a chunk takes to come: a percentile over the latest samples."""

from __future__ import annotations

import collections
import math


class LatencyWindow:
    """Latencies in seconds, of which only the latest count.

    A maximum over all time would let one slow call (a compilation, a lost packet) lengthen every later
    delay; here it is forgotten after `size` more samples, and a high percentile passes over it sooner.

    Args:
        size: samples that count, at least 1.
        percentile: in (0, 100]; the nearest rank is taken, so that the result is a latency that occurred.

    Raises:
        ValueError: for other values.
    """

    def __init__(self, size: int, percentile: float) -> None:
        if size < 1:
            raise ValueError(f"size must be positive, not {size}")
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile must be in (0, 100], not {percentile}")
        self._samples: collections.deque[float] = collections.deque(maxlen=size)
        self._percentile = percentile
        self._cold_s: float | None = None

    def add(self, latency_s: float, *, cold: bool = False) -> None:
        """Record one sample.

        Args:
            cold: the first reply after connecting, which may contain a warm-up of either side. It
                stands in for an estimate as long as there is no other sample, and never joins the window.
        """
        if cold:
            self._cold_s = latency_s
        else:
            self._samples.append(latency_s)

    def estimate_s(self) -> float | None:
        """The percentile of the window in seconds; None before the first sample."""
        if not self._samples:
            return self._cold_s
        rank = math.ceil(self._percentile / 100 * len(self._samples))
        return sorted(self._samples)[rank - 1]
