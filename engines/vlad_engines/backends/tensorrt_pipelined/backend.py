"""The `tensorrt_pipelined` backend: vision and prefix of one request beside the denoising of another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

from vlad_configs.errors import EngineError
from vlad_configs.models import ModelConfig
from vlad_engines.backends.base import BackendOptions, InferenceResult
from vlad_engines.backends.capabilities import Trace
from vlad_engines.backends.chunks import Chunks
from vlad_engines.backends.tensorrt.api import ReportProgress, TensorRt
from vlad_engines.backends.tensorrt.arithmetic import ComponentArithmetic
from vlad_engines.backends.tensorrt.backend import (
    Running,
    TensorRtBackend,
    create_as,
    empty_request,
    say_nothing,
)
from vlad_engines.backends.tensorrt.cache import Plan
from vlad_engines.backends.tensorrt.device import Device, Event, Stream
from vlad_engines.backends.tensorrt.engine_plans import PlanProvider, engine_cache
from vlad_engines.backends.tensorrt.loaded_engine import LoadedEngine
from vlad_engines.backends.tensorrt.slot import Array, choose_key
from vlad_engines.backends.tensorrt_pipelined.device_order import DeviceOrder
from vlad_engines.backends.tensorrt_pipelined.lane import Batch, SharedContexts, TensorRtLane
from vlad_engines.backends.tensorrt_pipelined.launching import holds_up
from vlad_engines.backends.tensorrt_pipelined.sharing import Choice, choose_spared
from vlad_engines.checkpoint.demo import cache_directory
from vlad_engines.export.spec import COMPONENTS, Component, ShapeKey
from vlad_engines.overlap.futures import mapped
from vlad_engines.overlap.meter import OverlapReport
from vlad_engines.overlap.pipeline import DEFAULT_LANES, Finished, OverlappedPipeline
from vlad_engines.overlap.results import batch_results, only_result
from vlad_engines.processing.model_inputs import ModelInputs

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("vlad.tensorrt")

Pipeline = OverlappedPipeline[Stream, Event, Batch, Chunks]


class PipelinedTensorRtBackend(TensorRtBackend):
    """See `capabilities.Overlapped`. Each lane has a slot and graphs; the engines are everybody's."""

    name = "tensorrt_pipelined"

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
        self._order: DeviceOrder | None = None
        self._pipeline: Pipeline | None = None
        self._prepared: set[ShapeKey] = set()

    @property
    def overlap(self) -> OverlapReport:
        """See `capabilities.Overlapped.overlap`."""
        return OverlapReport() if self._pipeline is None else self._pipeline.overlap

    @property
    def calls(self) -> Mapping[str, int]:
        """See `capabilities.Counted`."""
        parts: list[Mapping[Any, int]] = [super().calls, *(lane.calls for lane in self._lanes)]
        return {component: sum(part[component] for part in parts) for component in COMPONENTS}

    @property
    def spared(self) -> int:
        """Multiprocessors that vision and prefix leave to another request's denoising; see `sharing`."""
        return 0 if self._order is None else self._order.spared

    def warm_up(self, progress: Callable[[str, float], None]) -> None:
        """Load the engines, building those that are missing; share the GPU out; run every shape once."""
        with self._device.active():
            self._ready(progress)
            progress("sharing the GPU out", 0.0)
            self._share_out()
        super().warm_up(progress)

    def start(self, inputs: ModelInputs, noise: Array) -> Future[InferenceResult]:
        """See `capabilities.Overlapped.start`."""
        return mapped(self._start([inputs], [noise]), only_result)

    def infer_batch(self, inputs: Sequence[ModelInputs], noise: Sequence[Array]) -> list[InferenceResult]:
        """See `capabilities.Batched.infer_batch`."""
        return self.begin_batch(inputs, noise)()

    def begin_batch(
        self, inputs: Sequence[ModelInputs], noise: Sequence[Array]
    ) -> Callable[[], list[InferenceResult]]:
        """See `capabilities.Queued.begin_batch`."""
        computing = self._start(inputs, noise)
        return lambda: batch_results(computing.result())

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

    def _start(self, inputs: Sequence[ModelInputs], noise: Sequence[Array]) -> Future[Finished[Chunks]]:
        key = choose_key(self._config, self._keys, inputs, noise)
        with self._device.active():
            self._ready(say_nothing)
            self._prepare(key)
            if self._pipeline is None:
                raise EngineError("the backend is closed")
            return self._pipeline.start(Batch(key, inputs, noise))

    def _ready(self, progress: ReportProgress) -> Running:
        running = super()._ready(progress)
        if self._pipeline is None:
            self._order = order = DeviceOrder(self._device)
            form = self._engines["denoise"].manifest.identity.form
            self._lanes = [
                TensorRtLane(self._device, self._config, form, self._keys, self._engines, order)
                for _ in range(DEFAULT_LANES)
            ]
            self._pipeline = OverlappedPipeline(self._lanes, order)
        return running

    def _load(self, component: Component, plan: Plan) -> LoadedEngine:
        engine = self._engines[component] = SharedContexts(super()._load(component, plan))
        return cast(LoadedEngine, engine)

    def _prepare(self, key: ShapeKey) -> None:
        if key in self._prepared or self._pipeline is None:
            return
        # Binding another slot's addresses, and recording, need the contexts at rest.
        self._pipeline.drain()
        batch = self._empty_batch(key)
        for lane in self._lanes:
            lane.prepare(batch)
        self._prepared.add(key)

    def _share_out(self) -> None:
        assert self._pipeline is not None
        assert self._order is not None
        if self._prepared:
            return
        self._pipeline.drain()
        order, batch = self._order, self._empty_batch(self._keys[0])
        order.denoise_late = holds_up(order, self._lanes[0], batch)
        if order.denoise_late:
            logger.info("denoising is enqueued after its prefix: its kernels are more than the queue takes")
        choice = Choice(
            engine_cache(cache_directory()).folder,
            self._device,
            [self._engines[component].manifest for component in COMPONENTS],
            denoise_late=order.denoise_late,
        )
        choose_spared(self._device, order, self._lanes, batch, choice)

    def _empty_batch(self, key: ShapeKey) -> Batch:
        sample, noise = empty_request(self._config, key), self._no_noise()
        return Batch(key, [sample] * key.batch, [noise] * key.batch)


def create(
    config: ModelConfig, weights: Mapping[str, torch.Tensor], options: BackendOptions
) -> PipelinedTensorRtBackend:
    """See `registry.create_backend`.

    Args:
        weights: as for the `tensorrt` backend.
    """
    return create_as(PipelinedTensorRtBackend, config, weights, options)
