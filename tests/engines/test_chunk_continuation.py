"""Continuing chunks through the whole policy: what leaves the model follows what the robot executes."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.checkpoints import small_model, small_tensors, stats_for, write_libero, write_openpi
from tests.support.libero import libero_observation
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ObservationError
from vlad_configs.models import Family
from vlad_configs.rtc import ChunkContinuation
from vlad_engines.unified_policy import UnifiedPolicy

HORIZON, EXECUTED, DELAY = 20, 5, 4


def write(directory: pathlib.Path, family: Family, **config: Any) -> pathlib.Path:
    model = small_model(family, action_horizon=HORIZON)
    return write_openpi(
        directory,
        model,
        small_tensors(model),
        stats=stats_for(ENVIRONMENTS["LIBERO"]),
        asset_id="physical-intelligence/libero",
        config=config,
    )


@pytest.fixture(scope="module", params=["pi05", "pi0"])
def policy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UnifiedPolicy]:
    """One that says it was trained for delays; pi0_libero predicts actions relative to the state."""
    family: Family = request.param
    directory = write(tmp_path_factory.mktemp(family), family, rtc_training_max_delay=6)
    policy = UnifiedPolicy(str(directory), env="LIBERO", config=f"{family}_libero", device="cpu")
    yield policy
    policy.close()


def horizon(policy: UnifiedPolicy) -> int:
    return int(policy.metadata["action_horizon"])


def continuation(previous: dict[str, Any], **options: Any) -> ChunkContinuation:
    return ChunkContinuation(
        **{
            "delay": DELAY,
            "model_actions": previous["model_actions"][EXECUTED:],
            "anchor_state": previous["anchor_state"],
            **options,
        }
    )


def jump(previous: dict[str, Any], new: dict[str, Any]) -> float:
    """How far the robot's command leaps when it goes over to the new chunk."""
    return float(np.linalg.norm(new["actions"][DELAY] - previous["actions"][EXECUTED + DELAY]))


def test_a_reply_carries_what_the_next_continuation_needs(policy: UnifiedPolicy) -> None:
    observation = libero_observation()
    reply = policy.infer(observation, seed=0)
    assert "rtc" not in reply
    assert reply["model_actions"].dtype == np.float32
    assert reply["model_actions"].shape == (horizon(policy), 32)
    np.testing.assert_array_equal(reply["anchor_state"], observation["observation/state"])


@pytest.mark.parametrize("mode", ["guided_identity", "guided_vjp"])
def test_the_command_leaps_less_where_the_chunk_is_continued(policy: UnifiedPolicy, mode: str) -> None:
    free = guided = 0.0
    for seed in range(3):
        previous = policy.infer(libero_observation(seed), seed=seed)
        plain = policy.infer(libero_observation(seed), seed=100 + seed)
        new = policy.infer(
            libero_observation(seed), seed=100 + seed, chunk_continuation=continuation(previous, mode=mode)
        )
        assert new["rtc"]["mode"] == mode
        assert new["rtc"]["note"] is None
        free += jump(previous, plain)
        guided += jump(previous, new)
    assert guided < free / 4


def test_held_actions_are_those_that_the_robot_executes_meanwhile(policy: UnifiedPolicy) -> None:
    previous = policy.infer(libero_observation(1), seed=1)
    moved = libero_observation(1)
    moved["observation/state"] = moved["observation/state"] + 0.3
    old = previous["actions"][EXECUTED : EXECUTED + DELAY]
    trained = policy.infer(moved, seed=9, chunk_continuation=continuation(previous, mode="trained"))
    np.testing.assert_allclose(trained["actions"][:DELAY], old, atol=1e-5)
    guided = policy.infer(moved, seed=9, chunk_continuation=continuation(previous, mode="guided_identity"))
    free = policy.infer(moved, seed=9)
    errors = [np.abs(reply["actions"][:DELAY] - old).max() for reply in (guided, free)]
    assert errors[0] < errors[1] / 4


