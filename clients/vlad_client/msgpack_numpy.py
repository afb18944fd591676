"""The openpi wire format: msgpack with markers for numpy arrays and scalars.

Encoding gives the bytes that openpi gives. Decoding refuses what openpi's decoder does not look at:
a message could otherwise build an object array out of pointers that its sender chose.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from vlad_client.errors import WireError

_REFUSED_KINDS = "OVc"
"""Object, void (structured, bfloat16) and complex."""

_NUMBER_KINDS = "biuf"


def packb(message: Any) -> bytes:
    """Encode a message.

    Arrays travel as a map of `__ndarray__`, `data` (C order), `dtype` and `shape`, scalars that are
    not Python numbers as a map of `__npgeneric__`, `data` and `dtype`; tuples arrive as lists.

    Raises:
        ValueError: for object, structured and complex arrays and scalars.
        TypeError: for anything else that msgpack cannot carry.
    """
    packed: bytes = msgpack.packb(message, default=_pack)
    return packed


def unpackb(message: bytes) -> Any:
    """Decode a message; its arrays are read-only views of `message`.

    Raises:
        WireError: if it is not msgpack, or holds an array whose dtype is refused or whose bytes do
            not match its shape.
    """
    try:
        return msgpack.unpackb(message, object_hook=_unpack)
    except WireError:
        raise
    except Exception as error:
        # msgpack has half a dozen unrelated exceptions for malformed input.
        raise WireError(f"message is not msgpack: {type(error).__name__}: {error}") from error


def _pack(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in _REFUSED_KINDS:
        raise ValueError(f"Unsupported dtype: {value.dtype}")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": _bytes_of(value),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"cannot send a {type(value).__name__}; convert it to a numpy array, number, text or map")


def _bytes_of(array: np.ndarray[Any, Any]) -> bytes | memoryview:
    """An array's bytes in C order: where they lie, if they do, so that images are copied once less."""
    if array.flags.c_contiguous and array.dtype.kind in _NUMBER_KINDS:
        return array.data
    return array.tobytes()


def _unpack(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return _array(value)
    if b"__npgeneric__" in value:
        return _scalar(value)
    return value


def _array(value: dict[Any, Any]) -> np.ndarray[Any, Any]:
    dtype = _dtype(value)
    shape, data = value.get(b"shape"), value.get(b"data")
    if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
        raise WireError(f"array shape must be a list of sizes, received {shape!r}")
    if not isinstance(data, bytes):
        raise WireError(f"array data must be bytes, received {type(data).__name__}")
    expected = dtype.itemsize
    for side in shape:
        expected *= side
    if len(data) != expected:
        raise WireError(
            f"array of shape {tuple(shape)} and dtype {dtype.str!r} needs {expected} bytes, "
            f"received {len(data)}"
        )
    try:
        return np.ndarray(tuple(shape), dtype, data)
    except ValueError as error:
        raise WireError(f"array of shape {tuple(shape)}: {error}") from None


def _scalar(value: dict[Any, Any]) -> np.generic:
    dtype = _dtype(value)
    try:
        scalar: np.generic = dtype.type(value[b"data"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WireError(f"numpy scalar does not fit its dtype {dtype.str!r}: {error}") from None
    return scalar


def _dtype(value: dict[Any, Any]) -> np.dtype[Any]:
    text = value.get(b"dtype")
    if not isinstance(text, str):
        raise WireError(f"dtype must be a text, received {type(text).__name__}")
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError, SyntaxError):
        raise WireError(f"Unsupported dtype: {text[:64]!r}") from None
    if dtype.kind in _REFUSED_KINDS or dtype.hasobject:
        raise WireError(f"Unsupported dtype: {text[:64]!r}")
    return dtype
