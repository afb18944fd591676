"""What a request may say about the chunk that it continues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlad_configs.errors import ObservationError
from vlad_configs.rtc import GUIDANCE_MODES, REQUESTED_MODES, ChunkContinuation


def test_every_mode_can_be_requested() -> None:
    assert set(REQUESTED_MODES) == {"auto", "off", *GUIDANCE_MODES}
    for mode in REQUESTED_MODES:
        assert ChunkContinuation(delay=0, mode=mode).mode == mode


@pytest.mark.parametrize(
    ("values", "length"),
    [
        ({}, None),
        ({"model_actions": np.zeros((3, 32), np.float32)}, 3),
        ({"action_prefix": np.zeros((0, 7))}, 0),
    ],
)
def test_leftover_is_the_length_of_what_is_given(values: dict[str, Any], length: int | None) -> None:
    assert ChunkContinuation(delay=1, **values).leftover == length


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"delay": -1}, "vlad/rtc/delay"),
        ({"delay": 1.0}, "vlad/rtc/delay"),
        ({"delay": True}, "vlad/rtc/delay"),
        ({"delay": None}, "vlad/rtc/delay"),
        ({"prefix_end": -1}, "vlad/rtc/prefix_end"),
        ({"prefix_end": "8"}, "vlad/rtc/prefix_end"),
        ({"mode": "guided"}, "vlad/rtc/mode"),
        ({"mode": ["auto"]}, "vlad/rtc/mode"),
        ({"schedule": "cosine"}, "vlad/rtc/schedule"),
        ({"beta": 0}, "vlad/rtc/beta"),
        ({"beta": float("nan")}, "vlad/rtc/beta"),
        ({"beta": float("inf")}, "vlad/rtc/beta"),
        ({"beta": True}, "vlad/rtc/beta"),
        ({"beta": "10"}, "vlad/rtc/beta"),
        ({"action_prefix": [[0.0]]}, "vlad/rtc/action_prefix"),
        ({"action_prefix": np.zeros(7)}, "vlad/rtc/action_prefix"),
        ({"action_prefix": np.zeros((2, 7), np.int64)}, "vlad/rtc/action_prefix"),
        ({"action_prefix": np.full((2, 7), np.nan)}, "vlad/rtc/action_prefix"),
        ({"model_actions": np.full((2, 7), np.inf)}, "vlad/rtc/model_actions"),
        ({"anchor_state": np.zeros((1, 8))}, "vlad/rtc/anchor_state"),
        ({"model_actions": np.zeros((2, 32)), "action_prefix": np.zeros((2, 7))}, "vlad/rtc"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_their_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ObservationError) as caught:
        ChunkContinuation(**{"delay": 1, **values})
    assert caught.value.key == key
