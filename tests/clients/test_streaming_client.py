"""Both streaming clients against real sockets: each test runs with threads and with asyncio."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.clients.blocking_asyncio import BlockingAsyncClient
from tests.clients.streaming_server import CAPABILITIES, RefusedError, StreamingServer, numbered_rows
from tests.support.reference_server import ReferenceServer
from vlad_client import (
    Chunk,
    Connected,
    ConnectionLost,
    ObservationExtras,
    PolicyConnectionError,
    PolicyServerError,
    PolicyTimeoutError,
    Refusal,
    StreamingClient,
)

HOST = "127.0.0.1"
GENEROUS_S = 20.0


@pytest.fixture(params=[StreamingClient, BlockingAsyncClient], ids=["threads", "asyncio"])
def make_client(request: pytest.FixtureRequest) -> Any:
    def make(port: int, *arguments: Any, **options: Any) -> Any:
        return request.param(HOST, port, *arguments, **{"connect_timeout_s": GENEROUS_S, **options})

    return make


def _observation(number: float) -> dict[str, Any]:
    return {"observation/state": np.full(8, number), "prompt": "do something"}


def _await(client: Any, kind: type) -> Any:
    """The next event of a kind; those before are skipped."""
    end = time.monotonic() + GENEROUS_S
    while time.monotonic() < end:
        event = client.receive(GENEROUS_S)
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__} came")


class Gate:
    """A policy that computes one observation for each permission."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.permits = threading.Semaphore(0)

    def __call__(self, observation: dict[str, Any]) -> Any:
        self.begun.append(float(observation["observation/state"][0]))
        assert self.permits.acquire(timeout=GENEROUS_S)
        return numbered_rows(observation)

    def wait_until_begun(self, count: int) -> None:
        end = time.monotonic() + GENEROUS_S
        while len(self.begun) < count:
            assert time.monotonic() < end
            time.sleep(0.002)


def _wait_for(condition: Any) -> None:
    end = time.monotonic() + GENEROUS_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_the_first_event_tells_what_the_server_can(make_client: Any) -> None:
    with StreamingServer() as server, make_client(server.port) as client:
        event = client.receive(GENEROUS_S)
        assert isinstance(event, Connected)
        assert event.capabilities == client.capabilities
        assert client.capabilities.streaming
        assert client.capabilities.rtc.modes == ("guided_identity",)
        assert client.get_server_metadata() == {"vlad": CAPABILITIES}
        assert client.receive(0.01) is None


def test_the_freshest_observation_is_answered_and_the_others_are_named(make_client: Any) -> None:
    gate = Gate()
    with StreamingServer(gate) as server, make_client(server.port, session="robot-1") as client:
        ids = [client.send(_observation(0))]
        gate.wait_until_begun(1)
        ids += [client.send(_observation(number)) for number in range(1, 6)]
        _wait_for(lambda: len(server.observations) == 6)
        gate.permits.release(2)
        first, second = _await(client, Chunk), _await(client, Chunk)
        assert gate.begun == [0, 5]
    assert (first.observation_id, first.chunk_id, first.superseded) == (ids[0], 1, ())
    assert (second.observation_id, second.chunk_id) == (ids[5], 2)
    assert second.superseded == tuple(ids[1:5])
    assert second.observation_age_ms == 1.5
    np.testing.assert_array_equal(second.actions[:, 0], np.full(12, 5.0))
    assert {seen["vlad/session"] for seen in server.observations} == {"robot-1"}


def test_an_openpi_server_gets_the_freshest_too(make_client: Any) -> None:
    gate = Gate()

    def policy(observation: dict[str, Any]) -> Any:
        return {"actions": gate(observation)}

    with ReferenceServer(policy) as server, make_client(server.port) as client:
        assert client.capabilities is None
        ids = [client.send(_observation(0))]
        gate.wait_until_begun(1)
        ids += [client.send(_observation(number)) for number in range(1, 6)]
        gate.permits.release(2)
        first, second = _await(client, Chunk), _await(client, Chunk)
        assert gate.begun == [0, 5]
    assert (first.observation_id, first.superseded) == (ids[0], tuple(ids[1:5]))
    assert (second.observation_id, second.chunk_id) == (ids[5], None)
    assert all(set(seen) == {"observation/state", "prompt"} for seen in server.observations)


def test_a_refusal_leaves_the_stream_in_order(make_client: Any) -> None:
    def policy(observation: dict[str, Any]) -> Any:
        if observation["observation/state"][0] == 0:
            raise RefusedError("busy")
        return numbered_rows(observation)

    with StreamingServer(policy) as server, make_client(server.port) as client:
        refused = client.send(_observation(0))
        assert _await(client, Refusal) == Refusal(refused, "busy", "refused: busy")
        answered = client.send(_observation(1))
        assert _await(client, Chunk).observation_id == answered
        assert server.connections == 1


