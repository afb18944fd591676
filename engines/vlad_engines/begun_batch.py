"""Requests that the device computes together, from the hand-over to the backend to their replies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from vlad_engines.backends.base import InferenceResult
from vlad_engines.pending_chunk import PreparedRequest, make_reply
from vlad_engines.processing.processor import Processor


class BegunBatch:
    """The replies to some observations, in time. Another thread than the one that began them may wait.

    Args:
        requests: that were handed over.
        computing: waits for the device, or computes where nothing has begun yet; one result per request.
        processor: turns results into the robots' actions.
        handed_over: when the backend got them, by `time.perf_counter`; None where `computing` does that.
    """

    def __init__(
        self,
        requests: Sequence[PreparedRequest],
        computing: Callable[[], Sequence[InferenceResult]],
        processor: Processor,
        handed_over: float | None,
    ) -> None:
        self._requests = requests
        self._computing = computing
        self._processor = processor
        self._handed_over = handed_over
        self._results: Sequence[InferenceResult] = ()
        self._infer_s = 0.0

    def wait(self) -> None:
        """Return when the chunks are in host memory. Called once; before anything else is begun, but for
        overlapped backends.

        Raises:
            EngineError: where the engine failed.
        """
        since = time.perf_counter() if self._handed_over is None else self._handed_over
        self._results = self._computing()
        self._infer_s = time.perf_counter() - since

    def reply(self, index: int) -> dict[str, Any]:
        """To one of the requests, after `wait`; `UnifiedPolicy.infer` says what is in it.

        Raises:
            EngineError: for non-finite actions.
        """
        return make_reply(self._requests[index], self._results[index], self._processor, self._infer_s)
