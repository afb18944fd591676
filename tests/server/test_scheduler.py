"""Which request comes next."""

from __future__ import annotations

from vlad_server.scheduler import Scheduler


def test_requests_leave_in_the_order_in_which_they_came() -> None:
    scheduler: Scheduler[str] = Scheduler()
    for request_id, work in enumerate(["a", "b", "c"]):
        scheduler.submit(request_id, work)
    assert [scheduler.take() for _ in range(4)] == [(0, "a"), (1, "b"), (2, "c"), None]


def test_a_request_that_was_never_begun_keeps_its_place() -> None:
    scheduler: Scheduler[str] = Scheduler()
    for request_id, work in enumerate(["a", "b", "c"]):
        scheduler.submit(request_id, work)
    taken = [scheduler.take(), scheduler.take()]
    for entry in reversed(taken):
        assert entry is not None
        scheduler.put_back(*entry)
    assert [scheduler.take() for _ in range(3)] == [(0, "a"), (1, "b"), (2, "c")]


def test_a_dropped_request_never_runs() -> None:
    scheduler: Scheduler[str] = Scheduler()
    scheduler.submit(1, "a")
    scheduler.submit(2, "b")
    assert scheduler.drop(1)
    assert scheduler.take() == (2, "b")


def test_dropping_a_request_that_already_left_changes_nothing() -> None:
    scheduler: Scheduler[str] = Scheduler()
    scheduler.submit(1, "a")
    scheduler.take()
    assert not scheduler.drop(1)
    assert len(scheduler) == 0
