"""How long the engine takes, as measured: all that the scheduler knows of it. Pure, time is passed in."""

from __future__ import annotations

import collections
from collections.abc import Sequence

WINDOW = 32
"""Measurements per batch size; their median is what is expected."""

STALE_AFTER_S = 30.0
"""A size that was not used for so long is worth another try, should its last figures have been bad luck."""


class ServiceTimes:
    """Seconds per batch size, over the latest computations of all workers."""

    def __init__(self) -> None:
        self._seconds: dict[int, collections.deque[float]] = {}
        self._median: dict[int, float] = {}
        self._noted: dict[int, float] = {}

    def note(self, size: int, seconds: float, now: float) -> None:
        """A batch of `size` took `seconds`."""
        window = self._seconds.setdefault(size, collections.deque(maxlen=WINDOW))
        window.append(seconds)
        self._median[size] = sorted(window)[len(window) // 2]
        self._noted[size] = now

    def expected(self, size: int) -> float | None:
        """What a batch of `size` takes; None where none was measured yet."""
        return self._median.get(size)

    def best_size(self, waiting: int, sizes: Sequence[int], now: float) -> int:
        """The batch size, at most `waiting`, that serves most requests per second.

        A size without fresh figures is taken once, to get them. Of equally good sizes the smaller one.

        Args:
            waiting: how many requests could begin now, at least 1.
            sizes: what the engine offers, ascending, 1 among them.
        """
        possible = [size for size in sizes if size <= waiting]
        for size in reversed(possible):
            if now - self._noted.get(size, -STALE_AFTER_S) >= STALE_AFTER_S:
                return size
        return max(possible, key=lambda size: (size / self._median[size], -size))
