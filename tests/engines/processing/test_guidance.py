"""Weights and gains against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlad_configs.rtc import GUIDANCE_SCHEDULES, GuidanceSchedule
from vlad_engines.processing.guidance import Guidance, guidance_factor, guidance_gains, prefix_weights


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0]),
        ("exp", [1, 1, 0.5706, 0.2871, 0.1145, 0.0258, 0, 0, 0, 0]),
        ("ones", [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]),
        ("zeros", [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_weights_between_delay_2_and_prefix_end_6(schedule: GuidanceSchedule, expected: list[float]) -> None:
    np.testing.assert_allclose(prefix_weights(schedule, 2, 6, 10), expected, atol=5e-5)


@given(st.sampled_from(GUIDANCE_SCHEDULES), st.integers(0, 70), st.integers(0, 60), st.integers(1, 60))
def test_weights_hold_what_is_due_and_never_rise(
    schedule: GuidanceSchedule, delay: int, end: int, horizon: int
) -> None:
    weights = prefix_weights(schedule, delay, end, horizon)
    start = min(delay, end)
    assert weights.shape == (horizon,)
    assert (weights[:start] == 1).all()
    assert (weights[end:] == 0).all()
    assert (np.diff(weights) <= 0).all()
    if schedule in ("linear", "exp"):
        assert (weights[:end] > 0).all()
        assert (weights[start:end] < 1).all()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (5, [math.inf, 4.25, 2.167, 2.167, 4.25]),
        (10, [math.inf, 9.111, 4.25, 2.762, 2.167, 2.0, 2.167, 2.762, 4.25, 9.111]),
    ],
)
def test_factors_at_the_times_of_the_steps(steps: int, expected: list[float]) -> None:
    times = [1 - step / steps for step in range(steps)]
    assert [guidance_factor(time) for time in times] == pytest.approx(expected, abs=5e-4)
    gains = guidance_gains(times, 3.0)
    assert gains.dtype == np.float32
    np.testing.assert_allclose(gains, np.minimum(expected, 3.0) / steps, atol=2e-4)


@given(st.floats(0.001, 0.999))
def test_the_factor_is_the_papers_in_the_papers_time(time: float) -> None:
    tau = 1 - time
    r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    assert guidance_factor(time) == pytest.approx((1 - tau) / (tau * r2), rel=1e-9)


@given(st.integers(1, 50))
def test_a_clip_at_the_number_of_steps_never_overshoots(steps: int) -> None:
    gains = guidance_gains([1 - step / steps for step in range(steps)], float(steps))
    assert gains[0] == 1.0
    assert (gains <= 1.0).all()


ROWS = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
    "change",
    [
        {"target": np.zeros((4, 2), np.float32)},
        {"gains": np.zeros((1, 2), np.float32)},
        {"weights": np.zeros((4, 3))},
        {"frozen": 1},
        {"mode": "trained"},
        {"mode": "trained", "frozen": 5},
    ],
)
def test_guidance_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    values: dict[str, Any] = {
        "mode": "guided_identity",
        "weights": ROWS,
        "target": ROWS,
        "gains": np.zeros(2, np.float32),
    }
    Guidance(**values)
    with pytest.raises(ValueError, match=r"weights|frozen|float32"):
        Guidance(**{**values, **change})
