"""The overlapped schedule over engines, on a device in host memory that does nothing before it must."""

from __future__ import annotations

import pathlib
import random
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.host_tensorrt import HostDevice, make_tensorrt
from tests.support.tiny_networks import model_inputs, padded_batch, random_weights, tiny_config
from vlad_configs.errors import EngineError
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.capabilities import Batched, Overlapped, Traceable
from vlad_engines.backends.tensorrt.api import TensorRt
from vlad_engines.backends.tensorrt.arithmetic import parse_arithmetic
from vlad_engines.backends.tensorrt.backend import TensorRtBackend
from vlad_engines.backends.tensorrt.checkpoint_graphs import CheckpointGraphs
from vlad_engines.backends.tensorrt.engine_plans import BuiltPlans, engine_cache
from vlad_engines.backends.tensorrt.manifest import BuildSettings
from vlad_engines.backends.tensorrt_pipelined import backend as pipelined_backend
from vlad_engines.backends.tensorrt_pipelined.backend import PipelinedTensorRtBackend
from vlad_engines.backends.tensorrt_pipelined.lane import DeviceOrder, TensorRtLane

CONFIG, STEPS = tiny_config("pi05"), 3
SHAPES = [([True, True, False], 9), ([True, False, False], 3), ([True, True, True], 12)]
_folder = tempfile.TemporaryDirectory()


def make(kind: type[TensorRtBackend], **options: Any) -> Any:
    arithmetic, device = parse_arithmetic("fp32"), HostDevice()
    cache = engine_cache(pathlib.Path(_folder.name))
    graphs = CheckpointGraphs(CONFIG, random_weights(CONFIG), arithmetic.form(STEPS, "step"), cache.folder)
    return kind(
        CONFIG,
        BackendOptions(STEPS, "fp32", "cuda", **options),
        arithmetic,
        TensorRt(make_tensorrt("8.6.0", device)),
        device,
        BuiltPlans(cache, graphs, BuildSettings()),
    )


def request(seed: int) -> tuple[Any, Any]:
    mask, prompt = SHAPES[seed % len(SHAPES)]
    batch = padded_batch(CONFIG, [mask], [prompt], seed)
    return model_inputs(batch), batch.noise[0].numpy()


def require_the_chunks_of(sequential: TensorRtBackend, pipelined: PipelinedTensorRtBackend) -> None:
    """Forty requests in flight, each bit for bit as the sequential backend computes it."""
    requests = [request(seed) for seed in range(6)]
    expected = [sequential.infer(*each).actions for each in requests]
    order = random.Random(0).choices(range(6), k=40)
    futures = [pipelined.start(*requests[index]) for index in order]
    for index, future in zip(order, futures, strict=True):
        assert future.result(60).actions.tobytes() == expected[index].tobytes()


@pytest.fixture(scope="module")
def sequential() -> Iterator[TensorRtBackend]:
    backend = make(TensorRtBackend)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def pipelined() -> Iterator[PipelinedTensorRtBackend]:
    backend = make(PipelinedTensorRtBackend)
    yield backend
    backend.close()


def test_it_offers_what_its_interfaces_promise(pipelined: PipelinedTensorRtBackend) -> None:
    for capability in (Overlapped, Batched, Traceable):
        assert isinstance(pipelined, capability)
    for part in pipelined.describe().values():
        assert (part["engine"], part["schedule"]) == ("tensorrt", "overlapped, 3 lanes")


def test_requests_in_flight_get_the_chunks_of_the_sequential_backend_bit_by_bit(
    pipelined: PipelinedTensorRtBackend, sequential: TensorRtBackend
) -> None:
    require_the_chunks_of(sequential, pipelined)
    assert pipelined.overlap.requests >= 40


def test_denoising_that_is_enqueued_late_gives_the_same_chunks(
    sequential: TensorRtBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pipelined_backend, "holds_up", lambda *_: True)
    backend = make(PipelinedTensorRtBackend)
    with caplog.at_level("INFO", "vlad.tensorrt"):
        backend.warm_up(lambda stage, fraction: None)
    assert "denoising is enqueued after its prefix" in caplog.text
    require_the_chunks_of(sequential, backend)
    backend.close()


def test_without_the_wait_for_the_prefix_the_chunks_are_wrong(
    sequential: TensorRtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make(PipelinedTensorRtBackend)
    assert backend.infer(*request(0)).actions.tobytes() == sequential.infer(*request(0)).actions.tobytes()
    monkeypatch.setattr(DeviceOrder, "wait", lambda *_: None)
    futures = [backend.start(*request(seed)) for seed in (3, 6, 9)]
    for seed, future in zip((3, 6, 9), futures, strict=True):
        assert future.result(60).actions.tobytes() != sequential.infer(*request(seed)).actions.tobytes()
    backend.close()


def test_a_trace_between_requests_disturbs_neither(
    pipelined: PipelinedTensorRtBackend, sequential: TensorRtBackend
) -> None:
    futures = [pipelined.start(*request(seed)) for seed in range(3)]
    traced, twin = pipelined.trace(*request(0)), sequential.trace(*request(0))
    futures += [pipelined.start(*request(seed)) for seed in range(3)]
    np.testing.assert_array_equal(traced.x_t, twin.x_t)
    np.testing.assert_array_equal(traced.prefix_keys, twin.prefix_keys)
    for seed, future in enumerate(futures):
        expected = sequential.infer(*request(seed % 3)).actions
        np.testing.assert_array_equal(future.result(60).actions, expected)


def test_a_batch_in_flight_is_its_requests() -> None:
    backend = make(PipelinedTensorRtBackend, batch_sizes=(1, 2), camera_counts=(2,))
    same_shape = [request(0), request(3)]
    together = backend.infer_batch(*zip(*same_shape, strict=True))
    for each, result in zip(same_shape, together, strict=True):
        np.testing.assert_allclose(result.actions, backend.infer(*each).actions, atol=1e-5)
    backend.close()


def test_warm_up_prepares_every_shape_in_every_lane() -> None:
    backend = make(PipelinedTensorRtBackend, camera_counts=(2,))
    stages: list[tuple[str, float]] = []
    backend.warm_up(lambda *stage: stages.append(stage))
    assert stages[-1] == ("warming up tensorrt_pipelined", 1.0)
    captures = backend._device.captures
    assert captures == 3 * 3 * len(backend._keys)
    backend.infer(*request(0))
    assert backend._device.captures == captures
    backend.close()


def test_a_lane_refuses_stages_of_another_request(pipelined: PipelinedTensorRtBackend) -> None:
    pipelined.infer(*request(0))
    lane: TensorRtLane = pipelined._lanes[0]
    with pytest.raises(EngineError, match="a stage expected request 999"):
        lane.vision(999, lane._order.front)
    with pytest.raises(EngineError, match="a stage expected request 999"):
        lane.prefix(999, lane._order.front)


def test_inputs_that_do_not_fit_are_refused_and_take_no_lane(pipelined: PipelinedTensorRtBackend) -> None:
    inputs, noise = request(0)
    for _ in range(5):
        with pytest.raises(EngineError, match="noise must be float32"):
            pipelined.start(inputs, noise[:1])
    assert np.isfinite(pipelined.infer(inputs, noise).actions).all()


def test_a_closed_backend_has_finished_its_requests_and_takes_no_more() -> None:
    backend = make(PipelinedTensorRtBackend, camera_counts=(2,))
    future = backend.start(*request(0))
    backend.close()
    assert future.done()
    with pytest.raises(EngineError, match="closed"):
        backend.start(*request(0))
