from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from websockets.server import ServerProtocol

from tests.support.reference_server import ConnectionDroppedError, ReferenceServer, counting_policy, encode
from vlad_client import (
    PolicyConnectionError,
    PolicyServerError,
    PolicyTimeoutError,
    WebsocketClientPolicy,
    WireError,
)

HOST = "127.0.0.1"
GENEROUS_S = 20.0


def _client(port: int, **options: Any) -> WebsocketClientPolicy:
    return WebsocketClientPolicy(
        HOST, port, **{"connect_timeout_s": GENEROUS_S, "request_timeout_s": GENEROUS_S, **options}
    )


def _observation(number: float) -> dict[str, Any]:
    return {"observation/state": np.full(8, number), "prompt": "do something"}


def _number(reply: dict[str, Any]) -> float:
    return float(reply["actions"][0, 0])


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Faulty:
    """A policy that fails in the way given, so many times, and then computes."""

    def __init__(self, fault: Any, times: int = 1) -> None:
        self._fault = fault
        self._left = times

    def __call__(self, observation: dict[str, Any]) -> Any:
        if self._left:
            self._left -= 1
            return self._fault()
        return counting_policy(observation)


def _drop() -> Any:
    raise ConnectionDroppedError


def _fail() -> Any:
    raise KeyError("observation/image")


def test_metadata_and_replies_come_through() -> None:
    with ReferenceServer(metadata={"reset_pose": [0, -1.5]}) as server, _client(server.port) as policy:
        assert policy.get_server_metadata() == {"reset_pose": [0, -1.5]}
        reply = policy.infer(_observation(4))
        assert reply["actions"].shape == (10, 7)
        assert reply["actions"].dtype == np.float64
        assert reply["policy_timing"] == {"infer_ms": 1.5}
        np.testing.assert_array_equal(server.observations[0]["observation/state"], np.full(8, 4.0))
        policy.reset()
        assert _number(policy.infer(_observation(5))) == 5
        assert server.connections == 1


@pytest.mark.parametrize("scheme", ["ws://", "WS-name"])
def test_the_host_may_be_a_whole_address(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: resolve(HOST if host == "ws-1" else host, *rest, **more),
    )
    with ReferenceServer() as server:
        host = f"ws://{HOST}:{server.port}/any/path" if scheme == "ws://" else "ws-1"
        port = None if scheme == "ws://" else server.port
        with WebsocketClientPolicy(host, port, connect_timeout_s=GENEROUS_S) as policy:
            assert _number(policy.infer(_observation(1))) == 1


def test_messages_travel_uncompressed_and_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy"):
        monkeypatch.setenv(variable, f"http://{HOST}:{_free_port()}")
    with ReferenceServer() as server, _client(server.port):
        assert "sec-websocket-extensions" not in {name.lower() for name in server.handshakes[0]}


def test_replies_may_be_large() -> None:
    actions = np.random.default_rng(0).random((1000, 1000))
    with ReferenceServer(lambda observation: {"actions": actions}) as server, _client(server.port) as policy:
        np.testing.assert_array_equal(policy.infer({})["actions"], actions)


def test_the_api_key_travels_in_the_authorization_header() -> None:
    with ReferenceServer(api_key="secret") as server, _client(server.port, api_key="secret"):
        assert server.handshakes[0]["Authorization"] == "Api-Key secret"


def test_a_wrong_api_key_fails_at_once_with_the_words_of_the_server() -> None:
    with ReferenceServer(api_key="secret") as server:
        with pytest.raises(PolicyConnectionError, match="refused the connection with HTTP 401") as caught:
            _client(server.port, api_key="guess")
        assert not caught.value.retryable
        assert len(server.handshakes) == 1


def test_a_client_waits_for_a_server_that_starts_later(caplog: pytest.LogCaptureFixture) -> None:
    port = _free_port()
    with ThreadPoolExecutor() as pool:
        with caplog.at_level(logging.WARNING, logger="vlad_client"):
            connecting = pool.submit(_client, port)
            time.sleep(0.3)
            assert not connecting.done()
        with ReferenceServer(port=port), connecting.result() as policy:
            assert _number(policy.infer(_observation(3))) == 3
    assert "still waiting for the server" in caplog.messages[0]


