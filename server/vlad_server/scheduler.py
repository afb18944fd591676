"""Which request the engine gets next. Pure logic: no clock, no sockets, no asyncio.

First come, first served over all sessions. Fair, because a session has at most one request here:
it hands in the next one only after the reply to the one before.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Work = TypeVar("Work")


class Scheduler(Generic[Work]):
    """Waiting requests in order of arrival, keyed by request id."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, Work] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, request_id: int, work: Work) -> None:
        """Put a request at the end of the queue."""
        self._waiting[request_id] = work

    def put_back(self, request_id: int, work: Work) -> None:
        """Put a request that was taken, but never begun, back to the front of the queue."""
        self._waiting[request_id] = work
        self._waiting.move_to_end(request_id, last=False)

    def take(self) -> tuple[int, Work] | None:
        """The request to run now, or None where none waits."""
        return self._waiting.popitem(last=False) if self._waiting else None

    def drop(self, request_id: int) -> bool:
        """Forget a request that nobody waits for any more; False where it was not waiting."""
        return self._waiting.pop(request_id, None) is not None
