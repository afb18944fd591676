"""Intervals and paired tests against published and hand-computed values."""

from __future__ import annotations

import pytest

from vlad_libero.evaluation.statistics import discordant, mcnemar_exact, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_published_one(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_is_symmetric_and_holds_the_share() -> None:
    for successes in range(51):
        low, high = wilson_interval(successes, 50)
        mirrored = wilson_interval(50 - successes, 50)
        assert (1 - high, 1 - low) == pytest.approx(mirrored)
        assert 0 <= low <= successes / 50 <= high <= 1


def test_no_trials_say_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_more_successes_than_trials_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.3, not 4"):
        wilson_interval(4, 3)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (1, 9, 2 * (1 + 10) / 2**10),
        (9, 1, 2 * (1 + 10) / 2**10),
        (2, 10, 2 * (1 + 12 + 66) / 2**12),
        (0, 5, 0.0625),
        (6, 6, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_counts_coin_tosses(only_first: int, only_second: int, p_value: float) -> None:
    assert mcnemar_exact(only_first, only_second) == pytest.approx(p_value)


def test_only_trials_that_differ_count() -> None:
    assert discordant([True, True, False, False], [True, False, True, False]) == (1, 1)
    with pytest.raises(ValueError, match="same length"):
        discordant([True], [])
