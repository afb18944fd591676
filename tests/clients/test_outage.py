from __future__ import annotations

import itertools
import logging

import pytest

from vlad_client import PolicyConnectionError, PolicyTimeoutError
from vlad_client.outage import Outage

REFUSED = PolicyConnectionError("connection refused", retryable=True)


def _outage(limit_s: float | None = 10.0) -> Outage:
    return Outage(limit_s, 100.0, itertools.count(0.5, 0.5))


def test_the_first_attempt_is_made_at_once_and_the_others_after_a_pause() -> None:
    outage = _outage()
    assert outage.wait_s(100.0) == 0
    outage.failed(REFUSED, 101.0)
    assert outage.wait_s(101.0) == 0.5
    outage.failed(REFUSED, 102.0)
    assert outage.wait_s(102.4) == pytest.approx(0.6)
    assert outage.wait_s(200.0) == 0


def test_it_ends_with_its_limit() -> None:
    outage = _outage(limit_s=10.0)
    outage.failed(REFUSED, 109.9)
    with pytest.raises(PolicyTimeoutError, match="no policy server within 10 s: connection refused"):
        outage.failed(REFUSED, 110.0)


def test_without_a_limit_it_goes_on() -> None:
    _outage(limit_s=None).failed(REFUSED, 1e9)


def test_what_will_not_get_better_is_raised_at_once() -> None:
    hopeless = PolicyConnectionError("wrong key", retryable=False)
    with pytest.raises(PolicyConnectionError, match="wrong key"):
        _outage().failed(hopeless, 100.0)


def test_the_log_is_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    outage = _outage(limit_s=None)
    with caplog.at_level(logging.WARNING, logger="vlad_client"):
        for tenth in range(120):
            outage.waited("not ready", 100.0 + tenth / 10)
    assert caplog.messages == ["still waiting for the server: not ready"] * 2