def test_a_lost_connection_is_replaced_and_the_session_goes_on(make_client: Any) -> None:
    gate = Gate()
    with StreamingServer(gate) as server, make_client(server.port) as client:
        lost = client.send(_observation(0))
        gate.wait_until_begun(1)
        server.cut_connections()
        event = _await(client, ConnectionLost)
        assert event.lost == (lost,)
        with pytest.raises(PolicyConnectionError, match="not connected"):
            client.send(_observation(1))
        gate.permits.release(2)
        _await(client, Connected)
        client.send(_observation(2))
        assert float(_await(client, Chunk).actions[0, 0]) == 2
        assert server.connections == 2
        assert len(server.sessions) == 1


def test_a_server_that_restarts_is_found_again(make_client: Any) -> None:
    with StreamingServer() as server:
        client = make_client(server.port)
        port = server.port
    with client:
        _await(client, ConnectionLost)
        with StreamingServer(port=port, capabilities=None):
            assert _await(client, Connected).capabilities is None
            client.send(_observation(3))
            assert float(_await(client, Chunk).actions[0, 0]) == 3


def test_a_server_that_stays_away_is_given_up(make_client: Any) -> None:
    with StreamingServer() as server:
        client = make_client(server.port, connect_timeout_s=0.3)
    with client:
        _await(client, ConnectionLost)
        with pytest.raises(PolicyTimeoutError, match=r"no policy server within 0.3 s: cannot connect"):
            _await(client, Connected)


def test_making_a_client_waits_for_the_policy(make_client: Any) -> None:
    gate = threading.Event()
    with StreamingServer(metadata_gate=gate) as server, ThreadPoolExecutor() as pool:
        making = pool.submit(make_client, server.port)
        _wait_for(lambda: server.connections == 1)
        assert not making.done()
        gate.set()
        with making.result(GENEROUS_S) as client:
            assert isinstance(client.receive(GENEROUS_S), Connected)
        assert server.connections == 1


def test_waiting_for_the_policy_ends_with_the_connect_timeout(make_client: Any) -> None:
    gate = threading.Event()
    with StreamingServer(metadata_gate=gate) as server:
        with pytest.raises(PolicyTimeoutError, match="is up, but its policy is not ready"):
            make_client(server.port, connect_timeout_s=0.3)
        gate.set()


def test_a_wrong_key_and_an_error_for_metadata_fail_at_once(make_client: Any) -> None:
    with ReferenceServer(api_key="secret") as server:
        with pytest.raises(PolicyConnectionError, match="HTTP 401"):
            make_client(server.port, "guess")
        with make_client(server.port, "secret"):
            pass
    with (
        ReferenceServer(metadata="no norm stats") as server,
        pytest.raises(PolicyServerError, match="no norm stats"),
    ):
        make_client(server.port)


def test_a_message_that_is_not_of_the_protocol_ends_the_connection(make_client: Any) -> None:
    with StreamingServer() as server, make_client(server.port) as client:
        server.send_to_all(b"\xc1")
        assert "not msgpack" in _await(client, ConnectionLost).reason
        _await(client, Connected)
        client.send(_observation(1))
        assert float(_await(client, Chunk).actions[0, 0]) == 1


def test_closing_ends_a_receive_under_way(make_client: Any) -> None:
    with StreamingServer() as server, make_client(server.port) as client, ThreadPoolExecutor() as pool:
        assert isinstance(client.receive(GENEROUS_S), Connected)
        receiving = pool.submit(client.receive, GENEROUS_S)
        client.close()
        with pytest.raises(PolicyConnectionError, match="has been closed"):
            receiving.result(GENEROUS_S)
        with pytest.raises(PolicyConnectionError):
            client.send(_observation(0))


def test_images_travel_encoded(make_client: Any) -> None:
    image = np.random.default_rng(0).integers(256, size=(24, 32, 3), dtype=np.uint8)
    with (
        StreamingServer() as server,
        make_client(server.port, image_encoding="jpeg", quality=80) as client,
    ):
        client.send({**_observation(0), "images": {"cam_high": np.moveaxis(image, -1, 0)}})
        _await(client, Chunk)
    sent = server.observations[0]["images"]["cam_high"]
    assert sent["encoding"] == "jpeg"
    assert sent["data"].startswith(b"\xff\xd8")


def test_a_server_without_the_encoding_is_refused(make_client: Any) -> None:
    with ReferenceServer() as server, pytest.raises(PolicyConnectionError, match="takes no jpeg images"):
        make_client(server.port, image_encoding="jpeg")


def test_extras_travel_as_keys(make_client: Any) -> None:
    with StreamingServer() as server, make_client(server.port) as client:
        client.send(_observation(0), ObservationExtras(reset=True, remaining=4, control_hz=20))
        _await(client, Chunk)
    seen = server.observations[0]
    assert (seen["vlad/reset"], seen["vlad/remaining"], seen["vlad/control_hz"]) == (True, 4, 20.0)


@pytest.mark.parametrize("connect_timeout_s", [0, -1.0])
def test_impossible_limits_are_refused(make_client: Any, connect_timeout_s: float) -> None:
    with pytest.raises(ValueError, match="connect_timeout_s must be positive"):
        make_client(1, connect_timeout_s=connect_timeout_s)
