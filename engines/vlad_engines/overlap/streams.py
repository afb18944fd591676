"""What the schedule needs of a device: two streams, and events between them."""

from __future__ import annotations

import contextlib
from typing import Protocol, TypeVar

Stream = TypeVar("Stream")
Event = TypeVar("Event")


class DeviceStreams(Protocol[Stream, Event]):
    """Streams of one device. Only `synchronize` waits on the host; events may be used from any thread."""

    @property
    def front(self) -> Stream:
        """Where vision and prefix run."""
        ...

    @property
    def beside(self) -> Stream:
        """Where vision and prefix run while another request is in flight: `front`, or a stream that leaves a
        part of the device to denoising."""
        ...

    @property
    def back(self) -> Stream:
        """Where denoising runs. It goes first where both could run: its request is the older one."""
        ...

    @property
    def denoise_late(self) -> bool:
        """Whether denoising is enqueued once its prefix has ended, by the thread that waits for the device.

        More kernels than the driver's queue takes hold up whoever enqueues them, until most of them have run:
        enqueued together with their prefix, they would keep the next request from being enqueued meanwhile.
        """
        ...

    def active(self) -> contextlib.AbstractContextManager[None]:
        """Lets the calling thread enqueue."""
        ...

    def event(self) -> Event:
        """A new event that keeps its time."""
        ...

    def record(self, event: Event, stream: Stream) -> None:
        """Enqueue: the event happens when all earlier work of the stream is done."""
        ...

    def wait(self, stream: Stream, event: Event) -> None:
        """Enqueue: later work of the stream begins after the event, which must have been recorded."""
        ...

    def synchronize(self, event: Event) -> None:
        """Block this thread until the event has happened."""
        ...

    def seconds(self, begin: Event, end: Event) -> float:
        """Device time between two events that have happened, the earlier one first."""
        ...
