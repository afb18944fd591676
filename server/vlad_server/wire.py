"""The openpi wire format: msgpack with numpy markers, encoded byte for byte, decoded with distrust.

Encoding gives exactly what openpi's own codec gives. Decoding never builds an array whose dtype,
shape or byte count the message does not back, and spends neither memory nor time out of proportion
to the message. Pure functions: no sockets, no clock.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

MAX_DIMENSIONS = 8
MAX_ARRAY_ELEMENTS = 1024
MAX_MAP_ELEMENTS = 256
MAX_TEXT_BYTES = 64 * 1024
MAX_CONTAINERS = 512
MAX_STRING_ITEM_BYTES = 64 * 1024

_REFUSED_KINDS = "OVcMm"
"""Object, void and complex never; dates and spans mean nothing to a policy."""


class WireError(ValueError):
    """A message that is not an observation in the openpi wire format; the text says why."""


def _encode(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "OVc":
        raise ValueError(f"Unsupported dtype: {value.dtype}")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return value


_packer = msgpack.Packer(default=_encode)


def encode(message: Mapping[str, Any] | npt.NDArray[Any]) -> bytes:
    """Encode a reply or the metadata.

    Raises:
        TypeError, ValueError: for values that the format cannot carry.
    """
    # A packer that is used again, by the one thread that sends; packb() makes one with a buffer each time.
    try:
        packed: bytes = _packer.pack(message)
    except Exception:
        _packer.reset()
        raise
    return packed


def decode(message: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Decode a request. Arrays are read-only, and share nothing with `message`.

    The dialect of the `msgpack-numpy` package (`nd`, `type`, `kind`, `shape`, `data`) and markers
    with text keys are understood too.

    Raises:
        WireError: for anything else than a map of texts to values, or a value the format forbids.
    """
    decoder = _Decoder()
    try:
        value = msgpack.unpackb(
            message,
            object_hook=decoder.on_map,
            list_hook=decoder.on_list,
            ext_hook=_refuse_extension,
            max_array_len=MAX_ARRAY_ELEMENTS,
            max_map_len=MAX_MAP_ELEMENTS,
            max_str_len=MAX_TEXT_BYTES,
            max_bin_len=len(message),
            max_ext_len=0,
        )
    except WireError:
        raise
    except Exception as error:
        # msgpack raises half a dozen unrelated types for malformed input; each one is the sender's mistake.
        raise WireError(f"message is not msgpack: {type(error).__name__}: {error}"[:512]) from None
    if not isinstance(value, dict):
        raise WireError(f"expected a map of observation keys, received {type(value).__name__}")
    for key in value:
        if not isinstance(key, str):
            raise WireError(f"expected text keys, received a key of type {type(key).__name__}")
    return value


class _Decoder:
    """Hooks of one decoding; counts containers so that tiny messages cannot become large trees."""

    def __init__(self) -> None:
        self._containers = 0

    def on_list(self, value: list[Any]) -> list[Any]:
        self._count()
        return value

    def on_map(self, value: dict[Any, Any]) -> Any:
        self._count()
        if b"__ndarray__" in value:
            return _array(value, b"dtype", b"shape", b"data")
        if "__ndarray__" in value:
            return _array(value, "dtype", "shape", "data")
        for spelled_as, number, dialect in ((bytes, b"__npgeneric__", b"nd"), (str, "__npgeneric__", "nd")):
            if number in value:
                return _scalar(value, spelled_as=spelled_as)
            if dialect in value:
                return _msgpack_numpy_dialect(value, spelled_as=spelled_as)
        return value

    def _count(self) -> None:
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            raise WireError(f"message holds more than {MAX_CONTAINERS} lists and maps")


def _refuse_extension(code: int, data: bytes) -> Any:
    raise WireError(f"message holds a msgpack extension of type {code}, which the format does not know")


def _field(value: Mapping[Any, Any], name: str, spelled_as: type) -> Any:
    key: Any = name.encode() if spelled_as is bytes else name
    if key not in value:
        raise WireError(f"array marker without '{name}'")
    return value[key]


def _dtype(text: Any) -> np.dtype[Any]:
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if not isinstance(text, str) or len(text) > 16 or "," in text or "(" in text:
        raise WireError(f"unsupported dtype: {str(text)[:32]!r}")
    return _named_dtype(text)


@functools.lru_cache(maxsize=64)
def _named_dtype(text: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError, SyntaxError):
        raise WireError(f"unsupported dtype: {text!r}") from None
    if dtype.kind in _REFUSED_KINDS or dtype.hasobject or dtype.itemsize > MAX_STRING_ITEM_BYTES:
        raise WireError(f"unsupported dtype: {text!r}")
    return dtype


def _array(value: Mapping[Any, Any], dtype_key: Any, shape_key: Any, data_key: Any) -> np.ndarray[Any, Any]:
    try:
        dtype, shape, data = _dtype(value[dtype_key]), value[shape_key], value[data_key]
    except KeyError as error:
        name = error.args[0]
        raise WireError(
            f"array marker without '{name.decode() if isinstance(name, bytes) else name}'"
        ) from None
    if not isinstance(data, bytes):
        raise WireError(f"array data must be bytes, not {type(data).__name__}")
    if not _is_shape(shape):
        raise WireError(f"array shape must be at most {MAX_DIMENSIONS} sizes, received {str(shape)[:64]}")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise WireError(
            f"array of shape {tuple(shape)} and dtype {dtype.str!r} needs {expected} bytes, "
            f"received {len(data)}"
        )
    return np.ndarray(tuple(shape), dtype, data)


def _is_shape(shape: Any) -> bool:
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        return False
    for side in shape:  # noqa: SIM110 - all() costs three times as much, for each array of each request
        if type(side) is not int or not 0 <= side < 2**31:
            return False
    return True


def _scalar(value: Mapping[Any, Any], *, spelled_as: type) -> np.generic:
    dtype = _dtype(_field(value, "dtype", spelled_as))
    data = _field(value, "data", spelled_as)
    if dtype.kind not in "biuf" or not isinstance(data, bool | int | float):
        raise WireError(f"numpy scalar must be a number, received dtype {dtype.str!r}, {type(data).__name__}")
    try:
        scalar: np.generic = dtype.type(data)
    except (OverflowError, ValueError):
        raise WireError(f"numpy scalar does not fit its dtype {dtype.str!r}") from None
    return scalar


def _msgpack_numpy_dialect(value: Mapping[Any, Any], *, spelled_as: type) -> Any:
    kind = value.get(b"kind" if spelled_as is bytes else "kind", b"")
    if kind in (b"V", "V", b"O", "O"):
        raise WireError("unsupported dtype: structured or object array")
    if _field(value, "nd", spelled_as) is True:
        keys = (b"type", b"shape", b"data") if spelled_as is bytes else ("type", "shape", "data")
        return _array(value, *keys)
    dtype = _dtype(_field(value, "type", spelled_as))
    data = _field(value, "data", spelled_as)
    if not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise WireError(f"numpy scalar of dtype {dtype.str!r} needs {dtype.itemsize} bytes")
    return np.frombuffer(data, dtype)[0]
