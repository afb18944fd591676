"""Where a policy connection's bytes arrive: in memory that is there already.

A transport makes a new object of whatever comes, up to 256 kB of it, and copies into that. Here it reads
into one buffer that all connections share, where an observation usually is complete after one read; what
is left of a larger one is read straight to where the message is put together.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import numpy as np

from vlad_server.large_frames import HEADER_BYTES, LargeFrame, read_header, unmask

SHARED_BYTES = 512 << 10
"""Two images of 224x224 are 301 kB; more would leave the second-level cache of a core."""

# The header ends at a multiple of 8, so that unmasking takes its fast path.
_shared = np.empty(2 + SHARED_BYTES, np.uint8).data[2:]


class MessageOwner(Protocol):
    """Whose bytes a reader takes; called on the event loop."""

    @property
    def is_between_messages(self) -> bool:
        """True where the next byte begins a frame, and the frame a message."""
        ...

    def data_received(self, data: bytes) -> None:
        """Bytes that are no large message."""
        ...

    def large_message_received(self, message: memoryview) -> None:
        """A whole large message, which lies there until this returns only."""
        ...

    def eof_received(self) -> None:
        """The client sends no more."""
        ...

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        ...

    def pause_writing(self) -> None:
        """The client does not read."""
        ...

    def resume_writing(self) -> None:
        """The client reads again."""
        ...


class FrameReader(asyncio.BufferedProtocol):
    """The protocol of a transport whose connection has been made.

    Args:
        largest: frames of more bytes are left to the owner.
    """

    def __init__(self, owner: MessageOwner, largest: int) -> None:
        self._owner = owner
        self._largest = largest
        self._frame: LargeFrame | None = None
        self.eof_received = owner.eof_received  # type: ignore[method-assign]
        self.connection_lost = owner.connection_lost  # type: ignore[method-assign]
        self.pause_writing = owner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = owner.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport shall read to. Nothing else runs between this and `buffer_updated`."""
        return _shared if self._frame is None else self._frame.rest

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the transport after it has read."""
        frame = self._frame
        if frame is None:
            self._take(_shared[:nbytes])
            return
        frame.advance(nbytes)
        if not frame.rest:
            self._frame = None
            self._owner.large_message_received(frame.message())

    def _take(self, data: memoryview) -> None:
        while data:
            header = read_header(data, self._largest) if self._owner.is_between_messages else None
            if header is None:
                self._owner.data_received(bytes(data))
                return
            length, mask = header
            payload, data = data[HEADER_BYTES : HEADER_BYTES + length], data[HEADER_BYTES + length :]
            if len(payload) < length:
                self._frame = LargeFrame(length, mask, payload)
                return
            unmask(payload, mask)
            self._owner.large_message_received(payload)
