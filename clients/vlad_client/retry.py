"""When to try again, and when to stop trying."""

from __future__ import annotations

import logging
import random
import time
from typing import Callable, Iterator

from vlad_client.errors import PolicyConnectionError, PolicyTimeoutError

logger = logging.getLogger("vlad_client")

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
REPORT_INTERVAL_S = 5.0


def backoff_delays(uniform: Callable[[float, float], float] = random.uniform) -> Iterator[float]:
    """Yield pauses in seconds, doubling up to `LONGEST_DELAY_S`.

    Each is shortened by chance to no less than half, so that robots that lost the same server do
    not come back in step.
    """
    ceiling = FIRST_DELAY_S
    while True:
        yield ceiling * uniform(0.5, 1.0)
        ceiling = min(2 * ceiling, LONGEST_DELAY_S)


class Retries:
    """Bounds the attempts at one task, in time and in number.

    Args:
        limit_s: seconds from now for the whole task; None never ends.
        max_retries: attempts beyond the first; None for as many as the time allows.
        wait: sleeps the seconds given.
    """

    def __init__(
        self,
        *,
        limit_s: float | None,
        max_retries: int | None,
        wait: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit_s = limit_s
        self._max_retries = max_retries
        self._wait = wait
        self._clock = clock
        self._started = clock()
        self._reported = self._started - REPORT_INTERVAL_S
        self._failures = 0
        self._delays = backoff_delays()

    def remaining_s(self, at_most: float | None = None) -> float | None:
        """Seconds left, zero when time is up, and no more than `at_most`; None is no limit."""
        if self.limit_s is None:
            return at_most
        left = max(0.0, self._started + self.limit_s - self._clock())
        return left if at_most is None else min(left, at_most)

    def pause_after(self, error: PolicyConnectionError) -> None:
        """Wait until the next attempt is due; says in the log now and then what is waited for.

        Raises:
            PolicyConnectionError: if trying again is useless or has been done often enough.
            PolicyTimeoutError: if time would be up before the next attempt.
        """
        if not error.retryable:
            raise error
        self._failures += 1
        if self._max_retries is not None and self._failures > self._max_retries:
            attempts = "1 attempt" if self._failures == 1 else f"{self._failures} attempts"
            raise PolicyConnectionError(f"gave up after {attempts}: {error}", retryable=True) from error
        delay_s = next(self._delays)
        remaining_s = self.remaining_s()
        if remaining_s is not None and remaining_s <= delay_s:
            raise PolicyTimeoutError(f"no policy server within {self.limit_s:g} s: {error}") from error
        if self._clock() - self._reported >= REPORT_INTERVAL_S:
            self._reported = self._clock()
            logger.warning("still waiting for the server: %s", error)
        self._wait(delay_s)
