"""Clients misbehave, workers die, no reply is lost, doubled or mixed up: `benchmarks/soak.py` in short."""

from __future__ import annotations

import pytest

from benchmarks import steady_soak
from benchmarks.soak import growth, soak
from tests.support.daemon import start_scripted_daemon
from tests.support.robot import connect_robot


@pytest.mark.slow
def test_honest_robots_notice_nothing_of_the_others() -> None:
    result = soak(seconds=20.0, seed=1)
    assert result["failures"] == []
    assert result["open_connections_at_the_end"] == 0
    assert result["in_flight_at_the_end"] == 0
    assert result["descriptors_at_the_end"] < 40
    counts = result["counts"]
    assert counts["lock-step replies"] > 200
    assert counts["stream replies"] > 100
    assert counts["workers killed"] >= 1
    # What is kept for the next request is still touched for the first time; the long form is flat.
    assert growth(result["resident_mb"]) < 0.35


@pytest.mark.slow
def test_robots_at_a_steady_rate_get_one_reply_each() -> None:
    result = steady_soak.run(seconds=6.0, robots=4, hz=30.0)
    assert result["failures"] == []
    assert result["lost"] == 0
    assert sum(robot["sent"] for robot in result["robots"]) > 400
    for robot in result["robots"]:
        assert robot["sent"] == robot["chunks"] + robot["superseded"]
    assert {len(sample) for sample in result["samples"]} == {4}


def test_a_ledger_refuses_a_reply_that_came_twice() -> None:
    with start_scripted_daemon() as daemon, connect_robot(daemon.port) as robot:
        ledger = steady_soak.Ledger("a")
        ledger.send(robot, stream=False)
        ledger.receive(robot)
        ledger.send(robot, stream=False)
        ledger._open = {}
        with pytest.raises(steady_soak.LedgerError, match="ended twice"):
            ledger.receive(robot)


def test_a_leak_shows_in_the_slope_and_a_warm_up_does_not() -> None:
    minutes = [float(minute) for minute in range(60)]
    assert steady_soak.slope(minutes, [50.0 + minute / 60 for minute in minutes]) == pytest.approx(1.0)
    assert steady_soak.slope(minutes, [min(100.0, 50.0 + 10 * minute) for minute in minutes]) == 0.0