def test_a_client_waits_while_the_server_is_unavailable() -> None:
    with ReferenceServer(unavailable_first=2) as server, _client(server.port):
        assert len(server.handshakes) == 3


def test_a_client_waits_for_metadata_that_are_held_back() -> None:
    gate = threading.Event()
    with ReferenceServer(metadata={"ready": True}, metadata_gate=gate) as server:
        threading.Timer(0.3, gate.set).start()
        started = time.monotonic()
        with _client(server.port) as policy:
            assert time.monotonic() - started >= 0.25
            assert policy.get_server_metadata() == {"ready": True}
        assert server.connections == 1


def test_waiting_for_a_server_ends_with_the_connect_timeout() -> None:
    started = time.monotonic()
    with pytest.raises(PolicyTimeoutError, match=r"no policy server within 0.4 s: cannot connect"):
        _client(_free_port(), connect_timeout_s=0.4)
    assert time.monotonic() - started < 2


def test_waiting_for_metadata_ends_with_the_connect_timeout() -> None:
    gate = threading.Event()
    with ReferenceServer(metadata_gate=gate) as server:
        with pytest.raises(PolicyTimeoutError, match=r"is up, but its policy was not ready within 0.4 s"):
            _client(server.port, connect_timeout_s=0.4)
        gate.set()


def test_an_error_in_place_of_metadata_is_told() -> None:
    with ReferenceServer(metadata="no norm stats") as server:
        with pytest.raises(PolicyServerError, match="no norm stats"):
            _client(server.port)
        assert server.wait_until_deserted(GENEROUS_S), "the connection was left open"


def test_an_unknown_host_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(PolicyConnectionError, match="host of ws://robot-lab:8000 is unknown"):
        WebsocketClientPolicy("robot-lab", 8000, connect_timeout_s=GENEROUS_S)


@contextlib.contextmanager
def _raw_server(answer: Any) -> Iterator[int]:
    """Hands each accepted socket to `answer`, one after another."""
    with socket.create_server((HOST, 0)) as listener, ThreadPoolExecutor() as pool:
        stopping = threading.Event()

        def accept() -> None:
            while not stopping.is_set():
                endpoint, _ = listener.accept()
                with endpoint:
                    if not stopping.is_set():
                        answer(endpoint)

        accepting = pool.submit(accept)
        try:
            yield listener.getsockname()[1]
        finally:
            stopping.set()
            socket.create_connection(listener.getsockname()).close()
            accepting.result()


def test_another_service_on_the_port_fails_at_once() -> None:
    def smtp(endpoint: socket.socket) -> None:
        endpoint.recv(4096)
        endpoint.sendall(b"220 mail.example.com ESMTP\r\n")
        endpoint.recv(4096)

    refused = pytest.raises(PolicyConnectionError, match="does not answer as a policy server")
    with _raw_server(smtp) as port, refused:
        _client(port)


def test_a_connection_that_is_dropped_during_the_handshake_is_tried_again() -> None:
    dropped: list[None] = []

    def drop(endpoint: socket.socket) -> None:
        endpoint.recv(4096)
        dropped.append(None)

    given_up = pytest.raises(PolicyTimeoutError, match="no policy server within 1 s")
    with _raw_server(drop) as port, given_up:
        _client(port, connect_timeout_s=1.0)
    assert len(dropped) > 1


@pytest.mark.parametrize("keep", [False, True])
def test_a_server_error_carries_the_text_and_leaves_the_client_usable(keep: bool) -> None:
    with ReferenceServer(keep_connection_on_error=keep) as server, _client(server.port) as policy:
        for number in range(10):
            server.policy = Faulty(_fail)
            with pytest.raises(
                PolicyServerError, match=r"Error in inference server:\n(.|\n)*KeyError"
            ) as caught:
                policy.infer({})
            assert caught.value.server_message.startswith("Traceback")
            assert isinstance(caught.value, RuntimeError)
            assert _number(policy.infer(_observation(number))) == number
        assert server.connections == (1 if keep else 11)


