"""From what a pipeline finished to what a backend returns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlad_engines.backends.base import InferenceResult
from vlad_engines.overlap.pipeline import Finished

Actions = npt.NDArray[np.float32]


def batch_results(finished: Finished[Actions]) -> list[InferenceResult]:
    """One result per request of a batch `[B, H, A]`; its times are those of the whole batch."""
    stage_seconds = finished.times.stage_seconds
    return [
        InferenceResult(actions, stage_seconds, finished.overlapped_seconds) for actions in finished.chunk
    ]


def only_result(finished: Finished[Actions]) -> InferenceResult:
    """The result of a batch of one."""
    (result,) = batch_results(finished)
    return result
