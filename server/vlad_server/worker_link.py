"""The server's side of one engine worker: hand-over, answers, and a new worker when one dies."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
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
from vlad_server.worker_process import WorkerProcess

logger = logging.getLogger("vlad.server")

READ_AHEAD = 2
"""Batches that a worker may have: one that it computes, and one that it prepares meanwhile."""

SLOTS = READ_AHEAD * MAX_BATCH_SIZE
"""Requests that may lie in shared memory at once."""

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


@dataclasses.dataclass(eq=False)
class Work:
    """A request on its way to a worker.

    Attributes:
        observation: checked and reduced to the keys that the policy uses.
        on_done: told the outcome on the event loop, once, unless the request is dropped.
        continuable: True where the reply shall hold what a continuation needs.
    """

    observation: Mapping[str, Any]
    on_done: Callable[[Outcome], None]
    continuable: bool = False


class LinkOwner(Protocol):
    """Who gives a link its requests; called on the event loop."""

    def on_state(self, link: WorkerLink) -> None:
        """The worker became ready, tells of its progress, or is lost; `link.state` and its text say which."""
        ...

    def on_outcome(self, link: WorkerLink, request_id: int, work: Work, outcome: Outcome) -> None:
        """A request that was handed over has ended."""
        ...

    def on_unbegun(self, link: WorkerLink, request_id: int, work: Work) -> None:
        """A request that was handed over was never begun, and will not be by this worker."""
        ...

    def on_computed(self, size: int, seconds: float) -> None:
        """A batch of `size` requests took the engine `seconds`."""
        ...


class WorkerLink:
    """Keeps one engine worker alive and gives it the requests that its owner hands over.

    Args:
        name: for the log.
        command: how to start a worker.
        options: the policy's arguments, sent to each new worker.
        request_bytes: largest request in bytes.
        hang_s: seconds without an answer after which a worker that has requests is taken for stuck.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        options: dict[str, Any],
        *,
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
        self._slots = protocol.SharedSlots.create(SLOTS, request_bytes)
        self._free_slots = list(range(SLOTS))
        self._handed_over: dict[int, tuple[int, Work]] = {}
        self._revoked: set[int] = set()
        self._worker: WorkerProcess | None = None
        self._start_failure: str | None = None
        self._ready_since: float | None = None
        self._batches: collections.deque[set[int]] = collections.deque()
        self._computing = 0
        self._preparation_s = 0.0
        self._last_computation = 0.0
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
        allows: all that come until then can share it. The turn of a request that was taken back goes to
        whoever inherits its place, so nobody else may have it before that is settled.

        Args:
            expected: seconds that a batch of some size computes; None where that is not known.
        """
        if not self.is_ready or self._revoked or len(self._batches) >= READ_AHEAD:
            return math.inf
        if not self._batches or self.batch_sizes == (1,):
            return -math.inf
        seconds = expected(self._computing)
        if seconds is None:
            return math.inf
        return self.busy_since + seconds - self._preparation_s - HAND_OVER_S

    def hand_over(
        self, batch: Sequence[tuple[int, Work]], begin_by: Callable[[int], float | None]
    ) -> list[tuple[int, Work, ObservationError]]:
        """Give the worker requests to compute together; it must be ready and have room.

        Args:
            begin_by: of a request id, the time.perf_counter() at which its result has become useless.

        Returns:
            The requests that cannot be handed over, and why.
        """
        assert self._worker is not None
        if not self._batches:
            self.busy_since = time.perf_counter()
            self._computing = len(batch)
        handed_over: set[int] = set()
        stored: list[tuple[int, int, bytes, bool]] = []
        refused: list[tuple[int, Work, ObservationError]] = []
        for request_id, work in batch:
            slot = self._free_slots.pop()
            try:
                outline = self._slots.store_observation(slot, work.observation)
            except (OverflowError, TypeError, ValueError) as error:
                self._free_slots.append(slot)
                expected = "a request that fits the engine worker's memory"
                refused.append((request_id, work, ObservationError("", expected, str(error))))
            else:
                self._handed_over[request_id] = (slot, work)
                handed_over.add(request_id)
                stored.append((request_id, slot, outline, work.continuable))
        if handed_over:
            self._batches.append(handed_over)
        for more, (request_id, slot, outline, continuable) in zip(
            range(len(stored) - 1, -1, -1), stored, strict=True
        ):
            self._worker.send(
                protocol.Infer(request_id, slot, outline, more, begin_by(request_id), continuable)
            )
        return refused

    def revoke(self, request_id: int) -> None:
        """Take back a request that was handed over, should it not have begun; `on_unbegun` then tells."""
        slot = self._handed_over[request_id][0]
        if not self._slots.has_begun(slot):
            self._revoked.add(request_id)
            self._slots.revoke(slot)

    def has_begun(self, request_id: int) -> bool:
        """True where a request that was handed over is being computed."""
        return self._slots.has_begun(self._handed_over[request_id][0])

    def close(self) -> None:
        """Give the shared memory back, after `supervise` has ended."""
        self._slots.close()

    async def supervise(self) -> None:
        """Run workers until cancelled, one after the other, with a growing pause between failures.

        Raises:
            ConfigError: where the first worker cannot start; the text is the worker's own reason.
        """
        failures = 0
        while True:
            code = await self._run_worker()
            reason = self._start_failure or _exit(code)
            if self._ready_since is not None and time.monotonic() - self._ready_since > HEALTHY_AFTER_S:
                failures = 0
            failures += 1
            if not self.ever_ready:
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
            return await worker.wait_closed()
        finally:
            watching.cancel()
            self._worker = None
            worker.close()
            self._release()
            # Whoever starts next finds the device's memory free.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(worker.wait_closed(), REAP_S)

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
        handed_over, self._handed_over = self._handed_over, {}
        self._revoked.clear()
        self._batches.clear()
        self._free_slots = list(range(SLOTS))
        for request_id, (slot, work) in handed_over.items():
            if self._slots.has_begun(slot):
                lost = f"the {self.name} died while computing this request; it is being restarted"
                self._owner.on_outcome(self, request_id, work, WorkerLostError(lost))
            else:
                self._owner.on_unbegun(self, request_id, work)

    def _on_message(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.DeviceMemory):
            # Comes from a worker that does nothing, too: no progress.
            self._metrics.engine.note_memory(message)
            return
        self._metrics.last_progress_s = time.time()
        if isinstance(message, protocol.Chunk):
            self._on_chunk(message)
        elif isinstance(message, protocol.Skipped):
            _, work = self._take_back(message.request_id)
            self._owner.on_unbegun(self, message.request_id, work)
        elif isinstance(message, protocol.Refused):
            _, work = self._take_back(message.request_id)
            refused = ObservationError(message.key, message.expected, message.received)
            self._owner.on_outcome(self, message.request_id, work, refused)
        elif isinstance(message, protocol.Failed):
            _, work = self._take_back(message.request_id)
            logger.error("engine failure: %s\n%s", message.reason, message.detail)
            self._owner.on_outcome(self, message.request_id, work, EngineError(message.reason))
        else:
            self._on_life(message)

    def _on_chunk(self, message: protocol.Chunk) -> None:
        arrays = self._slots.load_reply(message.arrays)
        _, work = self._take_back(message.request_id)
        if message.started != self._last_computation:
            self._last_computation = message.started
            self._preparation_s = 1e-3 * message.batch * message.timing.get("preprocess_ms", 0.0)
            self._owner.on_computed(message.batch, message.seconds)
            self._metrics.engine.note_execution(message.batch, message.timing)
        reply = Reply(
            policy_timing=message.timing,
            started=message.started,
            infer_s=message.seconds,
            rtc=message.rtc,
            notes=message.notes,
            **arrays,
        )
        self._owner.on_outcome(self, message.request_id, work, reply)

    def _on_life(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.Progress):
            self.explanation = f"{message.stage} ({message.fraction:.0%})"
            logger.info("%s: %s", self.name, self.explanation)
            self._owner.on_state(self)
        elif isinstance(message, protocol.Ready):
            self.metadata = message.metadata
            self.batch_sizes = tuple(size for size in message.batch_sizes if size <= MAX_BATCH_SIZE)
            self._ready_since = time.monotonic()
            self.ever_ready = True
            self.explanation = "ready"
            self._owner.on_state(self)
        elif isinstance(message, protocol.StartReport):
            self._metrics.engine.note_start(message)
        elif isinstance(message, protocol.StartFailed):
            self._start_failure = message.reason

    def _take_back(self, request_id: int) -> tuple[int, Work]:
        slot, work = self._handed_over.pop(request_id)
        self._revoked.discard(request_id)
        for batch in self._batches:
            batch.discard(request_id)
        while self._batches and not self._batches[0]:
            self._batches.popleft()
            self.busy_since = time.perf_counter()
            self._computing = len(self._batches[0]) if self._batches else 0
        self._slots.release(slot)
        self._free_slots.append(slot)
        return slot, work


def _exit(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
