"""The `triton_pipelined` backend: vision and prefix of one request beside the denoising of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlad_configs.errors import ConfigError, EngineError
from vlad_configs.models import CAMERA_SLOTS, ModelConfig
from vlad_engines.backends.base import BackendOptions, InferenceResult
from vlad_engines.backends.capabilities import Trace
from vlad_engines.backends.chunks import Chunks
from vlad_engines.backends.triton.backend import TritonBackend
from vlad_engines.backends.triton.slot import SlotKey
from vlad_engines.backends.triton_pipelined.lane import Batch, LaneEngine, TritonLane
from vlad_engines.overlap.cuda import CudaStreams
from vlad_engines.overlap.futures import mapped
from vlad_engines.overlap.meter import OverlapReport
from vlad_engines.overlap.pipeline import DEFAULT_LANES, Finished, OverlappedPipeline
from vlad_engines.overlap.results import batch_results, only_result
from vlad_engines.processing.model_inputs import ModelInputs

Actions = npt.NDArray[np.float32]
Pipeline = OverlappedPipeline[torch.cuda.Stream, torch.cuda.Event, Batch, Chunks]


class PipelinedTritonBackend(TritonBackend):
    """See `capabilities.Overlapped`. Each lane has its own buffers and graphs for every key."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], options: BackendOptions) -> None:
        # Other requests' vision and prefix run beside a denoising here.
        super().__init__(config, weights, options, whole_device=False)
        streams = CudaStreams(self._device)
        self._lanes = [
            TritonLane(config, self._weights, self._device, streams, self._image_dtype)
            for _ in range(DEFAULT_LANES)
        ]
        self._pipeline: Pipeline = OverlappedPipeline(self._lanes, streams)
        self._captured: set[SlotKey] = set()

    @property
    def overlap(self) -> OverlapReport:
        """See `capabilities.Overlapped.overlap`."""
        return self._pipeline.overlap

    def warm_up(self, progress: Callable[[str, float], None]) -> None:
        """Capture the graphs of every key in every lane."""
        keys = self._keys()
        for index, key in enumerate(keys):
            progress(f"capturing graphs: {key}", index / len(keys))
            self._ensure(key)

    def start(self, inputs: ModelInputs, noise: Actions) -> Future[InferenceResult]:
        """See `capabilities.Overlapped.start`."""
        return mapped(self._start([inputs], [noise]), only_result)

    def infer_batch(self, inputs: Sequence[ModelInputs], noise: Sequence[Actions]) -> list[InferenceResult]:
        """See `capabilities.Batched.infer_batch`."""
        return self.begin_batch(inputs, noise)()

    def begin_batch(
        self, inputs: Sequence[ModelInputs], noise: Sequence[Actions]
    ) -> Callable[[], list[InferenceResult]]:
        """See `capabilities.Queued.begin_batch`."""
        computing = self._start(inputs, noise)
        return lambda: batch_results(computing.result())

    def trace(self, inputs: ModelInputs, noise: Actions) -> Trace:
        """See `capabilities.Traceable`. Waits until nothing else is in flight."""
        self._pipeline.drain()
        return super().trace(inputs, noise)

    def describe(self) -> dict[str, Any]:
        """See `Backend.describe`."""
        schedule = f"overlapped, {len(self._lanes)} lanes"
        return {stage: {**part, "schedule": schedule} for stage, part in super().describe().items()}

    def close(self) -> None:
        """See `Backend.close`. What is in flight is finished first."""
        self._pipeline.close()
        self._lanes.clear()
        super().close()

    @torch.inference_mode()
    def _start(self, inputs: Sequence[ModelInputs], noise: Sequence[Actions]) -> Future[Finished[Chunks]]:
        if not self._lanes:
            raise EngineError("the backend is closed")
        key = self._key(inputs, noise)
        self._ensure(key)
        with torch.cuda.device(self._device):
            return self._pipeline.start(Batch(key, inputs, noise))

    def _engine(self, key: SlotKey) -> LaneEngine:
        """The graphs of the first lane, for a look into them."""
        self._ensure(key)
        return self._lanes[0].engine(key)

    @torch.inference_mode()
    def _ensure(self, key: SlotKey) -> None:
        if key in self._captured:
            return
        # A capture allows no other thread any call that could disturb it, such as a wait for an event.
        self._pipeline.drain()
        with torch.cuda.device(self._device):
            for lane in self._lanes:
                lane.engine(key)
        self._captured.add(key)


def create(
    config: ModelConfig, weights: Mapping[str, Tensor], options: BackendOptions
) -> PipelinedTritonBackend:
    """Make the backend.

    Raises:
        ConfigError: without an NVIDIA GPU, or for a precision it does not have.
    """
    if not options.device.startswith("cuda") or not torch.cuda.is_available():
        raise ConfigError(f"backend 'triton_pipelined' needs an NVIDIA GPU, not device '{options.device}'")
    if options.precision != "bf16":
        raise ConfigError(f"backend 'triton_pipelined' computes in bf16, not {options.precision}")
    if not options.enable_kv_cache:
        raise ConfigError("backend 'triton_pipelined' always keeps the prefix's keys and values; leave it on")
    if not set(options.camera_counts) <= set(range(1, len(CAMERA_SLOTS) + 1)):
        raise ConfigError(f"camera counts must lie in 1..{len(CAMERA_SLOTS)}, not {options.camera_counts}")
    return PipelinedTritonBackend(config, weights, options)
