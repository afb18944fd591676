"""How often a client may ask, and how often it may be wrong. Pure logic."""

from __future__ import annotations

import collections

BURST_S = 1.0
"""A client may save up what it is allowed in this time, so that a jittery camera is not refused."""

MOST_MISTAKES, MISTAKES_S = 10, 10.0
"""So many in so many seconds are nobody's oversight any more."""

MAX_CLIENTS = 4096
"""Buckets that are remembered; a client that was silent long enough to be forgotten has a full one."""


class Allowance:
    """What one client may still ask for: a bucket of tokens, shared by all of its connections.

    Args:
        rate: requests per second.
        now: seconds of any clock that `take` is given as well.
    """

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate * BURST_S)
        self._tokens = self._most
        self._filled = now

    def take(self, now: float) -> bool:
        """True where one more request is allowed now, which then counts."""
        # A clock that stands still or goes back gives nothing, and takes nothing away.
        self._tokens = min(self._most, self._tokens + max(0.0, now - self._filled) * self._rate)
        self._filled = max(self._filled, now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Mistakes:
    """What one connection got wrong of late."""

    def __init__(self) -> None:
        self._times: collections.deque[float] = collections.deque(maxlen=MOST_MISTAKES)

    def note(self, now: float) -> bool:
        """Note one more; True where that makes too many."""
        self._times.append(now)
        return len(self._times) == MOST_MISTAKES and now - self._times[0] < MISTAKES_S


class Allowances:
    """The allowances of all clients.

    Args:
        rate: requests per second of each; None for any number.
    """

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._clients: collections.OrderedDict[str, Allowance] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    def of(self, client: str, now: float) -> Allowance | None:
        """The allowance of a client; None where there is no limit."""
        if self.rate is None:
            return None
        allowance = self._clients.pop(client, None) or Allowance(self.rate, now)
        self._clients[client] = allowance
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)
        return allowance
