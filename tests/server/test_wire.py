"""The wire codec: byte for byte on the way out, distrustful on the way in."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from typing import Any

import hypothesis
import msgpack
import numpy as np
import pytest
from hypothesis import strategies

from tests.support.libero import libero_observation
from tests.support.wire_values import WIRE_HEX, WIRE_VALUES
from vlad_server import wire


@pytest.mark.parametrize("name", WIRE_HEX)
def test_encoding_matches_openpi_byte_for_byte(name: str) -> None:
    assert wire.encode(WIRE_VALUES[name]).hex() == WIRE_HEX[name]


@pytest.mark.parametrize(
    "value", [np.array([None]), np.zeros(2, "V4"), np.zeros(2, np.complex64), np.complex64(1)], ids=repr
)
def test_encoding_refuses_dtypes_that_the_format_forbids(value: Any) -> None:
    with pytest.raises(ValueError, match="Unsupported dtype"):
        wire.encode({"x": value})


def test_a_real_observation_survives_the_round_trip() -> None:
    observation = libero_observation()
    decoded = wire.decode(wire.encode(observation))
    assert decoded.keys() == observation.keys()
    for key, value in observation.items():
        np.testing.assert_array_equal(decoded[key], value)
    assert not decoded["observation/image"].flags.writeable


@pytest.mark.parametrize("spelling", [str, bytes])
def test_both_spellings_of_the_markers_are_understood(spelling: type) -> None:
    marker = {"__ndarray__": True, "data": b"\1\2", "dtype": "|u1", "shape": [2]}
    if spelling is bytes:
        marker = {key.encode(): value for key, value in marker.items()}  # type: ignore[misc]
    np.testing.assert_array_equal(wire.decode(msgpack.packb({"x": marker}))["x"], [1, 2])


@pytest.mark.parametrize("spelling", [str, bytes])
def test_the_msgpack_numpy_dialect_is_understood(spelling: type) -> None:
    array = {"nd": True, "type": "<f4", "kind": b"", "shape": [1], "data": np.float32(2.5).tobytes()}
    scalar = {"nd": False, "type": "<i8", "data": np.int64(7).tobytes()}
    if spelling is bytes:
        array = {key.encode(): value for key, value in array.items()}  # type: ignore[misc]
        scalar = {key.encode(): value for key, value in scalar.items()}  # type: ignore[misc]
    decoded = wire.decode(msgpack.packb({"a": array, "s": scalar}))
    assert decoded["a"].tolist() == [2.5]
    assert decoded["s"] == 7


def _array(**changes: Any) -> bytes:
    marker = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2]}
    marker.update(changes)
    return bytes(msgpack.packb({"x": {key.encode(): value for key, value in marker.items()}}))


def _scalar(data: Any, dtype: Any) -> bytes:
    return bytes(msgpack.packb({"x": {b"__npgeneric__": True, b"data": data, b"dtype": dtype}}))


HOSTILE = {
    "object dtype": _array(dtype="|O"),
    "object dtype, short": _array(dtype="O"),
    "void dtype": _array(dtype="V8", shape=[1]),
    "complex dtype": _array(dtype="<c8", shape=[1]),
    "structured dtype": _array(dtype="f4,i4", shape=[1]),
    "subarray dtype": _array(dtype="(2,)f4", shape=[1]),
    "long structured dtype": _array(dtype="f4," * 200000),
    "datetime dtype": _array(dtype="<M8[s]", shape=[1]),
    "unknown dtype": _array(dtype="banana"),
    "dtype is a number": _array(dtype=7),
    "huge string dtype": _array(dtype="<U99999999", shape=[0], data=b""),
    "too few bytes": _array(shape=[3]),
    "too many bytes": _array(shape=[1]),
    "negative side": _array(shape=[-1]),
    "huge product": _array(shape=[0, 2**60], data=b""),
    "overflowing product": _array(shape=[2**30] * 8),
    "boolean side": _array(shape=[True, 2]),
    "float side": _array(shape=[2.0]),
    "too many dimensions": _array(shape=[1] * 40),
    "shape is a text": _array(shape="2"),
    "data is a text": _array(data="12345678"),
    "no data": msgpack.packb({"x": {b"__ndarray__": True, b"dtype": "<f4", b"shape": [2]}}),
    "void scalar of a billion bytes": _scalar(2_000_000_000, "V2000000000"),
    "text scalar": _scalar("x", "<U1"),
    "scalar out of range": _scalar(300, "|u1"),
    "scalar of a list": _scalar([1], "<f4"),
    "extension": msgpack.packb({"x": msgpack.ExtType(5, b"abc")}),
    "empty extension": msgpack.packb({"x": msgpack.ExtType(5, b"")}),
    "timestamp": msgpack.packb({"x": msgpack.Timestamp(1, 2)}),
    "deep nesting": b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0",
    "millions of empty maps": b"\x81\xa1x\xdd" + (4_000_000).to_bytes(4, "big") + b"\x80" * 4_000_000,
    "many empty maps": b"\x81\xa1x\xdc\x03\x84" + b"\x80" * 900,
    "lying map header": b"\xdf\xff\xff\xff\xff",
    "lying binary header": b"\x81\xa1x\xc6\xff\xff\xff\xff",
    "number key": msgpack.packb({1: 2}),
    "bytes key": msgpack.packb({b"a": 2}),
    "list": msgpack.packb([1, 2]),
    "number": msgpack.packb(5),
    "nothing": b"",
    "truncated": wire.encode(libero_observation())[:-1],
    "trailing bytes": wire.encode({"a": 1}) + b"\0",
    "garbage": bytes(range(256)),
    "text that is not UTF-8": b"\x81\xa1x\xa2\xff\xfe",
    "dialect: object": msgpack.packb(
        {"x": {b"nd": True, b"type": "<f4", b"kind": b"O", b"shape": [], b"data": b""}}
    ),
    "dialect: wrong size": msgpack.packb({"x": {b"nd": False, b"type": "<f8", b"data": b"123"}}),
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_messages_are_refused_in_no_time_and_no_memory(message: bytes) -> None:
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(wire.WireError):
            wire.decode(message)
        seconds = time.perf_counter() - started
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 0.25
    assert peak < len(message) + (4 << 20)


def test_an_object_array_from_the_wire_never_reaches_numpy() -> None:
    """openpi's own decoder dies of this message with a segmentation fault."""
    program = (
        "import sys; from vlad_server import wire\n"
        "try: print(wire.decode(sys.stdin.buffer.read()))\n"
        "except wire.WireError as error: print(error)\n"
    )
    message = _array(dtype="|O", shape=[1])
    result = subprocess.run(
        [sys.executable, "-c", program],
        input=message,
        capture_output=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert result.returncode == 0
    assert b"unsupported dtype" in result.stdout


_TREES = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(2**63), 2**64 - 1)
    | strategies.floats()
    | strategies.text(max_size=20)
    | strategies.binary(max_size=40),
    lambda inner: (
        strategies.lists(inner, max_size=6)
        | strategies.dictionaries(
            strategies.text(max_size=8)
            | strategies.sampled_from(
                [b"__ndarray__", b"data", b"dtype", b"shape", b"__npgeneric__", b"nd", b"type"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(strategies.binary(max_size=200) | _TREES.map(msgpack.packb))
def test_any_message_is_decoded_or_refused(message: bytes) -> None:
    try:
        decoded = wire.decode(message)
    except wire.WireError:
        return
    assert isinstance(decoded, dict)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(strategies.data())
def test_any_mutation_of_an_observation_is_decoded_or_refused(data: strategies.DataObject) -> None:
    message = bytearray(wire.encode({"a": np.zeros((2, 3), np.float32), "b": np.int64(3), "prompt": "x"}))
    for _ in range(data.draw(strategies.integers(1, 4))):
        message[data.draw(strategies.integers(0, len(message) - 1))] = data.draw(strategies.integers(0, 255))
    try:
        decoded = wire.decode(bytes(message))
    except wire.WireError:
        return
    assert isinstance(decoded, dict)
