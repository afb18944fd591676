"""Which requests come next."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlad_server.scheduler import QueueFullError, Scheduler, Terms
from vlad_server.service_times import ServiceTimes

ALONE = (1,)


def _scheduler(max_waiting: int = 100, **seconds: float) -> Scheduler[str]:
    times = ServiceTimes()
    for name, value in seconds.items():
        times.note(int(name.removeprefix("size_")), value, 0.0)
    return Scheduler(max_waiting, times)


def _fill(scheduler: Scheduler[str], *terms: Terms) -> None:
    for request_id, item in enumerate(terms):
        scheduler.submit(request_id, str(item.session), item)


def _order(scheduler: Scheduler[str], now: float = 0.0) -> list[str]:
    order = []
    while batch := scheduler.take(ALONE, now):
        for request_id, work in batch:
            order.append(work)
            scheduler.finish(request_id)
    return order


def test_requests_leave_in_the_order_in_which_they_came() -> None:
    scheduler = _scheduler()
    _fill(scheduler, Terms("a", 0.0), Terms("b", 1.0), Terms("c", 2.0))
    assert _order(scheduler) == ["a", "b", "c"]


def test_a_robot_with_actions_left_waits_for_one_that_has_none() -> None:
    scheduler = _scheduler()
    _fill(scheduler, Terms("half a second left", 0.0, slack_s=0.5), Terms("stands still", 0.1))
    assert _order(scheduler) == ["stands still", "half a second left"]


def test_a_robot_with_actions_left_is_not_overtaken_for_ever() -> None:
    scheduler = _scheduler()
    _fill(scheduler, Terms("half a second left", 0.0, slack_s=0.5), Terms("late", 0.6), Terms("later", 0.7))
    assert _order(scheduler) == ["half a second left", "late", "later"]


def test_a_session_has_one_request_running_and_one_waiting() -> None:
    scheduler = _scheduler()
    scheduler.submit(1, "first", Terms("robot", 0.0))
    assert scheduler.take(ALONE, 0.0) == [(1, "first")]
    scheduler.submit(2, "second", Terms("robot", 1.0))
    with pytest.raises(QueueFullError, match="this session"):
        scheduler.submit(3, "third", Terms("robot", 2.0))
    assert scheduler.take(ALONE, 2.0) == []
    assert scheduler.running_of("robot") == 1
    scheduler.finish(1)
    assert scheduler.take(ALONE, 2.0) == [(2, "second")]


def test_a_full_queue_says_so() -> None:
    scheduler = _scheduler(max_waiting=2)
    _fill(scheduler, Terms("a", 0.0), Terms("b", 0.0))
    with pytest.raises(QueueFullError, match="2 requests wait"):
        scheduler.submit(9, "c", Terms("c", 0.0))
    assert scheduler.supersede(9, "a again", Terms("a", 1.0)) == (0, "a")
    assert _order(scheduler) == ["a again", "b"]


def test_a_newer_observation_takes_the_place_of_the_waiting_one() -> None:
    scheduler = _scheduler()
    _fill(scheduler, Terms("stream", 0.0), Terms("other", 1.0))
    assert scheduler.supersede(7, "newer", Terms("stream", 2.0)) == (0, "stream")
    assert scheduler.supersede(8, "newest", Terms("stream", 3.0)) == (7, "newer")
    assert _order(scheduler) == ["newest", "other"]


def test_a_request_that_was_never_begun_gets_its_place_back() -> None:
    scheduler = _scheduler()
    _fill(scheduler, Terms("a", 0.0), Terms("b", 1.0), Terms("c", 2.0))
    for _ in range(2):
        scheduler.take(ALONE, 0.0)
    assert scheduler.put_back(1)
    assert scheduler.put_back(0)
    assert _order(scheduler) == ["a", "b", "c"]


def test_a_newer_observation_inherits_the_place_of_one_that_was_never_begun() -> None:
    scheduler = _scheduler()
    _fill(scheduler, Terms("stream", 0.0), Terms("other", 1.0))
    scheduler.take(ALONE, 0.0)
    assert scheduler.supersede(5, "newer", Terms("stream", 2.0)) is None
    assert not scheduler.put_back(0)
    assert _order(scheduler) == ["newer", "other"]


def test_a_dropped_request_never_leaves() -> None:
    scheduler = _scheduler()
    _fill(scheduler, Terms("a", 0.0), Terms("b", 1.0))
    assert scheduler.drop(0) == "a"
    assert scheduler.drop(0) is None
    assert _order(scheduler) == ["b"]


def test_what_cannot_be_done_in_time_is_not_begun() -> None:
    scheduler = _scheduler(size_1=0.020)
    _fill(scheduler, Terms("a", 0.0, expires=0.030), Terms("b", 0.0, expires=0.100), Terms("c", 0.0))
    assert scheduler.next_expiry() == pytest.approx(0.010)
    assert scheduler.take_expired(0.009) == []
    assert scheduler.take_expired(0.011) == [(0, "a")]
    assert scheduler.next_expiry() == pytest.approx(0.080)
    scheduler.take(ALONE, 0.05)
    assert scheduler.last_start(1) == pytest.approx(0.080)
    assert scheduler.next_expiry() is None


def test_requests_share_a_computation_where_that_serves_more_of_them() -> None:
    terms = [Terms(name, 0.0) for name in "abcde"]
    worth_it = _scheduler(size_1=0.010, size_2=0.012, size_4=0.020)
    _fill(worth_it, *terms)
    assert [work for _, work in worth_it.take((1, 2, 4), 1.0)] == ["a", "b", "c", "d"]
    assert [work for _, work in worth_it.take((1, 2, 4), 1.0)] == ["e"]
    useless = _scheduler(size_1=0.010, size_2=0.025, size_4=0.050)
    _fill(useless, *terms)
    assert [work for _, work in useless.take((1, 2, 4), 1.0)] == ["a"]


def test_a_batch_never_makes_a_robot_late_that_would_be_in_time_alone() -> None:
    scheduler = _scheduler(size_1=0.010, size_2=0.012, size_4=0.016)
    urgent = Terms("urgent", 0.0, slack_s=0.013)
    _fill(scheduler, urgent, *[Terms(name, 0.014) for name in "abc"])
    assert len(scheduler.take((1, 2, 4), 0.0)) == 2
    scheduler = _scheduler(size_1=0.010, size_2=0.012, size_4=0.016)
    _fill(scheduler, Terms("a", 0.0), Terms("deadline", 0.0, expires=0.011), Terms("b", 0.0))
    assert len(scheduler.take((1, 2, 4), 0.0)) == 1


def test_requests_of_one_session_never_share_a_computation() -> None:
    scheduler = _scheduler(size_1=0.010, size_2=0.001)
    scheduler.submit(1, "running", Terms("robot", 0.0))
    scheduler.take((1, 2), 1.0)
    scheduler.submit(2, "waiting", Terms("robot", 0.0))
    scheduler.submit(3, "other", Terms("other", 1.0))
    assert scheduler.take((1, 2), 1.0) == [(3, "other")]


@dataclasses.dataclass
class _Simulation:
    """Robots and one engine against the scheduler, on a clock of their own."""

    scheduler: Scheduler[str]
    service_s: float
    now: float = 0.0
    served: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    waits: list[float] = dataclasses.field(default_factory=list)

    def run(self, robots: dict[str, float | None], until: float) -> None:
        """Robots that ask again once they are answered; their slack in seconds, None for unknown."""
        ids = itertools.count()
        submitted = {}
        for robot, slack in robots.items():
            submitted[robot] = self.now
            self.scheduler.submit(next(ids), robot, Terms(robot, self.now, slack))
        while self.now < until:
            ((request_id, robot),) = self.scheduler.take(ALONE, self.now)
            self.now += self.service_s
            self.scheduler.finish(request_id)
            self.served[robot] += 1
            self.waits.append(self.now - submitted[robot])
            submitted[robot] = self.now
            self.scheduler.submit(next(ids), robot, Terms(robot, self.now, robots[robot]))


def test_sixty_four_robots_are_served_alike() -> None:
    simulation = _Simulation(_scheduler(), 0.020)
    simulation.run({str(number): None for number in range(64)}, until=60.0)
    assert max(simulation.served.values()) - min(simulation.served.values()) <= 1
    assert max(simulation.waits) <= 64 * 0.020 + 1e-9


@given(
    st.dictionaries(st.integers(0, 20).map(str), st.none() | st.floats(0.0, 2.0), min_size=1, max_size=12),
    st.floats(0.001, 0.2),
)
@settings(max_examples=100, deadline=None)
def test_no_robot_starves_whatever_slack_the_others_report(
    robots: dict[str, float | None], service_s: float
) -> None:
    simulation = _Simulation(_scheduler(), service_s)
    simulation.run(robots, until=100 * service_s)
    # Whoever is due is served before all that come later: one round of the others, after its own slack.
    longest = max((slack or 0.0) for slack in robots.values())
    assert max(simulation.waits) <= longest + (len(robots) + 1) * service_s + 1e-6


def test_only_what_has_the_same_shape_leaves_together() -> None:
    scheduler = _scheduler(size_1=1.0, size_2=1.1, size_4=1.2)
    shapes = {"a": "two cameras", "b": "one camera", "c": "two cameras", "d": "one camera"}
    _fill(scheduler, *(Terms(name, float(i), shape=shape) for i, (name, shape) in enumerate(shapes.items())))
    taken = [[work for _, work in scheduler.take((1, 2, 4), 0.0)] for _ in range(3)]
    assert taken == [["a", "c"], ["b", "d"], []]


_EVENTS = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 4), st.none() | st.floats(0.0, 0.5)),
    st.tuples(st.just("stream"), st.integers(5, 8), st.none() | st.floats(0.0, 0.5)),
    st.tuples(
        st.sampled_from(["take", "finish", "put_back", "drop", "expire"]), st.integers(0, 9), st.none()
    ),
    st.tuples(st.just("tick"), st.integers(1, 50), st.none()),
)


@given(st.lists(_EVENTS, max_size=80), st.sampled_from([(1,), (1, 2), (1, 2, 4)]))
@settings(max_examples=300, deadline=None)
def test_each_request_ends_once_whatever_happens(
    events: list[tuple[str, int, float | None]], sizes: tuple[int, ...]
) -> None:
    times = ServiceTimes()
    scheduler: Scheduler[int] = Scheduler(6, times)
    ids, now = itertools.count(), 0.0
    sessions: dict[int, int] = {}
    waiting: set[int] = set()
    running: list[int] = []
    for name, number, value in events:
        if name in ("submit", "stream"):
            request_id = next(ids)
            expires = None if value is None else now + value
            terms = Terms(number, now, value, expires)
            try:
                if name == "stream":
                    older = scheduler.supersede(request_id, request_id, terms)
                    if older is not None:
                        assert sessions[older[0]] == number
                        waiting.remove(older[0])
                else:
                    scheduler.submit(request_id, request_id, terms)
            except QueueFullError:
                assert len(waiting) == 6 or number in {sessions[other] for other in waiting}
            else:
                sessions[request_id] = number
                waiting.add(request_id)
        elif name == "take":
            for request_id, work in scheduler.take(sizes, now):
                assert work == request_id
                waiting.remove(request_id)
                running.append(request_id)
        elif name == "finish" and running:
            scheduler.finish(running.pop(number % len(running)))
        elif name == "put_back" and running:
            request_id = running.pop(number % len(running))
            if scheduler.put_back(request_id):
                waiting.add(request_id)
            else:
                assert sessions[request_id] in {sessions[other] for other in waiting}
        elif name == "drop" and waiting:
            request_id = sorted(waiting)[number % len(waiting)]
            assert scheduler.drop(request_id) == request_id
            waiting.remove(request_id)
        elif name == "expire":
            for request_id, _ in scheduler.take_expired(now):
                waiting.remove(request_id)
        elif name == "tick":
            now += number / 100
            times.note(sizes[number % len(sizes)], number / 1000, now)
        assert len(scheduler) == len(waiting)
        busy = [sessions[request_id] for request_id in running]
        assert len(busy) == len(set(busy))
        idle = [sessions[request_id] for request_id in waiting]
        assert len(idle) == len(set(idle))
