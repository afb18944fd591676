"""The server's side of one engine worker: hand-over, answers, and a new worker when one dies."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from vlad_configs.errors import ConfigError, EngineError, ObservationError
from vlad_configs.serving import MAX_BATCH_SIZE
from vlad_engines import worker_protocol as protocol
from vlad_server.metrics import ServerMetrics
from vlad_server.outcomes import Outcome, Reply, WorkerLostError
from vlad_server.parcels import Parcel
from vlad_server.worker_process import WorkerProcess

logger = logging.getLogger("vlad.server")

READ_AHEAD = 2
"""Batches that a worker may have: one that it computes, and one that it prepares meanwhile."""

MOST_HANDED_OVER = READ_AHEAD * MAX_BATCH_SIZE
"""Requests that one worker may have at once."""

HAND_OVER_S = 0.002
"""How long before it is needed a batch shall be ready; the way to the worker is in it."""

START_ATTEMPTS = 3
FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 30.0
HEALTHY_AFTER_S = 60.0
REAP_S = 3.0
"""What a worker that was killed gets to be gone."""

HANG_TURNS = 20
"""Looks at a worker before it is taken for stuck."""


class LinkOwner(Protocol):
    """Who gives a link its requests; called on the event loop."""

    def on_state(self, link: WorkerLink) -> None:
        """The worker became ready, tells of its progress, or is lost; `link.state` and its text say which."""
        ...

    def on_outcome(self, link: WorkerLink, request_id: int, parcel: Parcel, outcome: Outcome) -> None:
        """A request that was handed over has ended."""
        ...

    def on_unbegun(self, link: WorkerLink, request_id: int, parcel: Parcel) -> None:
        """A request that was handed over was never begun, and will not be by this worker."""
        ...

    def on_computed(self, size: int, seconds: float, occupied: float) -> None:
        """A batch of `size` requests took the engine `seconds`; `occupied`: see `ServiceTimes.note`."""
        ...

    @property
    def has_served(self) -> bool:
        """True once any of its links had a worker that took requests."""
        ...


class WorkerLink:
    """Keeps one engine worker alive and gives it the requests that its owner hands over.

    Args:
        name: for the log.
        command: how to start a worker.
        options: the policy's arguments, sent to each new worker.
        slots: where the requests lie.
        request_bytes: the size with which `slots` was created.
        hang_s: seconds without an answer after which a worker that has requests is taken for stuck.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        options: dict[str, Any],
        *,
        slots: protocol.SharedSlots,
        request_bytes: int,
        hang_s: float,
        owner: LinkOwner,
        metrics: ServerMetrics,
    ) -> None:
        self.name = name
        self.explanation = f"starting {name}"
        self.metadata: Mapping[str, Any] = {}
        self.batch_sizes: tuple[int, ...] = (1,)
        self.ever_ready = False
        self._command = command
        self._options = options
        self._request_bytes = request_bytes
        self._hang_s = hang_s
        self._owner = owner
        self._metrics = metrics
        self._slots = slots
        self._handed_over: dict[int, Parcel] = {}
        self._revoked: set[int] = set()
        self._worker: WorkerProcess | None = None
        self._start_failure: str | None = None
        self._ready_since: float | None = None
        self._batches: collections.deque[set[int]] = collections.deque()
        self._computing = 0
        self._overlaps = False
        self._front_s: dict[int, float] = {}
        self._front_free_at = 0.0
        self._preparation_s = 0.0
        self._last_computation = self._last_end = 0.0
        self.busy_since = 0.0

    def __len__(self) -> int:
        """How many requests the worker has, begun or not."""
        return len(self._handed_over)

    @property
    def is_ready(self) -> bool:
        """True while the worker takes requests."""
        return self._worker is not None and self._ready_since is not None

    def has_room_at(self, expected: Callable[[int], float | None]) -> float:
        """The time.perf_counter() from which requests may be handed over; infinite for never as things are.

        One batch computes while the worker prepares the next. A lone request is the next one at once. Where
        requests can share a computation, the next ones are better chosen as late as their preparation
        allows: all that come until then can share it. A worker that overlaps takes them that long before
        vision and prefix of those before have ended. The turn of a request that was taken back goes to
        whoever inherits its place, so nobody else may have it before that is settled.

        Args:
            expected: seconds that a batch of some size computes; None where that is not known.
        """
        if not self.is_ready or self._revoked or len(self._batches) >= READ_AHEAD:
            return math.inf
        if not self._batches or self.batch_sizes == (1,):
            return -math.inf
        if self._overlaps:
            return self._front_free_at - self._preparation_s - HAND_OVER_S
        seconds = expected(self._computing)
        if seconds is None:
            return math.inf
        return self.busy_since + seconds - self._preparation_s - HAND_OVER_S

    def hand_over(self, batch: Sequence[tuple[int, Parcel]], begin_by: Callable[[int], float | None]) -> None:
        """Give the worker requests to compute together; it must be ready and have room.

        Args:
            begin_by: of a request id, the time.perf_counter() at which its result has become useless.
        """
        assert self._worker is not None
        now = time.perf_counter()
        if not self._batches:
            self.busy_since = now
            self._computing = len(batch)
        self._front_free_at = max(now, self._front_free_at) + self._front_s.get(len(batch), 0.0)
        self._batches.append({request_id for request_id, _ in batch})
        more = len(batch)
        for request_id, parcel in batch:
            more -= 1
            self._handed_over[request_id] = parcel
            self._slots.offer(parcel.slot)
            self._worker.send(
                protocol.Infer(
                    request_id, parcel.slot, parcel.outline, more, begin_by(request_id), parcel.continuable
                )
            )

    def revoke(self, request_id: int) -> None:
        """Take back a request that was handed over, should it not have begun; `on_unbegun` then tells."""
        slot = self._handed_over[request_id].slot
        if not self._slots.has_begun(slot):
            self._revoked.add(request_id)
            self._slots.revoke(slot)

    def has_begun(self, request_id: int) -> bool:
        """True where a request that was handed over is being computed."""
        return self._slots.has_begun(self._handed_over[request_id].slot)

    async def supervise(self) -> None:
        """Run workers until cancelled, one after the other, with a growing pause between failures.

        Raises:
            ConfigError: where the first worker cannot start and no other link has served anybody; the text
                is the worker's own reason.
        """
        failures = 0
        while True:
            code = await self._run_worker()
            reason = self._start_failure or _exit(code)
            if self._ready_since is not None and time.monotonic() - self._ready_since > HEALTHY_AFTER_S:
                failures = 0
            failures += 1
            if not self._owner.has_served:
                if self._start_failure is not None:
                    raise ConfigError(self._start_failure)
                if failures >= START_ATTEMPTS:
                    raise ConfigError(f"the {self.name} died {failures} times while starting ({reason})")
            self._ready_since = None
            self.explanation = f"{self.name} lost: {reason}"
            self._owner.on_state(self)
            pause = min(FIRST_BACKOFF_S * 2 ** (failures - 1), LONGEST_BACKOFF_S)
            logger.error("%s lost (%s); starting another in %.2f s", self.name, reason, pause)
            self._metrics.worker_restarts.inc()
            await asyncio.sleep(pause)

    async def _run_worker(self) -> int:
        self._start_failure = None
        self._ready_since = None
        worker = WorkerProcess(self._command, self._slots, self._request_bytes, self._on_message)
        self._worker = worker
        logger.info("%s started (pid %d)", self.name, worker.pid)
        watching = asyncio.create_task(self._end_where_stuck(worker))
        try:
            worker.send(protocol.Configure(self._options))
            code = await worker.wait_closed()
        finally:
            watching.cancel()
            self._worker = None
            worker.close()
            # Whoever starts next finds the device's memory free.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(worker.wait_closed(), REAP_S)
        # Not where this is cancelled: then the daemon ends, and connections tell their robots so.
        self._release()
        return code

    async def _end_where_stuck(self, worker: WorkerProcess) -> None:
        """Kill a worker that has requests and answers none of them for too long."""
        answered, turns = self.busy_since, 0
        while True:
            # Counted in turns of the loop, not read from a clock: a machine that slept was not stuck.
            await asyncio.sleep(self._hang_s / HANG_TURNS)
            if not self._handed_over or self.busy_since != answered:
                answered, turns = self.busy_since, 0
                continue
            turns += 1
            if turns >= HANG_TURNS:
                self._metrics.worker_hangs.inc()
                logger.error("%s has answered nothing for %.1f s; its stacks follow", self.name, self._hang_s)
                await worker.abort()
                return

    def _release(self) -> None:
        """Fail the requests that the dead worker had begun; the others are begun by somebody else."""
        self._batches.clear()
        # One by one: while the owner hears of the first, it may ask about or drop those that follow.
        while self._handed_over:
            request_id, parcel = next(iter(self._handed_over.items()))
            has_begun = self.has_begun(request_id)
            del self._handed_over[request_id]
            if has_begun:
                lost = f"the {self.name} died while computing this request; it is being restarted"
                self._owner.on_outcome(self, request_id, parcel, WorkerLostError(lost))
            else:
                self._owner.on_unbegun(self, request_id, parcel)
        self._revoked.clear()

    def _on_message(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.DeviceMemory):
            # Comes from a worker that does nothing, too: no progress.
            self._metrics.engine.note_memory(message)
            return
        self._metrics.last_progress_s = time.time()
        if isinstance(message, protocol.Chunk):
            self._on_chunk(message)
        elif isinstance(message, protocol.Skipped):
            parcel = self._take_back(message.request_id)
            self._owner.on_unbegun(self, message.request_id, parcel)
        elif isinstance(message, protocol.Refused):
            parcel = self._take_back(message.request_id)
            refused = ObservationError(message.key, message.expected, message.received)
            self._owner.on_outcome(self, message.request_id, parcel, refused)
        elif isinstance(message, protocol.Failed):
            parcel = self._take_back(message.request_id)
            logger.error("engine failure: %s\n%s", message.reason, message.detail)
            self._owner.on_outcome(self, message.request_id, parcel, EngineError(message.reason))
        else:
            self._on_life(message)

    def _on_chunk(self, message: protocol.Chunk) -> None:
        arrays = self._slots.load_reply(message.arrays)
        parcel = self._take_back(message.request_id)
        if message.started != self._last_computation:
            self._last_computation = message.started
            self._preparation_s = 1e-3 * message.batch * message.timing.get("preprocess_ms", 0.0)
            self._front_s[message.batch] = 1e-3 * sum(
                message.timing.get(f"{stage}_ms", 0.0) for stage in ("vision", "prefix")
            )
            end = message.started + message.seconds
            occupied = end - max(message.started, self._last_end)
            self._last_end = end
            self._owner.on_computed(message.batch, message.seconds, occupied)
            self._metrics.engine.note_execution(message.batch, message.timing)
        reply = Reply(
            policy_timing=message.timing,
            started=message.started,
            infer_s=message.seconds,
            rtc=message.rtc,
            notes=message.notes,
            **arrays,
        )
        self._owner.on_outcome(self, message.request_id, parcel, reply)

    def _on_life(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.Progress):
            self.explanation = f"{message.stage} ({message.fraction:.0%})"
            logger.info("%s: %s", self.name, self.explanation)
            self._owner.on_state(self)
        elif isinstance(message, protocol.Ready):
            self.metadata = message.metadata
            self.batch_sizes = tuple(size for size in message.batch_sizes if size <= MAX_BATCH_SIZE)
            self._overlaps = message.overlaps
            self._ready_since = time.monotonic()
            self.ever_ready = True
            self.explanation = "ready"
            self._owner.on_state(self)
        elif isinstance(message, protocol.StartReport):
            self._metrics.engine.note_start(message)
        elif isinstance(message, protocol.StartFailed):
            self._start_failure = message.reason

    def _take_back(self, request_id: int) -> Parcel:
        parcel = self._handed_over.pop(request_id)
        self._revoked.discard(request_id)
        for batch in self._batches:
            batch.discard(request_id)
        while self._batches and not self._batches[0]:
            self._batches.popleft()
            self.busy_since = time.perf_counter()
            self._computing = len(self._batches[0]) if self._batches else 0
        return parcel


def _exit(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
