"""Large messages that come in pieces, and what is left to the library."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from vlad_server.frame_reader import SHARED_BYTES, FrameReader
from vlad_server.large_frames import HEADER_BYTES, binary_frame, read_header

LIMIT = 1 << 20


def client_frame(payload: bytes, opcode: Opcode = Opcode.BINARY, *, fin: bool = True) -> bytes:
    """A frame as the library's client sends it."""
    return bytes(Frame(opcode, payload, fin).serialize(mask=True))


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *cuts, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


class Owner:
    """Notes what a reader hands it, in order."""

    def __init__(self) -> None:
        self.is_between_messages = True
        self.taken: list[tuple[str, bytes]] = []

    def data_received(self, data: bytes) -> None:
        self.taken.append(("library", data))

    def large_message_received(self, message: memoryview) -> None:
        self.taken.append(("large", bytes(message)))

    def eof_received(self) -> None:
        self.taken.append(("eof", b""))

    def connection_lost(self, exc: Exception | None) -> None:
        self.taken.append(("lost", b""))

    def pause_writing(self) -> None:
        self.taken.append(("pause", b""))

    def resume_writing(self) -> None:
        self.taken.append(("resume", b""))


def feed(reader: FrameReader, data: bytes) -> None:
    """As a transport does: never more than there is room for."""
    while data:
        buffer = reader.get_buffer(-1)
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        reader.buffer_updated(count)
        data = data[count:]


@pytest.mark.parametrize("length", [1 << 16, (1 << 16) + 1, 300_007, SHARED_BYTES + 3, LIMIT])
@pytest.mark.parametrize("seed", range(4))
def test_a_message_is_the_same_however_it_is_cut(length: int, seed: int) -> None:
    source = random.Random(seed)
    payload = source.randbytes(length)
    data = client_frame(payload)
    cuts = sorted(source.randrange(HEADER_BYTES, len(data)) for _ in range(seed * 3))
    owner = Owner()
    reader = FrameReader(owner, LIMIT)
    for piece in pieces(data, cuts):
        feed(reader, piece)
    feed(reader, b"rest")
    assert owner.taken == [("large", payload), ("library", b"rest")]


def test_messages_that_come_in_one_read_stay_apart() -> None:
    first, second, short = (
        random.randbytes(70_001),
        random.randbytes(80_002),
        client_frame(b"ping", Opcode.PING),
    )
    owner = Owner()
    feed(FrameReader(owner, LIMIT), client_frame(first) + client_frame(second) + short)
    assert owner.taken == [("large", first), ("large", second), ("library", short)]


def test_a_frame_inside_a_fragmented_message_is_the_library_s() -> None:
    owner = Owner()
    owner.is_between_messages = False
    data = client_frame(bytes(70_000))
    feed(FrameReader(owner, LIMIT), data)
    assert owner.taken == [("library", data)]


def test_two_connections_share_memory_and_nothing_else() -> None:
    owners = [Owner(), Owner()]
    readers = [FrameReader(owner, LIMIT) for owner in owners]
    payloads = [random.randbytes(200_000) for _ in owners]
    for cuts in ((0, 100_000), (100_000, 300_000)):
        for reader, payload in zip(readers, payloads, strict=True):
            feed(reader, client_frame_once(payload)[slice(*cuts)])
    assert [owner.taken for owner in owners] == [[("large", payload)] for payload in payloads]


@functools.cache
def client_frame_once(payload: bytes) -> bytes:
    """The mask is drawn anew each time."""
    return client_frame(payload)


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
    assert read_header(memoryview(data), LIMIT) is None


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65_535, 65_536, 70_000])
def test_replies_are_framed_as_the_library_does(length: int) -> None:
    payload: Any = random.Random(length).randbytes(length)
    assert binary_frame(payload) == Frame(Opcode.BINARY, payload).serialize(mask=False)
