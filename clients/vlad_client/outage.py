"""When a lost connection is tried again, and for how long."""

from __future__ import annotations

import logging
from typing import Iterator

from vlad_client.errors import PolicyConnectionError, PolicyTimeoutError
from vlad_client.retry import REPORT_INTERVAL_S, backoff_delays

logger = logging.getLogger("vlad_client")


class Outage:
    """The time from the loss of a connection until the next one is ready, on the caller's clock.

    Args:
        limit_s: how long it may last; None for ever.
    """

    def __init__(self, limit_s: float | None, now: float, delays: Iterator[float] | None = None) -> None:
        self._limit_s = limit_s
        self._began = now
        self._attempt_at = now
        self._reported = now
        self._delays = backoff_delays() if delays is None else delays

    def wait_s(self, now: float) -> float:
        """Seconds until the next attempt is due."""
        return max(0.0, self._attempt_at - now)

    def failed(self, error: PolicyConnectionError, now: float) -> None:
        """Take note that an attempt failed.

        Raises:
            PolicyConnectionError: the same, if trying again is useless.
            PolicyTimeoutError: if the outage has lasted too long.
        """
        if not error.retryable:
            raise error
        self._attempt_at = now + next(self._delays)
        self.waited(str(error), now)

    def waited(self, why: str, now: float) -> None:
        """Take note that there is still no connection; says so in the log now and then.

        Raises:
            PolicyTimeoutError: if the outage has lasted too long.
        """
        if self._limit_s is not None and now - self._began >= self._limit_s:
            raise PolicyTimeoutError(f"no policy server within {self._limit_s:g} s: {why}")
        if now - self._reported >= REPORT_INTERVAL_S:
            self._reported = now
            logger.warning("still waiting for the server: %s", why)
