"""One robot's connection: metadata first, then a reply for each request.

Requests are answered in order, one at a time, but for those of a stream: there a newer observation takes
the place of an older one that has not begun, and a client that reads slowly gets the newest chunk only.

Between a message and its reply nothing is awaited: the message is a call, the engine's answer is a call,
and the reply is in the transport when that call returns.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import socket
import time
import traceback
from collections.abc import Mapping
from typing import Any

from vlad_configs.errors import EngineError, ObservationError
from vlad_configs.serving import ServeConfig
from vlad_engines.worker_protocol import CONTINUATION_KEY
from vlad_server import continuations, roboarena, wire
from vlad_server.action_guard import ActionGuard
from vlad_server.dispatcher import Dispatcher
from vlad_server.doctor.doctor import ObservationDoctor
from vlad_server.exchange import Exchange, error_frame
from vlad_server.images import ImageDecoder, has_encoded_images
from vlad_server.metrics import ServerMetrics
from vlad_server.outcomes import (
    LimitedError,
    Outcome,
    Reply,
    ResetError,
    SupersededError,
    UnservedError,
    code_of,
)
from vlad_server.parcels import Work
from vlad_server.policy_connection import Message, PolicyConnection
from vlad_server.rate_limit import MISTAKES_S, MOST_MISTAKES, Allowance, Mistakes
from vlad_server.readiness import Readiness
from vlad_server.recordings.exchange_recorder import ExchangeRecorder
from vlad_server.recordings.recorder import Recorder
from vlad_server.request_options import (
    POLICY_KEYS,
    ObservationId,
    RequestOptions,
    read_observation_id,
    read_options,
)
from vlad_server.sessions import Session, SessionRegistry
from vlad_server.status.board import StatusBoard

logger = logging.getLogger("vlad.server")

ERROR_CLOSE_REASON = "error; see the text frame before this one"
MISTAKES_CLOSE_REASON = f"{MOST_MISTAKES} mistakes within {MISTAKES_S:g} s; see the text frames"
MAX_SESSIONS = 64
"""Of one connection; one for each arm of a robot is the most that makes sense."""

UNSENT_BYTES = 16 << 10
"""What the kernel may hold of a stream's chunks; what it holds cannot be replaced by a newer one."""


@dataclasses.dataclass(frozen=True)
class Services:
    """What all connections share.

    Attributes:
        recorder: None where nothing is recorded.
    """

    dispatcher: Dispatcher
    config: ServeConfig
    readiness: Readiness
    metrics: ServerMetrics
    sessions: SessionRegistry
    images: ImageDecoder
    doctor: ObservationDoctor
    guard: ActionGuard
    board: StatusBoard
    recorder: Recorder | None


