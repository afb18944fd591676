from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.clients.simulated_controller import Fate, SimulatedController
from vlad_client.chunk_schedule import ChunkSchedule, Splice
from vlad_client.real_time_config import RealTimeConfig

HZ = 50.0
HEALTHY = Fate("reply", 0.05, 10)

fates = st.builds(
    Fate,
    outcome=st.sampled_from(["reply", "reply", "reply", "silence", "refusal", "garbage", "superseded"]),
    latency_s=st.floats(0.0, 0.8),
    horizon=st.integers(1, 20),
)
configs = st.one_of(
    st.builds(
        RealTimeConfig,
        control_hz=st.just(HZ),
        execute_steps=st.none() | st.integers(1, 30),
        margin_steps=st.integers(0, 3),
        late=st.sampled_from(["hold_last", "slow_down"]),
        blend_steps=st.integers(0, 4),
        request_timeout_s=st.sampled_from([0.1, 1.0]),
        latency_window=st.integers(1, 10),
    ),
    st.builds(
        RealTimeConfig,
        control_hz=st.just(HZ),
        observation_hz=st.sampled_from([7.0, 30.0, 50.0]),
        late=st.sampled_from(["hold_last", "slow_down"]),
        blend_steps=st.integers(0, 4),
        request_timeout_s=st.sampled_from([0.1, 1.0]),
    ),
)


@settings(max_examples=100, deadline=None)
@given(
    config=configs,
    script=st.lists(fates, max_size=12),
    jitter_s=st.lists(st.floats(0.0, 0.1), max_size=5),
    disconnects=st.lists(st.floats(0.0, 3.0), max_size=4),
    episodes=st.lists(st.floats(0.1, 3.0), max_size=3),
    continues=st.booleans(),
)
def test_each_index_is_executed_exactly_once_whatever_the_network_does(
    config: RealTimeConfig,
    script: list[Fate],
    jitter_s: list[float],
    disconnects: list[float],
    episodes: list[float],
    continues: bool,
) -> None:
    world = SimulatedController(config, script, jitter_s, HEALTHY, continues=continues)
    for time in disconnects:
        world.at(time, world.disconnect)
    for time in episodes:
        world.at(time, world.start_episode)
    # By then every fate has struck, and every pause after a failure is over.
    scripted_s = 5.0 + 1.8 * len(script)
    world.run(until=scripted_s + 2.0)

    for episode, steps in itertools.groupby(world.steps, key=lambda step: step.episode):
        expected, newest, held = 0, -1, None
        for step in steps:
            assert step.index == expected
            if step.kind == "action":
                index, chunk_episode, request = step.value or ()
                assert index == pytest.approx(expected, abs=1e-9)
                assert chunk_episode == pytest.approx(episode, abs=1e-9)
                if not config.blend_steps:
                    assert request >= newest, "went back to an older chunk"
                    newest = int(request)
                held = step.value
                expected += 1
            else:
                assert step.value == held, "a robot that waits must hold what it did last"
    event(f"requests: {min(len(world.requests) // 20 * 20, 100)}")

    alive = [step for step in world.steps if step.time > scripted_s]
    assert sum(step.kind == "action" for step in alive) > len(alive) // 2, "never got going again"


@given(latency_s=st.floats(0.0, 0.09), hz=st.sampled_from([10.0, 20.0, 50.0]))
def test_with_a_steady_network_the_robot_never_waits(latency_s: float, hz: float) -> None:
    config = RealTimeConfig(control_hz=hz)
    steady = Fate("reply", latency_s, 12)
    world = SimulatedController(config, [], [], steady)
    world.run(until=20.0)
    kinds = [step.kind for step in world.steps]
    first = kinds.index("action")
    assert set(kinds[first:]) == {"action"}


def _schedule(**options: Any) -> ChunkSchedule:
    schedule = ChunkSchedule(RealTimeConfig(**{"control_hz": 10.0, **options}))
    schedule.start_episode(0.0)
    return schedule


def _chunk(first: float, rows: int = 10, width: int = 2) -> Any:
    return np.arange(first, first + rows)[:, None] * np.ones(width)


def _take(schedule: ChunkSchedule, steps: int) -> list[float]:
    taken = [schedule.step() for _ in range(steps)]
    return [float(step.action[0]) for step in taken if step.kind == "action"]


def _warm(schedule: ChunkSchedule, latency_s: float = 0.3) -> None:
    """Give the schedule one chunk with rows 0, 1, ... and two latency samples, ending at time 2."""
    schedule.begin_request(0.0, 0)
    schedule.accept(0, _chunk(0.0), 1.0, chunk_id=7)
    schedule.begin_request(2.0 - latency_s, 1)
    schedule.accept(1, _chunk(0.0), 2.0, chunk_id=8)


