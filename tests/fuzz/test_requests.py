"""Whatever bytes a client sends: they are a request, or the client's mistake in words; never anything else.

`corpus` holds messages that were a problem somewhere, here or in other servers. A message that fails a search
is written there; commit it with the repair.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import time
from typing import Any

import hypothesis
import msgpack
import numpy as np
import pytest
from hypothesis import strategies

from tests.support.robot import pack
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ObservationError
from vlad_server import continuations, roboarena, wire
from vlad_server.images import decode_images, has_encoded_images
from vlad_server.request_options import read_observation_id, read_options
from vlad_server.sessions import Session

CORPUS = pathlib.Path(__file__).parent / "corpus"
SECONDS = 0.25
EXAMPLES = int(os.environ.get("VLAD_FUZZ_EXAMPLES", "150"))


def admit(message: bytes, environment: str) -> str | None:
    """What the daemon does with a message before any engine; what it would tell the client."""
    robot = ENVIRONMENTS[environment]
    try:
        request: Any = wire.decode(message)
        read_observation_id(request)
        if roboarena.is_roboarena(request):
            if roboarena.endpoint_of(request) == "reset":
                return None
            request = roboarena.observation_of(request, robot)
        options = read_options(request)
        if has_encoded_images(request, robot):
            request = decode_images(request, robot, max_bytes=1 << 20)
        robot.check(request, prompt_optional=True)
        continuations.resolve(options, Session(), supported=True)
    except (wire.WireError, ObservationError) as error:
        return str(error)
    return None


def admit_or_keep(message: bytes) -> None:
    """Keep a message that is neither a request nor a mistake."""
    started = time.perf_counter()
    try:
        for environment in ENVIRONMENTS:
            assert admit(message, environment) != ""
    except BaseException:
        (CORPUS / f"found-{hashlib.sha256(message).hexdigest()[:16]}.bin").write_bytes(message)
        raise
    assert time.perf_counter() - started < SECONDS * len(ENVIRONMENTS)


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*.bin")), ids=lambda file: file.stem)
def test_the_corpus_is_admitted_or_refused(file: pathlib.Path) -> None:
    admit_or_keep(file.read_bytes())


def _request() -> dict[str, Any]:
    return {
        "observation/image": np.zeros((2, 2, 3), np.uint8),
        "observation/wrist_image": {"encoding": "png", "data": b"\x89PNG\r\n\x1a\n"},
        "observation/state": np.zeros(8),
        "images": {"cam_high": np.zeros((3, 2, 2), np.uint8)},
        "state": np.zeros(14),
        "prompt": "x",
        "endpoint": "infer",
        "vlad/observation_id": 1,
        "vlad/session": "arm",
        "vlad/stream": True,
        "vlad/deadline_ms": 50.0,
        "vlad/control_hz": 20.0,
        "vlad/seed": 3,
        "vlad/reset": True,
        "vlad/rtc": {"prev_chunk_id": 0, "executed": 2, "delay": 3, "action_prefix": np.zeros((3, 7))},
    }


_LEAVES = (
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(2**63), 2**64 - 1)
    | strategies.floats()
    | strategies.text(max_size=20)
    | strategies.binary(max_size=40)
    | strategies.sampled_from(
        [
            np.zeros(8),
            np.zeros((0, 7)),
            np.array("text"),
            np.full((2, 7), np.nan),
            np.float32(1),
            np.bool_(True),
        ]
    )
)
_VALUES = strategies.recursive(
    _LEAVES,
    lambda inner: (
        strategies.lists(inner, max_size=4)
        | strategies.dictionaries(
            strategies.text(max_size=4)
            | strategies.sampled_from([b"__ndarray__", "encoding", "data", "delay"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@hypothesis.settings(max_examples=EXAMPLES, deadline=None)
@hypothesis.given(
    strategies.sets(strategies.sampled_from(sorted(_request()))),
    strategies.dictionaries(strategies.sampled_from(sorted(_request())), _VALUES, max_size=3),
)
def test_any_value_in_any_place_is_admitted_or_refused(left_out: set[str], replaced: dict[str, Any]) -> None:
    request = {key: value for key, value in _request().items() if key not in left_out}
    try:
        message = pack({**request, **replaced})
    except (OverflowError, ValueError):
        return
    admit_or_keep(message)


@hypothesis.settings(max_examples=EXAMPLES, deadline=None)
@hypothesis.given(strategies.data())
def test_any_change_of_bytes_is_admitted_or_refused(data: strategies.DataObject) -> None:
    files = sorted(CORPUS.glob("request-*.bin"))
    message = bytearray(data.draw(strategies.sampled_from(files)).read_bytes())
    for _ in range(data.draw(strategies.integers(1, 4))):
        start = data.draw(strategies.integers(0, len(message)))
        length = data.draw(strategies.integers(0, 8))
        message[start : start + length] = data.draw(strategies.binary(max_size=8))
    admit_or_keep(bytes(message))


def test_the_search_would_notice() -> None:
    """A message that breaks the property is found, and found quickly; here the property is a wrong one."""

    @hypothesis.settings(max_examples=300, deadline=None, database=None)
    @hypothesis.given(_VALUES)
    def search(value: Any) -> None:
        hypothesis.assume(not isinstance(value, np.ndarray | np.generic))
        assert not isinstance(msgpack.unpackb(msgpack.packb(value, default=str), strict_map_key=False), dict)

    with pytest.raises(AssertionError):
        search()
