"""Large messages, masked and framed in memory that is there already.

`websockets` makes new objects of a message's size for each one that it sends. Where the allocator gives
such memory back to the system each time, which depends on little more than luck, the system has to find 150
new pages for each request; that takes as long as everything else that a client does.
"""

from __future__ import annotations

import os
import struct

import numpy as np

LEAST_BYTES = 1 << 16
"""Shorter messages have another header, and cost little."""

_HEADER = struct.Struct("!BBQ4s")
_FINAL_BINARY, _MASKED_LENGTH_OF_EIGHT = 0x82, 0xFF
_PAYLOAD = 16
"""Where the message begins, so that it is masked eight bytes at a time; the header ends there."""


class FrameBuffer:
    """The memory of one connection's frames; it grows to the largest."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def masked(self, message: bytes) -> memoryview:
        """A client's final binary frame, which lies there until the next call.

        Args:
            message: of at least `LEAST_BYTES` bytes.
        """
        mask = os.urandom(4)
        length = len(message)
        whole = length // 8 * 8
        if len(self._bytes) < _PAYLOAD + length:
            self._bytes = np.empty(_PAYLOAD + length, np.uint8)
        frame = self._bytes[: _PAYLOAD + length]
        _HEADER.pack_into(
            frame.data, _PAYLOAD - _HEADER.size, _FINAL_BINARY, _MASKED_LENGTH_OF_EIGHT, length, mask
        )
        np.bitwise_xor(
            np.frombuffer(message, np.uint64, whole // 8),
            np.frombuffer(2 * mask, np.uint64),
            out=frame[_PAYLOAD : _PAYLOAD + whole].view(np.uint64),
        )
        for index in range(whole, length):
            frame[_PAYLOAD + index] = message[index] ^ mask[index % 4]
        return frame[_PAYLOAD - _HEADER.size :].data
