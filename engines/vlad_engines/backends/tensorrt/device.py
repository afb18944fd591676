"""What the engines need of a GPU. `cuda_device` has it; addresses are plain integers, streams explicit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

HostArray = npt.NDArray[Any]


class Memory(Protocol):
    """Device memory that is given back when this object goes."""

    @property
    def address(self) -> int:
        """Aligned to 256 bytes."""
        ...


class Event(Protocol):
    """A point in a stream."""

    def record(self, stream: Stream) -> None:
        """Stand behind all work enqueued in `stream` so far."""
        ...

    def synchronize(self) -> None:
        """Wait on the host until the point is reached."""
        ...

    def seconds_since(self, earlier: Event) -> float:
        """Device time from `earlier` to here; both were reached."""
        ...


class Stream(Protocol):
    """Work in order."""

    @property
    def handle(self) -> int:
        """For TensorRT."""
        ...

    def wait_for(self, event: Event) -> None:
        """Later work of this stream starts after `event`; returns at once."""
        ...


class Graph(Protocol):
    """Recorded work."""

    def launch(self, stream: Stream) -> None:
        """Enqueue all of it."""
        ...


class Device(Protocol):
    """One GPU and its primary context."""

    @property
    def name(self) -> str: ...

    @property
    def compute_capability(self) -> str:
        """Such as `9.0`."""
        ...

    @property
    def multiprocessors(self) -> int:
        """How many there are; 0 where they are not to be parted."""
        ...

    @property
    def total_bytes(self) -> int:
        """Memory of the device, used or not."""
        ...

    def active(self) -> AbstractContextManager[None]:
        """Make the context current in this thread; everything below happens within."""
        ...

    def free_bytes(self) -> int: ...

    def allocate(self, size_bytes: int) -> Memory:
        """Device memory.

        Raises:
            EngineError: where there is not enough.
        """
        ...

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostArray:
        """Page-locked host memory, zeroed."""
        ...

    def create_stream(self, *, urgent: bool = False, spared: int = 0) -> Stream:
        """A stream.

        Args:
            urgent: its work goes first where both could run.
            spared: so many multiprocessors are left to other streams.

        Raises:
            EngineError: where the device cannot be partitioned so.
        """
        ...

    def create_event(self) -> Event: ...

    def upload(self, address: int, array: HostArray, stream: Stream) -> None:
        """Enqueue a copy from contiguous host memory that stays as it is until the copy is done."""
        ...

    def download(self, array: HostArray, address: int, stream: Stream) -> None:
        """Enqueue a copy to contiguous host memory."""
        ...

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record what `work` enqueues into `stream` instead of running it.

        Raises:
            EngineError: where it cannot be recorded.
        """
        ...
