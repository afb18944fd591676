"""Large messages that come in pieces, and what is left to the library."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from vlad_server.large_frames import HEADER_BYTES, LargeFrame, binary_frame

LIMIT = 1 << 20


def client_frame(payload: bytes, opcode: Opcode = Opcode.BINARY, *, fin: bool = True) -> bytes:
    """A frame as the library's client sends it."""
    return bytes(Frame(opcode, payload, fin).serialize(mask=True))


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *cuts, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@pytest.mark.parametrize("length", [1 << 16, (1 << 16) + 1, 300_007])
@pytest.mark.parametrize("seed", range(4))
def test_a_message_is_the_same_however_it_is_cut(length: int, seed: int) -> None:
    source = random.Random(seed)
    payload = source.randbytes(length)
    data = client_frame(payload) + b"rest"
    cuts = sorted(source.randrange(HEADER_BYTES, len(data)) for _ in range(seed * 3))
    first, *others = pieces(data, cuts)
    frame = LargeFrame.begin(first, LIMIT)
    assert frame is not None
    left = first[frame.add(first, HEADER_BYTES) :]
    for piece in others:
        assert not left or frame.is_complete
        left += piece[frame.add(piece) :]
    assert frame.is_complete
    assert left == b"rest"
    assert bytes(frame.message()) == payload


@pytest.mark.parametrize(
    "data",
    [
        client_frame(bytes(LIMIT + 1)),
        client_frame(bytes(300_000), Opcode.TEXT),
        client_frame(bytes(300_000), fin=False),
        client_frame(bytes(300_000), Opcode.CONT),
        client_frame(bytes(1000)),
        client_frame(b"", Opcode.PING),
        client_frame(bytes(300_000))[: HEADER_BYTES - 1],
        bytes(Frame(Opcode.BINARY, bytes(300_000)).serialize(mask=False)),
        # A length of eight bytes where two would do.
        b"\x82\xff" + (1000).to_bytes(8, "big") + bytes(1004),
        # A length with the highest bit, which no frame may have.
        b"\x82\xff" + b"\xff" * 12,
    ],
)
def test_everything_else_is_left_to_the_library(data: bytes) -> None:
    assert LargeFrame.begin(data, LIMIT) is None


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65_535, 65_536, 70_000])
def test_replies_are_framed_as_the_library_does(length: int) -> None:
    payload: Any = random.Random(length).randbytes(length)
    assert binary_frame(payload) == Frame(Opcode.BINARY, payload).serialize(mask=False)
