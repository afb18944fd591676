"""One batch at a time: vision, prefix, denoise, then the only wait."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from vlad_engines.backends.chunks import Chunks
from vlad_engines.backends.tensorrt.components import EngineComponent
from vlad_engines.backends.tensorrt.device import Device, Stream
from vlad_engines.backends.tensorrt.slot import Array, Slot
from vlad_engines.export.spec import COMPONENTS, Component, ShapeKey
from vlad_engines.processing.model_inputs import ModelInputs


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """Chunks, and seconds on the device per component."""

    chunks: Chunks
    stage_seconds: Mapping[str, float]


class SequentialSchedule:
    """All components in one stream, which orders them. The upload counts as vision."""

    def __init__(
        self, device: Device, slot: Slot, components: Mapping[Component, EngineComponent], stream: Stream
    ) -> None:
        self._slot = slot
        self._components = components
        self._stream = stream
        self._request_ids = itertools.count()
        self._marks = [device.create_event() for _ in range(len(COMPONENTS) + 1)]
        self._downloaded = device.create_event()

    @property
    def calls(self) -> dict[str, int]:
        """How often each component ran for requests."""
        return {name: component.calls for name, component in self._components.items()}

    def prepare(self, key: ShapeKey, inputs: Sequence[ModelInputs], noise: Sequence[Array]) -> None:
        """Run a batch that nobody asked for, so that graphs exist for its shape."""
        self.run(key, inputs, noise)
        for component in self._components.values():
            component.calls -= 1

    def run(self, key: ShapeKey, inputs: Sequence[ModelInputs], noise: Sequence[Array]) -> BatchResult:
        """Compute one batch; returns when the actions are in host memory.

        Raises:
            EngineError: where TensorRT fails.
        """
        slot, stream, request_id = self._slot, self._stream, next(self._request_ids)
        self._marks[0].record(stream)
        slot.load(request_id, key, inputs, noise, stream)
        for component, mark in zip(COMPONENTS, self._marks[1:], strict=True):
            self._components[component](slot, request_id, stream)
            mark.record(stream)
        slot.enqueue_download(stream)
        self._downloaded.record(stream)
        self._downloaded.synchronize()
        seconds: dict[str, float] = {
            component: end.seconds_since(begin)
            for component, (begin, end) in zip(COMPONENTS, itertools.pairwise(self._marks), strict=True)
        }
        return BatchResult(slot.take(), seconds)
