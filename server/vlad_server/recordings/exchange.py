"""One request with its reply as recordings keep it: everything that computing it again takes."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vlad_server import wire

FORMAT_VERSION = 1
EXCHANGE_TOPIC = "/vlad/exchange"
METADATA_NAME = "vlad"
"""Of the metadata record that says which robot and policy a file is of."""

_LENGTHS = struct.Struct("<III")
"""Bytes of what follows in the recorder's pipe: the header, the request, the reply."""


@dataclasses.dataclass(frozen=True)
class RecordedExchange:
    """A request that was answered, or on which the engine failed.

    Attributes:
        number: counts the exchanges of a daemon, from 0; those that were not recorded leave gaps.
        received_ns, replied_ns: Unix time in nanoseconds.
        connection: counts the connections of a daemon.
        session: the robot's id; None where it gave none.
        request: the frame as it came.
        reply: the reply map as it was sent; empty where the engine failed.
        error: why there is no reply; None where there is one.
        seed: from which the chunk's noise was drawn; None where the request carries its noise.
        noise: float32 `[action_horizon, action_dim]` that belongs to `seed`; None where it is not known.
        continuation: the fields of the `ChunkContinuation` that the policy got; None for a chunk that
            stands alone.
    """

    number: int
    received_ns: int
    replied_ns: int
    connection: int
    session: str | None
    request: bytes
    reply: bytes
    error: str | None = None
    seed: int | None = None
    noise: npt.NDArray[np.float32] | None = None
    continuation: Mapping[str, Any] | None = None


_BULK = ("request", "reply")
_HEADER = tuple(
    field.name for field in dataclasses.fields(RecordedExchange) if field.name not in ("request", "reply")
)


def to_bytes(exchange: RecordedExchange) -> bytes:
    """An exchange as recordings store it: a map in the wire format of requests."""
    names = (*_HEADER, *_BULK)
    return wire.encode({"version": FORMAT_VERSION, **{name: getattr(exchange, name) for name in names}})


def from_bytes(message: bytes) -> RecordedExchange:
    """Undo `to_bytes`, with distrust.

    Raises:
        ValueError: for anything else, or a later version.
    """
    fields = wire.decode(message)
    version = fields.pop("version", None)
    if version != FORMAT_VERSION:
        raise ValueError(f"recorded exchange of version {version!r}; this program reads {FORMAT_VERSION}")
    unknown = fields.keys() ^ {*_HEADER, *_BULK}
    if unknown:
        raise ValueError(f"recorded exchange with missing or unknown fields: {', '.join(sorted(unknown))}")
    if not all(isinstance(fields[name], bytes) for name in _BULK):
        raise ValueError("recorded exchange whose request or reply are no bytes")
    if not all(type(fields[name]) is int for name in ("number", "received_ns", "replied_ns", "connection")):
        raise ValueError("recorded exchange whose number, times or connection are no integers")
    return RecordedExchange(**fields)


def pipe_parts(
    header: Mapping[str, Any], request: bytes | bytearray | memoryview, reply: bytes
) -> list[bytes | bytearray | memoryview]:
    """A frame of the recorder's pipe, in parts so that a request is not copied once more.

    Args:
        header: fields of a `RecordedExchange` but for `request` and `reply`; or a map with the key
            `policy`, which holds the policy's metadata.
    """
    packed = wire.encode(header)
    return [_LENGTHS.pack(len(packed), len(request), len(reply)), packed, request, reply]


def read_pipe(pipe: BinaryIO) -> RecordedExchange | dict[str, Any] | None:
    """The next frame of the pipe: an exchange, a policy's metadata, or None at its end.

    A frame that was cut off, because its writer was killed, counts as the end.
    """
    lengths = pipe.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    sizes = _LENGTHS.unpack(lengths)
    header, request, reply = (pipe.read(size) for size in sizes)
    if [len(header), len(request), len(reply)] != list(sizes):
        return None
    fields = wire.decode(header)
    if "policy" in fields:
        policy: dict[str, Any] = fields["policy"]
        return policy
    return RecordedExchange(request=request, reply=reply, **fields)
