"""Allowances: exact over time, shared by the connections of a client, bounded in number. No clock is read."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies

from vlad_server import rate_limit
from vlad_server.rate_limit import MISTAKES_S, MOST_MISTAKES, Allowance, Allowances, Mistakes


def test_a_second_may_be_saved_up_and_no_more() -> None:
    allowance = Allowance(rate=10.0, now=0.0)
    assert sum(allowance.take(0.0) for _ in range(30)) == 10
    assert not allowance.take(0.09)
    assert allowance.take(0.1)
    assert sum(allowance.take(100.0) for _ in range(30)) == 10


def test_less_than_one_a_second_is_possible() -> None:
    allowance = Allowance(rate=0.5, now=0.0)
    assert [allowance.take(now) for now in (0.0, 1.0, 2.0, 3.0)] == [True, False, True, False]


@hypothesis.given(
    strategies.floats(0.1, 1000.0), strategies.lists(strategies.floats(-5.0, 5.0), min_size=1, max_size=200)
)
def test_never_more_than_the_rate_whatever_the_clock_does(rate: float, steps: list[float]) -> None:
    allowance, now, latest, taken = Allowance(rate, 0.0), 0.0, 0.0, 0
    for step in steps:
        now += step
        latest = max(latest, now)
        taken += allowance.take(now)
    assert taken <= max(1.0, rate) + rate * latest + 1e-6


def test_connections_of_a_client_share_one_and_clients_do_not() -> None:
    allowances = Allowances(2.0)
    first, second, other = (allowances.of(name, 0.0) for name in ("arm", "arm", "leg"))
    assert first is second
    assert first is not None
    assert other is not None
    assert [first.take(0.0), first.take(0.0), first.take(0.0), other.take(0.0)] == [True, True, False, True]
    assert Allowances(None).of("arm", 0.0) is None


def test_clients_that_were_silent_longest_are_forgotten() -> None:
    allowances = Allowances(1.0)
    kept = allowances.of("arm", 0.0)
    for number in range(rate_limit.MAX_CLIENTS - 1):
        allowances.of(str(number), 0.0)
    assert allowances.of("arm", 1.0) is kept
    allowances.of("one more", 1.0)
    assert len(allowances) == rate_limit.MAX_CLIENTS
    assert allowances.of("arm", 1.0) is kept


def test_mistakes_are_too_many_only_where_they_come_close_together() -> None:
    quick, slow = Mistakes(), Mistakes()
    gap = MISTAKES_S / MOST_MISTAKES
    assert [quick.note(index * gap) for index in range(MOST_MISTAKES)] == [False] * (MOST_MISTAKES - 1) + [
        True
    ]
    assert not any(slow.note(index * 1.2 * gap) for index in range(3 * MOST_MISTAKES))
