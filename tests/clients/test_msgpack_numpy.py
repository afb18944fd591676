from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from tests.support.wire_values import WIRE_HEX, WIRE_VALUES
from vlad_client import msgpack_numpy
from vlad_client.errors import WireError


def _marker(**changes: Any) -> bytes:
    marker = {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<f4", "shape": [2], **changes}
    packed: bytes = msgpack.packb({key.encode(): value for key, value in marker.items()})
    return packed


def test_every_golden_sample_is_covered() -> None:
    assert WIRE_VALUES.keys() == WIRE_HEX.keys()


@pytest.mark.parametrize("name", WIRE_HEX)
def test_encoding_gives_the_bytes_of_openpi(name: str) -> None:
    assert msgpack_numpy.packb(WIRE_VALUES[name]).hex() == WIRE_HEX[name]


@pytest.mark.parametrize("name", WIRE_HEX)
def test_decoding_gives_back_what_openpi_encoded(name: str) -> None:
    decoded = msgpack_numpy.unpackb(bytes.fromhex(WIRE_HEX[name]))
    np.testing.assert_equal(decoded, WIRE_VALUES[name])
    if isinstance(WIRE_VALUES[name], (np.ndarray, np.generic)) and name != "np.float64":
        assert decoded.dtype == WIRE_VALUES[name].dtype
        assert decoded.shape == WIRE_VALUES[name].shape


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::-1],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((0, 7)),
        np.array([1, 2], ">i4"),
        np.array(2.5),
        np.zeros(3, np.float16),
        np.array([True, False]),
        np.array(["a", "bcd"]),
        np.array(["2024-01-01"], "M8[D]"),
    ],
)
def test_any_memory_layout_and_dtype_survives_the_way(array: np.ndarray[Any, Any]) -> None:
    decoded = msgpack_numpy.unpackb(msgpack_numpy.packb({"nested": [array]}))["nested"][0]
    np.testing.assert_array_equal(decoded, array)
    assert decoded.dtype == array.dtype


def test_contiguous_arrays_are_packed_from_where_they_lie() -> None:
    class Watched(np.ndarray[Any, Any]):
        def tobytes(self, order: Any = "C") -> bytes:
            raise AssertionError("copied once more than is needed")

    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert msgpack_numpy.packb(image.view(Watched)) == msgpack_numpy.packb(image)
    with pytest.raises(AssertionError, match="copied"):
        msgpack_numpy.packb(image.view(Watched)[:, ::-1])


def test_decoded_arrays_are_read_only_views_of_the_message() -> None:
    message = msgpack_numpy.packb({"actions": np.zeros((10, 7))})
    actions = msgpack_numpy.unpackb(message)["actions"]
    assert not actions.flags.writeable
    assert not actions.flags.owndata


@pytest.mark.parametrize(
    "value",
    [
        np.array([None]),
        np.zeros(2, "i4,f4"),
        np.zeros(2, np.complex64),
        np.complex128(1j),
        np.zeros(1, "V8")[0],
    ],
)
def test_object_structured_and_complex_values_are_not_sent(value: Any) -> None:
    with pytest.raises(ValueError, match="Unsupported dtype"):
        msgpack_numpy.packb({"value": value})


def test_a_value_that_msgpack_does_not_know_is_named() -> None:
    with pytest.raises(TypeError, match="cannot send a set"):
        msgpack_numpy.packb({"value": {1}})


@pytest.mark.parametrize("dtype", ["|O", "O", "|V8", "i4,f4", "<c8", "complex128", "nonsense", "(2,)O", 7])
def test_refused_dtypes_never_become_arrays(dtype: Any) -> None:
    with pytest.raises(WireError, match="dtype"):
        msgpack_numpy.unpackb(_marker(dtype=dtype))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data": b"\0" * 7}, r"shape \(2,\) and dtype '<f4' needs 8 bytes, received 7"),
        ({"data": b"\0" * 9}, "needs 8 bytes, received 9"),
        ({"shape": [2**62]}, "needs"),
        ({"shape": [-2]}, "shape must be a list of sizes"),
        ({"shape": [2.0]}, "shape must be a list of sizes"),
        ({"shape": 2}, "shape must be a list of sizes"),
        ({"shape": [True, 2]}, "shape must be a list of sizes"),
        ({"shape": [1] * 100 + [2]}, "array of shape"),
        ({"data": "text"}, "must be bytes"),
        ({"data": None}, "must be bytes"),
    ],
)
def test_an_array_must_have_exactly_the_bytes_that_its_shape_needs(
    change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(WireError, match=complaint):
        msgpack_numpy.unpackb(_marker(**change))


@pytest.mark.parametrize(
    ("dtype", "data"), [("|O", 1), ("<c8", 1.0), ("<i4", "text"), ("|u1", [1, 2, 3, None])]
)
def test_a_numpy_scalar_must_fit_its_dtype(dtype: str, data: Any) -> None:
    message = msgpack.packb({b"__npgeneric__": True, b"data": data, b"dtype": dtype})
    with pytest.raises(WireError):
        msgpack_numpy.unpackb(message)


@pytest.mark.parametrize("message", [b"", b"\xc1", b"\x81", b"\x80\x80", b"\x81\x01\x02"])
def test_what_is_not_msgpack_is_one_kind_of_error(message: bytes) -> None:
    with pytest.raises(WireError, match="not msgpack"):
        msgpack_numpy.unpackb(message)


def test_markers_with_text_keys_remain_ordinary_maps() -> None:
    message = {"__ndarray__": True, "data": b"", "dtype": "<f4", "shape": [0]}
    assert msgpack_numpy.unpackb(msgpack.packb(message)) == message
