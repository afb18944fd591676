"""A websocket connection that hands messages over at once: no queue, no task, no copy in between.

`websockets` gives messages to a task that waits for them, and sends from a task that waits for the
network. Both cost a switch of tasks where a robot waits. Here a complete message is a call, and so is
sending; who cannot keep up is noticed through the transport's own flow control.

It also understands HEAD, which `websockets` before 17 cuts off unanswered. Python 3.10 has nothing newer
than websockets 16; with this, load balancers get their answer on every Python.
"""

from __future__ import annotations

import asyncio
import collections
from typing import Any, Protocol, cast

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Event, State

from vlad_server.frame_reader import FrameReader
from vlad_server.large_frames import LARGEST_BYTES, binary_frame

_HEAD, _GET = b"HEAD ", b"GET "

MAX_WAITING_MESSAGES = 2
"""Messages that may lie here unhandled before the network's buffers have to hold the rest."""

Message = bytes | bytearray | memoryview | str


class Receiver(Protocol):
    """Who handles the messages of a connection; called on the event loop, must not block."""

    def on_message(self, message: Message) -> None:
        """A message, after `request_message` asked for it. A memoryview is valid until this returns."""
        ...

    def on_writable(self) -> None:
        """The client reads again; `is_writable` was False before."""
        ...

    def on_lost(self) -> None:
        """The connection is gone; nothing else is called afterwards."""
        ...


class PolicyConnection(ServerConnection):
    """One websocket of the policy port.

    Args:
        args, options: of the library's connection.
        max_message_bytes: largest message.
    """

    def __init__(self, *args: Any, max_message_bytes: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._largest_frame = min(max_message_bytes, LARGEST_BYTES)
        self._has_received = False
        self.is_head = False
        self.is_writable = True
        self._receiver: Receiver | None = None
        self._is_wanted = False
        self._is_delivering = False
        self._is_reading = True
        self._waiting: collections.deque[Message] = collections.deque()
        self._fragments: bytearray | None = None
        self._is_text = False

    def listen(self, receiver: Receiver) -> None:
        """Name who handles messages; none is delivered before `request_message`."""
        self._receiver = receiver

    def request_message(self) -> None:
        """Ask for one message: `on_message` is called now if one waits, else when one comes."""
        self._is_wanted = True
        self._deliver()

    def send_now(self, payload: bytes | str) -> bool:
        """Hand a frame to the transport and return at once; False where the connection is closing."""
        if self.protocol.state is not State.OPEN or self.transport.is_closing():
            return False
        if isinstance(payload, str):
            self.protocol.send_text(payload.encode())
            self.send_data()
        else:
            self.transport.write(binary_frame(payload))
        return True

    def cut(self, code: int, reason: str) -> None:
        """Say why, where that can still be said, and close without waiting for the client's consent.

        Args:
            reason: at most 123 bytes.
        """
        if self.protocol.state is State.OPEN and not self.transport.is_closing():
            self.protocol.send_close(code, reason)
            self.send_data()
        self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the transport, first."""
        super().connection_made(transport)
        cast(asyncio.Transport, transport).set_protocol(FrameReader(self, self._largest_frame))

    def data_received(self, data: bytes) -> None:
        """Called by the reader with what came over the network and is no large message."""
        if not self._has_received:
            self._has_received = True
            if data.startswith(_HEAD):
                self.is_head = True
                data = _GET + data[len(_HEAD) :]
        super().data_received(data)

    def large_message_received(self, message: memoryview) -> None:
        """Called by the reader with what it need not show the library."""
        is_taken_at_once = self._is_wanted and not self._waiting and not self._is_delivering
        self._receive(message if is_taken_at_once else bytes(message))

    @property
    def is_between_messages(self) -> bool:
        """True where the library has nothing half done: the next byte begins a message."""
        is_between_frames = not self.protocol.reader.buffer and self._fragments is None
        return is_between_frames and self.protocol.state is State.OPEN

    def process_event(self, event: Event) -> None:
        """Called by the library with each frame; data frames stay here, everything else is its own."""
        if not isinstance(event, Frame) or event.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            super().process_event(event)
        elif (message := self._complete(event)) is not None:
            self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the transport, last."""
        super().connection_lost(exc)
        self._waiting.clear()
        if self._receiver is not None:
            self._receiver.on_lost()

    def pause_writing(self) -> None:
        """Called by the transport while the client does not read."""
        super().pause_writing()
        self.is_writable = False

    def resume_writing(self) -> None:
        """Called by the transport once the client reads again."""
        super().resume_writing()
        self.is_writable = True
        if self._receiver is not None:
            self._receiver.on_writable()

    def without_body(self, response: Response) -> Response:
        """The response as this request may get it: its headers stay, and speak of GET's body."""
        if self.is_head:
            response.body = b""
        return response

    def _receive(self, message: Message) -> None:
        self._waiting.append(message)
        self._deliver()
        if self._is_reading and len(self._waiting) > MAX_WAITING_MESSAGES:
            self._is_reading = False
            self.transport.pause_reading()

    def _complete(self, frame: Frame) -> Message | None:
        """The message that ends with this frame; the library has checked order and total size."""
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
            if frame.fin:
                return self._decoded(frame.data)
            self._fragments = bytearray()
        assert self._fragments is not None
        self._fragments += frame.data
        if not frame.fin:
            return None
        data, self._fragments = self._fragments, None
        return self._decoded(data)

    def _decoded(self, data: bytes | bytearray | memoryview) -> Message | None:
        if isinstance(data, memoryview):
            data = bytes(data)
        if not self._is_text:
            return data
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            self.protocol.fail(CloseCode.INVALID_DATA, f"{error.reason} at position {error.start}")
            self.send_data()
            return None

    def _deliver(self) -> None:
        # A receiver may ask for the next message while it handles one; the loop, not the stack, takes it.
        if self._is_delivering:
            return
        self._is_delivering = True
        try:
            while self._is_wanted and self._waiting and self._receiver is not None:
                self._is_wanted = False
                self._receiver.on_message(self._waiting.popleft())
        finally:
            self._is_delivering = False
        if not self._is_reading and len(self._waiting) <= MAX_WAITING_MESSAGES // 2:
            self._is_reading = True
            if not self.transport.is_closing():
                self.transport.resume_reading()
