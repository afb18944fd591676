"""Measures a backend alone: model inputs in, actions in host memory out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from vlad_configs.models import ModelConfig
from vlad_engines.backends.base import Backend
from vlad_engines.backends.capabilities import Batched
from vlad_engines.bench.case import RequestShape, model_inputs, noise
from vlad_engines.bench.row import STAGES, Samples


def runs_batch(backend: Backend, batch: int) -> bool:
    """Whether a backend runs `batch` requests at once."""
    return batch == 1 or isinstance(backend, Batched)


def measure_engine(
    backend: Backend, model: ModelConfig, shape: RequestShape, *, batch: int, warm_up: int, repetitions: int
) -> Samples:
    """Run the same batch again and again, one after the other.

    Raises:
        ConfigError: for a shape that the model does not take.
        EngineError: where the backend fails.
    """
    inputs = [model_inputs(model, shape, seed) for seed in range(batch)]
    start = list(noise(model, batch))

    def run() -> Mapping[str, float]:
        if batch == 1:
            return backend.infer(inputs[0], start[0]).stage_seconds
        assert isinstance(backend, Batched)
        return backend.infer_batch(inputs, start)[0].stage_seconds

    return repeat(run, requests_per_run=batch, warm_up=warm_up, repetitions=repetitions)


def repeat(
    run: Callable[[], Mapping[str, float]], *, requests_per_run: int, warm_up: int, repetitions: int
) -> Samples:
    """Call `run`, which returns the seconds of its stages, back to back and note what each call took."""
    for _ in range(warm_up):
        run()
    stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
    wall: list[float] = []
    begin = time.perf_counter()
    for _ in range(repetitions):
        started = time.perf_counter()
        stage_seconds = run()
        wall.append(time.perf_counter() - started)
        for stage, seconds in stages.items():
            seconds.append(stage_seconds[stage])
    return Samples(stages, wall, time.perf_counter() - begin, requests_per_run * repetitions)