class RobotConnection:
    """Serves one websocket connection until either side ends it.

    Args:
        allowance: how often its client may ask; None for any number.
    """

    def __init__(self, connection: PolicyConnection, services: Services, allowance: Allowance | None) -> None:
        self._connection = connection
        # A transport that is closed has forgotten it.
        self._address = connection.remote_address
        self._dispatcher = services.dispatcher
        self._config = services.config
        self._readiness = services.readiness
        self._metrics = services.metrics
        self._sessions = services.sessions
        self._images = services.images
        self._doctor = services.doctor
        self._guard = services.guard
        self._board = services.board
        self._recorder: ExchangeRecorder | None = None
        if services.recorder is not None:
            self._recorder = ExchangeRecorder(services.recorder, services.readiness)
        self._allowance = allowance
        self._mistakes = Mistakes()
        self._robot = services.config.robot
        self._policy_keys = self._robot.request_keys | POLICY_KEYS
        self._loop = asyncio.get_running_loop()
        self._is_idle = asyncio.Event()
        self._session = Session()
        self._named_sessions: dict[str, Session] = {}
        self._lost_sessions: set[str] = set()
        self._count = 0
        self._open: dict[int, Exchange] = {}
        self._lock_step: Exchange | None = None
        self._is_streaming = False
        self._decoding: dict[Session, Exchange] = {}
        self._to_decode: dict[Session, Exchange] = {}
        self._latest_submitted: dict[Session, int] = {}
        self._held: dict[Session, tuple[Exchange, Reply]] = {}
        self._cycle_started = 0.0
        self._previous_total_ms: float | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._has_unread_reply = False
        self._closing: asyncio.Task[None] | None = None

    def describe(self) -> dict[str, Any]:
        """For people, as JSON types: address, requests so far, sessions by name, whether it streams."""
        return {
            "address": self._name,
            "requests": self._count,
            "sessions": sorted(self._named_sessions),
            "streams": self._is_streaming,
        }

    async def run(self) -> int:
        """Serve until the connection ends; never raises for what the client does.

        Returns:
            The close code that ended it.
        """
        ready = asyncio.ensure_future(self._readiness.wait_ready())
        closed = asyncio.ensure_future(self._connection.wait_closed())
        draining = asyncio.ensure_future(self._readiness.wait_draining())
        try:
            await asyncio.wait({ready, closed, draining}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not closed.done():
                self._connection.listen(self)
                self._send(wire.encode(self._readiness.metadata))
                self._continue()
                await asyncio.wait({closed, draining}, return_when=asyncio.FIRST_COMPLETED)
                # What is being answered gets its reply before the connection closes; on_lost ends this too.
                await self._is_idle.wait()
        finally:
            for task in (ready, closed, draining):
                task.cancel()
            self._cancel_timer()
            self._sessions.detach(self, time.perf_counter())
        if self._closing is not None:
            await self._closing
        elif not self._connection.transport.is_closing():
            await self._connection.close(*self._readiness.farewell)
        self._metrics.count_disconnect(self._close_code())
        return self._close_code()

    def on_message(self, message: Message) -> None:
        """Begin a request. Called by the connection."""
        try:
            self._begin(message, time.perf_counter())
        except Exception:
            self._break_off()

    def on_writable(self) -> None:
        """Go on after a reply that took a while to leave. Called by the connection."""
        self._cancel_timer()
        if self._has_unread_reply:
            self._has_unread_reply = False
            self._metrics.requests["ok"].inc()
        while self._held and self._connection.is_writable:
            self._deliver(*self._held.pop(next(iter(self._held))))
        self._continue()

    def on_lost(self) -> None:
        """Forget what the client waited for. Called by the connection."""
        self._cancel_timer()
        for request_id in self._open:
            self._dispatcher.drop(request_id)
        lost = len(self._open) + len(self._decoding) + len(self._to_decode) + len(self._held)
        self._metrics.requests["cancelled"].inc(lost + self._has_unread_reply)
        self._open.clear()
        self._decoding.clear()
        self._to_decode.clear()
        self._held.clear()
        self._lock_step = None
        self._is_idle.set()

    def on_session_taken(self, session: Session) -> None:
        """Answer no more in the name of a session that another connection has now. Called by the registry."""
        assert session.session_id is not None
        logger.warning("%s: session %r is used elsewhere now", self._address, session.session_id)
        self._lost_sessions.add(session.session_id)
        self._named_sessions.pop(session.session_id, None)
        self._end_open(session, ResetError("reset: another connection uses this session now"))
        self._continue()

    @property
    def _name(self) -> str:
        address = self._address
        return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unknown"

    def _break_off(self) -> None:
        """A defect of ours costs this connection, and nobody else anything."""
        logger.exception("%s: connection failed", self._address)
        self._connection.cut(1011, "internal error; the server's log says more")

    def _begin(self, message: Message, received: float) -> None:
        self._is_idle.clear()
        self._metrics.received_bytes.inc(len(message))
        observation_id: ObservationId | None = None
        # Taken first, so that what cannot even be read counts as well.
        is_allowed = self._allowance is None or self._allowance.take(received)
        try:
            if isinstance(message, str):
                raise wire.WireError("expected a binary frame with a msgpack map, received a text frame")
            request = wire.decode(message)
            observation_id = read_observation_id(request)
            if not is_allowed:
                raise LimitedError("limited: more requests per second than --max-requests-per-second allows")
            if roboarena.is_roboarena(request):
                self._begin_roboarena(request, received, message)
                return
            options = read_options(request)
            exchange = self._exchange(request, options, received)
            self._keep_frame(exchange, message)
        except (wire.WireError, ObservationError, LimitedError) as error:
            self._refuse(error, observation_id)
            self._continue()
            return
        self._prepare(exchange)

    def _begin_roboarena(
        self, request: Mapping[str, Any], received: float, message: bytes | bytearray | memoryview
    ) -> None:
        if roboarena.endpoint_of(request) == "reset":
            self._session.begin_episode()
            self._send(roboarena.RESET_REPLY)
            self._continue()
            return
        observation = roboarena.observation_of(request, self._config.robot)
        exchange = self._exchange(observation, RequestOptions(), received)
        exchange.is_roboarena = True
        self._keep_frame(exchange, message)
        self._prepare(exchange)

    def _keep_frame(self, exchange: Exchange, message: bytes | bytearray | memoryview) -> None:
        if self._recorder is not None:
            exchange.frame_received = bytes(message)

    def _exchange(self, request: Mapping[str, Any], options: RequestOptions, received: float) -> Exchange:
        session = self._session
        if options.session is not None:
            session = self._named_session(options.session, received)
        if options.reset:
            session.begin_episode()
            self._end_open(session, ResetError("reset: the episode of this observation is over"))
        self._count += 1
        return Exchange(request, options, session, received, self._count)

    def _named_session(self, session_id: str, now: float) -> Session:
        session = self._named_sessions.get(session_id)
        if session is None:
            if session_id in self._lost_sessions:
                raise ObservationError("vlad/session", "a session of this connection", "one used by another")
            if len(self._named_sessions) + len(self._lost_sessions) >= MAX_SESSIONS:
                raise ObservationError(
                    "vlad/session", f"at most {MAX_SESSIONS} sessions of a connection", "one more"
                )
            session = self._sessions.attach(session_id, self, now)
            self._named_sessions[session_id] = session
        return session

    def _prepare(self, exchange: Exchange) -> None:
        """Have the request's images decoded where they are compressed, then hand it on."""
        if exchange.options.stream:
            self._begin_stream()
        else:
            self._lock_step = exchange
        if not has_encoded_images(exchange.observation, self._robot):
            self._submit(exchange)
        elif exchange.session not in self._decoding:
            self._decode_images(exchange)
        else:
            if (older := self._to_decode.pop(exchange.session, None)) is not None:
                self._superseded(older)
            self._to_decode[exchange.session] = exchange
        self._continue()

    def _decode_images(self, exchange: Exchange) -> None:
        self._decoding[exchange.session] = exchange
        self._images.submit(exchange.observation, functools.partial(self._on_images, exchange))

    def _on_images(self, exchange: Exchange, result: dict[str, Any] | Exception) -> None:
        session = exchange.session
        if self._decoding.get(session) is not exchange:
            return
        del self._decoding[session]
        if (newer := self._to_decode.pop(session, None)) is not None:
            self._decode_images(newer)
        try:
            if isinstance(result, Exception):
                self._end(exchange, result)
            elif exchange.options.stream and exchange.number < self._latest_submitted.get(session, 0):
                self._superseded(exchange)
            else:
                exchange.observation = result
                self._submit(exchange)
            self._continue()
        except Exception:
            self._break_off()

    def _submit(self, exchange: Exchange) -> None:
        metadata, options = self._readiness.metadata, exchange.options
        observation = exchange.observation
        try:
            self._robot.check(observation, prompt_optional=metadata.get("default_prompt") is not None)
            exchange.cameras = self._robot.optional_cameras(observation)
            can_continue = bool(metadata.get("vlad", {}).get("rtc"))
            continuation, exchange.note = continuations.resolve(
                options, exchange.session, supported=can_continue
            )
        except ObservationError as error:
            self._end(exchange, error)
            return
        selected = {key: value for key, value in observation.items() if key in self._policy_keys}
        if continuation is not None:
            selected[CONTINUATION_KEY] = exchange.continuation = continuation
        if self._recorder is not None:
            self._recorder.pin_noise(exchange, selected)
        exchange.decoded = time.perf_counter()
        self._metrics.stages["decode"].observe(exchange.decoded - exchange.received)
        self._latest_submitted[exchange.session] = exchange.number
        work = Work(selected, functools.partial(self._on_outcome, exchange), options.extended)
        exchange.request_id = self._dispatcher.submit(work, exchange.terms, stream=options.stream)
        self._open[exchange.request_id] = exchange
        self._doctor.examine(exchange)
        if not self._board.is_watched:
            # The next request gets this memory, which is in the processor's cache still.
            exchange.observation = {}

    def _on_outcome(self, exchange: Exchange, outcome: Outcome) -> None:
        assert exchange.request_id is not None
        del self._open[exchange.request_id]
        try:
            if isinstance(outcome, Reply):
                outcome, exchange.warnings = self._guard.checked(outcome)
            if isinstance(outcome, Reply):
                self._answer(exchange, outcome)
            elif isinstance(outcome, SupersededError):
                self._superseded(exchange)
            else:
                self._end(exchange, outcome)
                if self._recorder is not None and isinstance(outcome, EngineError):
                    self._recorder.failed(exchange, outcome)
            self._continue()
        except Exception:
            self._break_off()

    def _answer(self, exchange: Exchange, reply: Reply) -> None:
        if not exchange.options.stream or self._connection.is_writable:
            self._deliver(exchange, reply)
        else:
            if (older := self._held.pop(exchange.session, None)) is not None:
                self._superseded(older[0])
            self._held[exchange.session] = (exchange, reply)

    def _deliver(self, exchange: Exchange, reply: Reply) -> None:
        """Send a reply, and note that its request is done."""
        encoding = time.perf_counter()
        message = exchange.message(reply, encoding, self._previous_total_ms)
        warnings = self._doctor.report(exchange, reply)
        if exchange.options.doctor:
            message["observation_warnings"] = warnings
        payload = exchange.frame(message)
        encoded = time.perf_counter()
        if self._lock_step is exchange:
            self._lock_step = None
        if not self._send(payload):
            self._metrics.requests["cancelled"].inc()
            return
        sent = time.perf_counter()
        began = exchange.received if exchange.options.stream else self._cycle_started
        self._previous_total_ms = 1e3 * (sent - began)
        if exchange.options.extended:
            exchange.session.note_latency(sent - exchange.received)
        if self._connection.is_writable:
            self._metrics.requests["ok"].inc()
        else:
            self._has_unread_reply = True
        self._note_times(exchange, reply, encoding, encoded, sent)
        if self._board.is_watched:
            self._board.note_reply(
                exchange.session.session_id or self._name,
                exchange.observation,
                message,
                encode_ms=1e3 * (encoded - encoding),
                send_ms=1e3 * (sent - encoded),
            )
        if self._recorder is not None:
            self._recorder.answered(exchange, message, payload)

    def _note_times(
        self, exchange: Exchange, reply: Reply, encoding: float, encoded: float, sent: float
    ) -> None:
        self._metrics.request_duration.observe(sent - exchange.received)
        self._metrics.request_queue_duration.observe(max(0.0, reply.started - exchange.decoded))
        self._metrics.freshness.note_chunk(
            received=exchange.received,
            started=reply.started,
            sent=sent,
            expires=exchange.expires,
            control_hz=exchange.options.control_hz,
            rtc=reply.rtc,
        )
        self._metrics.stages["encode"].observe(encoded - encoding)
        self._metrics.stages["send"].observe(sent - encoded)
        for name, milliseconds in reply.policy_timing.items():
            if (histogram := self._metrics.stages.get(name.removesuffix("_ms"))) is not None:
                histogram.observe(1e-3 * milliseconds)
        self._metrics.note_pruning(reply.policy_timing)

    def _superseded(self, exchange: Exchange) -> None:
        """Drop an observation of a stream; the next reply tells."""
        self._metrics.requests["superseded"].inc()
        exchange.session.note_superseded(exchange.number, exchange.options.observation_id)

    def _end_open(self, session: Session, error: UnservedError) -> None:
        """End whatever a session waits for, wherever it is; results that still come are not its own."""
        for request_id, exchange in list(self._open.items()):
            if exchange.session is session:
                self._dispatcher.drop(request_id)
                del self._open[request_id]
                self._end(exchange, error)
        for exchanges in (self._decoding, self._to_decode):
            if (waiting := exchanges.pop(session, None)) is not None:
                self._end(waiting, error)
        if (held := self._held.pop(session, None)) is not None:
            self._end(held[0], error)

    def _end(self, exchange: Exchange, error: Exception) -> None:
        """End a request without a chunk."""
        if self._lock_step is exchange:
            self._lock_step = None
        if exchange.options.stream and not self._connection.is_writable:
            self._superseded(exchange)
        else:
            self._refuse(error, exchange.options.observation_id)

    def _refuse(self, error: Exception, observation_id: ObservationId | None) -> None:
        """Tell the client why it gets no chunk, and close the connection where that is the custom."""
        code = code_of(error)
        self._metrics.requests["engine_error" if code == "engine" else code].inc()
        text = str(error)
        if self._board.is_watched:
            self._board.note_refusal(self._name, code, text)
        if self._config.debug:
            text += "\n\n" + "".join(traceback.format_exception(error))
        level = logging.DEBUG if isinstance(error, UnservedError) else logging.WARNING
        logger.log(level, "%s: %s", self._address, str(error)[:1024])
        is_sent = self._send(error_frame(error, text, observation_id))
        # What is nobody's mistake, and what clients with ids can tell apart, leaves the connection open.
        stays = code not in ("invalid", "engine") or observation_id is not None
        if stays or not is_sent or self._closing is not None:
            return
        if not self._config.keep_connection_on_error:
            self._closing = self._loop.create_task(self._connection.close(1011, ERROR_CLOSE_REASON))
        elif code == "invalid" and self._mistakes.note(time.perf_counter()):
            self._closing = self._loop.create_task(self._connection.close(1008, MISTAKES_CLOSE_REASON))

    def _continue(self) -> None:
        """Take the next request, unless one is being answered in order, or all is over."""
        is_over = self._closing is not None or self._readiness.is_draining
        may_read = self._connection.is_writable or self._is_streaming
        if may_read and self._lock_step is None and not is_over:
            self._cycle_started = time.perf_counter()
            self._connection.request_message()
        is_busy = self._open or self._lock_step or self._decoding or self._held
        if not is_busy and (self._connection.is_writable or self._closing is not None):
            self._is_idle.set()

    def _begin_stream(self) -> None:
        """Keep as little as possible between a stream's chunks and its reader, where newer ones come."""
        if not self._is_streaming:
            self._is_streaming = True
            # Not 0: uvloop's TLS takes an empty buffer for a full one then, every other time that it looks.
            self._connection.transport.set_write_buffer_limits(high=1)
            raw = self._connection.transport.get_extra_info("socket")
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)

    def _send(self, payload: bytes | str) -> bool:
        """Send, but not for ever: a client that does not read loses its connection."""
        if not self._connection.send_now(payload):
            return False
        self._metrics.sent_bytes.inc(len(payload))
        if not self._connection.is_writable and self._unread is None:
            self._unread = self._loop.call_later(self._config.send_timeout_s, self._give_up)
        return True

    def _give_up(self) -> None:
        self._metrics.send_timeouts.inc()
        logger.warning(
            "%s: cut off, because it did not read its reply for %g s",
            self._address,
            self._config.send_timeout_s,
        )
        # A close frame would have to wait behind what is not read.
        self._connection.transport.abort()

    def _cancel_timer(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _close_code(self) -> int:
        """The client's code, or else ours: the library hears no more of a client that it has turned away."""
        protocol = self._connection.protocol
        frame = protocol.close_rcvd or protocol.close_sent
        return 1006 if frame is None else int(frame.code)
