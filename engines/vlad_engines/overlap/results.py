"""From what a pipeline finished to what a backend returns."""

from __future__ import annotations

from vlad_engines.backends.base import InferenceResult
from vlad_engines.backends.chunks import Chunks
from vlad_engines.overlap.pipeline import Finished


def batch_results(finished: Finished[Chunks]) -> list[InferenceResult]:
    """One result per request of a batch; its times are those of the whole batch."""
    return finished.chunk.results(finished.times.stage_seconds, finished.overlapped_seconds)


def only_result(finished: Finished[Chunks]) -> InferenceResult:
    """The result of a batch of one."""
    (result,) = batch_results(finished)
    return result
