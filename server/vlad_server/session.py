"""One robot's connection: metadata first, then a reply for each request, in order."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from vlad_configs.errors import EngineError, ObservationError
from vlad_configs.serving import ServeConfig
from vlad_server import wire
from vlad_server.metrics import ServerMetrics
from vlad_server.readiness import Readiness
from vlad_server.recorder import Recorder
from vlad_server.worker_link import Reply, WorkerLink, WorkerLostError

logger = logging.getLogger("vlad.server")

Result = TypeVar("Result")

RESERVED_KEYS = frozenset(["vlad/seed", "vlad/noise"])

ERROR_CLOSE_REASON = "error; see the text frame before this one"


class Session:
    """Serves one websocket connection until either side ends it.

    Args:
        recorder: None where nothing is recorded.
    """

    def __init__(
        self,
        connection: ServerConnection,
        link: WorkerLink,
        *,
        config: ServeConfig,
        readiness: Readiness,
        metrics: ServerMetrics,
        recorder: Recorder | None,
    ) -> None:
        self._connection = connection
        self._link = link
        self._config = config
        self._readiness = readiness
        self._metrics = metrics
        self._recorder = recorder
        self._request_keys = config.robot.request_keys | RESERVED_KEYS
        self._previous_total_ms: float | None = None

    async def run(self) -> int:
        """Serve until the connection ends; never raises for what the client does.

        Returns:
            The close code that ended it.
        """
        self._closed = asyncio.ensure_future(self._connection.wait_closed())
        self._draining = asyncio.ensure_future(self._readiness.wait_draining())
        try:
            if await self._until(self._readiness.wait_ready()) is not None:
                await self._send(wire.encode(self._readiness.metadata))
                while await self._serve_one():
                    pass
        except (ConnectionClosed, asyncio.TimeoutError):
            pass
        finally:
            code, reason = (1001, "server is going away") if self._readiness.is_draining else (1011, "")
            if not self._connection.transport.is_closing():
                await self._connection.close(code, reason)
            self._draining.cancel()
            self._metrics.count_disconnect(self._close_code())
        return self._close_code()

    def _close_code(self) -> int:
        """The client's code, or else ours: the library hears no more of a client that it has turned away."""
        protocol = self._connection.protocol
        frame = protocol.close_rcvd or protocol.close_sent
        return 1006 if frame is None else int(frame.code)

    async def _until(self, awaitable: Coroutine[Any, Any, Result]) -> asyncio.Task[Result] | None:
        """Await, but give up once the client is gone or the daemon drains: then None."""
        task = asyncio.create_task(awaitable)
        await asyncio.wait({task, self._closed, self._draining}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task
        task.cancel()
        return None

    async def _serve_one(self) -> bool:
        cycle_started = time.perf_counter()
        received = await self._until(self._connection.recv())
        if received is None:
            return False
        started = time.perf_counter()
        message = received.result()
        self._metrics.received_bytes.inc(len(message))
        try:
            observation = self._read(message)
        except (wire.WireError, ObservationError) as error:
            self._metrics.requests["invalid"].inc()
            return await self._report(error, close=not self._config.keep_connection_on_error)
        decoded = time.perf_counter()
        self._metrics.stages["decode"].observe(decoded - started)

        computing = asyncio.ensure_future(self._link.infer(self._select(observation)))
        await asyncio.wait({computing, self._closed}, return_when=asyncio.FIRST_COMPLETED)
        if not computing.done():
            computing.cancel()
            self._metrics.requests["cancelled"].inc()
            return False
        try:
            reply = computing.result()
            if not np.isfinite(reply.actions).all():
                raise EngineError("the policy returned non-finite actions; they are never sent")
        except ObservationError as error:
            self._metrics.requests["invalid"].inc()
            return await self._report(error, close=not self._config.keep_connection_on_error)
        except WorkerLostError as error:
            # The connection stays open: the next request is served by the worker's successor.
            self._metrics.requests["worker_lost"].inc()
            return await self._report(error, close=False)
        except EngineError as error:
            self._metrics.requests["engine_error"].inc()
            return await self._report(error, close=not self._config.keep_connection_on_error)
        try:
            await self._answer(observation, reply, started, decoded)
        except (ConnectionClosed, asyncio.TimeoutError):
            self._metrics.requests["cancelled"].inc()
            raise
        self._previous_total_ms = 1e3 * (time.perf_counter() - cycle_started)
        return not self._readiness.is_draining

    def _read(self, message: bytes | str) -> dict[str, Any]:
        if isinstance(message, str):
            raise wire.WireError("expected a binary frame with a msgpack map, received a text frame")
        observation = wire.decode(message)
        has_default_prompt = self._readiness.metadata.get("default_prompt") is not None
        self._config.robot.check(observation, prompt_optional=has_default_prompt)
        return observation

    def _select(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in observation.items() if key in self._request_keys}

    async def _answer(
        self, observation: Mapping[str, Any], reply: Reply, started: float, decoded: float
    ) -> None:
        encoding = time.perf_counter()
        message: dict[str, Any] = {
            "actions": reply.actions,
            "policy_timing": dict(reply.policy_timing),
            "server_timing": {
                "infer_ms": 1e3 * reply.infer_s,
                "decode_ms": 1e3 * (decoded - started),
                "queue_ms": 1e3 * reply.queue_s,
                "total_ms": 1e3 * (encoding - started),
            },
        }
        if self._previous_total_ms is not None:
            message["server_timing"]["prev_total_ms"] = self._previous_total_ms
        payload = wire.encode(message)
        encoded = time.perf_counter()
        await self._send(payload)
        sent = time.perf_counter()

        self._metrics.requests["ok"].inc()
        self._metrics.request_duration.observe(sent - started)
        self._metrics.request_queue_duration.observe(reply.queue_s)
        self._metrics.stages["encode"].observe(encoded - encoding)
        self._metrics.stages["send"].observe(sent - encoded)
        for stage, histogram in self._metrics.stages.items():
            if (milliseconds := reply.policy_timing.get(f"{stage}_ms")) is not None:
                histogram.observe(1e-3 * milliseconds)
        if self._recorder is not None:
            self._recorder.record(observation, message)

    async def _report(self, error: Exception, *, close: bool) -> bool:
        """Tell the client what went wrong; True where the connection goes on."""
        text = str(error)
        if self._config.debug:
            text += "\n\n" + "".join(traceback.format_exception(error))
        logger.warning("%s: %s", self._connection.remote_address, str(error)[:1024])
        await self._send(text)
        if close:
            await self._connection.close(1011, ERROR_CLOSE_REASON)
        return not close and not self._readiness.is_draining

    async def _send(self, payload: bytes | str) -> None:
        """Send, but not for ever: a client that does not read loses its connection."""
        try:
            await asyncio.wait_for(self._connection.send(payload), self._config.send_timeout_s)
        except asyncio.TimeoutError:
            self._metrics.send_timeouts.inc()
            self._connection.transport.abort()
            raise
        self._metrics.sent_bytes.inc(len(payload))
