"""The policy port: who may connect, what plain HTTP gets, and one session per websocket."""

from __future__ import annotations

import asyncio
import functools
import logging
import pathlib
import time
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from vlad_configs.action_limits import load_action_limits
from vlad_configs.serving import ServeConfig
from vlad_server import health
from vlad_server.action_guard import ActionGuard
from vlad_server.dispatcher import Dispatcher
from vlad_server.doctor.doctor import ObservationDoctor
from vlad_server.gatekeeper import Gatekeeper
from vlad_server.images import ImageDecoder
from vlad_server.metrics import ServerMetrics
from vlad_server.policy_connection import PolicyConnection
from vlad_server.readiness import Readiness
from vlad_server.recordings.recorder import Recorder
from vlad_server.robot_connection import RobotConnection, Services
from vlad_server.sessions import SessionRegistry
from vlad_server.status.board import StatusBoard
from vlad_server.status.page import StatusPage

logger = logging.getLogger("vlad.server")

PING_INTERVAL_S = 20.0
PING_TIMEOUT_S = 60.0
"""Robots that stop in a debugger for less than a minute keep their connection."""

OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
FAREWELL_S = 0.5
"""What the network gets to take the close frames of connections that are cut."""


class Gateway:
    """Listens on the policy port and runs a `RobotConnection` for each websocket.

    Args:
        dispatcher: where connections send their requests.

    Raises:
        ConfigError: where a file of keys, certificates or action limits cannot be used.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        config: ServeConfig,
        readiness: Readiness,
        metrics: ServerMetrics,
        pulse: health.Pulse,
        recorder: Recorder | None,
    ) -> None:
        self._config = config
        self._readiness = readiness
        self._metrics = metrics
        self._pulse = pulse
        sessions = SessionRegistry(config.session_ttl_s)
        metrics.sessions.set_function(lambda: len(sessions))
        self._images = ImageDecoder(config.robot, config.max_message_bytes)
        self._serving: set[asyncio.Task[Any]] = set()
        self._robots: dict[RobotConnection, None] = {}  # in the order in which they came
        self._gatekeeper = Gatekeeper(config.access, listens_on=config.host, metrics=metrics)
        limits = config.action_limits
        guard = ActionGuard(
            None if limits is None else load_action_limits(pathlib.Path(limits), config.environment), metrics
        )
        board = StatusBoard(config.robot)
        self._services = Services(
            dispatcher=dispatcher,
            config=config,
            readiness=readiness,
            metrics=metrics,
            sessions=sessions,
            images=self._images,
            doctor=ObservationDoctor(config.robot, metrics),
            guard=guard,
            board=board,
            recorder=recorder,
        )
        self._page: StatusPage | None = None
        if config.status_page:
            self._page = StatusPage(
                board,
                config=config,
                readiness=readiness,
                metrics=metrics,
                connections=lambda: [robot.describe() for robot in self._robots],
                refuse=self._gatekeeper.refuse_reader,
            )
        self._server: Server | None = None

    async def open(self) -> int:
        """Bind the port and return its number.

        Raises:
            OSError: where the address cannot be bound.
        """
        # The library logs a traceback for every port probe; what matters is logged by connections.
        quiet = logging.getLogger("vlad.websockets")
        quiet.setLevel(logging.CRITICAL)
        self._server = await serve(
            self._serve_connection,
            self._config.host,
            self._config.port,
            process_request=self._process_request,
            create_connection=functools.partial(  # type: ignore[arg-type]  # any factory will do
                PolicyConnection, max_message_bytes=self._config.max_message_bytes
            ),
            compression=None,
            server_header=None,
            open_timeout=OPEN_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            ping_timeout=PING_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            max_size=self._config.max_message_bytes,
            logger=quiet,
            ssl=self._gatekeeper.tls,
        )
        self._sampling = asyncio.create_task(self._sample_round_trips())
        port: int = next(iter(self._server.sockets)).getsockname()[1]
        return port

    def reload(self) -> None:
        """Read api keys and certificates again; open connections are left alone."""
        self._gatekeeper.reload()

    async def drain(self, limit_s: float) -> bool:
        """Wait until every connection has been answered and closed; False where `limit_s` ran out first.

        The readiness must be `draining` already: connections act on it themselves.
        """
        if self._serving:
            _, late = await asyncio.wait(self._serving, timeout=limit_s)
            return not late
        return True

    async def close(self) -> None:
        """Free the port and cut the connections that are left, which are told why."""
        assert self._server is not None
        code, reason = self._readiness.farewell
        if self._serving:
            logger.warning("cutting %d connections with code %d (%s)", len(self._serving), code, reason)
        for connection in list(self._server.connections):
            assert isinstance(connection, PolicyConnection)
            connection.cut(code, reason)
        if self._serving:
            await asyncio.wait(self._serving, timeout=FAREWELL_S)
        for connection in list(self._server.connections):
            connection.transport.abort()
        self._server.close()
        await self._server.wait_closed()
        self._sampling.cancel()
        self._images.close()
        if self._page is not None:
            self._page.close()

    async def _sample_round_trips(self) -> None:
        """Note how far away clients are, as often as the library pings them."""
        assert self._server is not None
        while True:
            await asyncio.sleep(PING_INTERVAL_S)
            for connection in self._server.connections:
                if connection.latency:
                    self._metrics.client_rtt.observe(connection.latency)

    async def _serve_connection(self, connection: ServerConnection) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self._metrics.connections.inc()
        # A transport that is closed has forgotten it.
        address = connection.remote_address
        logger.info("%s: connected", address)
        robot: RobotConnection | None = None
        try:
            assert isinstance(connection, PolicyConnection)
            allowance = self._gatekeeper.allowance_of(connection, time.perf_counter())
            robot = RobotConnection(connection, self._services, allowance)
            self._robots[robot] = None
            code = await robot.run()
            logger.info("%s: closed with code %d", address, code)
        except Exception:
            logger.exception("%s: session failed", address)
        finally:
            self._serving.discard(task)
            if robot is not None:
                self._robots.pop(robot, None)
            self._metrics.connections.dec()

    def _process_request(
        self, connection: ServerConnection, request: Request
    ) -> Response | Awaitable[Response] | None:
        """Answer plain HTTP and turn away those who may not connect; None lets the handshake go on."""
        assert isinstance(connection, PolicyConnection)
        probe = health.answer(request.path, self._readiness, self._pulse)
        if probe is not None:
            return connection.without_body(connection.respond(*probe))
        is_upgrade = "upgrade" in "".join(request.headers.get_all("Connection")).lower()
        if self._page is not None and not is_upgrade and (answer := self._page.answer(request)) is not None:
            return connection.without_body(answer) if isinstance(answer, Response) else answer
        if connection.is_head or not is_upgrade:
            return connection.without_body(
                connection.respond(
                    HTTPStatus.UPGRADE_REQUIRED,
                    "this is a websocket endpoint; see also /healthz, /readyz, /livez\n",
                )
            )
        if self._readiness.is_draining:
            self._metrics.connection_attempts["draining"].inc()
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the server is going away\n")
        refusal = self._gatekeeper.refuse_robot(connection, request.headers)
        return None if refusal is None else connection.respond(*refusal)
