"""The measurement of overlap counts, times and compares what it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.overlapped_backend import create_several_at_once
from tests.support.tiny_networks import random_weights, tiny_config
from vlad_configs.errors import ConfigError
from vlad_engines.backends.base import Backend, BackendOptions
from vlad_engines.backends.registry import create_backend
from vlad_engines.bench.case import RequestShape, model_inputs, noise
from vlad_engines.bench.in_flight import measure

CONFIG = tiny_config("pi05")
OPTIONS = BackendOptions(2, "fp32", "cpu")
REQUESTS = [
    (model_inputs(CONFIG, RequestShape(2, 7), seed), start) for seed, start in enumerate(noise(CONFIG, 4))
]


@pytest.fixture(params=["sequential", "overlapped"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    create: Any = create_backend if request.param == "sequential" else create_several_at_once
    made: Backend = create("pytorch", CONFIG, random_weights(CONFIG), OPTIONS)
    yield made
    made.close()


@pytest.fixture
def expected() -> list[bytes]:
    twin = create_backend("pytorch", CONFIG, random_weights(CONFIG), OPTIONS)
    return [twin.infer(*request).actions.tobytes() for request in REQUESTS]


def test_a_lone_request_overlaps_with_nothing(backend: Backend, expected: list[bytes]) -> None:
    row = measure("any", backend, REQUESTS, expected, 7, 1)
    assert (row.requests, row.in_flight, row.same_chunks, row.overlap) == (7, 1, True, 0.0)
    assert 0 < row.p50_ms <= row.p99_ms
    assert row.requests_per_s > 0


def test_several_in_flight_are_all_counted_and_compared(expected: list[bytes]) -> None:
    backend = create_several_at_once("any", CONFIG, random_weights(CONFIG), OPTIONS)
    row = measure("any", backend, REQUESTS, expected, 20, 3)
    backend.close()
    assert (row.requests, row.in_flight, row.same_chunks) == (20, 3, True)
    assert 0 <= row.overlap < 1


def test_a_chunk_that_is_not_the_expected_one_is_noticed(backend: Backend, expected: list[bytes]) -> None:
    wrong = [*expected[:3], expected[0]]
    assert not measure("any", backend, REQUESTS, wrong, 4, 1).same_chunks


def test_a_sequential_backend_has_no_requests_in_flight(expected: list[bytes]) -> None:
    backend = create_backend("pytorch", CONFIG, random_weights(CONFIG), OPTIONS)
    with pytest.raises(ConfigError, match="computes one request at a time, not 2"):
        measure("pytorch", backend, REQUESTS, expected, 3, 2)
