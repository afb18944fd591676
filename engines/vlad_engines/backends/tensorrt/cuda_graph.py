"""CUDA graphs through the driver, because pycuda has none."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Protocol

from vlad_configs.errors import EngineError

_CAPTURE_MODE_THREAD_LOCAL = 1
"""Other threads may allocate meanwhile."""


class _HasHandle(Protocol):
    @property
    def handle(self) -> int: ...


class CudaGraph:
    """Work recorded from a stream, to be launched as a whole.

    Args:
        stream: handle of the stream that records; nothing else may use it meanwhile.
        work: enqueues into that stream.

    Raises:
        EngineError: where something cannot be recorded.
    """

    def __init__(self, stream: int, work: Callable[[], None]) -> None:
        self._executable = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        _call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), _CAPTURE_MODE_THREAD_LOCAL)
        try:
            work()
        finally:
            # Also after an error: the stream would stay in capture mode.
            ended = _driver().cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
        _check("cuStreamEndCapture", ended)
        try:
            _call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            _call("cuGraphDestroy", graph)

    def launch(self, stream: _HasHandle) -> None:
        """Enqueue the recorded work."""
        _call("cuGraphLaunch", self._executable, ctypes.c_void_p(stream.handle))

    def __del__(self) -> None:
        if self._executable:
            _driver().cuGraphExecDestroy(self._executable)


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(function: str, *arguments: object) -> None:
    _check(function, getattr(_driver(), function)(*arguments))


def _check(function: str, code: int) -> None:
    if code == 0:
        return
    text = ctypes.c_char_p()
    _driver().cuGetErrorString(code, ctypes.byref(text))
    reason = text.value.decode() if text.value else "unknown"
    raise EngineError(f"{function} failed with CUDA error {code}: {reason}")
