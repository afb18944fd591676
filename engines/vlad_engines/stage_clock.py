"""Measures stages where they run: by events on a GPU, by the host's clock on a CPU."""

from __future__ import annotations

import time
from typing import Protocol

import torch


class StageClock(Protocol):
    """Times the consecutive stages of one request after another."""

    def start(self) -> None:
        """The first stage begins."""
        ...

    def mark(self, stage: str) -> None:
        """`stage` ends here and the next one begins."""
        ...

    def wait(self) -> dict[str, float]:
        """Wait for all work enqueued so far; returns the seconds of each marked stage."""
        ...


def make_stage_clock(device: torch.device) -> StageClock:
    """The clock for work on `device`."""
    return _CudaClock(device) if device.type == "cuda" else _HostClock()


class _HostClock:
    """For devices whose calls return when the work is done."""

    def __init__(self) -> None:
        self._last = 0.0
        self._seconds: dict[str, float] = {}

    def start(self) -> None:
        self._seconds = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] = now - self._last
        self._last = now

    def wait(self) -> dict[str, float]:
        return self._seconds


class _CudaClock:
    """Records events between the stages, so that measuring adds no synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = _timed_event()
        self._ends: dict[str, torch.cuda.Event] = {}
        self._finished = _timed_event()

    def start(self) -> None:
        self._start.record(torch.cuda.current_stream(self._device))

    def mark(self, stage: str) -> None:
        end = self._ends.get(stage)
        if end is None:
            end = self._ends[stage] = _timed_event()
        end.record(torch.cuda.current_stream(self._device))

    def wait(self) -> dict[str, float]:
        self._finished.record(torch.cuda.current_stream(self._device))
        self._finished.synchronize()
        seconds, begin = {}, self._start
        for stage, end in self._ends.items():
            seconds[stage] = begin.elapsed_time(end) / 1e3
            begin = end
        return seconds


def _timed_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
