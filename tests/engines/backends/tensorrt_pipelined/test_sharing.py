"""How the GPU is shared out: the best of what was tried, remembered, never in a lone request's way."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import pytest

from tests.engines.backends.tensorrt_pipelined.test_backend import CONFIG, STEPS, request
from tests.support.host_tensorrt import HostDevice, make_tensorrt
from tests.support.tiny_networks import random_weights
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.tensorrt.api import TensorRt
from vlad_engines.backends.tensorrt.arithmetic import parse_arithmetic
from vlad_engines.backends.tensorrt.checkpoint_graphs import CheckpointGraphs
from vlad_engines.backends.tensorrt.engine_plans import BuiltPlans, engine_cache
from vlad_engines.backends.tensorrt.manifest import BuildSettings
from vlad_engines.backends.tensorrt_pipelined import sharing
from vlad_engines.backends.tensorrt_pipelined.backend import PipelinedTensorRtBackend


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    monkeypatch.setenv("VLAD_CACHE_DIR", str(tmp_path))
    return tmp_path / "tensorrt"


def warm(engines: pathlib.Path, device: HostDevice) -> PipelinedTensorRtBackend:
    arithmetic, folder = parse_arithmetic("fp32"), engine_cache(engines)
    graphs = CheckpointGraphs(CONFIG, random_weights(CONFIG), arithmetic.form(STEPS, "step"), folder.folder)
    backend = PipelinedTensorRtBackend(
        CONFIG,
        BackendOptions(STEPS, "fp32", "cuda", camera_counts=(2,)),
        arithmetic,
        TensorRt(make_tensorrt("8.6.0", device)),
        device,
        BuiltPlans(folder, graphs, BuildSettings()),
    )
    backend.warm_up(lambda stage, fraction: None)
    return backend


def pretend(monkeypatch: pytest.MonkeyPatch, rates: Mapping[int, float]) -> list[int]:
    """Let a measurement find these rates; returns the shares that were tried, in their order."""
    tried: list[int] = []

    def rate(pipeline: Any, batch: Any) -> float:
        tried.append(pipeline._schedule._streams.spared)
        sharing._serve(pipeline, batch, 2)
        return rates[tried[-1]]

    monkeypatch.setattr(sharing, "_requests_per_second", rate)
    return tried


def test_the_best_share_is_kept_and_remembered(
    engines: pathlib.Path, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = pretend(monkeypatch, {0: 10.0, 8: 12.0, 16: 14.0, 24: 13.0, 32: 9.0})
    first = warm(engines, HostDevice(multiprocessors=132))
    assert (tried, first.spared) == ([0, 8, 16, 24, 32], 16)
    assert first.calls == {"vision": 0, "prefix": 0, "denoise": 0}
    assert first.overlap.requests == 0
    alone = first.infer(*request(0)).actions
    chunks = [future.result(60).actions for future in [first.start(*request(0)) for _ in range(4)]]
    assert all(chunk.tobytes() == alone.tobytes() for chunk in chunks)
    assert first.calls == {"vision": 5, "prefix": 5, "denoise": 5}
    first.close()
    second = warm(engines, HostDevice(multiprocessors=132))
    assert (len(tried), second.spared) == (5, 16)
    assert second.infer(*request(0)).actions.tobytes() == alone.tobytes()
    second.close()
    (file,) = cache.glob("sharing-*.json")
    file.write_text(json.dumps({"spared": 7}))
    warm(engines, HostDevice(multiprocessors=132)).close()
    assert len(tried) == 10


def test_a_gain_within_the_noise_is_none(engines: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {0: 10.0, 8: 10.1, 16: 10.15, 24: 10.0, 32: 10.0})
    backend = warm(engines, HostDevice(multiprocessors=132))
    assert backend.spared == 0
    backend.close()


def test_a_gpu_that_cannot_be_parted_serves_without(
    engines: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = pretend(monkeypatch, {0: 10.0})
    backend = warm(engines, HostDevice(multiprocessors=132, can_be_parted=False))
    assert (tried, backend.spared) == ([0], 0)
    assert "cannot be parted" in caplog.text
    backend.close()


def test_a_small_gpu_is_not_tried(engines: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = pretend(monkeypatch, {})
    backend = warm(engines, HostDevice(multiprocessors=16))
    assert (tried, backend.spared) == ([], 0)
    backend.close()
