"""Large websocket messages, received and unmasked in place.

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


def read_header(data: memoryview, max_bytes: int) -> tuple[int, bytes] | None:
    """Length and mask of the large frame that begins with `data`.

    Returns:
        None where the library has to look: for any other frame, and for one of more than `max_bytes`.
    """
    if len(data) < HEADER_BYTES or data[:2] != _START:
        return None
    length, mask = _LENGTH_AND_MASK.unpack_from(data)
    return (length, mask) if LEAST_BYTES <= length <= max_bytes else None


def unmask(payload: memoryview, mask: bytes) -> None:
    """Undo a client's masking where the payload lies; fastest where that is at a multiple of 8."""
    whole = len(payload) // 8 * 8
    words = np.frombuffer(payload[:whole], np.uint64)
    np.bitwise_xor(words, np.frombuffer(2 * mask, np.uint64)[0], out=words)
    for index in range(whole, len(payload)):
        payload[index] ^= mask[index % 4]


class LargeFrame:
    """One message of which a part has come.

    Args:
        length: of the message in bytes.
        mask: four bytes.
        begun: what has come of it, shorter than `length`; copied.
    """

    def __init__(self, length: int, mask: bytes, begun: memoryview) -> None:
        self._view = np.empty(length, np.uint8).data
        self._mask = mask
        self._view[: len(begun)] = begun
        self.rest = self._view[len(begun) :]
        """Where the bytes go that come next; empty once all of it is there."""

    def advance(self, count: int) -> None:
        """Note that `count` bytes have come into `rest`."""
        self.rest = self.rest[count:]

    def message(self) -> memoryview:
        """The message of a complete frame; call it once."""
        unmask(self._view, self._mask)
        return self._view


def binary_frame(payload: bytes) -> bytes:
    """A server's binary message as it goes over the wire."""
    length = len(payload)
    if length < _LENGTH_OF_TWO:
        return _SMALL_REPLY.pack(_BINARY, length) + payload
    if length < 1 << 16:
        return _LARGE_REPLY.pack(_BINARY, _LENGTH_OF_TWO, length) + payload
    return _HUGE_REPLY.pack(_BINARY, _LENGTH_OF_EIGHT, length) + payload
