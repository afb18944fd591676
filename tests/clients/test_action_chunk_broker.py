from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlad_client import ActionChunkBroker, BasePolicy


class NumberedChunks(BasePolicy):
    """Chunks of 5 actions; the actions of chunk n are 100n, 100n + 1, ..."""

    def __init__(self) -> None:
        self.observations: list[Any] = []
        self.resets = 0

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        first = 100 * len(self.observations)
        self.observations.append(observation)
        steps = np.arange(first, first + 5.0)
        return {
            "actions": steps[:, None] * np.ones(3),
            "nested": {"list": [steps, "text"]},
            "server_timing": {"infer_ms": 1.0},
        }

    def reset(self) -> None:
        self.resets += 1


def test_each_call_gives_the_next_step_of_one_chunk() -> None:
    policy = NumberedChunks()
    broker = ActionChunkBroker(policy, 5)
    actions = [broker.infer({"n": n})["actions"] for n in range(5)]
    np.testing.assert_array_equal(actions, np.arange(5)[:, None] * np.ones(3))
    assert policy.observations == [{"n": 0}]


def test_a_short_horizon_discards_the_rest_of_the_chunk() -> None:
    policy = NumberedChunks()
    broker = ActionChunkBroker(policy, 2)
    firsts = [broker.infer({"n": n})["actions"][0] for n in range(5)]
    assert firsts == [0, 1, 100, 101, 200]
    assert policy.observations == [{"n": 0}, {"n": 2}, {"n": 4}]


def test_arrays_at_any_depth_are_indexed_and_other_values_passed_on() -> None:
    broker = ActionChunkBroker(NumberedChunks(), 5)
    broker.infer({})
    action = broker.infer({})
    assert action["nested"] == {"list": [1.0, "text"]}
    assert action["server_timing"] == {"infer_ms": 1.0}


def test_a_horizon_beyond_the_chunk_raises_once_the_chunk_ends() -> None:
    broker = ActionChunkBroker(NumberedChunks(), 6)
    for _ in range(5):
        broker.infer({})
    with pytest.raises(IndexError, match=r"'actions' of shape \(5, 3\) has no step 5; action_horizon is 6"):
        broker.infer({})


def test_reset_drops_the_chunk_and_resets_the_inner_policy() -> None:
    policy = NumberedChunks()
    broker = ActionChunkBroker(policy, 5)
    broker.infer({})
    broker.reset()
    assert policy.resets == 1
    assert broker.infer({})["actions"][0] == 100


def test_a_horizon_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="action_horizon must be positive"):
        ActionChunkBroker(NumberedChunks(), 0)
