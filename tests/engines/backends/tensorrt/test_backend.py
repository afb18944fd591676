"""The `tensorrt` backend over stand-ins for TensorRT and the GPU: see `tests.support.host_tensorrt`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import tempfile
from typing import Any

import numpy as np
import pytest

from tests.support.host_tensorrt import HostDevice, make_tensorrt
from tests.support.tiny_networks import PaddedBatch, model_inputs, padded_batch, random_weights, tiny_config
from vlad_configs.errors import ConfigError, EngineError
from vlad_configs.models import Family, ModelConfig
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.tensorrt.api import TensorRt
from vlad_engines.backends.tensorrt.arithmetic import parse_arithmetic
from vlad_engines.backends.tensorrt.backend import TensorRtBackend
from vlad_engines.backends.tensorrt.cache import EngineCache, EngineFolder, Plan
from vlad_engines.backends.tensorrt.checkpoint_graphs import CheckpointGraphs
from vlad_engines.backends.tensorrt.engine_plans import BuiltPlans, PrebuiltPlans
from vlad_engines.backends.tensorrt.graph_source import BundleGraphs, GraphSource
from vlad_engines.backends.tensorrt.manifest import BuildSettings
from vlad_engines.export.bundle import Bundle
from vlad_engines.export.exporter import export_bundle
from vlad_engines.export.spec import Component, DenoiseForm, GraphForm
from vlad_engines.fidelity.reference import trace_model
from vlad_engines.model.pi0 import Pi0

STEPS = 3
FAMILIES: tuple[Family, ...] = ("pi0", "pi05")
VERSIONS = ("8.6.0", "10.13.3.9", "11.4.0.106")
_folder = tempfile.TemporaryDirectory()
ENGINES = pathlib.Path(_folder.name)
_bundles = itertools.count()


@dataclasses.dataclass(frozen=True)
class Bench:
    """A backend and what is around it."""

    backend: TensorRtBackend
    device: HostDevice
    tensorrt: Any


@functools.cache
def exported(config: ModelConfig, form: GraphForm) -> Bundle:
    """Exporting takes longer than all the rest."""
    folder = ENGINES / f"bundle{next(_bundles)}"
    return export_bundle(config, random_weights(config), form, folder)


def make_bench(
    family: Family = "pi05",
    version: str = "10.13.3.9",
    *,
    max_token_len: int = 12,
    precision: str = "fp32",
    folder: pathlib.Path = ENGINES,
    batch_sizes: tuple[int, ...] = (1,),
    denoise_form: DenoiseForm = "step",
    use_graphs: bool = True,
    plans: Any = None,
    seed: int | None = None,
) -> Bench:
    """A backend whose engines are built from exported graphs, or with a seed from weights."""
    config = dataclasses.replace(tiny_config(family), max_token_len=max_token_len)
    arithmetic = parse_arithmetic(precision)
    options = BackendOptions(STEPS, "fp32", "cuda", batch_sizes=batch_sizes)
    device = HostDevice()
    module = make_tensorrt(version, device)
    form = arithmetic.form(STEPS, denoise_form)
    if plans is None:
        graphs: GraphSource = (
            BundleGraphs(exported(config, form))
            if seed is None
            else CheckpointGraphs(config, random_weights(config, seed), form, folder)
        )
        plans = BuiltPlans(EngineCache(folder), graphs, BuildSettings())
    tensorrt = TensorRt(module)
    backend = TensorRtBackend(config, options, arithmetic, tensorrt, device, plans, use_graphs)
    return Bench(backend, device, module)


@functools.cache
def shared_bench(family: Family) -> Bench:
    return make_bench(family)


def make_request(family: Family, image_mask: list[bool], prompt_length: int, seed: int = 0) -> PaddedBatch:
    return padded_batch(tiny_config(family), [image_mask], [prompt_length], seed)


def infer(backend: TensorRtBackend, request: PaddedBatch) -> np.ndarray[Any, np.dtype[np.float32]]:
    return backend.infer(model_inputs(request), request.noise[0].numpy()).actions


@functools.cache
def network(family: Family) -> Pi0:
    config = tiny_config(family)
    return Pi0.from_openpi_weights(config, random_weights(config))


def expected(family: Family, request: PaddedBatch) -> np.ndarray[Any, Any]:
    return network(family).sample_actions(request.observation(), request.noise, num_steps=STEPS)[0].numpy()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_actions_are_those_of_the_network(family: Family, version: str) -> None:
    backend = make_bench(family, version).backend
    for image_mask, prompt_length in (
        ([True, False, True], 7),
        ([True, True, True], 12),
        ([False, True, False], 1),
    ):
        request = make_request(family, image_mask, prompt_length, seed=prompt_length)
        actions = infer(backend, request)
        assert actions.dtype == np.float32
        np.testing.assert_allclose(actions, expected(family, request), rtol=0, atol=1e-4)


@pytest.mark.parametrize("use_graphs", [True, False])
@pytest.mark.parametrize("denoise_form", ["step", "unrolled"])
def test_every_way_to_run_gives_the_same(denoise_form: DenoiseForm, use_graphs: bool) -> None:
    bench = make_bench(denoise_form=denoise_form, use_graphs=use_graphs)
    request = make_request("pi05", [True, True, False], 9)
    for _ in range(2):
        np.testing.assert_allclose(
            infer(bench.backend, request), expected("pi05", request), rtol=0, atol=1e-4
        )
    assert bench.device.captures == (3 if use_graphs else 0)


def test_shapes_of_several_prompts_share_what_does_not_depend_on_them() -> None:
    bench = make_bench(version="8.6.0", max_token_len=40)
    bench.backend.warm_up(lambda stage, fraction: None)
    # Three numbers of cameras, two prompt buckets. Vision does not see the prompt, and denoise only how long
    # the prefix is: 3 cameras and 32 tokens are as many as 1 camera and 40.
    assert bench.device.captures == 3 + 6 + 5
    request = make_request("pi05", [True, True, False], 9)
    inputs = model_inputs(request)
    for length in (32, 40):
        padded = dataclasses.replace(
            inputs,
            tokens=np.resize(inputs.tokens[:9], length),
            token_mask=np.arange(length) < (9 if length == 32 else 33),
        )
        actions = bench.backend.infer(padded, request.noise[0].numpy()).actions
        close = np.abs(actions - expected("pi05", request)).max() < 1e-4
        assert close == (length == 32)


def test_a_batch_is_its_requests() -> None:
    backend = make_bench("pi0", batch_sizes=(1, 2)).backend
    requests = [make_request("pi0", [True, True, False], length, seed=length) for length in (3, 12)]
    results = backend.infer_batch(
        [model_inputs(request) for request in requests], [request.noise[0].numpy() for request in requests]
    )
    for result, request in zip(results, requests, strict=True):
        np.testing.assert_allclose(result.actions, infer(backend, request), rtol=0, atol=1e-5)


def test_a_request_leaves_no_trace_in_later_ones() -> None:
    long, short = (
        make_request("pi0", [True, True, True], 12, 1),
        make_request("pi0", [False, True, False], 3, 2),
    )
    fresh = infer(make_bench("pi0").backend, short)
    backend = make_bench("pi0").backend
    first = infer(backend, long)
    kept = first.copy()
    np.testing.assert_array_equal(infer(backend, short), fresh)
    np.testing.assert_array_equal(infer(backend, long), first)
    np.testing.assert_array_equal(first, kept)


def test_warm_up_prepares_every_shape_and_reports_it() -> None:
    bench = make_bench()
    reports: list[tuple[str, float]] = []
    bench.backend.warm_up(lambda stage, fraction: reports.append((stage, fraction)))
    stages = [stage for stage, _ in reports]
    assert stages[0] == "looking for engines"
    assert reports[-1] == ("warming up tensorrt", 1.0)
    captures = bench.device.captures
    assert captures == 3 * len([stage for stage in stages if stage.startswith("warming up tensorrt:")])
    infer(bench.backend, make_request("pi05", [True, True, False], 9))
    assert bench.device.captures == captures


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_shows_what_the_network_computes(family: Family) -> None:
    request = make_request(family, [True, False, True], 7)
    inputs, noise = model_inputs(request), request.noise[0].numpy()
    trace = shared_bench(family).backend.trace(inputs, noise)
    reference = trace_model(network(family), inputs, noise, STEPS)
    for field in dataclasses.fields(trace):
        mine, theirs = getattr(trace, field.name), getattr(reference, field.name)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4, err_msg=field.name)


def test_half_precision_vision_hands_over_what_the_prefix_reads() -> None:
    precision = "vision=fp16,prefix=fp32,denoise=fp32"
    bench = make_bench(precision=precision, version="11.4.0.106")
    request = make_request("pi05", [True, True, False], 9)
    np.testing.assert_allclose(infer(bench.backend, request), expected("pi05", request), rtol=0, atol=0.1)
    description = bench.backend.describe()
    assert {name: part["precision"] for name, part in description.items()} == {
        "vision": "fp16",
        "prefix": "fp32",
        "denoise": "fp32",
    }


def test_description_says_what_runs_per_component() -> None:
    description = make_bench(version="11.4.0.106").backend.describe()
    assert list(description) == ["vision", "prefix", "denoise"]
    for component in description.values():
        assert component == {
            "engine": "tensorrt",
            "precision": "fp32",
            "version": "TensorRT 11.4.0.106",
            "device": "host",
        }


def test_engines_are_built_once_and_reused_by_later_starts(tmp_path: pathlib.Path) -> None:
    request = make_request("pi05", [True, True, False], 9)
    first = make_bench(folder=tmp_path, seed=0)
    actions = infer(first.backend, request)
    assert len(first.tensorrt.builds) == 3
    assert not list(tmp_path.glob(".export-*"))
    second = make_bench(folder=tmp_path, seed=0)
    np.testing.assert_array_equal(infer(second.backend, request), actions)
    assert second.tensorrt.builds == []


def test_other_weights_are_never_served_with_these_engines(tmp_path: pathlib.Path) -> None:
    request = make_request("pi05", [True, True, False], 9)
    actions = infer(make_bench(folder=tmp_path, seed=0).backend, request)
    other = make_bench(folder=tmp_path, seed=1)
    assert np.abs(infer(other.backend, request) - actions).max() > 1e-3
    assert len(other.tensorrt.builds) == 3


def test_a_corrupt_engine_is_built_again_alone(tmp_path: pathlib.Path) -> None:
    request = make_request("pi05", [True, True, False], 9)
    actions = infer(make_bench(folder=tmp_path).backend, request)
    (plan,) = tmp_path.glob("prefix-*.plan")
    content = bytearray(plan.read_bytes())
    content[-7] ^= 1
    plan.write_bytes(content)
    second = make_bench(folder=tmp_path)
    np.testing.assert_array_equal(infer(second.backend, request), actions)
    assert len(second.tensorrt.builds) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": GraphForm(STEPS, denoise_form="unrolled")}, "the denoise engine has the tensors"),
        ({"component": "vision"}, "the vision engine has the tensors"),
        ({"profiles": ()}, "has 3 profiles, its manifest says 0"),
    ],
)
def test_an_engine_that_is_not_what_its_manifest_says_is_not_used(
    changes: dict[str, Any], message: str
) -> None:
    class Mislabelled(BuiltPlans):
        def provide(self, *arguments: Any) -> dict[Component, Plan]:
            plans = super().provide(*arguments)
            manifest = plans["denoise"].manifest
            identity = dataclasses.replace(manifest.identity, **changes)
            wrong = dataclasses.replace(manifest, identity=identity)
            return {**plans, "denoise": dataclasses.replace(plans["denoise"], manifest=wrong)}

    graphs = BundleGraphs(exported(tiny_config("pi05"), GraphForm(STEPS)))
    bench = make_bench(plans=Mislabelled(EngineCache(ENGINES), graphs, BuildSettings()))
    with pytest.raises(EngineError, match=message):
        bench.backend.warm_up(lambda stage, fraction: None)


def prebuilt(folder: pathlib.Path, weights_digest: str | None = None) -> PrebuiltPlans:
    return PrebuiltPlans(EngineFolder(folder), weights_digest)


def test_prebuilt_engines_need_no_graphs(tmp_path: pathlib.Path) -> None:
    request = make_request("pi05", [True, True, False], 9)
    actions = infer(make_bench(folder=tmp_path).backend, request)
    robot = make_bench(plans=prebuilt(tmp_path))
    np.testing.assert_array_equal(infer(robot.backend, request), actions)
    assert robot.tensorrt.builds == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "10.13.3.8"}, r"platform.tensorrt: 10.13.3.9, not 10.13.3.8"),
        ({"precision": "tf32"}, "arithmetic: fp32, not tf32"),
        ({"family": "pi0"}, "model.family: pi05, not pi0"),
        ({"batch_sizes": (2,)}, "profiles: none for"),
    ],
)
def test_prebuilt_engines_that_do_not_fit_are_refused(
    tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    infer(make_bench(folder=tmp_path).backend, make_request("pi05", [True, True, False], 9))
    robot = make_bench(plans=prebuilt(tmp_path), **change)
    with pytest.raises(ConfigError, match=message):
        robot.backend.warm_up(lambda stage, fraction: None)


def test_prebuilt_engines_of_other_weights_are_refused(tmp_path: pathlib.Path) -> None:
    infer(make_bench(folder=tmp_path).backend, make_request("pi05", [True, True, False], 9))
    robot = make_bench(plans=prebuilt(tmp_path, "0" * 64))
    with pytest.raises(ConfigError, match=r"weights_digest: .*, not 0000"):
        robot.backend.warm_up(lambda stage, fraction: None)


def test_the_builder_is_told_what_the_arithmetic_means(tmp_path: pathlib.Path) -> None:
    precision = "vision=fp32,prefix=tf32,denoise=fp32"
    bench = make_bench(precision=precision, version="8.6.0", folder=tmp_path)
    bench.backend.warm_up(lambda stage, fraction: None)
    trt = bench.tensorrt
    flags = [build["config"].flags for build in trt.builds]
    assert flags == [set(), {trt.BuilderFlag.TF32}, set()]
    for build in trt.builds:
        assert build["network"].flags == 1 << trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
        assert build["config"].tactic_sources == 0b11
        assert build["config"].max_aux_streams == 0
    (timing,) = tmp_path.glob("timing-8-6-0-host-0-0.cache")
    assert timing.read_bytes() == b"+++"


def test_new_versions_take_the_types_of_the_graph_and_tell_their_progress(tmp_path: pathlib.Path) -> None:
    bench = make_bench(precision="vision=fp16,prefix=fp32,denoise=fp32", folder=tmp_path)
    reports: list[tuple[str, float]] = []
    bench.backend.warm_up(lambda stage, fraction: reports.append((stage, fraction)))
    assert ("building the prefix engine", 0.5) in reports
    for build in bench.tensorrt.builds:
        assert build["network"].flags == 1 << bench.tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        assert build["config"].flags == set()


def test_a_closed_backend_refuses_requests() -> None:
    bench = make_bench()
    bench.backend.close()
    with pytest.raises(EngineError, match="closed"):
        infer(bench.backend, make_request("pi05", [True, True, False], 9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": ("right_wrist_0_rgb", "base_0_rgb")}, "in this order"),
        ({"cameras": ("base_0_rgb",)}, r"images must be uint8 or float32 of shape \(1, 28, 28, 3\)"),
        ({"images": np.zeros((2, 28, 28, 3), np.float64)}, "not float64"),
        (
            {"tokens": np.zeros(13, np.int64), "token_mask": np.ones(13, np.bool_)},
            "prompts of 13 tokens; there are",
        ),
        ({"tokens": np.full(12, 64)}, r"prompt tokens must lie in 0\.\.63"),
        ({"token_mask": np.arange(12) > 3}, "must begin with the real tokens"),
        ({"state": np.zeros(5)}, r"state must be float64 or float32 of shape \(6,\)"),
        ({"guidance": object()}, "cannot continue earlier chunks"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_and_do_no_harm(change: dict[str, Any], message: str) -> None:
    backend, request = shared_bench("pi05").backend, make_request("pi05", [True, True, False], 9)
    inputs, noise = model_inputs(request), request.noise[0].numpy()
    actions = backend.infer(inputs, noise).actions
    with pytest.raises(EngineError, match=message):
        backend.infer(dataclasses.replace(inputs, **change), noise)
    np.testing.assert_array_equal(backend.infer(inputs, noise).actions, actions)


def test_float_images_give_the_actions_of_their_bytes() -> None:
    backend, request = shared_bench("pi05").backend, make_request("pi05", [True, True, False], 9)
    inputs, noise = model_inputs(request), request.noise[0].numpy()
    as_float = inputs.images.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
    floats = backend.infer(dataclasses.replace(inputs, images=as_float), noise).actions
    np.testing.assert_allclose(floats, backend.infer(inputs, noise).actions, rtol=0, atol=1e-5)


def test_every_stage_is_timed() -> None:
    request = make_request("pi05", [True, True, False], 9)
    result = shared_bench("pi05").backend.infer(model_inputs(request), request.noise[0].numpy())
    assert list(result.stage_seconds) == ["vision", "prefix", "denoise"]
    assert all(value > 0 for value in result.stage_seconds.values())
