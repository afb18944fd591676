"""The overlapped schedule on a real device, under random delays: every chunk is its sequential twin's.

Needs one NVIDIA GPU; the comparison of the backends needs 30 GB of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from vlad_configs.errors import EngineError
from vlad_engines.backends.base import Backend, BackendOptions
from vlad_engines.backends.capabilities import Overlapped
from vlad_engines.backends.registry import create_backend
from vlad_engines.bench.case import RequestShape, model_inputs, noise
from vlad_engines.checkpoint.open_weights import open_weights
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint
from vlad_engines.overlap.cuda import CudaStreams
from vlad_engines.overlap.pipeline import OverlappedPipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

SIZE = 256
LONGEST_SLEEP = 1_500_000
"""Clock cycles; about a millisecond."""


class Sleeper:
    """Delays streams at random."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self) -> None:
        torch.cuda._sleep(self._random.randrange(LONGEST_SLEEP))  # type: ignore[no-untyped-call]


class ProductLane:
    """Three matrix products, one per stage. What is not valid is NaN, on the device and on the host."""

    def __init__(self, weights: list[torch.Tensor], scratch: dict[str, torch.Tensor], sleep: Sleeper) -> None:
        self._weights, self._scratch, self._sleep = weights, scratch, sleep
        self._request_id: int | None = None
        self._host = [torch.full((SIZE, SIZE), torch.nan).pin_memory() for _ in range(2)]
        self._device = [torch.full((SIZE, SIZE), torch.nan, device="cuda") for _ in range(4)]

    def load(self, request_id: int, request: torch.Tensor) -> None:
        self._request_id = request_id
        self._host[0].copy_(request)

    def vision(self, request_id: int, stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            self._sleep()
            self._device[0].copy_(self._host[0], non_blocking=True)
            self._stage(request_id, 0, "front")

    def prefix(self, request_id: int, stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            self._stage(request_id, 1, "front")

    def denoise(self, request_id: int, stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            self._stage(request_id, 2, "back")
            self._host[1].copy_(self._device[3], non_blocking=True)

    def take(self, request_id: int) -> bytes:
        chunk = self._host[1].numpy().tobytes()
        for buffer in self._host:
            buffer.fill_(torch.nan)
        return chunk

    def _stage(self, request_id: int, index: int, scratch: str) -> None:
        if self._request_id != request_id:
            raise EngineError(f"lane holds request {self._request_id}, not {request_id}")
        source, target = self._device[index], self._device[index + 1]
        target.fill_(torch.nan)
        self._sleep()
        torch.mm(source, self._weights[index], out=self._scratch[scratch])
        self._sleep()
        target.copy_(self._scratch[scratch])
        source.fill_(torch.nan)


@pytest.mark.parametrize("lanes", [2, 3])
def test_two_hundred_random_requests_get_their_own_products(lanes: int) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(SIZE, SIZE, device="cuda") / SIZE**0.5 for _ in range(3)]
    scratch = {name: torch.empty(SIZE, SIZE, device="cuda") for name in ("front", "back")}
    requests = [torch.randn(SIZE, SIZE) for _ in range(200)]
    expected = []
    for request in requests:
        product = request.cuda()
        for weight in weights:
            product = product @ weight
        expected.append(product.cpu().numpy().tobytes())
    pipeline: OverlappedPipeline[Any, Any, torch.Tensor, bytes] = OverlappedPipeline(
        [ProductLane(weights, scratch, Sleeper(lane)) for lane in range(lanes)],
        CudaStreams(torch.device("cuda", 0)),
    )
    futures = [pipeline.start(request) for request in requests]
    assert [future.result(60).chunk for future in futures] == expected
    report = pipeline.overlap
    pipeline.close()
    assert report.requests == len(requests)
    assert 0.1 < report.fraction < 1


@pytest.fixture
def backends() -> Iterator[tuple[Backend, Backend, Any]]:
    """The same kernels in both: one launch that takes the whole GPU could not run beside anything."""
    from vlad_engines.backends.triton.backend import TritonBackend

    checkpoint = open_policy_checkpoint("random:pi05", environment="LIBERO")
    model, weights = checkpoint.contract.model, open_weights(checkpoint, "cuda")
    options = BackendOptions(10, "bf16", "cuda", camera_counts=(1, 2))
    sequential = TritonBackend(model, weights, options, whole_device=False)
    pipelined = create_backend("triton_pipelined", model, weights, options)
    yield sequential, pipelined, model
    sequential.close()
    pipelined.close()


@pytest.mark.slow
def test_chunks_of_triton_pipelined_are_those_of_triton_under_random_delays(
    backends: tuple[Backend, Backend, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlad_engines.backends.triton_pipelined.lane import TritonLane

    sequential, pipelined, model = backends
    assert isinstance(pipelined, Overlapped)
    shapes = [RequestShape(2, 20), RequestShape(1, 7), RequestShape(2, 33)]
    requests = [
        (model_inputs(model, shapes[seed % 3], seed), start) for seed, start in enumerate(noise(model, 12))
    ]
    expected = [sequential.infer(*request).actions for request in requests]
    for request in requests[:3]:
        pipelined.infer(*request)  # captures; no delay may be captured with it
    sleep, replay = Sleeper(0), TritonLane._replay

    def delayed(lane: TritonLane, stage: int, request_id: int, stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            sleep()
            replay(lane, stage, request_id, stream)
            sleep()

    monkeypatch.setattr(TritonLane, "_replay", delayed)
    order = random.Random(1).choices(range(len(requests)), k=120)
    futures = [pipelined.start(*requests[index]) for index in order]
    for index, future in zip(order, futures, strict=True):
        np.testing.assert_array_equal(future.result(60).actions, expected[index])
    assert pipelined.overlap.overlapped_seconds > 0
