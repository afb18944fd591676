"""The Euler schedule and the path it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlad_engines.model.flow import euler_path, euler_schedule


@pytest.mark.parametrize("num_steps", range(1, 65))
def test_schedule_has_as_many_steps_as_asked_and_ends_before_zero(num_steps: int) -> None:
    schedule = euler_schedule(num_steps)
    assert len(schedule.times) == num_steps
    assert schedule.times[0] == 1.0
    assert schedule.times[-1] + schedule.step == pytest.approx(0.0, abs=1e-5)
    assert all(np.float32(time) == time for time in (*schedule.times, schedule.step))


@pytest.mark.parametrize("num_steps", [0, -1])
def test_less_than_one_step_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        euler_schedule(num_steps)


def test_a_straight_flow_is_integrated_exactly() -> None:
    noise, actions = torch.randn(1, 3, 2), torch.randn(1, 3, 2)
    path = list(euler_path(lambda step, x: noise - actions, noise, euler_schedule(10)))
    assert len(path) == 10
    torch.testing.assert_close(path[-1], actions)
