"""Which action a robot executes while chunks take their time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from vlad_libero.errors import LiberoError
from vlad_libero.evaluation.playing import Player, Playing, PlayMode

HOLD = np.array([0.0, -1.0])


class Script:
    """Answers request n with rows 100 n, 100 n + 1, ... in the first column; the gripper closes."""

    def __init__(self, rows: int = 10) -> None:
        self.requests: list[Mapping[str, Any]] = []
        self._rows = rows

    def infer(self, extras: Mapping[str, Any]) -> dict[str, Any]:
        start = 100 * len(self.requests)
        self.requests.append(extras)
        rows = np.arange(start, start + self._rows, dtype=float)
        return {"actions": np.stack([rows, np.ones(self._rows)], axis=1), "chunk_id": len(self.requests)}


def _played(
    script: Script,
    steps: int,
    replan: int,
    delay: int = 0,
    mode: PlayMode = "lockstep",
    prefix_end: int | None = None,
) -> list[float]:
    player = Player(Playing(replan, delay, mode, prefix_end), script.infer, HOLD)
    return [float(player.next()[0]) for _ in range(steps)]


def test_lockstep_plays_so_many_actions_of_each_chunk() -> None:
    assert _played(Script(), 7, replan=3) == [0, 1, 2, 100, 101, 102, 200]


def test_lockstep_stands_still_while_it_waits() -> None:
    assert _played(Script(), 10, replan=3, delay=2) == [0, 0, 0, 1, 2, 0, 0, 100, 101, 102]


def test_standing_still_keeps_the_gripper_as_it_was() -> None:
    player = Player(Playing(2, 1), Script().infer, HOLD)
    assert [float(player.next()[1]) for _ in range(4)] == [-1, 1, 1, 1]


def test_overlap_plays_on_and_enters_the_new_chunk_at_its_time() -> None:
    # The first chunk is waited for; the second is asked for after three actions and arrives two later.
    played = _played(Script(), 9, replan=3, delay=2, mode="overlap")
    assert played == [0, 0, 0, 1, 2, 3, 4, 102, 103]


def test_without_delay_all_modes_play_the_same() -> None:
    plain = _played(Script(), 12, replan=4)
    assert _played(Script(), 12, replan=4, mode="overlap") == plain
    assert _played(Script(), 12, replan=4, mode="rtc") == plain


def test_rtc_tells_the_server_what_it_continues() -> None:
    script = Script()
    _played(script, 8, replan=3, delay=2, mode="rtc")
    assert script.requests[0] == {"vlad/reset": True}
    assert script.requests[1]["vlad/rtc"] == {"prev_chunk_id": 1, "executed": 3, "delay": 2}


def test_rtc_says_how_far_the_old_chunk_draws_where_that_is_set() -> None:
    script = Script()
    played = _played(script, 8, replan=3, delay=2, mode="rtc", prefix_end=2)
    assert script.requests[1]["vlad/rtc"] == {"prev_chunk_id": 1, "executed": 3, "delay": 2, "prefix_end": 2}
    assert played == _played(Script(), 8, replan=3, delay=2, mode="rtc")
    for mode, end in (("overlap", 2), ("rtc", -1)):
        with pytest.raises(LiberoError, match="only for chunks that are played rtc"):
            _played(Script(), 1, replan=3, delay=2, mode=mode, prefix_end=end)  # type: ignore[arg-type]


def test_settings_are_those_that_are_set() -> None:
    assert Playing(5).settings() == {"replan_steps": 5, "delay_steps": 0, "mode": "lockstep"}
    assert Playing(5, 2, "rtc", 2).settings()["prefix_end"] == 2


def test_a_chunk_that_cannot_last_is_refused() -> None:
    with pytest.raises(LiberoError, match=r"shape \(4, 2\), expected at least 5 rows"):
        _played(Script(rows=4), 1, replan=3, delay=2, mode="overlap")
