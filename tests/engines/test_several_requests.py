"""Policies over backends that compute batches, or keep several requests in flight."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.libero import libero_observation
from tests.support.overlapped_backend import create_several_at_once
from vlad_configs.errors import ConfigError, EngineError, ObservationError
from vlad_configs.rtc import ChunkContinuation
from vlad_engines import unified_policy
from vlad_engines.unified_policy import UnifiedPolicy


@pytest.fixture(scope="module")
def policy() -> Iterator[UnifiedPolicy]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unified_policy, "create_backend", create_several_at_once)
        policy = UnifiedPolicy("random:pi05_dummy", device="cpu", batch_sizes=(2, 1))
    yield policy
    policy.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[UnifiedPolicy]:
    policy = UnifiedPolicy("random:pi05_dummy", device="cpu")
    yield policy
    policy.close()


def test_requests_in_flight_get_the_chunks_that_they_would_get_alone(
    policy: UnifiedPolicy, plain: UnifiedPolicy
) -> None:
    pending = [policy.start(libero_observation(seed), seed=seed) for seed in range(5)]
    for seed, chunk in reversed(list(enumerate(pending))):
        reply = chunk.result(60)
        expected = plain.infer(libero_observation(seed), seed=seed)
        assert reply["actions"].tobytes() == expected["actions"].tobytes()
        assert reply["policy_timing"]["denoise_ms"] == pytest.approx(3.0)
        assert reply["policy_timing"]["infer_ms"] > 0
    assert policy.overlap is not None
    assert policy.overlap.requests >= 5


def test_infer_is_start_and_result(policy: UnifiedPolicy, plain: UnifiedPolicy) -> None:
    previous = policy.infer(libero_observation(1), seed=1)
    continuation = ChunkContinuation(delay=2, model_actions=previous["model_actions"][3:])
    started = policy.start(libero_observation(2), seed=2, chunk_continuation=continuation).result()
    for other in (policy, plain):
        reply = other.infer(libero_observation(2), seed=2, chunk_continuation=continuation)
        assert reply["rtc"] == started["rtc"]
        assert reply["actions"].tobytes() == started["actions"].tobytes()


def test_one_result_can_be_waited_for_by_many_threads(policy: UnifiedPolicy) -> None:
    pending = policy.start(libero_observation(), seed=0)
    replies: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: replies.append(pending.result(60))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(replies) == 4
    assert all(reply is replies[0] for reply in replies)


def test_a_batch_gives_each_observation_its_own_chunk(policy: UnifiedPolicy, plain: UnifiedPolicy) -> None:
    assert policy.batch_sizes == (1, 2)
    assert policy.metadata["batch_sizes"] == [1, 2]
    first = plain.infer(libero_observation(0), seed=0)
    continuation = ChunkContinuation(delay=2, model_actions=first["model_actions"][1:])
    replies = policy.infer_batch(
        [libero_observation(1), libero_observation(2)],
        seeds=[1, None],
        noise=[None, np.zeros((10, 32), np.float32)],
        chunk_continuations=[continuation, None],
    )
    expected = [
        plain.infer(libero_observation(1), seed=1, chunk_continuation=continuation),
        plain.infer(libero_observation(2), noise=np.zeros((10, 32), np.float32)),
    ]
    for reply, alone in zip(replies, expected, strict=True):
        assert reply["actions"].tobytes() == alone["actions"].tobytes()
        assert reply.keys() == alone.keys()
    with pytest.raises(ConfigError, match=r"3 observations at once; this policy takes \[1, 2\]"):
        policy.infer_batch([libero_observation()] * 3)
    with pytest.raises(ObservationError, match="'vlad/seed'"):
        policy.infer_batch([libero_observation()] * 2, seeds=[0, -1])


def test_a_closed_policy_takes_no_more_requests() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unified_policy, "create_backend", create_several_at_once)
        policy = UnifiedPolicy("random:pi05_dummy", device="cpu")
    pending = policy.start(libero_observation(), seed=0)
    policy.close()
    assert pending.done()
    assert pending.result()["actions"].shape == (10, 7)
    with pytest.raises(EngineError, match="closed"):
        policy.start(libero_observation())
