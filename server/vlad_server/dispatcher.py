"""Between robots and engine workers: who waits, who is computed where, who has waited long enough."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlad_configs.errors import ObservationError
from vlad_server.metrics import ServerMetrics
from vlad_server.outcomes import BusyError, ExpiredError, Outcome, SupersededError
from vlad_server.parcels import Parcel, ParcelStore, Work
from vlad_server.readiness import Readiness
from vlad_server.scheduler import QueueFullError, Scheduler, Terms
from vlad_server.service_times import ServiceTimes
from vlad_server.worker_link import MOST_HANDED_OVER, WorkerLink

logger = logging.getLogger("vlad.server")

TIMER_STEP_S = 0.001
"""Timers of an event loop may be early by that much."""


class Dispatcher:
    """Gives the requests of all robots to one or more engine workers.

    Args:
        command: how to start a worker.
        options: for each worker, the policy's arguments.
        request_bytes: largest request in bytes.
        max_waiting: how many requests may wait.
        hang_s: seconds without an answer after which a busy worker is replaced.
        describe: from a policy's metadata to the daemon's.
    """

    def __init__(
        self,
        command: Sequence[str],
        options: Sequence[Mapping[str, Any]],
        *,
        request_bytes: int,
        max_waiting: int,
        hang_s: float,
        describe: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        readiness: Readiness,
        metrics: ServerMetrics,
    ) -> None:
        self._describe = describe
        self._readiness = readiness
        self._metrics = metrics
        self._times = ServiceTimes()
        self._queue: Scheduler[Parcel] = Scheduler(max_waiting, self._times)
        # One more, for the request that is told that there is no room.
        self._store = ParcelStore(max_waiting + len(options) * MOST_HANDED_OVER + 1, request_bytes)
        self._places: dict[int, WorkerLink] = {}
        self._dropped: set[int] = set()
        self._ended: dict[int, Callable[[Outcome], None]] = {}
        self._handed_over_until: dict[int, tuple[float, Parcel]] = {}
        self._request_ids = itertools.count(1)
        self._wake: asyncio.TimerHandle | None = None
        names = (
            ["engine worker"] if len(options) == 1 else [f"engine worker {i}" for i in range(len(options))]
        )
        self._links = [
            WorkerLink(
                name,
                command,
                dict(option),
                slots=self._store.slots,
                request_bytes=request_bytes,
                hang_s=hang_s,
                owner=self,
                metrics=metrics,
            )
            for name, option in zip(names, options, strict=True)
        ]

        metrics.in_flight["queued"].set_function(lambda: len(self._queue))
        metrics.in_flight["running"].set_function(lambda: len(self._places))

    async def supervise(self) -> None:
        """Keep the workers alive until cancelled.

        Raises:
            ConfigError: where one of them cannot start, before any of them was ready.
        """
        tasks = [asyncio.ensure_future(link.supervise()) for link in self._links]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._wake is not None:
                self._wake.cancel()

    def close(self) -> None:
        """Give the memory of requests back, after `supervise` has ended and the last request was dropped."""
        self._store.close()

    def submit(self, work: Work, terms: Terms, *, stream: bool = False) -> int:
        """Queue a request; `work.on_done` is told its outcome, never before this returns.

        The outcome is a `Reply`; an `ObservationError` where the processing found the observation unusable;
        an `EngineError` where the engine failed; or an `UnservedError`.

        Args:
            stream: True where it takes the place of the one of its session that has not begun.

        Returns:
            The request's id, for `drop`.
        """
        request_id = next(self._request_ids)
        try:
            parcel = self._store.pack(work)
        except (OverflowError, TypeError, ValueError) as error:
            expected = "a request that fits the engine worker's memory"
            self._tell_later(request_id, work.on_done, ObservationError("", expected, str(error)))
            return request_id
        try:
            if stream:
                self._submit_newest(request_id, parcel, terms)
            else:
                self._queue.submit(request_id, parcel, terms)
        except QueueFullError as error:
            self._end(request_id, parcel, BusyError(f"busy: {error}; send it again later"))
        else:
            self._pump()
        return request_id

    def drop(self, request_id: int) -> None:
        """Forget a request that nobody waits for any more; where it is computed already, its chunk."""
        self._ended.pop(request_id, None)
        self._handed_over_until.pop(request_id, None)
        if request_id in self._places:
            self._dropped.add(request_id)
            self._places[request_id].revoke(request_id)
        elif (parcel := self._queue.drop(request_id)) is not None:
            self._store.free(parcel)

    @property
    def has_served(self) -> bool:
        """True once any worker was ready. Called by links."""
        return any(link.ever_ready for link in self._links)

    def on_state(self, link: WorkerLink) -> None:
        """A worker became ready, tells of its progress, or is lost. Called by links."""
        ready = [one for one in self._links if one.is_ready]
        self._metrics.workers_ready.set(len(ready))
        if link.is_ready:
            self._readiness.metadata = self._describe(link.metadata)
        if ready:
            self._readiness.change("ready", "ready")
            self._pump()
        else:
            self._readiness.change("restarting" if self.has_served else "loading", link.explanation)

    def on_outcome(self, link: WorkerLink, request_id: int, parcel: Parcel, outcome: Outcome) -> None:
        """A request that was handed over has ended. Called by links."""
        self._queue.finish(request_id)
        self._store.free(parcel)
        is_wanted = self._left_worker(request_id)
        # An idle worker comes first, and the reply where it has something to do.
        if not len(link):
            self._pump()
        if is_wanted:
            parcel.on_done(outcome)
        self._pump()

    def on_unbegun(self, link: WorkerLink, request_id: int, parcel: Parcel) -> None:
        """A request that was handed over will not be computed there. Called by links."""
        last_start = self._queue.last_start(request_id)
        is_wanted = self._left_worker(request_id)
        if not is_wanted:
            self._queue.finish(request_id)
            self._store.free(parcel)
        elif last_start is not None and last_start < time.perf_counter():
            self._queue.finish(request_id)
            self._end(request_id, parcel, _expired())
        elif not self._queue.put_back(request_id):
            self._end(request_id, parcel, _superseded())
        self._pump()

    def on_computed(self, size: int, seconds: float, occupied: float) -> None:
        """The engine computed a batch. Called by links."""
        self._times.note(size, seconds, time.perf_counter(), occupied)

    def _submit_newest(self, request_id: int, parcel: Parcel, terms: Terms) -> None:
        older = self._queue.supersede(request_id, parcel, terms)
        if older is not None:
            self._end(*older, _superseded())
            return
        running = self._queue.running_of(terms.session)
        if running is not None and not self._places[running].has_begun(running):
            self._places[running].revoke(running)

    def _pump(self) -> None:
        """Give waiting requests to the workers that may take some."""
        if not len(self._queue) and not self._handed_over_until:
            return
        now = time.perf_counter()
        if self._handed_over_until or self._queue.may_expire:
            self._end_expired(now)
        room_at = math.inf
        while len(self._queue):
            room_at, link = self._next_room(now)
            if room_at > now:
                break
            room_at = math.inf
            batch = self._queue.take(link.batch_sizes, now)
            if not batch:
                break
            self._hand_over(link, batch)
        self._wake_later(now, room_at)

    def _hand_over(self, link: WorkerLink, batch: list[tuple[int, Parcel]]) -> None:
        for request_id, parcel in batch:
            self._places[request_id] = link
            if (last_start := self._queue.last_start(request_id)) is not None:
                self._handed_over_until[request_id] = (last_start, parcel)
        link.hand_over(batch, self._queue.last_start)

    def _end_expired(self, now: float) -> None:
        for request_id, parcel in self._queue.take_expired(now):
            self._end(request_id, parcel, _expired())
        for request_id, (last_start, parcel) in list(self._handed_over_until.items()):
            # What lies ready for a worker is told at once; the worker itself would not begin it either.
            if last_start < now and not self._places[request_id].has_begun(request_id):
                self.drop(request_id)
                self._tell_later(request_id, parcel.on_done, _expired())
            elif last_start < now:
                del self._handed_over_until[request_id]

    def _next_room(self, now: float) -> tuple[float, WorkerLink]:
        """Which worker may take requests first, and from when on; of those that may now, the least busy."""
        if len(self._links) == 1:
            return self._links[0].has_room_at(self._times.expected), self._links[0]
        room = [(link.has_room_at(self._times.expected), link) for link in self._links]
        free = [item for item in room if item[0] <= now]
        if free:
            return min(free, key=lambda item: (len(item[1]), item[1].busy_since))
        return min(room, key=lambda item: item[0])

    def _left_worker(self, request_id: int) -> bool:
        """Note that no worker has a request any more; True where somebody waits for its outcome."""
        del self._places[request_id]
        self._handed_over_until.pop(request_id, None)
        is_wanted = request_id not in self._dropped
        self._dropped.discard(request_id)
        return is_wanted

    def _end(self, request_id: int, parcel: Parcel, outcome: Outcome) -> None:
        """End a request that no worker has."""
        self._store.free(parcel)
        self._tell_later(request_id, parcel.on_done, outcome)

    def _tell_later(self, request_id: int, on_done: Callable[[Outcome], None], outcome: Outcome) -> None:
        self._ended[request_id] = on_done
        asyncio.get_running_loop().call_soon(self._tell, request_id, outcome)

    def _tell(self, request_id: int, outcome: Outcome) -> None:
        if (on_done := self._ended.pop(request_id, None)) is not None:
            on_done(outcome)

    def _wake_later(self, now: float, room_at: float) -> None:
        """Look again when something expires, or when a worker may take more."""
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        times = [last_start + TIMER_STEP_S for last_start, _ in self._handed_over_until.values()]
        if (waiting := self._queue.next_expiry()) is not None:
            times.append(waiting + TIMER_STEP_S)
        if not math.isinf(room_at):
            times.append(room_at)
        if times:
            pause = max(0.0, min(times) - now)
            self._wake = asyncio.get_running_loop().call_later(pause, self._pump)


def _expired() -> ExpiredError:
    return ExpiredError("expired: the request could not be computed before its vlad/deadline_ms")


def _superseded() -> SupersededError:
    return SupersededError("superseded: a newer observation of this session took its place")
