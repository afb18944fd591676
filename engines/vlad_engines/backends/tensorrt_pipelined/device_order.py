"""The streams of the overlapped schedule over a TensorRT `Device`, and how the GPU is shared between them."""

from __future__ import annotations

import contextlib

from vlad_engines.backends.tensorrt.device import Device, Event, Stream


class DeviceOrder:
    """See `overlap.streams.DeviceStreams`.

    Denoising is a chain of thousands of small kernels, each of which would wait for room among the large ones
    of another request's prefix. Its stream is urgent, so that it gets the next free place; and `spare` keeps
    multiprocessors free for it, as long as another request's vision and prefix run.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.front, self.back = device.create_stream(), device.create_stream(urgent=True)
        self.beside = self.front
        self.spared = 0
        self.denoise_late = False
        """See `overlap.streams.DeviceStreams.denoise_late`; found out by `launching.holds_up`."""

    def spare(self, multiprocessors: int) -> None:
        """Keep so many multiprocessors free for denoising from now on; 0 for none. Nothing may be in flight.

        Raises:
            EngineError: where the device cannot be partitioned so; everything stays as it is.
        """
        beside = self._device.create_stream(spared=multiprocessors) if multiprocessors else self.front
        self.use(beside, multiprocessors)

    def use(self, beside: Stream, spared: int) -> None:
        """Go back to a stream of an earlier `spare`. Nothing may be in flight."""
        self.beside, self.spared = beside, spared

    def active(self) -> contextlib.AbstractContextManager[None]:
        """See `overlap.streams.DeviceStreams.active`."""
        return self._device.active()

    def event(self) -> Event:
        """See `overlap.streams.DeviceStreams.event`."""
        return self._device.create_event()

    def record(self, event: Event, stream: Stream) -> None:
        """See `overlap.streams.DeviceStreams.record`."""
        event.record(stream)

    def wait(self, stream: Stream, event: Event) -> None:
        """See `overlap.streams.DeviceStreams.wait`."""
        stream.wait_for(event)

    def synchronize(self, event: Event) -> None:
        """See `overlap.streams.DeviceStreams.synchronize`."""
        with self._device.active():
            event.synchronize()

    def seconds(self, begin: Event, end: Event) -> float:
        """See `overlap.streams.DeviceStreams.seconds`."""
        with self._device.active():
            return end.seconds_since(begin)