def test_the_chunk_of_the_robot_gives_the_same_as_the_chunk_of_the_model(policy: UnifiedPolicy) -> None:
    previous = policy.infer(libero_observation(1), seed=1)
    by_model = policy.infer(libero_observation(2), seed=2, chunk_continuation=continuation(previous))
    by_robot = policy.infer(
        libero_observation(2),
        seed=2,
        chunk_continuation=ChunkContinuation(delay=DELAY, action_prefix=previous["actions"][EXECUTED:]),
    )
    np.testing.assert_allclose(by_robot["actions"], by_model["actions"], atol=1e-4)


@pytest.mark.parametrize("mode", ["guided_identity", "guided_vjp", "trained"])
def test_a_plain_request_after_a_continued_one_is_as_if_it_came_first(
    policy: UnifiedPolicy, mode: str
) -> None:
    first = policy.infer(libero_observation(), seed=3)
    policy.infer(libero_observation(), seed=4, chunk_continuation=continuation(first, mode=mode))
    again = policy.infer(libero_observation(), seed=3)
    assert again["model_actions"].tobytes() == first["model_actions"].tobytes()


@pytest.mark.parametrize("options", [{"mode": "off"}, {"model_actions": None, "anchor_state": None}])
def test_a_continuation_of_nothing_is_plain(policy: UnifiedPolicy, options: dict[str, Any]) -> None:
    first = policy.infer(libero_observation(), seed=3)
    again = policy.infer(libero_observation(), seed=3, chunk_continuation=continuation(first, **options))
    assert again["rtc"]["mode"] == "off"
    assert again["model_actions"].tobytes() == first["model_actions"].tobytes()


def test_two_robots_in_turn_are_continued_as_if_each_were_alone(policy: UnifiedPolicy) -> None:
    def run(robots: tuple[int, ...], interleaved: bool) -> dict[int, list[bytes]]:
        chunks: dict[int, list[bytes]] = {robot: [] for robot in robots}
        previous: dict[int, dict[str, Any]] = {}
        turns = [(turn, robot) for turn in range(3) for robot in robots]
        for turn, robot in turns if interleaved else sorted(turns, key=lambda item: item[1]):
            options = {"chunk_continuation": continuation(previous[robot])} if turn else {}
            previous[robot] = policy.infer(
                libero_observation(10 * robot + turn), seed=10 * robot + turn, **options
            )
            chunks[robot].append(previous[robot]["model_actions"].tobytes())
        return chunks

    assert run((1, 2), interleaved=True) == run((1, 2), interleaved=False)


def test_metadata_says_what_can_be_requested(policy: UnifiedPolicy) -> None:
    rtc = policy.metadata["vlad"]["rtc"]
    assert rtc["modes"] == ["guided_identity", "guided_vjp", "trained"]
    assert rtc["trained_max_delay"] == 6
    assert rtc["beta"] == 10.0


def test_untrained_checkpoints_do_not_offer_trained_mode(tmp_path: pathlib.Path) -> None:
    policy = UnifiedPolicy(str(write_libero(tmp_path)), device="cpu")
    assert policy.metadata["vlad"]["rtc"]["modes"] == ["guided_identity", "guided_vjp"]
    reply = policy.infer(libero_observation())
    with pytest.raises(ObservationError, match="'vlad/rtc/mode'"):
        policy.infer(
            libero_observation(),
            chunk_continuation=ChunkContinuation(
                delay=1, model_actions=reply["model_actions"], mode="trained"
            ),
        )


def test_vjp_and_identity_differ_and_both_work_without_kv_cache(tmp_path: pathlib.Path) -> None:
    directory = str(write_libero(tmp_path))
    chunks: dict[tuple[str, bool], np.ndarray[Any, Any]] = {}
    for cached in (True, False):
        policy = UnifiedPolicy(directory, device="cpu", enable_kv_cache=cached)
        for mode in ("guided_identity", "guided_vjp"):
            chunks[mode, cached] = policy.infer(
                libero_observation(),
                seed=1,
                chunk_continuation=ChunkContinuation(
                    delay=2,
                    action_prefix=np.zeros((6, 7)),
                    mode=mode,  # type: ignore[arg-type]
                ),
            )["model_actions"]
    for mode in ("guided_identity", "guided_vjp"):
        np.testing.assert_allclose(chunks[mode, True], chunks[mode, False], atol=1e-5)
    assert np.abs(chunks["guided_identity", True] - chunks["guided_vjp", True]).max() > 1e-4