def test_a_chunk_loses_the_rows_that_were_executed_while_it_was_under_way() -> None:
    schedule = _schedule()
    _warm(schedule)
    _take(schedule, 4)
    request = schedule.begin_request(2.4, 2)
    assert (request.anchor, request.previous, request.executed, request.remaining) == (4, 8, 4, 6)
    assert request.delay == 3
    assert _take(schedule, 5) == [4, 5, 6, 7, 8]
    spliced = schedule.accept(2, _chunk(104.0), 2.9, chunk_id=9)
    assert spliced == Splice(2, 9, 4, 9, pytest.approx(0.5), 3, pytest.approx(100 * 2**0.5))
    assert spliced.delay == 5
    assert _take(schedule, 20) == [109, 110, 111, 112, 113]


def test_a_chunk_is_asked_for_in_time_for_the_latency_seen() -> None:
    schedule = _schedule(execute_steps=10, margin_steps=1)
    _warm(schedule, latency_s=0.3)
    left_when_due = []
    for n in range(10):
        if schedule.request_due(2.0 + n / 10):
            left_when_due.append(schedule.remaining)
        schedule.step()
    assert left_when_due[0] == 4, "3 steps of latency and 1 of margin"


def test_a_chunk_is_asked_for_once_half_of_it_is_executed() -> None:
    schedule = _schedule()
    _warm(schedule, latency_s=0.05)
    _take(schedule, 4)
    assert not schedule.request_due(2.4)
    _take(schedule, 1)
    assert schedule.request_due(2.5)
    schedule.begin_request(2.5, 2)
    assert not schedule.request_due(2.5), "one chunk at a time"


def test_no_delay_is_announced_that_is_longer_than_what_is_left() -> None:
    schedule = _schedule()
    _warm(schedule, latency_s=0.9)
    _take(schedule, 8)
    assert schedule.begin_request(3.0, 2).delay == 2


def test_before_the_first_chunk_nothing_is_known_and_nothing_is_done() -> None:
    schedule = _schedule()
    request = schedule.begin_request(0.0, 0)
    assert (request.delay, request.previous, request.remaining, request.reset) == (None, None, 0, True)
    assert schedule.step().kind == "idle"
    assert schedule.step().action is None


def test_an_older_chunk_that_comes_late_is_of_no_use() -> None:
    schedule = _schedule(observation_hz=10.0)
    schedule.begin_request(0.0, 0)
    schedule.begin_request(0.1, 1)
    assert schedule.accept(1, _chunk(10.0), 0.2) is not None
    assert schedule.accept(0, _chunk(0.0), 0.3) is None
    assert _take(schedule, 2) == [10, 11]


def test_a_chunk_given_up_is_still_welcome() -> None:
    schedule = _schedule(request_timeout_s=1.0)
    schedule.begin_request(0.0, 0)
    assert not schedule.request_due(0.9)
    assert schedule.request_due(1.0)
    assert schedule.accept(0, _chunk(5.0), 1.1) is not None
    assert _take(schedule, 1) == [5]
    assert not schedule.begin_request(1.2, 1).reset, "the server did get the reset"


def test_chunks_of_the_previous_episode_are_dropped() -> None:
    schedule = _schedule()
    _warm(schedule)
    _take(schedule, 5)
    schedule.begin_request(3.0, 2)
    schedule.start_episode(3.1)
    assert schedule.accept(2, _chunk(0.0), 3.2) is None
    assert schedule.step().kind == "idle", "not even the last action of the old episode is held"
    request = schedule.begin_request(3.3, 3)
    assert request.reset
    assert (request.anchor, request.previous) == (0, None)
    assert not schedule.begin_request(3.4, 4).reset, "one reset is enough"


def test_a_reset_that_got_lost_is_sent_again() -> None:
    schedule = _schedule()
    assert schedule.begin_request(0.0, 0).reset
    schedule.fail([0], 0.1)
    assert schedule.begin_request(1.0, 1).reset


def test_pauses_between_failures_grow_up_to_a_second() -> None:
    schedule = _schedule()
    now, pauses = 0.0, []
    for number in range(8):
        schedule.begin_request(now, number)
        schedule.fail([number], now)
        waited = next(step for step in itertools.count() if schedule.request_due(now + step / 1000))
        pauses.append(waited)
        now += waited / 1000
    assert pauses == [50, 100, 200, 400, 800, 1000, 1000, 1000]


