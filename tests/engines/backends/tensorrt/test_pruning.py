"""Token pruning in the TensorRT backends over stand-ins for TensorRT and the GPU."""

from __future__ import annotations

import functools
import pathlib
import tempfile
from typing import Any

import numpy as np
import pytest

from tests.support.host_tensorrt import HostDevice, make_tensorrt
from tests.support.tiny_networks import PaddedBatch, model_inputs, padded_batch, random_weights, tiny_config
from vlad_configs.errors import ConfigError
from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.base import BackendOptions, InferenceResult
from vlad_engines.backends.registry import create_backend
from vlad_engines.backends.tensorrt.api import TensorRt
from vlad_engines.backends.tensorrt.arithmetic import parse_arithmetic
from vlad_engines.backends.tensorrt.backend import TensorRtBackend
from vlad_engines.backends.tensorrt.cache import EngineCache, EngineFolder
from vlad_engines.backends.tensorrt.engine_plans import BuiltPlans, PlanProvider, PrebuiltPlans
from vlad_engines.backends.tensorrt.graph_source import BundleGraphs
from vlad_engines.backends.tensorrt.manifest import BuildSettings
from vlad_engines.backends.tensorrt_pipelined.backend import PipelinedTensorRtBackend
from vlad_engines.export.bundle import Bundle
from vlad_engines.export.exporter import export_bundle
from vlad_engines.fidelity.reference import trace_model
from vlad_engines.model.pi0 import Pi0

STEPS = 3
CONFIG = tiny_config("pi05")
UNION = TokenPruning(5, mode="union")
_folder = tempfile.TemporaryDirectory()
ENGINES = pathlib.Path(_folder.name)


@functools.cache
def exported(pruning: TokenPruning | None) -> Bundle:
    form = parse_arithmetic("fp32").form(STEPS, "step", pruning)
    return export_bundle(CONFIG, random_weights(CONFIG), form, ENGINES / f"bundle{hash(pruning)}")


def make_backend(
    pruning: TokenPruning | None,
    version: str = "10.13.3.9",
    kind: type[TensorRtBackend] = TensorRtBackend,
    plans: PlanProvider | None = None,
) -> TensorRtBackend:
    device = HostDevice()
    options = BackendOptions(STEPS, "fp32", "cuda", batch_sizes=(1, 2), pruning=pruning)
    if plans is None:
        plans = BuiltPlans(EngineCache(ENGINES), BundleGraphs(exported(pruning)), BuildSettings())
    tensorrt = TensorRt(make_tensorrt(version, device))
    return kind(CONFIG, options, parse_arithmetic("fp32"), tensorrt, device, plans)


def request(cameras: int, length: int) -> PaddedBatch:
    return padded_batch(CONFIG, [[index < cameras for index in range(3)]], [length], seed=length)


def infer(backend: Any, *batches: PaddedBatch) -> list[InferenceResult]:
    inputs = [model_inputs(batch) for batch in batches]
    noise = [batch.noise[0].numpy() for batch in batches]
    if len(batches) == 1:
        return [backend.infer(inputs[0], noise[0])]
    results: list[InferenceResult] = backend.infer_batch(inputs, noise)
    return results


@functools.cache
def pytorch_backend(pruning: TokenPruning | None) -> Any:
    options = BackendOptions(STEPS, "fp32", "cpu", pruning=pruning)
    return create_backend("pytorch", CONFIG, random_weights(CONFIG), options)


def assert_alike(results: list[InferenceResult], expected: list[InferenceResult]) -> None:
    for result, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.actions, other.actions, rtol=0, atol=1e-4)
        assert result.pruned == other.pruned


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("8.6.0", TensorRtBackend),
        ("10.13.3.9", TensorRtBackend),
        ("8.6.0", PipelinedTensorRtBackend),
        ("10.13.3.9", PipelinedTensorRtBackend),
    ],
)
def test_actions_and_tokens_are_those_of_the_pytorch_backend(
    version: str, kind: type[TensorRtBackend]
) -> None:
    backend = make_backend(UNION, version, kind)
    backend.warm_up(lambda stage, fraction: None)
    try:
        for cameras in (1, 2, 3):
            batches = [request(cameras, 7), request(cameras, 12)]
            alone = [infer(pytorch_backend(UNION), batch)[0] for batch in batches]
            assert all(result.pruned is not None for result in alone)
            for batch, expected in zip(batches, alone, strict=True):
                assert_alike(infer(backend, batch), [expected])
            assert_alike(infer(backend, *batches), alone)
    finally:
        backend.close()


def test_a_trace_has_the_prefix_of_the_reference() -> None:
    batch = request(2, 7)
    inputs, noise = model_inputs(batch), batch.noise[0].numpy()
    trace = make_backend(UNION).trace(inputs, noise)
    expected = trace_model(
        Pi0.from_openpi_weights(CONFIG, random_weights(CONFIG)), inputs, noise, STEPS, UNION
    )
    for part in ("vision_tokens", "prefix_keys", "prefix_values", "x_t"):
        np.testing.assert_allclose(getattr(trace, part), getattr(expected, part), rtol=0, atol=1e-4)


def test_engines_of_another_pruning_are_not_taken() -> None:
    make_backend(UNION).warm_up(lambda stage, fraction: None)
    for pruning, said in (
        (TokenPruning(6, mode="union"), "form.pruning.keep_tokens: 5, not 6"),
        (None, "form.pruning"),
    ):
        plans = PrebuiltPlans(EngineFolder(ENGINES), None)
        with pytest.raises(ConfigError, match=said):
            make_backend(pruning, plans=plans).warm_up(lambda stage, fraction: None)
    plans = PrebuiltPlans(EngineFolder(ENGINES), None)
    assert_alike(
        infer(make_backend(UNION, plans=plans), request(3, 7)), infer(pytorch_backend(UNION), request(3, 7))
    )
