"""Streams and events of a CUDA device, through torch."""

from __future__ import annotations

import contextlib

import torch

_HIGH_PRIORITY, _NORMAL_PRIORITY = -1, 0


class CudaStreams:
    """See `streams.DeviceStreams`."""

    def __init__(self, device: torch.device) -> None:
        self.front = torch.cuda.Stream(device, _NORMAL_PRIORITY)  # type: ignore[no-untyped-call]
        self.back = torch.cuda.Stream(device, _HIGH_PRIORITY)  # type: ignore[no-untyped-call]

    @property
    def beside(self) -> torch.cuda.Stream:
        """See `streams.DeviceStreams.beside`: the same stream, because nothing is kept free."""
        return self.front

    @property
    def denoise_late(self) -> bool:
        """See `streams.DeviceStreams.denoise_late`: the few launches of `triton` fit into any queue."""
        return False

    def active(self) -> contextlib.AbstractContextManager[None]:
        """See `streams.DeviceStreams.active`: torch does so by itself."""
        return contextlib.nullcontext()

    def event(self) -> torch.cuda.Event:
        """See `streams.DeviceStreams.event`."""
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def record(self, event: torch.cuda.Event, stream: torch.cuda.Stream) -> None:
        """See `streams.DeviceStreams.record`."""
        event.record(stream)

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        """See `streams.DeviceStreams.wait`."""
        stream.wait_event(event)

    def synchronize(self, event: torch.cuda.Event) -> None:
        """See `streams.DeviceStreams.synchronize`."""
        event.synchronize()

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """See `streams.DeviceStreams.seconds`."""
        return float(begin.elapsed_time(end)) / 1e3
