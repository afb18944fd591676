"""A lane of captured graphs: one set of buffers, and graphs over them for every shape of batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vlad_configs.errors import EngineError
from vlad_configs.models import ModelConfig
from vlad_engines.backends.chunks import Chunks
from vlad_engines.backends.triton.engine import CapturedEngine
from vlad_engines.backends.triton.slot import SlotKey
from vlad_engines.backends.triton.weights import FusedWeights
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.overlap.cuda import CudaStreams
from vlad_engines.processing.model_inputs import ModelInputs

_WARM_UP_RUNS = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Requests computed together, and the shape of graph that they fit."""

    key: SlotKey
    inputs: Sequence[ModelInputs]
    noise: Sequence[npt.NDArray[np.float32]]


class LaneEngine(CapturedEngine):
    """Graphs of one shape in one lane, captured on the streams on which they will run.

    cuBLAS keeps one workspace per stream, which a graph goes on using: two graphs captured on one stream
    spoil each other's split products where they run side by side. Front graphs never do, nor do back
    graphs, so the two streams are all that it takes to keep them apart.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: FusedWeights,
        key: SlotKey,
        workspace: Workspace,
        streams: CudaStreams,
        image_dtype: torch.dtype,
    ) -> None:
        self._streams = streams
        super().__init__(config, weights, key, workspace, image_dtype=image_dtype, alone=False)

    def fill(self, batch: Batch) -> None:
        """Write a batch into the pinned host buffers."""
        self._fill(batch.inputs, batch.noise)

    def replay(self, stage: int) -> None:
        """Enqueue a stage, an index of `STAGES`, on the current stream."""
        self._graphs[stage].replay()

    def _capture(self) -> list[torch.cuda.CUDAGraph]:
        front, back = self._streams.front, self._streams.back
        front.wait_stream(torch.cuda.current_stream())
        for _ in range(_WARM_UP_RUNS):
            with torch.cuda.stream(front):
                self._upload()
                self.vision()
                self.prefix()
            back.wait_stream(front)
            with torch.cuda.stream(back):
                self.denoise()
            front.wait_stream(back)
        front.synchronize()
        return [
            _captured(front, self._upload, self.vision),
            _captured(front, self.prefix, pool=self._prefix_pool),
            _captured(back, self.denoise, self._download),
        ]


class TritonLane:
    """See `overlap.schedule.Lane`. Its engines share one workspace, because one of them runs at a time."""

    def __init__(
        self,
        config: ModelConfig,
        weights: FusedWeights,
        device: torch.device,
        streams: CudaStreams,
        image_dtype: torch.dtype,
    ) -> None:
        self._image_dtype = image_dtype
        self._config, self._weights, self._streams = config, weights, streams
        self._workspace = Workspace(device)
        self._engines: dict[SlotKey, LaneEngine] = {}
        self._request_id: int | None = None
        self._current: LaneEngine | None = None

    def engine(self, key: SlotKey) -> LaneEngine:
        """The graphs for a shape, captured where there are none yet. Nothing may be in flight meanwhile."""
        if key not in self._engines:
            self._engines[key] = LaneEngine(
                self._config, self._weights, key, self._workspace, self._streams, self._image_dtype
            )
        return self._engines[key]

    def load(self, request_id: int, request: Batch) -> None:
        """See `overlap.schedule.Lane.load`."""
        self._request_id, self._current = request_id, self._engines[request.key]
        self._current.fill(request)

    def vision(self, request_id: int, stream: torch.cuda.Stream) -> None:
        """See `overlap.schedule.Lane.vision`."""
        self._replay(0, request_id, stream)

    def prefix(self, request_id: int, stream: torch.cuda.Stream) -> None:
        """See `overlap.schedule.Lane.prefix`."""
        self._replay(1, request_id, stream)

    def denoise(self, request_id: int, stream: torch.cuda.Stream) -> None:
        """See `overlap.schedule.Lane.denoise`."""
        self._replay(2, request_id, stream)

    def take(self, request_id: int) -> Chunks:
        """See `overlap.schedule.Lane.take`."""
        return self._require(request_id).take()

    def _replay(self, stage: int, request_id: int, stream: torch.cuda.Stream) -> None:
        engine = self._require(request_id)
        with torch.cuda.stream(stream):
            engine.replay(stage)

    def _require(self, request_id: int) -> LaneEngine:
        if self._request_id != request_id or self._current is None:
            raise EngineError(f"lane holds request {self._request_id}, a stage expected request {request_id}")
        return self._current


def _captured(
    stream: torch.cuda.Stream, *parts: Callable[[], None], pool: Any = None
) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, pool=pool):
        for part in parts:
            part()
    return graph
