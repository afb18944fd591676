"""A worker tells of its device's memory now and then, and of its start once."""

from __future__ import annotations

from vlad_engines.vitals import MEMORY_PERIOD_S, StartTimes, Vitals
from vlad_engines.worker_protocol import DeviceMemory, Message

MEMORY = DeviceMemory("cuda:0", 3, 8, 2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_memory_is_told_at_first_and_then_once_in_a_period() -> None:
    clock, sent = Clock(), list[Message]()
    vitals = Vitals(lambda: MEMORY, sent.append, clock)
    for _ in range(3):
        vitals.tell_if_due()
    assert sent == [MEMORY]
    clock.now += MEMORY_PERIOD_S
    vitals.tell_if_due()
    assert sent == [MEMORY, MEMORY]


def test_without_a_device_nothing_is_told() -> None:
    sent = list[Message]()
    Vitals(lambda: None, sent.append).tell_if_due()
    assert sent == []


def test_phases_of_a_start_add_up() -> None:
    clock = Clock()
    times = StartTimes(clock)
    clock.now += 2.0
    times.end("load")
    clock.now += 0.5
    times.end("warm_up")
    assert times.phase_s == {"load": 2.0, "warm_up": 0.5}
