"""The server's side of the engine worker: queue, hand-over, replies, and a new worker when one dies."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import ConfigError, EngineError, ObservationError
from vlad_engines import worker_protocol as protocol
from vlad_server.metrics import ServerMetrics
from vlad_server.readiness import Readiness
from vlad_server.scheduler import Scheduler
from vlad_server.worker_process import WorkerProcess

logger = logging.getLogger("vlad.server")

SLOTS = 2
"""One request computes while the next one already lies in shared memory."""

START_ATTEMPTS = 3
FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 30.0
HEALTHY_AFTER_S = 60.0


class WorkerLostError(EngineError):
    """The engine worker died while it computed this request."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """A computed chunk.

    Attributes:
        actions: float64 `[action_horizon, action_width]`.
        policy_timing: milliseconds per stage, measured by the worker.
        queue_s: seconds between submission and the start of computing.
        infer_s: seconds that the worker's policy took, processing included.
    """

    actions: npt.NDArray[np.float64]
    policy_timing: Mapping[str, float]
    queue_s: float
    infer_s: float


@dataclasses.dataclass
class _Work:
    observation: Mapping[str, Any]
    reply: asyncio.Future[Reply]
    submitted: float
    slot: int = -1


class WorkerLink:
    """Keeps one engine worker alive and gives it requests, oldest first.

    Args:
        command: how to start a worker.
        options: the policy's arguments, sent to each new worker.
        request_bytes: largest request in bytes.
    """

    def __init__(
        self,
        command: Sequence[str],
        options: dict[str, Any],
        *,
        request_bytes: int,
        readiness: Readiness,
        metrics: ServerMetrics,
    ) -> None:
        self._command = command
        self._options = options
        self._request_bytes = request_bytes
        self._readiness = readiness
        self._metrics = metrics
        self._slots = protocol.SharedSlots.create(SLOTS, request_bytes)
        self._free_slots = list(range(SLOTS))
        self._queue: Scheduler[_Work] = Scheduler()
        self._running: dict[int, _Work] = {}
        self._request_ids = itertools.count(1)
        self._worker: WorkerProcess | None = None
        self._start_failure: str | None = None
        self._ready_since: float | None = None
        self._ever_ready = False

    @property
    def worker_pid(self) -> int | None:
        """Process id of the present worker."""
        return self._worker.pid if self._worker else None

    async def infer(self, observation: Mapping[str, Any]) -> Reply:
        """Queue one observation and wait for its chunk. Cancelling drops it where it still waits.

        Args:
            observation: checked and reduced to the keys that the policy uses.

        Raises:
            ObservationError: the processing found the observation unusable.
            EngineError: the engine failed on it.
            WorkerLostError: the worker died over it.
        """
        request_id = next(self._request_ids)
        work = _Work(observation, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._queue.submit(request_id, work)
        self._pump()
        try:
            return await work.reply
        except asyncio.CancelledError:
            self._queue.drop(request_id)
            self._count_in_flight()
            raise

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
            if not self._ever_ready:
                if self._start_failure is not None:
                    raise ConfigError(self._start_failure)
                if failures >= START_ATTEMPTS:
                    raise ConfigError(f"the engine worker died {failures} times while starting ({reason})")
            else:
                self._readiness.change("restarting", f"engine worker lost: {reason}")
            pause = min(FIRST_BACKOFF_S * 2 ** (failures - 1), LONGEST_BACKOFF_S)
            logger.error("engine worker lost (%s); starting another in %.2f s", reason, pause)
            self._metrics.worker_restarts.inc()
            await asyncio.sleep(pause)

    async def _run_worker(self) -> int:
        self._start_failure = None
        self._ready_since = None
        worker = WorkerProcess(self._command, self._slots, self._request_bytes, self._on_message)
        self._worker = worker
        logger.info("engine worker started (pid %d)", worker.pid)
        try:
            worker.send(protocol.Configure(self._options))
            return await worker.wait_closed()
        finally:
            self._worker = None
            worker.close()
            self._release_running()

    def _release_running(self) -> None:
        """Fail the request that the dead worker had begun; the others wait for its successor."""
        handed_over, self._running = self._running, {}
        self._free_slots = list(range(SLOTS))
        for request_id, work in reversed(handed_over.items()):
            if work.reply.done():
                continue
            if not self._slots.has_begun(work.slot):
                self._queue.put_back(request_id, work)
            else:
                work.reply.set_exception(
                    WorkerLostError(
                        "the engine worker died while computing this request; it is being restarted"
                    )
                )
        self._count_in_flight()

    def _pump(self) -> None:
        while self._worker and self._ready_since is not None and self._free_slots:
            taken = self._queue.take()
            if taken is None:
                break
            request_id, work = taken
            try:
                outline = self._slots.store_observation(self._free_slots[-1], work.observation)
                message = protocol.Infer(request_id, self._free_slots[-1], outline)
                self._worker.send(message)
            except (TypeError, ValueError) as error:
                work.reply.set_exception(ObservationError("", "arrays that fit a slot", str(error)))
                continue
            work.slot = self._free_slots.pop()
            self._running[request_id] = work
        self._count_in_flight()

    def _on_message(self, message: protocol.Message) -> None:
        self._metrics.last_progress.set_to_current_time()
        if isinstance(message, protocol.Chunk | protocol.Refused | protocol.Failed):
            self._on_reply(message)
        elif isinstance(message, protocol.Progress):
            text = f"{message.stage} ({message.fraction:.0%})"
            self._readiness.change("restarting" if self._readiness.state == "restarting" else "loading", text)
            logger.info("engine worker: %s", text)
        elif isinstance(message, protocol.Ready):
            self._ready_since = time.monotonic()
            self._ever_ready = True
            self._readiness.metadata = message.metadata
            self._readiness.change("ready", "ready")
            self._pump()
        elif isinstance(message, protocol.StartFailed):
            self._start_failure = message.reason

    def _on_reply(self, message: protocol.Chunk | protocol.Refused | protocol.Failed) -> None:
        work = self._running.pop(message.request_id)
        if isinstance(message, protocol.Chunk):
            actions = self._slots.load_chunk(work.slot, message.shape)
        self._free_slots.append(work.slot)
        self._pump()
        if work.reply.done():
            return
        if isinstance(message, protocol.Chunk):
            queue_s = message.started - work.submitted
            work.reply.set_result(Reply(actions, message.timing, queue_s, message.seconds))
        elif isinstance(message, protocol.Refused):
            work.reply.set_exception(ObservationError(message.key, message.expected, message.received))
        else:
            logger.error("engine failure: %s\n%s", message.reason, message.detail)
            work.reply.set_exception(EngineError(message.reason))

    def _count_in_flight(self) -> None:
        self._metrics.in_flight["queued"].set(len(self._queue))
        self._metrics.in_flight["running"].set(len(self._running))


def _exit(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
