"""What a worker tells of itself beside its answers: how its start went, and its device's memory."""

from __future__ import annotations

import time
from collections.abc import Callable

from vlad_engines.worker_protocol import DeviceMemory, Message

MEMORY_PERIOD_S = 5.0


class StartTimes:
    """Seconds of the phases of a start, one after the other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.phase_s: dict[str, float] = {}
        self._clock = clock
        self._began = clock()

    def end(self, phase: str) -> None:
        """`phase` ends here and the next one begins."""
        now = self._clock()
        self.phase_s[phase] = now - self._began
        self._began = now


class Vitals:
    """Tells the server of the device's memory now and then.

    Asked by the thread that answers requests, between them: asking a GPU from another thread could spoil
    the recording of a CUDA graph.

    Args:
        device_memory: None where there is nothing to tell.
    """

    def __init__(
        self,
        device_memory: Callable[[], DeviceMemory | None],
        send: Callable[[Message], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device_memory = device_memory
        self._send = send
        self._clock = clock
        self._due = clock()

    def tell_if_due(self) -> None:
        """Send the figures, unless they were sent less than `MEMORY_PERIOD_S` ago."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + MEMORY_PERIOD_S
        memory = self._device_memory()
        if memory is not None:
            self._send(memory)
