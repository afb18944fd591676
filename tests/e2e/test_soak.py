"""Clients misbehave, workers die, no reply is lost, doubled or mixed up: `benchmarks/soak.py` in short."""

from __future__ import annotations

import pytest

from benchmarks.soak import growth, soak


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
