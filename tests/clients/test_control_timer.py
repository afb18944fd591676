from __future__ import annotations

import pytest

from vlad_client.control_timer import ControlTimer


def test_late_wake_ups_do_not_add_up() -> None:
    timer = ControlTimer(0.0)
    for step in range(100):
        now = step * 0.1 + 0.03
        assert timer.wait_s(now) == 0
        timer.advance(now, 0.1)
    assert timer.wait_s(9.93) == pytest.approx(0.07)
    assert timer.overruns == 0


def test_missed_steps_are_not_made_up_for() -> None:
    timer = ControlTimer(0.0)
    timer.advance(0.0, 0.1)
    timer.advance(0.55, 0.1)
    assert timer.overruns == 1
    assert timer.wait_s(0.55) == pytest.approx(0.1)


def test_the_period_may_change_from_step_to_step() -> None:
    timer = ControlTimer(0.0)
    timer.advance(0.0, 0.1)
    timer.advance(0.1, 0.3)
    assert timer.wait_s(0.1) == pytest.approx(0.3)
