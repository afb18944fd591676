"""What server and engine worker say to each other; the only thing both of them import.

Messages are small and travel over one `SOCK_SEQPACKET` pair, a message a packet. Arrays never do:
they lie in a slot of a shared `memfd`, and messages carry their place. The worker is trusted,
clients are not: whatever reaches a slot has been checked by the server.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

MAX_PACKET_BYTES = 160 * 1024
"""Below the default socket buffer of Linux, which bounds a SEQPACKET packet."""

REPLY_BYTES = 1 << 20
"""Room for one action chunk in a slot; also set aside for alignment."""

_ALIGNMENT = 64
_ARRAY_CODE = 1


@dataclasses.dataclass(frozen=True)
class Configure:
    """Server to worker, first and once: the arguments of the policy."""

    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Infer:
    """Server to worker: compute the observation that lies in `slot`. `observation` is its packed outline."""

    request_id: int
    slot: int
    observation: bytes


@dataclasses.dataclass(frozen=True)
class Progress:
    """Worker to server while it starts: what it does now, and how far it is (0..1)."""

    stage: str
    fraction: float


@dataclasses.dataclass(frozen=True)
class Ready:
    """Worker to server: requests may come. `metadata` goes to clients."""

    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StartFailed:
    """Worker to server: it cannot start with these options; trying again is useless."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Worker to server: float64 actions of `shape` lie in the reply part of the request's slot.

    `started` is the time.perf_counter() at which computing began (one clock for all processes of a
    Linux host), `seconds` how long it took, `timing` the policy's own figures in milliseconds.
    """

    request_id: int
    shape: list[int]
    started: float
    seconds: float
    timing: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Refused:
    """Worker to server: the observation does not fit; the fields of an `ObservationError`."""

    request_id: int
    key: str
    expected: str
    received: str


@dataclasses.dataclass(frozen=True)
class Failed:
    """Worker to server: the engine failed on this request; our mistake. `detail` is for the log."""

    request_id: int
    reason: str
    detail: str


Message = Configure | Infer | Progress | Ready | StartFailed | Chunk | Refused | Failed

_KINDS: tuple[type[Any], ...] = (Configure, Infer, Progress, Ready, StartFailed, Chunk, Refused, Failed)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}
_FIELDS = {kind: tuple(field.name for field in dataclasses.fields(kind)) for kind in _KINDS}


def pack_message(message: Message) -> bytes:
    """Encode one message.

    Raises:
        ValueError: for a message that does not fit into one packet.
    """
    kind = type(message)
    packet: bytes = msgpack.packb([_CODES[kind], *(getattr(message, name) for name in _FIELDS[kind])])
    if len(packet) > MAX_PACKET_BYTES:
        raise ValueError(f"{kind.__name__} message of {len(packet)} bytes exceeds {MAX_PACKET_BYTES}")
    return packet


def unpack_message(packet: bytes) -> Message:
    """Decode what `pack_message` made."""
    code, *values = msgpack.unpackb(packet)
    message: Message = _KINDS[code](*values)
    return message


class SharedSlots:
    """Slots of shared memory; each holds one request's arrays, its reply, and whether it was begun.

    The server creates them and hands the file descriptor to its worker. A `memfd` has no name, so
    nothing is left behind however either process ends. Pages cost memory only once touched.
    """

    def __init__(self, fd: int, count: int, request_bytes: int) -> None:
        self.fd = fd
        self.count = count
        self._request_bytes = _align(request_bytes) + REPLY_BYTES
        self._stride = self._request_bytes + REPLY_BYTES + _ALIGNMENT
        if os.fstat(fd).st_size < self.total_bytes:
            os.ftruncate(fd, self.total_bytes)
        self._memory = mmap.mmap(fd, self.total_bytes)

    @classmethod
    def create(cls, count: int, request_bytes: int) -> SharedSlots:
        """Make `count` slots that each take requests of at most `request_bytes` bytes of arrays."""
        return cls(os.memfd_create("vlad-slots", os.MFD_CLOEXEC), count, request_bytes)

    @property
    def total_bytes(self) -> int:
        """Size of the whole mapping."""
        return self.count * self._stride

    def store_observation(self, slot: int, observation: Mapping[str, Any]) -> bytes:
        """Copy an observation's arrays into a slot and return its outline for `Infer`.

        The slot counts as not begun from here on.

        Raises:
            ValueError: where the arrays do not fit.
        """
        start = slot * self._stride
        end = start + self._request_bytes
        position = start

        def place(array: Any) -> msgpack.ExtType:
            nonlocal position
            if isinstance(array, np.generic):
                array = np.asarray(array)
            if not isinstance(array, np.ndarray):
                raise TypeError(f"cannot hand over {type(array).__name__}")
            if position + array.nbytes > end:
                raise ValueError(f"observation of more than {self._request_bytes} bytes")
            target = np.ndarray(array.shape, array.dtype, self._memory, position)
            np.copyto(target, array)
            outline = msgpack.packb([position, array.dtype.str, array.shape])
            position = _align(position + array.nbytes)
            return msgpack.ExtType(_ARRAY_CODE, outline)

        outline: bytes = msgpack.packb(observation, default=place)
        self._memory[self._begun(slot)] = 0
        return outline

    def begin(self, slot: int) -> None:
        """Note that the worker computes this slot's request now."""
        self._memory[self._begun(slot)] = 1

    def has_begun(self, slot: int) -> bool:
        """True where a worker got as far as computing this slot's request."""
        return self._memory[self._begun(slot)] == 1

    def load_observation(self, outline: bytes) -> dict[str, Any]:
        """Rebuild an observation; its arrays are read-only views of the slot."""

        def view(code: int, data: bytes) -> npt.NDArray[Any]:
            assert code == _ARRAY_CODE
            position, dtype, shape = msgpack.unpackb(data)
            array: npt.NDArray[Any] = np.ndarray(shape, np.dtype(dtype), self._memory, position)
            array.flags.writeable = False
            return array

        observation: dict[str, Any] = msgpack.unpackb(outline, ext_hook=view)
        return observation

    def store_chunk(self, slot: int, actions: npt.NDArray[np.float64]) -> list[int]:
        """Copy float64 actions into the reply part of a slot and return their shape.

        Raises:
            ValueError: for a chunk larger than `REPLY_BYTES`.
        """
        if actions.nbytes > REPLY_BYTES:
            raise ValueError(f"action chunk of {actions.nbytes} bytes exceeds {REPLY_BYTES}")
        np.copyto(self._reply(slot, actions.shape), actions)
        return list(actions.shape)

    def load_chunk(self, slot: int, shape: list[int]) -> npt.NDArray[np.float64]:
        """A copy of the actions in a slot, so that the slot is free for the next request."""
        return self._reply(slot, tuple(shape)).copy()

    def _begun(self, slot: int) -> int:
        return (slot + 1) * self._stride - 1

    def _reply(self, slot: int, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        return np.ndarray(shape, np.float64, self._memory, slot * self._stride + self._request_bytes)


def _align(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT
