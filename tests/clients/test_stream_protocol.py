from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.clients.streaming_server import CAPABILITIES
from tests.support.reference_server import decode, encode
from vlad_client import PolicyConnectionError, WireError
from vlad_client.image_encoding import ImageEncoder
from vlad_client.observation_extras import ObservationExtras, RtcRequest
from vlad_client.stream_events import Chunk, ConnectionLost, Refusal
from vlad_client.stream_protocol import StreamProtocol

URI = "ws://robot-lab"
ACTIONS = np.zeros((4, 7))
ALL_EXTRAS = ObservationExtras(
    reset=True,
    deadline_s=0.25,
    remaining=7,
    control_hz=50,
    rtc=RtcRequest(prev_chunk_id=3, executed=5, delay=2),
)


def _protocol(capabilities: dict[str, Any] | None, encoder: ImageEncoder | None = None) -> StreamProtocol:
    protocol = StreamProtocol("robot-1", encoder)
    protocol.connected(encode({} if capabilities is None else {"vlad": capabilities}), URI)
    return protocol


def _submit(protocol: StreamProtocol, number: int, **content: Any) -> Any:
    message = protocol.submit(protocol.encode({"n": number, **content}, number, ObservationExtras()))
    return None if message is None else decode(message)


def _reply(**keys: Any) -> bytes:
    return encode({"actions": ACTIONS, "policy_timing": {"infer_ms": 2.0}, **keys})


def test_a_vlad_server_gets_all_the_keys() -> None:
    protocol = _protocol(CAPABILITIES)
    message = protocol.submit(protocol.encode({"prompt": "go"}, 5, ALL_EXTRAS))
    assert message is not None
    assert decode(message) == {
        "prompt": "go",
        "vlad/session": "robot-1",
        "vlad/observation_id": 5,
        "vlad/stream": True,
        "vlad/reset": True,
        "vlad/deadline_ms": 250.0,
        "vlad/remaining": 7,
        "vlad/control_hz": 50.0,
        "vlad/rtc": {
            "prev_chunk_id": 3,
            "executed": 5,
            "action_prefix": None,
            "delay": 2,
            "prefix_end": None,
            "mode": "auto",
            "beta": None,
            "schedule": None,
        },
    }


def test_an_openpi_server_gets_the_observation_alone() -> None:
    protocol = _protocol(None)
    message = protocol.submit(protocol.encode({"prompt": "go"}, 5, ALL_EXTRAS))
    assert message is not None
    assert decode(message) == {"prompt": "go"}


def test_what_a_server_does_not_offer_is_not_asked_of_it() -> None:
    protocol = _protocol({**CAPABILITIES, "streaming": False, "deadlines": False, "rtc": None})
    frame = protocol.encode({}, 5, ALL_EXTRAS)
    assert set(decode(frame.message)) == {
        "vlad/session",
        "vlad/observation_id",
        "vlad/reset",
        "vlad/remaining",
        "vlad/control_hz",
    }


def test_a_chunk_tells_all_that_the_server_told() -> None:
    protocol = _protocol(CAPABILITIES)
    for number in range(3):
        assert _submit(protocol, number)["n"] == number, "a streaming server gets everything at once"
    rtc = {"mode": "guided_identity", "delay": 3}
    events, following = protocol.received(
        _reply(
            chunk_id=9,
            observation_id=2,
            observation_age_ms=4.5,
            superseded=[0, 1],
            warnings=["the image is black"],
            rtc=rtc,
            deadline_missed=True,
            session="robot-1",
        )
    )
    (chunk,) = events
    assert isinstance(chunk, Chunk)
    assert chunk.continued
    assert (chunk.observation_id, chunk.chunk_id, chunk.observation_age_ms) == (2, 9, 4.5)
    assert (chunk.superseded, chunk.warnings, chunk.rtc) == ((0, 1), ("the image is black",), rtc)
    assert chunk.deadline_missed
    assert chunk.timing == {"policy_timing": {"infer_ms": 2.0}}
    assert following is None
    assert protocol.disconnected("gone") == ConnectionLost((), "gone")


@pytest.mark.parametrize("capabilities", [None, {**CAPABILITIES, "streaming": False}])
def test_without_streaming_the_freshest_observation_waits_here(capabilities: Any) -> None:
    protocol = _protocol(capabilities)
    ids = {} if capabilities is None else {"observation_id": 0}
    assert _submit(protocol, 0)["n"] == 0
    assert [_submit(protocol, number) for number in (1, 2, 3)] == [None] * 3
    events, following = protocol.received(_reply(**ids))
    assert isinstance(events[0], Chunk)
    assert (events[0].observation_id, events[0].superseded) == (0, (1, 2))
    assert following is not None
    assert decode(following)["n"] == 3
    events, following = protocol.received(_reply(**dict.fromkeys(ids, 3)))
    assert isinstance(events[0], Chunk)
    assert (events[0].observation_id, events[0].superseded) == (3, ())
    assert following is None


