"""What server and engine worker say to each other; the only thing both of them import.

Messages are small and travel over one `SOCK_SEQPACKET` pair, a message a packet. Arrays never do:
they lie in a slot of a shared `memfd`, and messages carry their place. The worker is trusted,
clients are not: whatever reaches a slot has been checked by the server.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np
import numpy.typing as npt

MAX_PACKET_BYTES = 160 * 1024
"""Below the default socket buffer of Linux, which bounds a SEQPACKET packet."""

REPLY_BYTES = 1 << 20
"""Room for the arrays of one reply in a slot; also set aside for alignment."""

KEPT_BYTES, KEPT_SLOTS = 2 << 20, 128
"""What the first slots may keep of the host's memory after a request; two images of 640x480 are 1.8 MB."""

MAX_OUTLINE_BYTES = MAX_PACKET_BYTES - 1024
"""Of an observation without its arrays."""

CONTINUATION_KEY = "vlad/continuation"
"""Key of a handed-over observation whose value has the fields of a `ChunkContinuation`."""

_ALIGNMENT = 64
_ARRAY_CODE = 1


class Configure(NamedTuple):
    """Server to worker, first and once: the arguments of the policy."""

    options: dict[str, Any]


class Infer(NamedTuple):
    """Server to worker: compute the observation that lies in `slot`.

    Attributes:
        observation: its packed outline.
        more: how many messages with the same batch follow at once; 0 for the last one and for a lone one.
        begin_by: the time.perf_counter() at which the result has become useless; None for never.
        continuable: True where the arrays that a continuation needs are to come back as well.
    """

    request_id: int
    slot: int
    observation: bytes
    more: int = 0
    begin_by: float | None = None
    continuable: bool = False


class Progress(NamedTuple):
    """Worker to server while it starts: what it does now, and how far it is (0..1)."""

    stage: str
    fraction: float


class Ready(NamedTuple):
    """Worker to server: requests may come.

    Attributes:
        metadata: goes to clients.
        batch_sizes: how many requests may share one computation, ascending, 1 among them.
        overlaps: True where one computation may run beside the denoising of the one before.
    """

    metadata: dict[str, Any]
    batch_sizes: list[int]
    overlaps: bool = False


class StartFailed(NamedTuple):
    """Worker to server: it cannot start with these options; trying again is useless."""

    reason: str


class Chunk(NamedTuple):
    """Worker to server: the arrays of a reply lie in the reply part of the request's slot.

    Attributes:
        arrays: packed outline of `actions`, and of `model_actions` and `anchor_state` where asked for.
        started: the time.perf_counter() at which computing began (one clock for all processes of a
            Linux host).
        seconds: how long it took, for the whole batch.
        batch: how many requests were computed together.
        timing: the policy's own figures in milliseconds.
        rtc: how the chunk continues the one before, for the client; None where it does not.
        notes: what the processing noticed about the observation, `ModelInputs.notes`; None for nothing.
    """

    request_id: int
    arrays: bytes
    started: float
    seconds: float
    batch: int
    timing: dict[str, float]
    rtc: dict[str, Any] | None = None
    notes: dict[str, Any] | None = None


class Skipped(NamedTuple):
    """Worker to server: not computed, because it was revoked or its time had passed before it began."""

    request_id: int


class Refused(NamedTuple):
    """Worker to server: the observation does not fit; the fields of an `ObservationError`."""

    request_id: int
    key: str
    expected: str
    received: str


class Failed(NamedTuple):
    """Worker to server: the engine failed on this request; our mistake. `detail` is for the log."""

    request_id: int
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class ComponentEngine:
    """One component's engine file, as `StartReport.engines` tells of it.

    Attributes:
        lookup: what was found: `hit`, `miss`, `stale` or `corrupt` in the cache, or `prebuilt`.
        build_s: how long building took, whenever that was.
        load_s: how long loading took now.
        plan_bytes: size of the file.
    """

    lookup: str
    build_s: float
    load_s: float
    plan_bytes: int


