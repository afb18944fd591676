"""What a robot sees on the wire, against the real daemon with a scripted policy."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.frames import Frame, Opcode

from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot, open_connection, pack
from tests.support.scripted_worker import expected_chunk
from vlad_server.rate_limit import MOST_MISTAKES


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_scripted_daemon("--max-message-bytes", str(8 << 20)) as daemon:
        daemon.wait_ready()
        yield daemon


@pytest.mark.parametrize("path", ["", "/", "/any/path", "/policy?robot=7"])
def test_every_path_leads_to_the_policy(daemon: Daemon, path: str) -> None:
    with connect_robot(daemon.port, path=path) as robot:
        assert robot.infer(libero_observation())["actions"].shape == (10, 7)


def test_metadata_is_one_binary_frame_before_anything_else(daemon: Daemon) -> None:
    with open_connection(daemon.port) as connection:
        assert isinstance(connection.recv(10), bytes)
        with pytest.raises(TimeoutError):
            connection.recv(0.2)


def test_compression_is_never_negotiated(daemon: Daemon) -> None:
    with open_connection(daemon.port, compression="deflate") as connection:
        assert connection.protocol.extensions == []


def test_replies_have_openpi_keys_and_float64_actions(daemon: Daemon) -> None:
    observation = libero_observation()
    with connect_robot(daemon.port) as robot:
        first, second, third = (robot.infer(observation) for _ in range(3))
    for reply in (first, second, third):
        assert set(reply) == {"actions", "policy_timing", "server_timing"}
        assert reply["actions"].dtype == np.dtype("<f8")
        np.testing.assert_array_equal(reply["actions"], expected_chunk(observation["observation/state"], 7))
        assert all(isinstance(value, float) for value in reply["policy_timing"].values())
        assert all(isinstance(value, float) for value in reply["server_timing"].values())
    assert set(second["server_timing"]) - set(first["server_timing"]) == {"prev_total_ms"}
    assert set(third["server_timing"]) == set(second["server_timing"])
    assert set(third["policy_timing"]) == set(first["policy_timing"])


def test_pipelined_requests_are_answered_in_order(daemon: Daemon) -> None:
    observations = [libero_observation(seed) for seed in range(20)]
    with connect_robot(daemon.port) as robot:
        for observation in observations:
            robot.send(observation)
        for observation in observations:
            np.testing.assert_array_equal(
                robot.receive()["actions"], expected_chunk(observation["observation/state"], 7)
            )


def test_a_client_may_talk_before_it_has_read_the_metadata(daemon: Daemon) -> None:
    with open_connection(daemon.port) as connection:
        connection.send(pack(libero_observation()))
        assert isinstance(connection.recv(10), bytes)
        assert isinstance(connection.recv(10), bytes)


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in libero_observation().items() if name != key}


MISTAKES: dict[str, tuple[Any, list[str]]] = {
    "missing image": (_without("observation/image"), ["'observation/image'", "[H, W, 3]", "nothing"]),
    "missing state": (_without("observation/state"), ["'observation/state'", "8 finite numbers", "nothing"]),
    "missing prompt": (_without("prompt"), ["'prompt'", "no default prompt", "nothing"]),
    "state too wide": (
        {**libero_observation(), "observation/state": np.zeros(9)},
        ["'observation/state'", "8 finite", "(9,)"],
    ),
    "state with NaN": (
        {**libero_observation(), "observation/state": np.array([0, 0, np.nan, 0, 0, 0, 0, 0])},
        ["'observation/state'", "non-finite values at index [2]"],
    ),
    "batched image": (
        {**libero_observation(), "observation/image": np.zeros((1, 224, 224, 3), np.uint8)},
        ["'observation/image'", "uint8 array of shape (1, 224, 224, 3)"],
    ),
    "integer image": (
        {**libero_observation(), "observation/image": np.zeros((224, 224, 3), np.int64)},
        ["'observation/image'", "int64"],
    ),
    "prompt is a number": ({**libero_observation(), "prompt": 5}, ["'prompt'", "int"]),
    "list payload": ([1, 2], ["expected a map", "list"]),
    "number key": ({5: 1}, ["int"]),
    "processing refuses": (libero_observation(prompt="refuse"), ["'prompt'", "another prompt"]),
}


@pytest.mark.parametrize(("observation", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gets_one_text_frame_that_names_it_then_1011(
    daemon: Daemon, observation: Any, words: list[str]
) -> None:
    with connect_robot(daemon.port) as robot:
        robot.send(observation)
        text = robot.receive_error()
        for word in words:
            assert word in text.splitlines()[0]
        assert "Traceback" not in text
        with pytest.raises(ConnectionClosedError) as caught:
            robot.receive()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1011


@pytest.mark.parametrize("frame", ["a text frame", b"", b"\xc1garbage"], ids=["text", "empty", "garbage"])
def test_unreadable_frames_get_a_text_frame_then_1011(daemon: Daemon, frame: str | bytes) -> None:
    with connect_robot(daemon.port) as robot:
        robot.connection.send(frame)
        assert robot.receive_error()
        with pytest.raises(ConnectionClosedError) as caught:
            robot.receive()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1011


@pytest.mark.parametrize(
    ("prompt", "word"), [("raise", "the script says so"), ("bug", "ZeroDivisionError"), ("nan", "non-finite")]
)
def test_an_engine_failure_is_told_and_costs_nobody_else_anything(
    daemon: Daemon, prompt: str, word: str
) -> None:
    with connect_robot(daemon.port) as bystander, connect_robot(daemon.port) as robot:
        robot.send(libero_observation(prompt=prompt))
        text = robot.receive_error()
        assert word in text
        assert "Traceback" not in text
        assert bystander.infer(libero_observation())["actions"].shape == (10, 7)


def test_an_oversized_message_is_refused_with_1009(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        with contextlib.suppress(ConnectionClosed):
            robot.connection.send(bytes(9 << 20))
        with pytest.raises(ConnectionClosed) as caught:
            robot.receive()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009


def test_the_limit_of_a_message_is_exact(daemon: Daemon) -> None:
    def message(size: int) -> bytes:
        without = len(pack({**libero_observation(), "ignored": bytes(1 << 20)})) - (1 << 20)
        packed = pack({**libero_observation(), "ignored": bytes(size - without)})
        assert len(packed) == size
        return packed

    for size in ((8 << 20) - 1, 8 << 20):
        with connect_robot(daemon.port) as robot:
            robot.connection.send(message(size))
            assert robot.receive()["actions"].shape == (10, 7)
    with connect_robot(daemon.port) as robot:
        with contextlib.suppress(ConnectionClosed):
            robot.connection.send(message((8 << 20) + 1))
        with pytest.raises(ConnectionClosed) as caught:
            robot.receive()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1009


def _end(port: int, what: str) -> None:
    with connect_robot(port) as robot, contextlib.suppress(ConnectionClosed):
        if what == "vanish":
            robot.connection.close_socket()
        elif what != "leave":
            robot.connection.send(bytes(3 << 20) if what == "flood" else b"\xff\xfe", text=what == "text")
            while True:
                robot.connection.recv(10)


def test_closed_connections_are_counted_under_their_code() -> None:
    codes = {"leave": "1000", "vanish": "1006", "text": "1007", "flood": "1009", "garbage": "1011"}
    with start_scripted_daemon("--max-message-bytes", str(2 << 20)) as daemon:
        daemon.wait_ready()
        for what, code in codes.items():
            _end(daemon.port, what)
            daemon.wait_for_log(f"closed with code {code}")
            assert daemon.metric("vlad_disconnects_total", code=code) == 1, what


def test_requests_arrive_whole_however_the_network_cuts_them(daemon: Daemon) -> None:
    observations = [libero_observation(seed) for seed in range(3)]
    frames = [bytes(Frame(Opcode.BINARY, pack(each)).serialize(mask=True)) for each in observations]
    ping = bytes(Frame(Opcode.PING, b"still there?").serialize(mask=True))
    whole = pack(observations[2])
    in_fragments = b"".join(
        bytes(Frame(opcode, part, fin).serialize(mask=True))
        for opcode, part, fin in (
            (Opcode.BINARY, whole[:100_000], False),
            (Opcode.CONT, whole[100_000:], True),
        )
    )
    data = frames[0] + ping + frames[1] + in_fragments + frames[2]
    with connect_robot(daemon.port) as robot:
        edges = [0, 5, 13, 14, 15, 100_001, len(frames[0]) - 1, len(frames[0]) + 3, 700_000, len(data)]
        for start, end in itertools.pairwise(edges):
            robot.connection.socket.sendall(data[start:end])
            time.sleep(0.02)
        for observation in (*observations, observations[2]):
            chunk = expected_chunk(observation["observation/state"], 7)
            np.testing.assert_array_equal(robot.receive()["actions"], chunk)


def test_a_connection_that_ends_within_a_request_is_forgotten(daemon: Daemon) -> None:
    frame = bytes(Frame(Opcode.BINARY, pack(libero_observation())).serialize(mask=True))
    before = daemon.metric("vlad_requests_total", outcome="ok")
    with connect_robot(daemon.port) as robot:
        robot.connection.socket.sendall(frame[:200_000])
        robot.connection.socket.shutdown(socket.SHUT_RDWR)
    with connect_robot(daemon.port) as robot:
        robot.infer(libero_observation())
    assert daemon.metric("vlad_requests_total", outcome="ok") == before + 1


def test_large_images_are_fine(daemon: Daemon) -> None:
    observation = {**libero_observation(), "observation/image": np.zeros((1080, 1920, 3), np.uint8)}
    with connect_robot(daemon.port) as robot:
        assert robot.infer(observation)["actions"].shape == (10, 7)


def test_unknown_keys_are_ignored(daemon: Daemon) -> None:
    observation = {**libero_observation(), "actions": np.zeros(7), "extra": {"deep": [1, 2, np.zeros(3)]}}
    with connect_robot(daemon.port) as robot:
        assert robot.infer(observation)["actions"].shape == (10, 7)


def test_connections_survive_mistakes_where_the_operator_wants_it() -> None:
    with start_scripted_daemon("--keep-connection-on-error") as daemon, connect_robot(daemon.port) as robot:
        robot.send(_without("prompt"))
        assert "'prompt'" in robot.receive_error()
        assert robot.infer(libero_observation())["actions"].shape == (10, 7)


def test_who_only_makes_mistakes_is_sent_away_even_then() -> None:
    with start_scripted_daemon("--keep-connection-on-error") as daemon, connect_robot(daemon.port) as robot:
        for _ in range(MOST_MISTAKES):
            robot.connection.send(b"no msgpack")
            assert "not msgpack" in robot.receive_error()
        with pytest.raises(ConnectionClosed) as caught:
            robot.receive()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1008
        with connect_robot(daemon.port) as again:
            assert again.infer(libero_observation())["actions"].shape == (10, 7)


def test_tracebacks_reach_clients_in_debug_mode_only() -> None:
    with start_scripted_daemon("--debug") as daemon, connect_robot(daemon.port) as robot:
        robot.send(_without("prompt"))
        text = robot.receive_error()
        assert "'prompt'" in text.splitlines()[0]
        assert "Traceback" in text


def test_default_prompt_of_the_command_line_serves_requests_without_one() -> None:
    with (
        start_scripted_daemon("--default-prompt", "fold the towel") as daemon,
        connect_robot(daemon.port) as robot,
    ):
        assert robot.infer(_without("prompt"))["actions"].shape == (10, 7)


def test_api_key_is_asked_for_when_configured() -> None:
    with start_scripted_daemon("--api-key", "s3cret") as daemon:
        daemon.wait_ready()
        for headers in (
            {},
            {"Authorization": "Api-Key wrong"},
            {"Authorization": "Api-Key "},
            {"Authorization": "s3cret"},
        ):
            with pytest.raises(InvalidStatus) as caught:
                open_connection(daemon.port, additional_headers=headers)
            assert caught.value.response.status_code == 401
        for scheme in ("Api-Key", "Bearer"):
            with connect_robot(
                daemon.port, additional_headers={"Authorization": f"{scheme} s3cret"}
            ) as robot:
                robot.infer(libero_observation())
        assert daemon.http("/healthz")[0] == 200
        assert "s3cret" not in daemon.log()
        assert daemon.metric("vlad_connection_attempts_total", outcome="unauthorized") == 4


def test_authorization_is_ignored_without_a_configured_key(daemon: Daemon) -> None:
    with connect_robot(daemon.port, additional_headers={"Authorization": "Api-Key anything"}) as robot:
        robot.infer(libero_observation())