def test_a_refusal_names_its_observation_and_ends_its_wait() -> None:
    protocol = _protocol(CAPABILITIES)
    _submit(protocol, 0)
    events, _ = protocol.received(encode({"error": "full", "code": "busy", "observation_id": 0}))
    assert events == [Refusal(0, "busy", "full")]
    assert protocol.disconnected("").lost == ()


def test_a_text_refuses_whatever_is_under_way() -> None:
    protocol = _protocol(CAPABILITIES)
    _submit(protocol, 0)
    _submit(protocol, 1)
    assert protocol.received("oh")[0] == [Refusal(0, "error", "oh"), Refusal(1, "error", "oh")]
    assert protocol.received("oh")[0] == [Refusal(None, "error", "oh")]


def test_after_an_error_an_openpi_server_gets_what_waits() -> None:
    protocol = _protocol(None)
    _submit(protocol, 0)
    _submit(protocol, 1)
    events, following = protocol.received("KeyError")
    assert events == [Refusal(0, "error", "KeyError")]
    assert following is not None
    assert decode(following)["n"] == 1


def test_a_lost_connection_takes_everything_with_it() -> None:
    protocol = _protocol(None)
    for number in range(3):
        _submit(protocol, number)
    assert set(protocol.disconnected("gone").lost) == {0, 1, 2}
    assert protocol.disconnected("again").lost == ()


def test_a_server_that_never_answers_costs_no_memory() -> None:
    protocol = _protocol(CAPABILITIES)
    for number in range(1000):
        _submit(protocol, number)
    assert protocol.disconnected("gone").lost == tuple(range(1000 - 256, 1000))


def test_a_frame_for_an_earlier_connection_is_not_sent() -> None:
    protocol = _protocol(None)
    frame = protocol.encode({}, 0, ObservationExtras())
    protocol.disconnected("gone")
    protocol.connected(encode({"vlad": CAPABILITIES}), URI)
    with pytest.raises(PolicyConnectionError, match="replaced meanwhile"):
        protocol.submit(frame)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"\xc1", "not msgpack"),
        (encode([1]), "expected a map, received a list"),
        (encode({"action": 1}), "a reply without an array of actions: action"),
        (encode({"actions": [1.0]}), "a reply without an array of actions"),
        (encode({"actions": ACTIONS, "observation_id": 1.5}), "observation_id must be"),
        (encode({"actions": ACTIONS, "observation_id": 0, "superseded": 3}), "superseded must be a list"),
    ],
)
def test_other_messages_are_refused(message: bytes, complaint: str) -> None:
    protocol = _protocol(CAPABILITIES)
    _submit(protocol, 0)
    with pytest.raises(WireError, match=complaint):
        protocol.received(message)


def test_a_reply_that_nobody_waits_for_is_refused() -> None:
    with pytest.raises(WireError, match="a reply to no observation"):
        _protocol(None).received(_reply())


def test_images_are_encoded_for_a_server_that_takes_them() -> None:
    protocol = _protocol(CAPABILITIES, ImageEncoder("png"))
    sent = _submit(protocol, 0, image=np.zeros((8, 8, 3), np.uint8))
    assert sent["image"]["encoding"] == "png"


@pytest.mark.parametrize("capabilities", [None, {**CAPABILITIES, "image_encodings": ["png"]}])
def test_a_server_that_does_not_take_such_images_is_refused(capabilities: Any) -> None:
    with pytest.raises(PolicyConnectionError, match="robot-lab takes no jpeg images, but") as caught:
        _protocol(capabilities, ImageEncoder("jpeg"))
    assert not caught.value.retryable


@pytest.mark.parametrize("session", ["", "x" * 129])
def test_sessions_have_short_names(session: str) -> None:
    with pytest.raises(ValueError, match="session must have 1 to 128 characters"):
        StreamProtocol(session, None)


def test_each_nameless_robot_gets_a_name_of_its_own() -> None:
    first, second = StreamProtocol(None, None), StreamProtocol(None, None)
    assert first.session != second.session


@pytest.mark.parametrize(
    "extras", [{"deadline_s": 0}, {"deadline_s": float("nan")}, {"control_hz": -1}, {"remaining": -1}]
)
def test_impossible_extras_are_refused(extras: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(extras))):
        ObservationExtras(**extras)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prev_chunk_id": 1},
        {"prev_chunk_id": 1, "executed": 0, "action_prefix": [[1.0]], "delay": 1},
        {"action_prefix": [[1.0]], "executed": 2, "delay": 1},
        {"action_prefix": [[1.0]]},
    ],
)
def test_a_continuation_names_its_chunk_in_exactly_one_way(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"prev_chunk_id|delay"):
        RtcRequest(**fields)