class StartReport(NamedTuple):
    """Worker to server, before `Ready`: how the start went.

    Attributes:
        phase_s: seconds of `load`, `warm_up` and `fidelity`.
        engines: component -> fields of a `ComponentEngine`; empty for backends without engine files.
    """

    phase_s: dict[str, float]
    engines: dict[str, dict[str, Any]]


class DeviceMemory(NamedTuple):
    """Worker to server, every few seconds while it is ready: the memory of its device.

    Attributes:
        device: such as `cuda:0`.
        used_bytes: by whomever.
        reserved_bytes: what the worker's torch keeps of it; 0 without torch.
    """

    device: str
    used_bytes: int
    total_bytes: int
    reserved_bytes: int


Message = (
    Configure
    | Infer
    | Progress
    | Ready
    | StartFailed
    | Chunk
    | Skipped
    | Refused
    | Failed
    | StartReport
    | DeviceMemory
)

_KINDS: tuple[type[Any], ...] = (
    *(Configure, Infer, Progress, Ready, StartFailed),
    *(Chunk, Skipped, Refused, Failed),
    *(StartReport, DeviceMemory),
)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}


class _Packer(threading.local):
    """Used again and again, by each thread its own; packb() makes one with a buffer of its own each time."""

    def __init__(self) -> None:
        self.packer = msgpack.Packer()


_own = _Packer()


def _pack(value: Any) -> bytes:
    packer = _own.packer
    try:
        packed: bytes = packer.pack(value)
    except Exception:
        packer.reset()
        raise
    return packed


def pack_message(message: Message) -> bytes:
    """Encode one message.

    Raises:
        ValueError: for a message that does not fit into one packet.
    """
    kind = type(message)
    packet = _pack((_CODES[kind], *message))
    if len(packet) > MAX_PACKET_BYTES:
        raise ValueError(f"{kind.__name__} message of {len(packet)} bytes exceeds {MAX_PACKET_BYTES}")
    return packet


def unpack_message(packet: bytes) -> Message:
    """Decode what `pack_message` made."""
    code, *values = msgpack.unpackb(packet)
    message: Message = _KINDS[code](*values)
    return message


