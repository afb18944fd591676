from __future__ import annotations

import itertools
import logging

import pytest

from vlad_client.errors import PolicyConnectionError, PolicyTimeoutError
from vlad_client.retry import LONGEST_DELAY_S, Retries, backoff_delays

REFUSED = PolicyConnectionError("connection refused", retryable=True)


class VirtualTime:
    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def _retries(time: VirtualTime, limit_s: float | None = None, max_retries: int | None = None) -> Retries:
    return Retries(limit_s=limit_s, max_retries=max_retries, wait=time.wait, clock=time.clock)


def test_pauses_double_up_to_a_limit() -> None:
    longest = list(itertools.islice(backoff_delays(lambda low, high: high), 8))
    assert longest == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LONGEST_DELAY_S, LONGEST_DELAY_S]


def test_chance_shortens_a_pause_to_no_less_than_half() -> None:
    for doubling, delay in enumerate(itertools.islice(backoff_delays(), 6)):
        assert 0.05 * 2**doubling <= delay <= 0.1 * 2**doubling
    assert next(backoff_delays()) != next(backoff_delays())


def test_as_many_pauses_as_retries_are_allowed_then_the_failure_is_told() -> None:
    time = VirtualTime()
    retries = _retries(time, max_retries=3)
    for _ in range(3):
        retries.pause_after(REFUSED)
    with pytest.raises(PolicyConnectionError, match="gave up after 4 attempts: connection refused"):
        retries.pause_after(REFUSED)
    assert len(time.waits) == 3


def test_no_pause_goes_past_the_limit() -> None:
    time = VirtualTime()
    retries = _retries(time, limit_s=20.0)
    with pytest.raises(PolicyTimeoutError, match="no policy server within 20 s: connection refused"):  # noqa: PT012
        while True:
            retries.pause_after(REFUSED)
    assert 20 - LONGEST_DELAY_S <= sum(time.waits) < 20


def test_a_hopeless_failure_is_raised_at_once() -> None:
    time = VirtualTime()
    unknown = PolicyConnectionError("unknown host", retryable=False)
    with pytest.raises(PolicyConnectionError, match="unknown host"):
        _retries(time).pause_after(unknown)
    assert time.waits == []


def test_remaining_time_runs_down_to_zero_and_may_be_capped() -> None:
    time = VirtualTime()
    retries = _retries(time, limit_s=4.0)
    time.now += 1.5
    assert retries.remaining_s() == 2.5
    assert retries.remaining_s(at_most=1.0) == 1.0
    time.now += 10
    assert retries.remaining_s() == 0
    assert _retries(time).remaining_s() is None
    assert _retries(time).remaining_s(at_most=5.0) == 5.0


def test_waiting_is_reported_at_once_and_then_every_few_seconds(caplog: pytest.LogCaptureFixture) -> None:
    time = VirtualTime()
    retries = _retries(time)
    with caplog.at_level(logging.WARNING, logger="vlad_client"):
        retries.pause_after(REFUSED)
        assert caplog.messages == ["still waiting for the server: connection refused"]
        while time.now < 160:
            retries.pause_after(REFUSED)
    assert 8 <= len(caplog.messages) <= 13
