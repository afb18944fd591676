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
        self._seconds: dict[int, _Median] = collections.defaultdict(_Median)
        self._occupied: dict[int, _Median] = collections.defaultdict(_Median)
        self._noted: dict[int, float] = {}

    def note(self, size: int, seconds: float, now: float, occupied: float | None = None) -> None:
        """A batch of `size` took `seconds`.

        Args:
            occupied: those of them in which it was the last one on its device, and so what it costs the
                requests behind it; None for all. Less where another batch was computed beside its beginning.
        """
        self._seconds[size].add(seconds)
        self._occupied[size].add(seconds if occupied is None else occupied)
        self._noted[size] = now

    def expected(self, size: int) -> float | None:
        """What a batch of `size` takes; None where none was measured yet."""
        return self._seconds[size].value if size in self._noted else None

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
        return max(possible, key=lambda size: (size / self._occupied[size].value, -size))


class _Median:
    """Of the latest values."""

    def __init__(self) -> None:
        self._window: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self.value = 0.0

    def add(self, value: float) -> None:
        self._window.append(value)
        self.value = sorted(self._window)[len(self._window) // 2]
