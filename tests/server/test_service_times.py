"""What is expected of the engine, from what was measured."""

from __future__ import annotations

from vlad_server.service_times import STALE_AFTER_S, WINDOW, ServiceTimes

SIZES = (1, 2, 4)


def _times(now: float, **seconds: float) -> ServiceTimes:
    times = ServiceTimes()
    for name, value in seconds.items():
        times.note(int(name.removeprefix("size_")), value, now)
    return times


def test_nothing_is_expected_of_what_was_never_measured() -> None:
    assert ServiceTimes().expected(1) is None


def test_a_spike_does_not_change_what_is_expected() -> None:
    times = ServiceTimes()
    for _ in range(5):
        times.note(1, 0.010, 0.0)
    times.note(1, 5.0, 0.0)
    assert times.expected(1) == 0.010


def test_old_measurements_are_forgotten() -> None:
    times = ServiceTimes()
    for seconds in (1.0, 0.010):
        for _ in range(WINDOW):
            times.note(1, seconds, 0.0)
    assert times.expected(1) == 0.010


def test_the_size_that_serves_most_per_second_is_best() -> None:
    nearly_free = _times(0.0, size_1=0.010, size_2=0.012, size_4=0.016)
    assert nearly_free.best_size(4, SIZES, 1.0) == 4
    assert nearly_free.best_size(3, SIZES, 1.0) == 2
    useless = _times(0.0, size_1=0.010, size_2=0.020, size_4=0.040)
    assert useless.best_size(4, SIZES, 1.0) == 1
    only_two = _times(0.0, size_1=0.010, size_2=0.015, size_4=0.050)
    assert only_two.best_size(4, SIZES, 1.0) == 2


def test_a_size_is_tried_once_and_again_after_a_while() -> None:
    times = _times(0.0, size_1=0.010, size_2=0.012)
    assert times.best_size(4, SIZES, 1.0) == 4
    times.note(4, 9.0, 1.0)
    times.note(1, 0.010, 1.0)
    times.note(2, 0.012, 1.0)
    assert times.best_size(4, SIZES, 2.0) == 2
    times.note(1, 0.010, STALE_AFTER_S)
    times.note(2, 0.012, STALE_AFTER_S)
    assert times.best_size(4, SIZES, 1.0 + STALE_AFTER_S) == 4


def test_what_ran_beside_others_counts_only_where_it_was_last() -> None:
    times = ServiceTimes()
    # Side by side, a request takes 18 ms and one is ready every 9; four together take 30, ready every 25.
    times.note(1, 0.018, 0.0, occupied=0.009)
    times.note(4, 0.030, 0.0, occupied=0.025)
    assert times.best_size(4, (1, 4), 1.0) == 4
    times.note(4, 0.050, 0.0, occupied=0.045)
    assert times.best_size(4, (1, 4), 1.0) == 1
    assert times.expected(1) == 0.018