class SharedSlots:
    """Slots of shared memory; each holds one request's arrays, its reply, and two notes about it.

    The server creates them and hands the file descriptor to its worker. A `memfd` has no name, so
    nothing is left behind however either process ends. Pages cost memory only once touched, and those of
    a large request go back with `release`.

    The notes are a byte each, with one writer: the worker notes that it began, the server that it no longer
    wants the result. They may cross; then the worker's answer tells what came first.
    """

    def __init__(self, fd: int, count: int, request_bytes: int) -> None:
        self.fd = fd
        self.count = count
        self._request_bytes = _align(request_bytes) + REPLY_BYTES
        # Whole pages, so that the pages of one slot can be given back.
        self._stride = _align(self._request_bytes + REPLY_BYTES + _ALIGNMENT, mmap.PAGESIZE)
        if os.fstat(fd).st_size < self.total_bytes:
            os.ftruncate(fd, self.total_bytes)
        self._memory = mmap.mmap(fd, self.total_bytes)
        self._used = [0] * count

    @classmethod
    def create(cls, count: int, request_bytes: int) -> SharedSlots:
        """Make `count` slots that each take requests of at most `request_bytes` bytes of arrays."""
        return cls(os.memfd_create("vlad-slots", os.MFD_CLOEXEC), count, request_bytes)

    def close(self) -> None:
        """Give the memory back, where arrays view it with the last of them; call nothing else afterwards."""
        os.close(self.fd)
        # Not closed: numpy would read what is gone. It is unmapped with the last reference.
        del self._memory

    @property
    def total_bytes(self) -> int:
        """Size of the whole mapping."""
        return self.count * self._stride

    def store_observation(self, slot: int, observation: Mapping[str, Any]) -> bytes:
        """Copy an observation's arrays into a slot and return its outline for `Infer`.

        Raises:
            ValueError: where the arrays do not fit, or where too much of it is not arrays.
            TypeError, OverflowError: for values that cannot be handed over.
        """
        start = slot * self._stride
        outline, end = self._store(observation, start, start + self._request_bytes, "observation")
        if len(outline) > MAX_OUTLINE_BYTES:
            raise ValueError(f"observation with more than {MAX_OUTLINE_BYTES} bytes beside its arrays")
        self._used[slot] = end - start
        return outline

    def load_observation(self, outline: bytes) -> dict[str, Any]:
        """Rebuild an observation; its arrays are read-only views of the slot."""
        return self._load(outline)

    def release(self, slot: int) -> None:
        """Give back what a slot may not keep; its arrays are lost. Called by the server."""
        if self._used[slot] > (KEPT_BYTES if slot < KEPT_SLOTS else 0):
            start = slot * self._stride
            self._memory.madvise(mmap.MADV_REMOVE, start, _align(self._used[slot], mmap.PAGESIZE))
            self._used[slot] = 0

    def offer(self, slot: int) -> None:
        """Note that a worker may compute this slot's request: neither begun nor revoked from here on."""
        self._memory[self._begun(slot)] = 0
        self._memory[self._revoked(slot)] = 0

    def begin(self, slot: int) -> None:
        """Note that the worker computes this slot's request now."""
        self._memory[self._begun(slot)] = 1

    def has_begun(self, slot: int) -> bool:
        """True where a worker got as far as computing this slot's request."""
        return self._memory[self._begun(slot)] == 1

    def revoke(self, slot: int) -> None:
        """Note that nobody wants this slot's request any more."""
        self._memory[self._revoked(slot)] = 1

    def is_revoked(self, slot: int) -> bool:
        """True where the server no longer wants this slot's request."""
        return self._memory[self._revoked(slot)] == 1

    def store_reply(self, slot: int, arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
        """Copy a reply's arrays into a slot and return their outline for `Chunk`.

        Raises:
            ValueError: for arrays that are larger than `REPLY_BYTES` together.
        """
        start = slot * self._stride + self._request_bytes
        return self._store(arrays, start, start + REPLY_BYTES, "reply")[0]

    def load_reply(self, outline: bytes) -> dict[str, npt.NDArray[Any]]:
        """Copies of a reply's arrays, so that the slot is free for the next request."""
        return {name: array.copy() for name, array in self._load(outline).items()}

    def _begun(self, slot: int) -> int:
        return (slot + 1) * self._stride - 1

    def _revoked(self, slot: int) -> int:
        return (slot + 1) * self._stride - 2

    def _store(self, value: Mapping[str, Any], start: int, end: int, what: str) -> tuple[bytes, int]:
        position = start

        def place(array: Any) -> msgpack.ExtType:
            nonlocal position
            if isinstance(array, np.generic):
                array = np.asarray(array)
            if not isinstance(array, np.ndarray):
                raise TypeError(f"cannot hand over {type(array).__name__}")
            if position + array.nbytes > end:
                raise ValueError(f"{what} of more than {end - start} bytes")
            np.ndarray(array.shape, array.dtype, self._memory, position)[...] = array
            outline = _pack([position, array.dtype.str, array.shape])
            position = _align(position + array.nbytes)
            return msgpack.ExtType(_ARRAY_CODE, outline)

        packed: bytes = msgpack.packb(value, default=place)
        return packed, position

    def _load(self, outline: bytes) -> dict[str, Any]:
        def view(code: int, data: bytes) -> npt.NDArray[Any]:
            assert code == _ARRAY_CODE
            position, dtype, shape = msgpack.unpackb(data)
            array: npt.NDArray[Any] = np.ndarray(shape, np.dtype(dtype), self._memory, position)
            array.flags.writeable = False
            return array

        value: dict[str, Any] = msgpack.unpackb(outline, ext_hook=view)
        return value


def _align(position: int, to: int = _ALIGNMENT) -> int:
    return -(-position // to) * to