def test_losing_several_requests_at_once_is_one_failure() -> None:
    schedule = _schedule(observation_hz=10.0)
    for number in range(5):
        schedule.begin_request(number / 10, number)
    schedule.fail(range(5), 0.5)
    assert schedule.request_due(0.56)


def test_the_first_chunk_of_a_connection_is_no_measure_once_there_is_another() -> None:
    schedule = _schedule()
    schedule.begin_request(0.0, 0)
    schedule.accept(0, _chunk(0.0), 20.0)
    assert schedule.latency_s == 20.0
    for number in (1, 2):
        schedule.begin_request(20.0, number)
        schedule.accept(number, _chunk(0.0), 20.1)
    assert schedule.latency_s == pytest.approx(0.1)
    schedule.connected()
    schedule.begin_request(21.0, 3)
    schedule.accept(3, _chunk(0.0), 25.0)
    assert schedule.latency_s == pytest.approx(0.1)


def test_holding_with_zeros_keeps_the_other_columns() -> None:
    schedule = _schedule(late="hold_zero", zero_columns=(0, 1))
    schedule.begin_request(0.0, 0)
    schedule.accept(0, np.array([[1.0, 2.0, 3.0]]), 0.1)
    assert schedule.step().action.tolist() == [1, 2, 3]
    step = schedule.step()
    assert (step.kind, step.action.tolist(), step.index) == ("hold", [0, 0, 3], 1)


@pytest.mark.parametrize(("late", "held"), [("hold_last", [1, 2]), ("hold_zero", [0, 0])])
def test_a_robot_without_actions_holds_until_the_chunk_comes(late: str, held: list[float]) -> None:
    schedule = _schedule(late=late)
    schedule.begin_request(0.0, 0)
    schedule.accept(0, np.array([[1.0, 2.0]]), 0.1)
    schedule.begin_request(0.1, 1)
    schedule.step()
    assert [schedule.step().action.tolist() for _ in range(5)] == [held] * 5
    schedule.accept(1, np.array([[1.0, 2.0], [8.0, 9.0]]), 0.9)
    step = schedule.step()
    assert (step.kind, step.index, step.action.tolist()) == ("action", 1, [8, 9])


def test_slowing_down_stretches_what_is_left_until_the_chunk_is_expected() -> None:
    schedule = _schedule(late="slow_down", slowest=0.25)
    _warm(schedule, latency_s=0.9)
    _take(schedule, 7)
    schedule.begin_request(3.0, 2)
    assert schedule.period_s(3.0) == pytest.approx(0.9 / 3)
    assert schedule.period_s(3.7) == pytest.approx(0.1), "the rest lasts at the full rate"
    assert schedule.period_s(4.0) == pytest.approx(0.4), "overdue: as slow as allowed"
    _take(schedule, 2)
    assert schedule.period_s(3.0) == pytest.approx(0.4), "never slower than allowed"
    _take(schedule, 1)
    assert schedule.period_s(3.0) == pytest.approx(0.1), "a robot that holds need not hold slowly"


def test_a_robot_that_cannot_ask_slows_down_when_it_should_have_asked() -> None:
    schedule = _schedule(late="slow_down")
    _warm(schedule, latency_s=0.3)
    _take(schedule, 5)
    assert schedule.period_s(3.0) == pytest.approx(0.1)
    _take(schedule, 1)
    assert schedule.period_s(3.0) == pytest.approx(0.2)


def test_blending_fades_a_plain_chunk_in() -> None:
    schedule = _schedule(blend_steps=3)
    _warm(schedule)
    _take(schedule, 2)
    schedule.begin_request(3.0, 2)
    _take(schedule, 1)
    spliced = schedule.accept(2, _chunk(102.0), 3.1)
    assert spliced is not None
    assert _take(schedule, 5) == [3 + 25, 4 + 50, 5 + 75, 106, 107]
    assert spliced.jump == pytest.approx(25 * 2**0.5)


def test_a_chunk_that_continues_the_old_one_is_not_blended() -> None:
    schedule = _schedule(blend_steps=3)
    _warm(schedule)
    schedule.begin_request(3.0, 2)
    schedule.accept(2, _chunk(100.0), 3.1, continued=True)
    assert _take(schedule, 3) == [100, 101, 102]


