"""Large websocket messages, put together and unmasked in one place.

`websockets` appends what comes to one buffer, cuts the frame out of it and unmasks it into a third; for an
observation of 300 kB, these copies and the generators around them cost as much as everything that the
server does with it afterwards. Only the plain case is here, a whole binary message in one large frame;
everything else, and every decision about what is allowed, stays with the library.
"""

from __future__ import annotations

import struct

import numpy as np

HEADER_BYTES = 14
"""Two bytes, a length of eight, a mask of four."""

_START = b"\x82\xff"
"""A final, binary, masked frame whose length has eight bytes, without extensions."""

LEAST_BYTES, LARGEST_BYTES = 1 << 16, 4 << 20
"""Shorter ones need no length of eight bytes. Memory is set aside for a whole frame at once; for larger
ones, the library's grows with what has come."""

_LENGTH_AND_MASK = struct.Struct("!2xQ4s")
_SMALL_REPLY, _LARGE_REPLY, _HUGE_REPLY = struct.Struct("!BB"), struct.Struct("!BBH"), struct.Struct("!BBQ")
_BINARY, _LENGTH_OF_TWO, _LENGTH_OF_EIGHT = 0x82, 126, 127


class LargeFrame:
    """One message that is coming in.

    Args:
        length: of the message in bytes.
        mask: four bytes.
    """

    def __init__(self, length: int, mask: bytes) -> None:
        # Whole words of eight bytes, so that unmasking takes the fast path to the very end.
        self._bytes = np.empty(-(-length // 8) * 8, np.uint8)
        self._view = self._bytes.data[:length]
        self._mask = mask
        self._received = 0

    @classmethod
    def begin(cls, data: bytes, max_bytes: int) -> LargeFrame | None:
        """The frame that begins with `data`, of at most `max_bytes`; None where the library has to look."""
        if len(data) < HEADER_BYTES or not data.startswith(_START):
            return None
        length, mask = _LENGTH_AND_MASK.unpack_from(data)
        return cls(length, mask) if LEAST_BYTES <= length <= max_bytes else None

    def add(self, data: bytes, start: int = 0) -> int:
        """Take what belongs to the frame; returns the index in `data` of what does not."""
        end = min(len(data), start + len(self._view) - self._received)
        self._view[self._received : self._received + end - start] = memoryview(data)[start:end]
        self._received += end - start
        return end

    @property
    def is_complete(self) -> bool:
        """True once all of it is there."""
        return self._received == len(self._view)

    def message(self) -> memoryview:
        """The message of a complete frame; call it once."""
        words = self._bytes.view(np.uint64)
        np.bitwise_xor(words, np.frombuffer(2 * self._mask, np.uint64)[0], out=words)
        return self._view


def binary_frame(payload: bytes) -> bytes:
    """A server's binary message as it goes over the wire."""
    length = len(payload)
    if length < _LENGTH_OF_TWO:
        return _SMALL_REPLY.pack(_BINARY, length) + payload
    if length < 1 << 16:
        return _LARGE_REPLY.pack(_BINARY, _LENGTH_OF_TWO, length) + payload
    return _HUGE_REPLY.pack(_BINARY, _LENGTH_OF_EIGHT, length) + payload
