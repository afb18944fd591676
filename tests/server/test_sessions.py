"""What is remembered of robots, and for how long."""

from __future__ import annotations

import numpy as np
import pytest

from vlad_server import sessions
from vlad_server.sessions import KEPT_CHUNKS, LATENCY_WINDOW, Session, SessionRegistry


class _Owner:
    def __init__(self) -> None:
        self.taken: list[Session] = []

    def on_session_taken(self, session: Session) -> None:
        self.taken.append(session)


def _keep(session: Session) -> int:
    return session.keep(np.zeros((10, 32), np.float32), np.zeros(8))


def test_chunks_are_counted_and_the_latest_are_kept() -> None:
    session = Session()
    ids = [_keep(session) for _ in range(KEPT_CHUNKS + 2)]
    assert ids == list(range(KEPT_CHUNKS + 2))
    assert [session.chunk(chunk_id) is not None for chunk_id in ids] == [False] * 2 + [True] * KEPT_CHUNKS


def test_a_chunk_that_cannot_be_continued_is_only_counted() -> None:
    session = Session()
    assert session.keep(None, None) == 0
    assert session.chunk(0) is None
    assert _keep(session) == 1


def test_an_episode_forgets_chunks_but_never_uses_an_id_twice() -> None:
    session = Session()
    chunk_id = _keep(session)
    session.note_superseded(1, "old")
    session.begin_episode()
    assert session.chunk(chunk_id) is None
    assert session.take_superseded() == ([], 0)
    assert _keep(session) == chunk_id + 1


def test_the_delay_is_a_percentile_of_recent_latencies() -> None:
    session = Session()
    assert session.expected_delay(50.0) == 0
    session.note_latency(9.0)
    for _ in range(LATENCY_WINDOW - 1):
        session.note_latency(0.1)
    # Neither the spike nor anything before the window counts.
    assert session.expected_delay(50.0) == 5
    for _ in range(LATENCY_WINDOW):
        session.note_latency(0.021)
    assert session.expected_delay(50.0) == 2


def test_superseded_ids_are_told_once_in_order_and_bounded() -> None:
    session = Session()
    for number in (3, 1, 2):
        session.note_superseded(number, number)
    session.note_superseded(4, None)
    assert session.take_superseded() == ([1, 2, 3], 0)
    assert session.take_superseded() == ([], 0)
    for number in range(1000):
        session.note_superseded(number, number)
    untold = 1000 - sessions.MAX_SUPERSEDED_IDS
    assert session.take_superseded() == (list(range(untold, 1000)), untold)
    assert session.take_superseded() == ([], 0)


def test_a_session_outlives_its_connection_for_its_time() -> None:
    registry = SessionRegistry(ttl_s=10.0)
    first, second = _Owner(), _Owner()
    session = registry.attach("arm", first, 0.0)
    assert registry.attach("arm", first, 1.0) is session
    registry.detach(first, 100.0)
    assert registry.attach("arm", second, 109.9) is session
    registry.detach(second, 110.0)
    assert registry.attach("arm", first, 120.1) is not session
    assert first.taken == second.taken == []


def test_a_robot_that_is_back_before_its_old_connection_ended_has_its_session() -> None:
    registry = SessionRegistry(ttl_s=10.0)
    old, new = _Owner(), _Owner()
    session = registry.attach("arm", old, 0.0)
    assert registry.attach("arm", new, 1.0) is session
    assert old.taken == [session]
    registry.detach(old, 2.0)
    assert registry.attach("arm", new, 1000.0) is session


def test_robots_never_share_a_session() -> None:
    registry = SessionRegistry(ttl_s=10.0)
    owner = _Owner()
    left, right = registry.attach("left", owner, 0.0), registry.attach("right", owner, 0.0)
    chunk_id = _keep(left)
    assert right.chunk(chunk_id) is None
    assert len(registry) == 2


def test_idle_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_IDLE_SESSIONS", 3)
    registry = SessionRegistry(ttl_s=1e9)
    for number in range(10):
        owner = _Owner()
        registry.attach(str(number), owner, float(number))
        registry.detach(owner, float(number))
    assert len(registry) == 3