def test_a_continuation_of_a_chunk_that_was_replaced_does_not_fit() -> None:
    schedule = _schedule(observation_hz=10.0)
    _warm(schedule)
    assert schedule.begin_request(3.0, 2).previous == 8
    assert schedule.begin_request(3.1, 3).previous == 8
    assert schedule.accept(2, _chunk(100.0), 3.2, chunk_id=9, continued=True) is not None
    assert schedule.begin_request(3.2, 4).previous == 9
    assert schedule.accept(3, _chunk(200.0), 3.3, chunk_id=10, continued=True) is None
    assert _take(schedule, 2) == [100, 101]
    assert schedule.accept(4, _chunk(300.0), 3.4, chunk_id=11, continued=True) is not None
    assert _take(schedule, 2) == [302, 303]


def test_chunks_that_continue_each_other_are_asked_for_one_at_a_time() -> None:
    schedule = _schedule(observation_hz=10.0)
    schedule.connected(continues=True)
    schedule.begin_request(0.0, 0)
    assert not schedule.request_due(0.5)
    schedule.accept(0, _chunk(0.0), 0.6, chunk_id=1)
    assert schedule.request_due(0.6), "although most of the chunk is left"
    schedule.begin_request(0.6, 1)
    schedule.accept(1, _chunk(0.0), 0.65, chunk_id=2)
    assert not schedule.request_due(0.65), "not faster than the camera"
    assert schedule.request_due(0.7)


def test_a_robot_without_actions_takes_any_continuation() -> None:
    schedule = _schedule(observation_hz=10.0)
    _warm(schedule)
    schedule.begin_request(3.0, 2)
    schedule.begin_request(3.1, 3)
    schedule.accept(2, _chunk(100.0, rows=4), 3.2, chunk_id=9, continued=True)
    _take(schedule, 4)
    assert schedule.accept(3, _chunk(200.0), 3.3, chunk_id=10, continued=True) is not None
    assert _take(schedule, 1) == [204]


@pytest.mark.parametrize(
    ("actions", "complaint"),
    [
        (np.zeros(7), "shape"),
        (np.zeros((0, 7)), "shape"),
        (None, "shape"),
        (np.array([["a"]]), "shape"),
        (np.full((2, 2), np.inf), "not finite"),
        (np.zeros((2, 3)), "expected actions of width 2, received 3"),
    ],
)
def test_what_a_robot_cannot_execute_is_a_failure(actions: Any, complaint: str) -> None:
    schedule = _schedule()
    _warm(schedule)
    _take(schedule, 1)
    schedule.begin_request(3.0, 2)
    with pytest.raises(ValueError, match=complaint):
        schedule.accept(2, actions, 3.1)
    assert _take(schedule, 2) == [1, 2], "the old chunk goes on"


def test_columns_to_zero_must_exist() -> None:
    schedule = _schedule(late="hold_zero", zero_columns=(7,))
    schedule.begin_request(0.0, 0)
    with pytest.raises(ValueError, match="zero_columns names column 7, but actions have 2"):
        schedule.accept(0, _chunk(0.0), 0.1)


def test_a_server_that_never_answers_costs_no_memory() -> None:
    schedule = _schedule(observation_hz=10.0)
    resets = [schedule.begin_request(number / 10, number).reset for number in range(1000)]
    assert resets[0]
    assert sum(resets) < 10, "a reset is repeated when its request is forgotten, and only then"
    assert sum(schedule.accept(number, _chunk(0.0), 100.0) is not None for number in range(1000)) <= 256


def test_numbers_must_increase() -> None:
    schedule = _schedule()
    schedule.begin_request(0.0, 3)
    with pytest.raises(ValueError, match="must increase, but 3 follows 3"):
        schedule.begin_request(0.1, 3)


def test_nothing_is_asked_or_done_outside_of_an_episode() -> None:
    schedule = _schedule()
    _warm(schedule)
    schedule.end_episode()
    assert not schedule.request_due(100.0)
    assert schedule.step().kind == "idle"


def test_after_a_reconnection_the_actions_left_go_along_until_a_chunk_comes() -> None:
    schedule = ChunkSchedule(RealTimeConfig(control_hz=10))
    schedule.connected(continues=True)
    schedule.start_episode(0.0)
    chunk = np.arange(20.0).reshape(10, 2)
    assert schedule.begin_request(0.0, 0).left is None
    schedule.accept(0, chunk, 0.1, chunk_id=0)
    assert schedule.begin_request(0.2, 1).left is None
    schedule.fail([1], 0.2)
    for _ in range(4):
        schedule.step()
    schedule.connected(continues=True)
    left = schedule.begin_request(0.3, 2).left
    assert left is not None
    np.testing.assert_array_equal(left, chunk[4:])
    schedule.accept(2, chunk, 0.4, chunk_id=0, continued=True)
    assert schedule.begin_request(0.5, 3).left is None
