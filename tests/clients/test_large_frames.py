"""Large requests are framed as the library frames them, in memory that stays."""

from __future__ import annotations

import random
import struct

import pytest
from websockets.frames import Frame, Opcode

from vlad_client.large_frames import LEAST_BYTES, FrameBuffer

MASK = slice(10, 14)


@pytest.mark.parametrize("length", [LEAST_BYTES, LEAST_BYTES + 1, 70_007, 301_000, 2_000_003])
def test_a_frame_is_the_library_s(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    message = random.Random(length).randbytes(length)
    frame = bytes(FrameBuffer().masked(message))
    monkeypatch.setattr("secrets.token_bytes", lambda count: frame[MASK][:count])
    assert frame == Frame(Opcode.BINARY, message).serialize(mask=True)


def test_every_message_has_a_mask_of_its_own() -> None:
    frames = FrameBuffer()
    assert len({bytes(frames.masked(bytes(LEAST_BYTES))[MASK]) for _ in range(8)}) > 1


def test_messages_of_changing_length_follow_each_other() -> None:
    frames = FrameBuffer()
    first = frames.masked(b"a" * 300_000)
    second = frames.masked(b"b" * 100_000)
    assert len(second) == 14 + 100_000
    assert struct.unpack_from("!Q", second, 2) == (100_000,)
    # The same memory again; whoever still holds the first sees it overwritten.
    assert bytes(first[:14]) == bytes(second[:14])
