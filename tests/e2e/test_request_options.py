"""Ids, sessions, episodes, deadlines and continuations over the wire."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import Robot, connect_robot
from tests.support.scripted_worker import expected_chunk, expected_model_actions

ADDITIONS = {
    *("chunk_id", "session", "observation_id", "observation_age_ms"),
    *("superseded", "warnings", "rtc", "deadline_missed"),
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_scripted_daemon("--session-seconds", "1.5", continues=True) as daemon:
        daemon.wait_ready()
        yield daemon


def _observation(seed: int = 0, prompt: str = "do it", **options: Any) -> dict[str, Any]:
    keys = {f"vlad/{name}": value for name, value in options.items()}
    return {**libero_observation(seed, prompt=prompt), **keys}


def _chunk(observation: dict[str, Any]) -> np.ndarray[Any, Any]:
    return expected_chunk(observation["observation/state"], 7)


def _given_to_the_policy(reply: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = json.loads(reply["rtc"]["note"])
    return given


def test_the_metadata_says_what_the_daemon_can_do(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        assert robot.metadata["vlad"] == {
            "protocol": 1,
            "streaming": True,
            "deadlines": True,
            "session_ttl_s": 1.5,
            "image_encodings": ["jpeg", "png"],
            "doctor": True,
            "rtc": {"modes": ["guided_identity"], "default_mode": "guided_identity"},
        }


def test_a_request_without_options_gets_the_reply_that_it_always_got(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        for extra in ({}, {"vlad/seed": 3}):
            reply = robot.infer({**libero_observation(), **extra})
            assert set(reply) == {"actions", "policy_timing", "server_timing"}


def test_a_request_with_an_id_gets_it_back_and_chunks_are_counted(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        for number, name in enumerate([7, "seven", 0]):
            observation = _observation(number, observation_id=name)
            reply = robot.infer(observation)
            assert set(reply) == {"actions", "policy_timing", "server_timing"} | ADDITIONS
            assert reply["observation_id"] == name
            assert reply["chunk_id"] == number
            assert reply["session"] is None
            assert reply["superseded"] == reply["warnings"] == []
            assert reply["rtc"] is None
            assert reply["deadline_missed"] is False
            assert 0 < reply["observation_age_ms"] <= reply["server_timing"]["total_ms"]
            np.testing.assert_array_equal(reply["actions"], _chunk(observation))


BAD_OPTIONS = {
    "observation_id": [-1, 1.5, "x" * 129, [1], True],
    "session": ["", "x" * 129, 5],
    "reset": [1, "yes"],
    "deadline_ms": [0, -1, "soon", float("nan"), True, 1e9],
    "remaining": [-1, 1.5],
    "control_hz": [0, float("inf"), "fast"],
    "stream": [0, "no"],
    "rtc": [
        *(3, {}, {"prev_chunk_id": 0}, {"executed": 0}, {"prev_chunk_id": -1, "executed": 0, "delay": 1}),
        *({"prev_chunk_id": 0, "executed": 0}, {"prev_chunk_id": 0, "executed": 0, "delay": 1, "x": 1}),
        {"action_prefix": np.zeros((2, 7))},
        {"action_prefix": np.zeros(7), "delay": 1},
        {"action_prefix": np.zeros((2, 7)), "prev_chunk_id": 0, "executed": 0, "delay": 1},
        *(
            {"action_prefix": np.zeros((2, 7)), "delay": 1, name: "?"}
            for name in ("mode", "beta", "schedule")
        ),
        {"action_prefix": np.full((2, 7), np.nan), "delay": 1},
    ],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in BAD_OPTIONS.items() for value in values],
    ids=lambda value: str(value)[:24],
)
def test_an_option_that_does_not_fit_gets_one_error_that_names_it(
    daemon: Daemon, key: str, value: Any
) -> None:
    with connect_robot(daemon.port) as robot:
        robot.send(_observation(**{key: value}))
        text = robot.receive_error()
        assert text.startswith(f"invalid observation: key 'vlad/{key}") or key == "remaining"
        assert "vlad/" in text
        assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("observation", "code"),
    [
        ({**libero_observation(), "observation/state": np.zeros(9)}, "invalid"),
        (libero_observation(prompt="refuse"), "invalid"),
        (libero_observation(prompt="raise"), "engine"),
        (libero_observation(prompt="nan"), "engine"),
        (libero_observation(prompt="die"), "worker_lost"),
    ],
    ids=["check", "processing", "engine", "nan", "worker"],
)
def test_errors_of_requests_with_an_id_are_maps_and_leave_the_connection_open(
    daemon: Daemon, observation: dict[str, Any], code: str
) -> None:
    with connect_robot(daemon.port) as robot:
        failure = robot.infer({**observation, "vlad/observation_id": 5})
        assert set(failure) == {"error", "code", "observation_id"}
        assert (failure["code"], failure["observation_id"]) == (code, 5)
        assert robot.infer(libero_observation())["actions"].shape == (10, 7)


def _deadline(robot: Robot, prompt: str, deadline_ms: float) -> dict[str, Any]:
    reply: dict[str, Any] = robot.infer(
        _observation(prompt=prompt, deadline_ms=deadline_ms, observation_id=1)
    )
    return reply


def test_a_deadline_that_cannot_be_kept_is_answered_at_once_and_nothing_is_computed() -> None:
    with start_scripted_daemon() as daemon, connect_robot(daemon.port) as busy:
        busy.send(libero_observation(prompt="sleep 1"))
        time.sleep(0.2)
        with connect_robot(daemon.port) as robot:
            sent = time.monotonic()
            failure = _deadline(robot, "sleep 1", 100)
            assert failure["code"] == "expired"
            assert "deadline_ms" in failure["error"]
            assert time.monotonic() - sent < 0.5
            busy.receive()
            assert _deadline(robot, "do it", 10_000)["deadline_missed"] is False
        assert daemon.metric("vlad_requests_total", outcome="expired") == 1


def test_a_request_that_is_known_to_come_too_late_is_not_begun() -> None:
    with start_scripted_daemon(infer_s=0.2) as daemon, connect_robot(daemon.port) as robot:
        robot.infer(libero_observation())
        assert _deadline(robot, "do it", 100)["code"] == "expired"
        assert _deadline(robot, "do it", 5000)["actions"].shape == (10, 7)


def test_a_chunk_that_took_longer_than_expected_says_that_it_is_late() -> None:
    with start_scripted_daemon() as daemon, connect_robot(daemon.port) as robot:
        assert _deadline(robot, "sleep 0.3", 200)["deadline_missed"] is True


def test_a_full_queue_answers_busy_and_keeps_the_connection() -> None:
    with start_scripted_daemon("--max-waiting", "2") as daemon:
        daemon.wait_ready()
        contexts = [connect_robot(daemon.port) for _ in range(6)]
        robots = [context.__enter__() for context in contexts]
        for number, robot in enumerate(robots):
            robot.send(_observation(prompt="sleep 0.5", observation_id=number))
            time.sleep(0.05)
        codes = [robot.receive().get("code") for robot in robots]
        # One computes, one lies ready beside it, two wait.
        assert codes == [None, None, None, None, "busy", "busy"]
        robots[5].send(libero_observation())
        assert robots[5].receive()["actions"].shape == (10, 7)
        for context in contexts:
            context.__exit__(None, None, None)


def test_a_stock_client_is_told_busy_in_a_text_frame_and_may_try_again() -> None:
    with start_scripted_daemon("--max-waiting", "1") as daemon:
        daemon.wait_ready()
        contexts = [connect_robot(daemon.port) for _ in range(4)]
        robots = [context.__enter__() for context in contexts]
        for robot in robots:
            robot.send(libero_observation(prompt="sleep 0.3"))
            time.sleep(0.05)
        assert robots[3].receive_error().startswith("busy: 1 requests wait")
        assert robots[0].receive()["actions"].shape == (10, 7)
        assert robots[3].infer(libero_observation())["actions"].shape == (10, 7)
        for context in contexts:
            context.__exit__(None, None, None)


def test_two_integers_are_enough_to_continue_a_chunk(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        first = _observation(1, observation_id=0)
        chunk_id = robot.infer(first)["chunk_id"]
        rtc = {"prev_chunk_id": chunk_id, "executed": 4, "delay": 2, "prefix_end": 5, "schedule": "linear"}
        reply = robot.infer(_observation(2, rtc=rtc))
        given = _given_to_the_policy(reply)
        np.testing.assert_array_equal(given["leftover"], expected_model_actions(_chunk(first))[4:])
        np.testing.assert_array_equal(given["anchor"], first["observation/state"])
        assert {key: reply["rtc"][key] for key in ("delay", "prefix_end", "schedule")} == {
            "delay": 2,
            "prefix_end": 5,
            "schedule": "linear",
        }


def test_a_robot_may_send_its_leftover_itself(daemon: Daemon) -> None:
    prefix = np.arange(21, dtype=np.float64).reshape(3, 7)
    with connect_robot(daemon.port) as robot:
        reply = robot.infer(_observation(rtc={"action_prefix": prefix, "delay": 1}))
        np.testing.assert_array_equal(_given_to_the_policy(reply)["leftover"], prefix)


def test_the_server_estimates_the_delay_from_the_latencies_of_the_session(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        for _ in range(3):
            reply = robot.infer(_observation(prompt="sleep 0.1", observation_id=0))
        rtc = {"prev_chunk_id": reply["chunk_id"], "executed": 0}
        reply = robot.infer(_observation(rtc=rtc, control_hz=50.0))
        assert 5 <= reply["rtc"]["delay"] <= 12


@pytest.mark.parametrize(
    ("rtc", "note"),
    [
        ({"prev_chunk_id": 77, "executed": 0, "delay": 1}, "chunk 77 is not kept (any more)"),
        ({"prev_chunk_id": 0, "executed": 0, "delay": 1, "mode": "off"}, None),
    ],
)
def test_a_chunk_with_nothing_to_continue_stands_alone_and_says_why(
    daemon: Daemon, rtc: dict[str, Any], note: str | None
) -> None:
    with connect_robot(daemon.port) as robot:
        robot.infer(_observation(observation_id=0))
        reply = robot.infer(_observation(rtc=rtc))
        assert (reply["rtc"]["mode"], reply["rtc"]["note"]) == ("off", note)
        assert reply["warnings"] == ([] if note is None else [note])


def test_a_policy_that_cannot_continue_chunks_says_so() -> None:
    with start_scripted_daemon() as daemon, connect_robot(daemon.port) as robot:
        assert robot.metadata["vlad"]["rtc"] is None
        reply = robot.infer(_observation(rtc={"prev_chunk_id": 0, "executed": 0, "delay": 1}))
        assert reply["rtc"]["note"] == "this policy cannot continue chunks"


def _continues(robot: Robot, session: str, chunk_id: int) -> bool:
    rtc = {"prev_chunk_id": chunk_id, "executed": 1, "delay": 0}
    mode: str = robot.infer(_observation(session=session, rtc=rtc))["rtc"]["mode"]
    return mode != "off"


def test_a_session_survives_a_reconnect_for_a_while(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        reply = robot.infer(_observation(session="arm 1"))
        assert reply["session"] == "arm 1"
    with connect_robot(daemon.port) as robot:
        assert _continues(robot, "arm 1", reply["chunk_id"])
        latest = robot.infer(_observation(session="arm 1"))["chunk_id"]
        assert latest == reply["chunk_id"] + 2
    time.sleep(1.8)
    with connect_robot(daemon.port) as robot:
        assert not _continues(robot, "arm 1", latest)


def test_the_worker_may_die_in_between(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        chunk_id = robot.infer(_observation(session="arm 2"))["chunk_id"]
        assert robot.infer(_observation(prompt="die", observation_id=1))["code"] == "worker_lost"
        assert _continues(robot, "arm 2", chunk_id)


def test_an_episode_knows_nothing_of_the_one_before(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        chunk_id = robot.infer(_observation(session="arm 3"))["chunk_id"]
        rtc = {"prev_chunk_id": chunk_id, "executed": 1, "delay": 0}
        reply = robot.infer(_observation(session="arm 3", reset=True, rtc=rtc))
        assert reply["rtc"]["mode"] == "off"
        assert reply["chunk_id"] == chunk_id + 1


def test_sessions_see_nothing_of_each_other(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as left, connect_robot(daemon.port) as right:
        first = left.infer(_observation(1, session="left"))
        second = right.infer(_observation(2, session="right"))
        assert first["chunk_id"] == second["chunk_id"] == 0
        rtc = {"prev_chunk_id": 0, "executed": 0, "delay": 0}
        given = _given_to_the_policy(right.infer(_observation(3, session="right", rtc=rtc)))
        np.testing.assert_array_equal(given["anchor"], _observation(2)["observation/state"])


def test_a_session_belongs_to_the_connection_that_used_it_last(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as old, connect_robot(daemon.port) as new:
        chunk_id = old.infer(_observation(session="arm 4"))["chunk_id"]
        old.send(_observation(session="arm 4", prompt="sleep 0.3", observation_id=3))
        time.sleep(0.1)
        assert _continues(new, "arm 4", chunk_id)
        assert old.receive()["code"] == "reset"
        failure = old.infer(_observation(session="arm 4", observation_id=4))
        assert failure["code"] == "invalid"
        assert "vlad/session" in failure["error"]
        assert _continues(new, "arm 4", chunk_id + 1)
