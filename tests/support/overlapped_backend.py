"""The pytorch backend behind the interfaces of backends that do several things at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from tests.support.scripted_device import TimedLane, TimedStream, TimedStreams
from vlad_configs.models import ModelConfig
from vlad_engines.backends.base import BackendOptions, InferenceResult
from vlad_engines.backends.pytorch.backend import PytorchBackend
from vlad_engines.model.pi0 import Pi0
from vlad_engines.overlap.futures import mapped
from vlad_engines.overlap.meter import OverlapReport
from vlad_engines.overlap.pipeline import OverlappedPipeline
from vlad_engines.processing.model_inputs import ModelInputs

Array = np.ndarray[Any, np.dtype[np.float32]]

STAGES = (0.001, 0.002, 0.003)


class NetworkLane(TimedLane):
    """Computes with the real network while denoising is enqueued, on a device whose time is scripted."""

    def __init__(self, backend: PytorchBackend) -> None:
        super().__init__(STAGES)
        self._backend = backend
        self._held: Any = None
        self._actions: Array | None = None

    def load(self, request_id: int, request: Any) -> None:
        self._held = request

    def denoise(self, request_id: int, stream: TimedStream) -> None:
        super().denoise(request_id, stream)
        self._actions = self._backend.infer(*self._held).actions

    def take(self, request_id: int) -> Any:
        return self._actions


class SeveralAtOnce(PytorchBackend):
    """Overlapped and batched by name; each request is computed alone."""

    def __init__(self, model: Pi0, options: BackendOptions) -> None:
        super().__init__(model, options, torch.device("cpu"))
        self._flights: OverlappedPipeline[Any, Any, Any, Any] = OverlappedPipeline(
            [NetworkLane(self) for _ in range(3)], TimedStreams()
        )

    @property
    def overlap(self) -> OverlapReport:
        return self._flights.overlap

    def start(self, inputs: ModelInputs, noise: Array) -> Future[InferenceResult]:
        return mapped(
            self._flights.start((inputs, noise)),
            lambda done: InferenceResult(done.chunk, done.times.stage_seconds, done.overlapped_seconds),
        )

    def infer_batch(self, inputs: Sequence[ModelInputs], noise: Sequence[Array]) -> list[InferenceResult]:
        return [self.infer(*pair) for pair in zip(inputs, noise, strict=True)]

    def begin_batch(
        self, inputs: Sequence[ModelInputs], noise: Sequence[Array]
    ) -> Callable[[], list[InferenceResult]]:
        futures = [self.start(*pair) for pair in zip(inputs, noise, strict=True)]
        return lambda: [future.result() for future in futures]

    def close(self) -> None:
        self._flights.close()
        super().close()


def create_several_at_once(
    name: str, config: ModelConfig, weights: Mapping[str, torch.Tensor], options: BackendOptions
) -> SeveralAtOnce:
    """Stands in for `registry.create_backend`."""
    return SeveralAtOnce(Pi0.from_openpi_weights(config, weights), options)
