"""The `tensorrt_pipelined` backend: vision and prefix of one request beside the denoising of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

from vlad_configs.errors import EngineError
from vlad_configs.models import ModelConfig
from vlad_engines.backends.base import BackendOptions, InferenceResult
from vlad_engines.backends.capabilities import Trace
from vlad_engines.backends.tensorrt.api import ReportProgress, TensorRt, load_tensorrt
from vlad_engines.backends.tensorrt.arithmetic import ComponentArithmetic, parse_arithmetic
from vlad_engines.backends.tensorrt.backend import (
    TensorRtBackend,
    _empty_request,
    _plan_provider,
    _Running,
    _say_nothing,
    check_options,
)
from vlad_engines.backends.tensorrt.cuda_device import open_device
from vlad_engines.backends.tensorrt.device import Device, Event, Stream
from vlad_engines.backends.tensorrt.engine_plans import PlanProvider
from vlad_engines.backends.tensorrt.loaded_engine import LoadedEngine
from vlad_engines.backends.tensorrt.slot import Array, choose_key
from vlad_engines.backends.tensorrt_pipelined.lane import Batch, DeviceOrder, SharedContexts, TensorRtLane
from vlad_engines.export.spec import Component, ShapeKey
from vlad_engines.overlap.futures import mapped
from vlad_engines.overlap.meter import OverlapReport
from vlad_engines.overlap.pipeline import DEFAULT_LANES, Finished, OverlappedPipeline
from vlad_engines.overlap.results import batch_results, only_result
from vlad_engines.processing.model_inputs import ModelInputs

if TYPE_CHECKING:
    import torch

Pipeline = OverlappedPipeline[Stream, Event, Batch, Array]


class PipelinedTensorRtBackend(TensorRtBackend):
    """See `capabilities.Overlapped`. Each lane has a slot and graphs; the engines are everybody's."""

    def __init__(
        self,
        config: ModelConfig,
        options: BackendOptions,
        arithmetic: ComponentArithmetic,
        tensorrt: TensorRt,
        device: Device,
        plans: PlanProvider,
    ) -> None:
        super().__init__(config, options, arithmetic, tensorrt, device, plans, use_graphs=True)
        self._engines: dict[Component, SharedContexts] = {}
        self._lanes: list[TensorRtLane] = []
        self._pipeline: Pipeline | None = None
        self._prepared: set[ShapeKey] = set()

    @property
    def overlap(self) -> OverlapReport:
        """See `capabilities.Overlapped.overlap`."""
        return OverlapReport() if self._pipeline is None else self._pipeline.overlap

    def warm_up(self, progress: Callable[[str, float], None]) -> None:
        """Load the engines, building those that are missing, and run every shape once in every lane."""
        with self._device.active():
            self._ready(progress)
            for index, key in enumerate(self._keys):
                progress(f"warming up tensorrt_pipelined: {key}", index / len(self._keys))
                self._prepare(key)
            progress("warming up tensorrt_pipelined", 1.0)

    def start(self, inputs: ModelInputs, noise: Array) -> Future[InferenceResult]:
        """See `capabilities.Overlapped.start`."""
        return mapped(self._start([inputs], [noise]), only_result)

    def infer_batch(self, inputs: Sequence[ModelInputs], noise: Sequence[Array]) -> list[InferenceResult]:
        """See `capabilities.Batched.infer_batch`."""
        return batch_results(self._start(inputs, noise).result())

    def trace(self, inputs: ModelInputs, noise: Array) -> Trace:
        """See `capabilities.Traceable`. Waits until nothing else is in flight."""
        if self._pipeline is not None:
            self._pipeline.drain()
        return super().trace(inputs, noise)

    def describe(self) -> dict[str, Any]:
        """See `base.Backend.describe`."""
        schedule = f"overlapped, {DEFAULT_LANES} lanes"
        return {component: {**part, "schedule": schedule} for component, part in super().describe().items()}

    def close(self) -> None:
        """See `base.Backend.close`. What is in flight is finished first."""
        if self._pipeline is not None:
            self._pipeline.close()
        with self._device.active():
            self._lanes.clear()
            self._engines.clear()
        super().close()

    def _start(self, inputs: Sequence[ModelInputs], noise: Sequence[Array]) -> Future[Finished[Array]]:
        key = choose_key(self._config, self._keys, inputs, noise)
        with self._device.active():
            self._ready(_say_nothing)
            self._prepare(key)
            if self._pipeline is None:
                raise EngineError("the backend is closed")
            return self._pipeline.start(Batch(key, inputs, noise))

    def _ready(self, progress: ReportProgress) -> _Running:
        running = super()._ready(progress)
        if self._pipeline is None:
            order = DeviceOrder(self._device)
            form = self._engines["denoise"].manifest.identity.form
            self._lanes = [
                TensorRtLane(self._device, self._config, form, self._keys, self._engines, order)
                for _ in range(DEFAULT_LANES)
            ]
            self._pipeline = OverlappedPipeline(self._lanes, order)
        return running

    def _load(self, component: Component, plan: Any) -> LoadedEngine:
        engine = self._engines[component] = SharedContexts(super()._load(component, plan))
        return cast(LoadedEngine, engine)

    def _prepare(self, key: ShapeKey) -> None:
        if key in self._prepared or self._pipeline is None:
            return
        # Binding another slot's addresses, and recording, need the contexts at rest.
        self._pipeline.drain()
        sample, noise = _empty_request(self._config, key), self._no_noise()
        for lane in self._lanes:
            lane.prepare(Batch(key, [sample] * key.batch, [noise] * key.batch))
        self._prepared.add(key)


def create(
    config: ModelConfig, weights: Mapping[str, torch.Tensor], options: BackendOptions
) -> PipelinedTensorRtBackend:
    """See `registry.create_backend`.

    Args:
        weights: as for the `tensorrt` backend.
    """
    arithmetic = parse_arithmetic(options.precision)
    check_options(options)
    tensorrt = load_tensorrt()
    tensorrt.check_arithmetic(arithmetic)
    device = open_device(options.device)
    plans = _plan_provider(config, weights, options, arithmetic)
    return PipelinedTensorRtBackend(config, options, arithmetic, tensorrt, device, plans)
