from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vlad_client import RealTimeConfig, RtcOptions, real_time_config
from vlad_configs import rtc


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"control_hz": 0}, "control_hz must be positive"),
        ({"control_hz": float("inf")}, "control_hz must be positive and finite"),
        ({"execute_steps": 0}, "execute_steps must be an integer of at least 1"),
        ({"execute_steps": 2.5}, "execute_steps must be an integer"),
        ({"margin_steps": -1}, "margin_steps must be an integer of at least 0"),
        ({"observation_hz": 60.0}, "observation_hz must not exceed control_hz, 50, not 60"),
        ({"observation_hz": 30.0, "execute_steps": 5}, "execute_steps has no effect beside observation_hz"),
        ({"late": "stop"}, "late must be one of hold_last, hold_zero, slow_down, not 'stop'"),
        ({"zero_columns": (0,)}, "zero_columns belongs to late='hold_zero', not to late='hold_last'"),
        ({"late": "hold_zero", "zero_columns": (-1,)}, "zero_columns must be an integer of at least 0"),
        ({"slowest": 0.5}, "slowest belongs to late='slow_down'"),
        ({"late": "slow_down", "slowest": 1.0}, r"slowest must be in \(0, 1\)"),
        ({"blend_steps": True}, "blend_steps must be an integer"),
        ({"latency_window": 0}, "latency_window must be an integer of at least 1"),
        ({"latency_percentile": 0}, "latency_percentile must be in"),
        ({"request_timeout_s": -1}, "request_timeout_s must be positive"),
    ],
)
def test_contradictions_are_refused_with_their_name(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RealTimeConfig(**{"control_hz": 50.0, **options})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"mode": "guided"}, "mode must be one of auto, guided_identity, guided_vjp, trained, not 'guided'"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"schedule": "cosine"}, "schedule must be one of exp, linear, ones, zeros"),
        ({"prefix_end": -1}, "prefix_end must be an integer of at least 0"),
    ],
)
def test_impossible_guidance_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RtcOptions(**options)


def test_the_rate_is_lowered_only_where_it_was_asked_for() -> None:
    assert RealTimeConfig(control_hz=50.0).slowest_fraction == 1
    assert RealTimeConfig(control_hz=50.0, late="slow_down").slowest_fraction == 0.5
    assert RealTimeConfig(control_hz=50.0, late="slow_down", slowest=0.25).slowest_fraction == 0.25


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RealTimeConfig(control_hz=50.0).control_hz = 20.0  # type: ignore[misc]


def test_the_words_are_those_of_the_engine() -> None:
    assert set(real_time_config.SCHEDULES) == set(rtc.GUIDANCE_SCHEDULES)
    assert {*real_time_config.RTC_MODES, "off"} == set(rtc.REQUESTED_MODES)
