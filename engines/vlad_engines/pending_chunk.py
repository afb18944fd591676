"""A chunk that is being computed, from the hand-over to the backend to the reply."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_engines.backends.base import InferenceResult
from vlad_engines.processing.continuation import Plan
from vlad_engines.processing.model_inputs import ModelInputs
from vlad_engines.processing.processor import Processor

_STAGES = ("vision", "prefix", "denoise")


@dataclasses.dataclass(frozen=True)
class PreparedRequest:
    """What a backend needs of a request, and what its reply needs later.

    Attributes:
        noise: `[H, A]` float32.
        anchor_state: `[state_width]` float64, the robot's state in its own units.
        plan: how the chunk continues an earlier one; None where nothing was asked.
        preprocess_s: seconds that the preparation took.
    """

    inputs: ModelInputs
    noise: npt.NDArray[np.float32]
    anchor_state: npt.NDArray[np.float64]
    plan: Plan | None
    preprocess_s: float


class PendingChunk:
    """The reply to one observation, in time. Any thread may wait for it.

    Args:
        request: that was handed over.
        computing: its result.
        processor: turns the result into the robot's actions.
        handed_over: when the backend got it, by `time.perf_counter`.
    """

    def __init__(
        self,
        request: PreparedRequest,
        computing: Future[InferenceResult],
        processor: Processor,
        handed_over: float,
    ) -> None:
        self._request = request
        self._computing = computing
        self._processor = processor
        self._lock = threading.Lock()
        self._reply: dict[str, Any] | None = None
        self._handed_over = handed_over
        self._computed: float | None = None
        computing.add_done_callback(self._note_time)

    def done(self) -> bool:
        """Whether `result` returns without waiting for the device."""
        return self._computing.done()

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the reply, the same every time.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Returns:
            See `UnifiedPolicy.infer`.

        Raises:
            concurrent.futures.TimeoutError: where the time is over first.
            EngineError: where the engine failed, or returned non-finite actions.
        """
        result = self._computing.result(timeout)
        with self._lock:
            if self._reply is None:
                # Who waits may wake before the callback is called; then the chunk has just been computed.
                computed = time.perf_counter() if self._computed is None else self._computed
                self._reply = make_reply(self._request, result, self._processor, computed - self._handed_over)
            return self._reply

    def _note_time(self, computing: Future[InferenceResult]) -> None:
        self._computed = time.perf_counter()


def make_reply(
    request: PreparedRequest, result: InferenceResult, processor: Processor, infer_s: float
) -> dict[str, Any]:
    """What `UnifiedPolicy.infer` returns.

    Args:
        infer_s: seconds from handing the request over until its chunk was in host memory.

    Raises:
        EngineError: for non-finite actions.
    """
    started = time.perf_counter()
    actions = processor.finish(result.actions, request.inputs)
    reply: dict[str, Any] = {
        "actions": actions,
        "model_actions": result.actions,
        "anchor_state": request.anchor_state,
        "policy_timing": {
            "infer_ms": infer_s * 1e3,
            "preprocess_ms": request.preprocess_s * 1e3,
            **{f"{stage}_ms": float(result.stage_seconds[stage]) * 1e3 for stage in _STAGES},
            "overlapped_ms": result.overlapped_seconds * 1e3,
            "postprocess_ms": (time.perf_counter() - started) * 1e3,
        },
    }
    if result.pruned is not None:
        reply["policy_timing"]["image_tokens_kept"] = float(result.pruned.kept)
        reply["policy_timing"]["image_tokens_voted"] = float(result.pruned.voted)
    if request.plan is not None:
        reply["rtc"] = request.plan.report()
    if request.inputs.notes:
        reply["notes"] = dict(request.inputs.notes)
    return reply


def computed_now(compute: Callable[[], InferenceResult]) -> Future[InferenceResult]:
    """Call `compute` and keep what it returns or raises, for backends that do one thing at a time."""
    future: Future[InferenceResult] = Future()
    future.set_running_or_notify_cancel()
    try:
        future.set_result(compute())
    except Exception as error:
        future.set_exception(error)
    return future
