"""The policy port: who may connect, what plain HTTP gets, and one session per websocket."""

from __future__ import annotations

import asyncio
import hmac
import logging
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from vlad_configs.serving import ServeConfig
from vlad_server import health
from vlad_server.metrics import ServerMetrics
from vlad_server.policy_connection import PolicyConnection
from vlad_server.readiness import Readiness
from vlad_server.recorder import Recorder
from vlad_server.session import Session
from vlad_server.worker_link import WorkerLink

logger = logging.getLogger("vlad.server")

PING_INTERVAL_S = 20.0
PING_TIMEOUT_S = 60.0
"""Robots that stop in a debugger for less than a minute keep their connection."""

OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
MAX_QUEUED_FRAMES = 2


class Gateway:
    """Listens on the policy port and runs a `Session` for each websocket.

    Args:
        link: where sessions send their observations.
    """

    def __init__(
        self,
        link: WorkerLink,
        *,
        config: ServeConfig,
        readiness: Readiness,
        metrics: ServerMetrics,
        pulse: health.Pulse,
        recorder: Recorder | None,
    ) -> None:
        self._link = link
        self._config = config
        self._readiness = readiness
        self._metrics = metrics
        self._pulse = pulse
        self._recorder = recorder
        self._sessions: set[asyncio.Task[Any]] = set()
        self._server: Server | None = None

    async def open(self) -> int:
        """Bind the port and return its number.

        Raises:
            OSError: where the address cannot be bound.
        """
        # The library logs a traceback for every port probe; what matters is logged by sessions.
        quiet = logging.getLogger("vlad.websockets")
        quiet.setLevel(logging.CRITICAL)
        self._server = await serve(
            self._serve_connection,
            self._config.host,
            self._config.port,
            process_request=self._process_request,
            create_connection=PolicyConnection,
            compression=None,
            server_header=None,
            open_timeout=OPEN_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            ping_timeout=PING_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            max_size=self._config.max_message_bytes,
            max_queue=MAX_QUEUED_FRAMES,
            logger=quiet,
        )
        port: int = next(iter(self._server.sockets)).getsockname()[1]
        return port

    async def drain(self, limit_s: float) -> bool:
        """Wait until every session has answered and closed; False where `limit_s` ran out first.

        The readiness must be `draining` already: sessions act on it themselves.
        """
        if self._sessions:
            _, late = await asyncio.wait(self._sessions, timeout=limit_s)
            return not late
        return True

    async def close(self) -> None:
        """Free the port and cut the connections that are left."""
        assert self._server is not None
        for connection in list(self._server.connections):
            connection.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    async def _serve_connection(self, connection: ServerConnection) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        self._metrics.connections.inc()
        logger.info("%s: connected", connection.remote_address)
        try:
            code = await Session(
                connection,
                self._link,
                config=self._config,
                readiness=self._readiness,
                metrics=self._metrics,
                recorder=self._recorder,
            ).run()
            logger.info("%s: closed with code %d", connection.remote_address, code)
        except Exception:
            logger.exception("%s: session failed", connection.remote_address)
        finally:
            self._sessions.discard(task)
            self._metrics.connections.dec()

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP and turn away those who may not connect; None lets the handshake go on."""
        assert isinstance(connection, PolicyConnection)
        probe = health.answer(request.path, self._readiness, self._pulse)
        if probe is not None:
            return connection.without_body(connection.respond(*probe))
        if connection.is_head or "upgrade" not in "".join(request.headers.get_all("Connection")).lower():
            return connection.without_body(
                connection.respond(
                    HTTPStatus.UPGRADE_REQUIRED,
                    "this is a websocket endpoint; see also /healthz, /readyz, /livez\n",
                )
            )
        if self._readiness.is_draining:
            self._metrics.connection_attempts["draining"].inc()
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the server is going away\n")
        if not self._admits(request):
            self._metrics.connection_attempts["unauthorized"].inc()
            return connection.respond(
                HTTPStatus.UNAUTHORIZED, "send the header 'Authorization: Api-Key <key>'\n"
            )
        self._metrics.connection_attempts["accepted"].inc()
        return None

    def _admits(self, request: Request) -> bool:
        if self._config.api_key is None:
            return True
        scheme, _, key = "".join(request.headers.get_all("Authorization")).partition(" ")
        matches = hmac.compare_digest(key.strip().encode(), self._config.api_key.encode())
        return matches and scheme.lower() in ("api-key", "bearer")
