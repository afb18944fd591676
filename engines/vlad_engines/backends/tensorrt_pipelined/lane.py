"""A lane of engines: a slot of its own, and graphs of every engine over that slot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

from vlad_configs.errors import EngineError
from vlad_configs.models import ModelConfig
from vlad_engines.backends.chunks import Chunks
from vlad_engines.backends.tensorrt.components import make_components
from vlad_engines.backends.tensorrt.device import Device, Stream
from vlad_engines.backends.tensorrt.loaded_engine import BoundContext, LoadedEngine
from vlad_engines.backends.tensorrt.slot import Array, Slot
from vlad_engines.backends.tensorrt_pipelined.device_order import DeviceOrder
from vlad_engines.export.spec import Component, GraphForm, ShapeKey
from vlad_engines.processing.model_inputs import ModelInputs

_PREPARATION = -1
"""Request id of the run that prepares a shape. Pipelines count their requests from zero."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Requests computed together, and the shape of engine that they fit."""

    key: ShapeKey
    inputs: Sequence[ModelInputs]
    noise: Sequence[Array]


class SharedContexts:
    """An engine that has one context per shape for all slots.

    TensorRT 8.6 gives a profile to one context at a time. That is enough: a recorded graph keeps the
    addresses of its slot, and graphs of one component never run side by side.
    """

    def __init__(self, engine: LoadedEngine) -> None:
        self.manifest = engine.manifest
        self._engine = engine
        self._contexts: dict[tuple[tuple[str, tuple[int, ...]], ...], BoundContext] = {}

    @property
    def device_bytes(self) -> int:
        """See `LoadedEngine.device_bytes`."""
        return self._engine.device_bytes

    def create_context(self, shapes: Mapping[str, tuple[int, ...]], stream: Stream) -> BoundContext:
        """See `LoadedEngine.create_context`. Who gets the context binds all of it before recording."""
        key = tuple(sorted(shapes.items()))
        if key not in self._contexts:
            self._contexts[key] = self._engine.create_context(shapes, stream)
        return self._contexts[key]


class TensorRtLane:
    """See `overlap.schedule.Lane`."""

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        form: GraphForm,
        keys: Sequence[ShapeKey],
        engines: Mapping[Component, SharedContexts],
        order: DeviceOrder,
    ) -> None:
        self._order = order
        self._slot = Slot(device, config, form, keys, order.front)
        # Components ask an engine for its manifest and for contexts, and here get shared ones.
        contexts = cast("Mapping[Component, LoadedEngine]", engines)
        self._components = make_components(contexts, device, self._slot, use_graphs=True)
        self._request_id: int | None = None
        self._batch: Batch | None = None

    @property
    def calls(self) -> dict[Component, int]:
        """How often each component ran."""
        return {name: component.calls for name, component in self._components.items()}

    @calls.setter
    def calls(self, calls: Mapping[Component, int]) -> None:
        for name, component in self._components.items():
            component.calls = calls[name]

    def prepare(self, batch: Batch) -> None:
        """Run a batch once in every stream, so that graphs exist for its shape. Nothing may be in flight."""
        order, counted = self._order, self.calls
        for front in {stream.handle: stream for stream in (order.front, order.beside)}.values():
            self.load(_PREPARATION, batch)
            self.vision(_PREPARATION, front)
            self.prefix(_PREPARATION, front)
            self._finish(front)
        self.denoise(_PREPARATION, order.back)
        self._finish(order.back)
        self.calls = counted

    def forget(self, stream: Stream) -> None:
        """Give up the graphs of a stream that is not used any more."""
        for component in self._components.values():
            component.forget(stream)

    def load(self, request_id: int, request: Batch) -> None:
        """See `overlap.schedule.Lane.load`."""
        self._request_id, self._batch = request_id, request

    def vision(self, request_id: int, stream: Stream) -> None:
        """See `overlap.schedule.Lane.vision`."""
        if self._request_id != request_id or self._batch is None:
            raise EngineError(f"lane holds request {self._request_id}, a stage expected request {request_id}")
        batch, self._batch = self._batch, None
        self._slot.load(request_id, batch.key, batch.inputs, batch.noise, stream)
        self._components["vision"](self._slot, request_id, stream)

    def prefix(self, request_id: int, stream: Stream) -> None:
        """See `overlap.schedule.Lane.prefix`."""
        self._components["prefix"](self._slot, request_id, stream)

    def denoise(self, request_id: int, stream: Stream) -> None:
        """See `overlap.schedule.Lane.denoise`."""
        self._components["denoise"](self._slot, request_id, stream)
        self._slot.enqueue_download(stream)

    def take(self, request_id: int) -> Chunks:
        """See `overlap.schedule.Lane.take`."""
        self._slot.require(request_id)
        return self._slot.take()

    def _finish(self, stream: Stream) -> None:
        done = self._order.event()
        self._order.record(done, stream)
        self._order.synchronize(done)
