"""Calls of the CUDA driver that pycuda does not have: priorities, partitions of a GPU, graphs."""

from __future__ import annotations

import ctypes
import functools

from vlad_configs.errors import EngineError

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: neither the legacy default stream, nor one that waits for it."""

_MULTIPROCESSORS = 1
"""CU_DEV_RESOURCE_TYPE_SM."""

_DEFAULT_STREAM = 1
"""CU_GREEN_CTX_DEFAULT_STREAM, which every partition must be made with."""


class _Resource(ctypes.Structure):
    """CUdevResource, version 1. Opaque but for the number of multiprocessors."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("padding", ctypes.c_ubyte * 92),
        ("multiprocessors", ctypes.c_uint),
        ("rest", ctypes.c_ubyte * 44),
    )


def call(function: str, *arguments: object) -> None:
    """Call a function of the driver.

    Args:
        arguments: ctypes values for whatever is no 32-bit integer.

    Raises:
        EngineError: where it fails, or where this driver does not have it.
    """
    try:
        entry = getattr(_driver(), function)
    except AttributeError as error:
        raise EngineError(f"this CUDA driver has no {function}") from error
    check(function, entry(*arguments))


def check(function: str, code: int) -> None:
    """Turn a driver's error code into words.

    Raises:
        EngineError: for any code but success.
    """
    if code == 0:
        return
    text = ctypes.c_char_p()
    _driver().cuGetErrorString(code, ctypes.byref(text))
    reason = text.value.decode() if text.value else "unknown"
    raise EngineError(f"{function} failed with CUDA error {code}: {reason}")


def end_capture(stream: int) -> ctypes.c_void_p:
    """The graph of what was enqueued in `stream` since its capture began.

    Raises:
        EngineError: where something cannot be recorded; the stream can be used again all the same.
    """
    graph = ctypes.c_void_p()
    call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
    return graph


def create_stream(urgent: bool) -> int:
    """A stream of the current context, with the highest priority there is or the lowest."""
    least, greatest = ctypes.c_int(), ctypes.c_int()
    call("cuCtxGetStreamPriorityRange", ctypes.byref(least), ctypes.byref(greatest))
    priority = greatest if urgent else least
    stream = ctypes.c_void_p()
    call("cuStreamCreateWithPriority", ctypes.byref(stream), NON_BLOCKING, priority)
    assert stream.value is not None
    return stream.value


def create_stream_beside(spared: int) -> int:
    """A stream whose work leaves `spared` multiprocessors of the current device to others.

    The partition lives as long as the process.

    Raises:
        EngineError: where driver or device cannot be partitioned so (CUDA 12.4 and newer can).
    """
    device, whole, group, rest = ctypes.c_int(), _Resource(), _Resource(), _Resource()
    call("cuCtxGetDevice", ctypes.byref(device))
    groups = ctypes.c_uint(1)
    call("cuDeviceGetDevResource", device, ctypes.byref(whole), _MULTIPROCESSORS)
    call(
        "cuDevSmResourceSplitByCount",
        *(ctypes.byref(part) for part in (group, groups, whole, rest)),
        ctypes.c_uint(0),
        ctypes.c_uint(spared),
    )
    if groups.value != 1 or not 0 < rest.multiprocessors < whole.multiprocessors:
        raise EngineError(f"{spared} of {whole.multiprocessors} multiprocessors cannot be split off")
    description, context, stream = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    call("cuDevResourceGenerateDesc", ctypes.byref(description), ctypes.byref(rest), ctypes.c_uint(1))
    call("cuGreenCtxCreate", ctypes.byref(context), description, device, ctypes.c_uint(_DEFAULT_STREAM))
    call("cuGreenCtxStreamCreate", ctypes.byref(stream), context, ctypes.c_uint(NON_BLOCKING), 0)
    assert stream.value is not None
    return stream.value


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
