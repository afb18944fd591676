"""Which requests the engine gets next. Pure logic: time is passed in; no sockets, no asyncio.

Each request has a time at which it is due: when its robot runs out of actions where the robot says so, or
else when it arrived, because a robot that says nothing stands still until it gets its chunk. Requests
leave in the order of these times. None waits for ever: what is due never changes, and whatever comes
later than that is due later too.

Fair, because a session has at most one running and one waiting request. A stream's newer observation
takes the place of the waiting one, and keeps its turn.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from vlad_server.service_times import ServiceTimes

Work = TypeVar("Work")


class QueueFullError(Exception):
    """No room for another request; the text says where."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """What the scheduler knows of a request. Times are seconds of one clock.

    Attributes:
        session: whose request it is.
        received: when it came.
        slack_s: seconds until its robot runs out of actions; None where the robot does not say.
        expires: when its result becomes useless; None for never.
        shape: only requests with equal ones can be computed together.
    """

    session: Hashable
    received: float
    slack_s: float | None = None
    expires: float | None = None
    shape: Hashable = None

    @property
    def due(self) -> float:
        """When its robot needs the result."""
        return self.received + (self.slack_s or 0.0)


class _Entry(NamedTuple):
    """Ordered by its first two fields; no two have the same number."""

    due: float
    number: int
    request_id: int
    work: Any
    terms: Terms


class Scheduler(Generic[Work]):
    """Waiting requests in the order in which they are due, and which sessions have one running.

    Args:
        max_waiting: how many may wait.
        times: what the engine takes; the owner keeps noting what it measures.
    """

    def __init__(self, max_waiting: int, times: ServiceTimes) -> None:
        self._max_waiting = max_waiting
        self._times = times
        self._queue: list[_Entry] = []
        self._by_session: dict[Hashable, _Entry] = {}
        self._by_id: dict[int, _Entry] = {}
        self._running: dict[int, _Entry] = {}
        self._busy_sessions: dict[Hashable, int] = {}
        self._expiring = 0
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def may_expire(self) -> bool:
        """True where a waiting request becomes useless some time."""
        return self._expiring > 0

    def submit(self, request_id: int, work: Work, terms: Terms) -> None:
        """Let a request wait for its turn.

        Raises:
            QueueFullError: where its session has one waiting already, or too many wait altogether.
        """
        if terms.session in self._by_session:
            raise QueueFullError("a request of this session waits already")
        if len(self._queue) >= self._max_waiting:
            raise QueueFullError(f"{len(self._queue)} requests wait already, the most there may be")
        self._insert(_Entry(terms.due, next(self._numbers), request_id, work, terms))

    def supersede(self, request_id: int, work: Work, terms: Terms) -> tuple[int, Work] | None:
        """Let a request wait, in the place of the one of its session that waits; returns that one.

        Raises:
            QueueFullError: where none of its session waits, and too many altogether.
        """
        older = self._by_session.get(terms.session)
        if older is None:
            self.submit(request_id, work, terms)
            return None
        self._remove(older)
        # With the place of the older one, or a fast camera would push its own robot back for ever.
        self._insert(_Entry(min(older.due, terms.due), older.number, request_id, work, terms))
        return older.request_id, older.work

    def drop(self, request_id: int) -> Work | None:
        """Forget a waiting request that nobody waits for any more; None where it does not wait."""
        entry = self._by_id.get(request_id)
        if entry is None:
            return None
        self._remove(entry)
        work: Work = entry.work
        return work

    def take(self, sizes: Sequence[int], now: float) -> list[tuple[int, Work]]:
        """The requests to compute next, together; none where none may begin. They count as running.

        Take expired ones out first. More than one leave together only where that serves more requests per
        second, as measured, and does not make the first of them late for its robot.

        Args:
            sizes: batch sizes that the engine offers, ascending, 1 among them.
        """
        ready = list(self._ready(sizes[-1]))
        if not ready:
            return []
        size = 1 if len(ready) == 1 else self._times.best_size(len(ready), sizes, now)
        while size > 1 and self._spoils(size, ready, now):
            size = max(smaller for smaller in sizes if smaller < size)
        taken = ready[:size]
        for entry in taken:
            self._remove(entry)
            self._running[entry.request_id] = entry
            self._busy_sessions[entry.terms.session] = entry.request_id
        return [(entry.request_id, entry.work) for entry in taken]

    def running_of(self, session: Hashable) -> int | None:
        """The request of a session that was taken and has not finished."""
        return self._busy_sessions.get(session)

    def finish(self, request_id: int) -> None:
        """Note that a request that was taken no longer runs."""
        del self._busy_sessions[self._running.pop(request_id).terms.session]

    def put_back(self, request_id: int) -> bool:
        """Give a request that was taken, but never begun, its old place.

        Returns:
            False where a newer one of its session waits: that one then has the place.
        """
        entry = self._running[request_id]
        self.finish(request_id)
        newer = self._by_session.get(entry.terms.session)
        if newer is None:
            self._insert(entry)
            return True
        self._remove(newer)
        self._insert(newer._replace(due=min(entry.due, newer.due), number=entry.number))
        return False

    def take_expired(self, now: float) -> list[tuple[int, Work]]:
        """Take out what could no longer be done in time, were it begun now."""
        if not self._expiring:
            return []
        late = [entry for entry in self._queue if self._last_start(entry) < now]
        for entry in late:
            self._remove(entry)
        return [(entry.request_id, entry.work) for entry in late]

    def next_expiry(self) -> float | None:
        """When the next waiting request expires; None where none does."""
        return min(map(self._last_start, self._queue)) if self._expiring else None

    def last_start(self, request_id: int) -> float | None:
        """The latest time at which beginning a request that was taken is of use; None for any."""
        entry = self._running[request_id]
        return None if entry.terms.expires is None else self._last_start(entry)

    def _ready(self, most: int) -> Iterator[_Entry]:
        """What may be computed now, together with the one whose turn it is."""
        first = True
        shape: Hashable = None
        for entry in self._queue:
            if entry.terms.session in self._busy_sessions:
                continue
            if first:
                first, shape = False, entry.terms.shape
            if entry.terms.shape == shape:
                yield entry
                most -= 1
                if not most:
                    return

    def _last_start(self, entry: _Entry) -> float:
        if entry.terms.expires is None:
            return math.inf
        return entry.terms.expires - (self._times.expected(1) or 0.0)

    def _spoils(self, size: int, ready: Sequence[_Entry], now: float) -> bool:
        """Whether a batch would make one of its requests late that comes in time in a smaller one."""
        alone, together = self._times.expected(1), self._times.expected(size)
        if alone is None or together is None:
            return False
        first = ready[0]
        if first.terms.slack_s is not None and now + alone <= first.terms.due < now + together:
            return True
        return any(
            entry.terms.expires is not None and now + alone <= entry.terms.expires < now + together
            for entry in ready[:size]
        )

    def _insert(self, entry: _Entry) -> None:
        bisect.insort(self._queue, entry)
        self._expiring += entry.terms.expires is not None
        self._by_session[entry.terms.session] = entry
        self._by_id[entry.request_id] = entry

    def _remove(self, entry: _Entry) -> None:
        del self._queue[bisect.bisect_left(self._queue, entry)]
        self._expiring -= entry.terms.expires is not None
        del self._by_session[entry.terms.session]
        del self._by_id[entry.request_id]
