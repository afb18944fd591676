from __future__ import annotations

from typing import Any

import pytest

from vlad_client.latency_window import LatencyWindow


def test_nothing_is_known_before_the_first_sample() -> None:
    assert LatencyWindow(50, 95.0).estimate_s() is None


def test_the_estimate_is_the_nearest_rank() -> None:
    window = LatencyWindow(100, 95.0)
    for sample in range(100, 0, -1):
        window.add(float(sample))
    assert window.estimate_s() == 95


def test_a_spike_is_passed_over_and_then_forgotten() -> None:
    window = LatencyWindow(40, 95.0)
    for _ in range(39):
        window.add(0.1)
    window.add(30.0)
    assert window.estimate_s() == 0.1
    window.add(30.0)
    window.add(30.0)
    assert window.estimate_s() == 30.0
    for _ in range(38):
        window.add(0.2)
    assert window.estimate_s() == 0.2


def test_a_cold_sample_only_stands_in() -> None:
    window = LatencyWindow(10, 100.0)
    window.add(20.0, cold=True)
    assert window.estimate_s() == 20.0
    window.add(0.1)
    assert window.estimate_s() == 0.1
    window.add(30.0, cold=True)
    assert window.estimate_s() == 0.1


@pytest.mark.parametrize(("size", "percentile"), [(0, 95.0), (1, 0.0), (1, 100.1), (1, float("nan"))])
def test_impossible_windows_are_refused(size: int, percentile: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        LatencyWindow(size, percentile)
