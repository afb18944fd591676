"""CUDA graphs through the driver, because pycuda has none."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from typing import Protocol

from vlad_configs.errors import EngineError
from vlad_engines.backends.tensorrt.cuda_driver import call, end_capture

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
        call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), _CAPTURE_MODE_THREAD_LOCAL)
        try:
            work()
        except BaseException:
            # The stream would stay in capture mode. What `work` raised says more than what ending does.
            with contextlib.suppress(EngineError):
                call("cuGraphDestroy", end_capture(stream))
            raise
        graph = end_capture(stream)
        try:
            call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            call("cuGraphDestroy", graph)

    def launch(self, stream: _HasHandle) -> None:
        """Enqueue the recorded work, with the priority of `stream`."""
        call("cuGraphLaunch", self._executable, ctypes.c_void_p(stream.handle))

    def __del__(self) -> None:
        if self._executable:
            call("cuGraphExecDestroy", self._executable)