def test_the_close_after_an_error_costs_no_retry() -> None:
    with ReferenceServer() as server, _client(server.port, max_retries=0) as policy:
        for number in range(10):
            server.policy = Faulty(_fail)
            with pytest.raises(PolicyServerError):
                policy.infer({})
            assert _number(policy.infer(_observation(number))) == number


def test_a_late_reply_is_never_taken_for_that_of_the_next_observation() -> None:
    answering = threading.Event()

    def slow(observation: dict[str, Any]) -> Any:
        if observation["observation/state"][0] == 1:
            answering.wait(GENEROUS_S)
        return counting_policy(observation)

    with ReferenceServer(slow) as server, _client(server.port, request_timeout_s=0.5) as policy:
        started = time.monotonic()
        with pytest.raises(PolicyTimeoutError, match=r"did not answer within 0.5 s"):
            policy.infer(_observation(1))
        assert 0.45 <= time.monotonic() - started < 2
        answering.set()
        assert _number(policy.infer(_observation(2))) == 2


def test_an_interrupted_call_leaves_no_reply_behind() -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(*_: Any) -> None:
        raise Interrupted

    answering = threading.Event()

    def slow(observation: dict[str, Any]) -> Any:
        if observation["observation/state"][0] == 1:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            answering.wait(GENEROUS_S)
        return counting_policy(observation)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with ReferenceServer(slow) as server, _client(server.port) as policy:
            with pytest.raises(Interrupted):
                policy.infer(_observation(1))
            answering.set()
            assert _number(policy.infer(_observation(2))) == 2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_server_that_stops_reading_cannot_hold_a_call_up() -> None:
    stalled = threading.Event()

    def handshake_then_nothing(endpoint: socket.socket) -> None:
        protocol = ServerProtocol()
        protocol.receive_data(endpoint.recv(65536))
        protocol.send_response(protocol.accept(protocol.events_received()[0]))  # type: ignore[arg-type]
        protocol.send_binary(encode({}))
        endpoint.sendall(b"".join(protocol.data_to_send()))
        stalled.wait(GENEROUS_S)

    with _raw_server(handshake_then_nothing) as port, _client(port, request_timeout_s=0.5) as policy:
        started = time.monotonic()
        with pytest.raises(PolicyTimeoutError, match=r"did not answer within 0.5 s"):
            policy.infer({"image": np.zeros(64 << 20, np.uint8)})
        assert time.monotonic() - started < 5
        stalled.set()


def test_an_observation_whose_connection_broke_is_not_sent_again() -> None:
    with ReferenceServer(Faulty(_drop)) as server, _client(server.port) as policy:
        with pytest.raises(PolicyConnectionError, match="broke") as caught:
            policy.infer(_observation(1))
        assert caught.value.retryable
        assert len(server.observations) == 1
        assert _number(policy.infer(_observation(2))) == 2
        assert server.connections == 2


def test_an_observation_is_sent_again_where_the_caller_allows_it() -> None:
    with ReferenceServer(Faulty(_drop, times=2)) as server:
        with _client(server.port, resend_observation=True) as policy:
            assert _number(policy.infer(_observation(7))) == 7
        assert len(server.observations) == 3


def test_resending_is_bounded() -> None:
    with ReferenceServer(Faulty(_drop, times=1000)) as server:
        policy = _client(server.port, resend_observation=True, max_retries=2)
        with policy, pytest.raises(PolicyConnectionError, match="gave up after 3 attempts"):
            policy.infer(_observation(7))
        assert len(server.observations) == 3


def test_a_server_that_restarts_between_calls_is_found_again(caplog: pytest.LogCaptureFixture) -> None:
    with ReferenceServer(metadata={"policy": "one"}) as server:
        policy = _client(server.port)
        assert _number(policy.infer(_observation(1))) == 1
    with policy, ReferenceServer(port=server.port, metadata={"policy": "two"}):
        _until_noticed(policy)
        assert _number(policy.infer(_observation(2))) == 2
        assert policy.get_server_metadata() == {"policy": "two"}
    assert "serves another policy than before" in caplog.text


