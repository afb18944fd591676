"""Engines with more kernels than a queue takes are found out, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.scripted_device import TimedLane, TimedStreams
from vlad_engines.backends.tensorrt_pipelined import launching


class TriedLane(TimedLane):
    """Stages of fixed duration, whatever the batch."""

    calls = 7

    def prepare(self, batch: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("queue_s", "found"),
    [
        (None, False),  # everything fits
        (5.0, False),  # one denoising fits
        (4.0, True),
        (0.5, True),
    ],
)
def test_a_queue_too_short_for_a_denoising_holds_up(
    queue_s: float | None, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, lane = TimedStreams(queue_s), TriedLane()
    monkeypatch.setattr(launching.time, "perf_counter", lambda: streams.now)
    order: Any = streams
    subject: Any = lane
    batch: Any = (1.0, 3.0, 5.0)
    assert launching.holds_up(order, subject, batch) is found
    assert lane.calls == 7