def _until_noticed(policy: WebsocketClientPolicy) -> None:
    """A broken connection is noticed by a thread of the library; wait until it had its turn."""
    end = time.monotonic() + GENEROUS_S
    while policy._connection is not None and policy._connection.is_open and time.monotonic() < end:
        time.sleep(0.001)


def test_connecting_again_is_bounded_and_can_succeed_later() -> None:
    with ReferenceServer() as server:
        policy = _client(server.port, max_retries=2)
    with policy:
        _until_noticed(policy)
        with pytest.raises(PolicyConnectionError, match="gave up after 3 attempts: cannot connect"):
            policy.infer(_observation(1))
        with ReferenceServer(port=server.port):
            assert _number(policy.infer(_observation(2))) == 2


def test_connecting_again_counts_into_the_request_timeout() -> None:
    with ReferenceServer() as server:
        policy = _client(server.port, request_timeout_s=0.5, max_retries=1000)
    with policy:
        _until_noticed(policy)
        started = time.monotonic()
        with pytest.raises(PolicyTimeoutError, match=r"no policy server within 0.5 s"):
            policy.infer(_observation(1))
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("reply", [b"\xc1", b"\x93\x01\x02\x03"])
def test_a_reply_in_another_format_is_refused_and_the_client_remains_usable(reply: bytes) -> None:
    with ReferenceServer(Faulty(lambda: reply)) as server, _client(server.port) as policy:
        with pytest.raises(WireError):
            policy.infer(_observation(1))
        assert _number(policy.infer(_observation(2))) == 2


def test_an_observation_that_cannot_be_encoded_is_not_sent() -> None:
    with ReferenceServer() as server, _client(server.port) as policy:
        with pytest.raises(ValueError, match="Unsupported dtype"):
            policy.infer({"image": np.array([None])})
        policy.infer(_observation(1))
        assert len(server.observations) == 1
        assert server.connections == 1


def test_calls_from_several_threads_get_their_own_replies() -> None:
    with ReferenceServer() as server, _client(server.port) as policy, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda number: policy.infer(_observation(number)), range(100)))
        assert [_number(reply) for reply in replies] == list(range(100))


def test_a_closed_client_refuses_calls_and_may_be_closed_again() -> None:
    with ReferenceServer() as server:
        policy = _client(server.port)
        policy.close()
        policy.close()
        with pytest.raises(PolicyConnectionError, match="has been closed"):
            policy.infer(_observation(1))
        assert server.observations == []


def test_closing_ends_a_call_that_waits_for_its_reply() -> None:
    asked, answering = threading.Event(), threading.Event()

    def never(observation: dict[str, Any]) -> Any:
        asked.set()
        answering.wait(GENEROUS_S)
        return counting_policy(observation)

    with ReferenceServer(never) as server, ThreadPoolExecutor() as pool:
        policy = _client(server.port, resend_observation=True)
        waiting = pool.submit(policy.infer, _observation(1))
        asked.wait(GENEROUS_S)
        policy.close()
        with pytest.raises(PolicyConnectionError, match="has been closed"):
            waiting.result(timeout=GENEROUS_S)
        answering.set()


@pytest.mark.parametrize(
    "options", [{"connect_timeout_s": 0}, {"request_timeout_s": -1.0}, {"max_retries": -1}]
)
def test_senseless_limits_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        WebsocketClientPolicy(HOST, 1, **options)


def test_images_travel_encoded_where_the_server_takes_them() -> None:
    metadata = {"vlad": {"image_encodings": ["jpeg"]}}
    image = np.zeros((24, 32, 3), np.uint8)
    with (
        ReferenceServer(metadata=metadata) as server,
        _client(server.port, image_encoding="jpeg", quality=80) as policy,
    ):
        policy.infer({**_observation(1), "observation/image": image})
    sent = server.observations[0]["observation/image"]
    assert sent["encoding"] == "jpeg"
    assert sent["data"].startswith(b"\xff\xd8")


def test_a_server_that_takes_no_encoded_images_is_refused_at_once() -> None:
    with ReferenceServer() as server:
        with pytest.raises(PolicyConnectionError, match="takes no jpeg images, but plain arrays only"):
            _client(server.port, image_encoding="jpeg")
        assert server.wait_until_deserted(GENEROUS_S), "the connection was left open"
