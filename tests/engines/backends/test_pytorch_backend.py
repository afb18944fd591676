"""The `pytorch` backend: one request after another through the three components."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_networks import PaddedBatch, model_inputs, padded_batch, random_weights, tiny_config
from vlad_configs.errors import EngineError
from vlad_configs.models import Family
from vlad_engines.backends.base import Backend, BackendOptions, Precision
from vlad_engines.backends.registry import create_backend
from vlad_engines.model.pi0 import Pi0

FAMILIES: tuple[Family, ...] = ("pi0", "pi05")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
        ],
    ),
]


def make_backend(
    family: Family, device: str = "cpu", precision: Precision = "fp32", enable_kv_cache: bool = True
) -> Backend:
    config = tiny_config(family)
    options = BackendOptions(4, precision, device, enable_kv_cache)
    return create_backend("pytorch", config, random_weights(config), options)


def make_request(family: Family, image_mask: list[bool], prompt_length: int, seed: int = 0) -> PaddedBatch:
    return padded_batch(tiny_config(family), [image_mask], [prompt_length], seed)


def infer(backend: Backend, request: PaddedBatch) -> np.ndarray[Any, np.dtype[np.float32]]:
    return backend.infer(model_inputs(request), request.noise[0].numpy()).actions


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_actions_are_those_of_the_network(family: Family, device: str) -> None:
    backend = make_backend(family, device)
    config = tiny_config(family)
    model = Pi0.from_openpi_weights(config, random_weights(config))
    for image_mask, prompt_length in (([True, False, True], 7), ([True, True, True], 12)):
        request = make_request(family, image_mask, prompt_length)
        expected = model.sample_actions(request.observation(), request.noise, num_steps=4)[0]
        actions = infer(backend, request)
        assert actions.dtype == np.float32
        np.testing.assert_allclose(actions, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_request_leaves_no_trace_in_later_ones(precision: Precision, device: str) -> None:
    long = make_request("pi0", [True, True, True], 12, seed=1)
    short = make_request("pi0", [False, True, False], 3, seed=2)
    fresh = infer(make_backend("pi0", device, precision), short)
    backend = make_backend("pi0", device, precision)
    first = infer(backend, long)
    np.testing.assert_array_equal(infer(backend, short), fresh)
    np.testing.assert_array_equal(infer(backend, long), first)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_kv_cache_the_actions_are_the_same(family: Family, precision: Precision, device: str) -> None:
    request = make_request(family, [True, True, False], 9)
    cached = infer(make_backend(family, device, precision), request)
    recomputed = infer(make_backend(family, device, precision, enable_kv_cache=False), request)
    np.testing.assert_array_equal(recomputed, cached)


def test_actions_of_an_earlier_request_stay_as_they_were() -> None:
    backend = make_backend("pi05")
    first = infer(backend, make_request("pi05", [True, True, False], 9, seed=1))
    kept = first.copy()
    infer(backend, make_request("pi05", [True, True, False], 9, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_float_images_give_the_actions_of_their_bytes() -> None:
    backend, request = make_backend("pi05"), make_request("pi05", [True, True, False], 9)
    inputs, noise = model_inputs(request), request.noise[0].numpy()
    as_float = inputs.images.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
    expected = backend.infer(inputs, noise).actions
    actions = backend.infer(dataclasses.replace(inputs, images=as_float), noise).actions
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-6)


def test_read_only_arrays_are_welcome() -> None:
    backend, request = make_backend("pi05"), make_request("pi05", [True, True, False], 9)
    inputs, noise = model_inputs(request), request.noise[0].numpy().copy()
    for array in (inputs.images, inputs.tokens, inputs.token_mask, inputs.state, noise):
        array.flags.writeable = False
    assert np.isfinite(backend.infer(inputs, noise).actions).all()


@pytest.mark.parametrize("device", DEVICES)
def test_every_stage_is_timed(device: str) -> None:
    backend, request = make_backend("pi05", device), make_request("pi05", [True, True, False], 9)
    seconds = backend.infer(model_inputs(request), request.noise[0].numpy()).stage_seconds
    assert list(seconds) == ["vision", "prefix", "denoise"]
    assert all(0 < value < 60 for value in seconds.values())


def test_warm_up_reports_progress_up_to_the_end() -> None:
    reports: list[tuple[str, float]] = []
    make_backend("pi05").warm_up(lambda stage, fraction: reports.append((stage, fraction)))
    fractions = [fraction for _, fraction in reports]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0


def test_description_says_what_runs_per_component() -> None:
    description = make_backend("pi0", precision="bf16").describe()
    assert list(description) == ["vision", "prefix", "denoise"]
    for component in description.values():
        expected = {"engine": "pytorch", "precision": "bf16", "device": "cpu", "version": torch.__version__}
        assert component == expected


def test_a_closed_backend_refuses_requests() -> None:
    backend, request = make_backend("pi05"), make_request("pi05", [True, True, False], 9)
    backend.close()
    with pytest.raises(EngineError, match="closed"):
        infer(backend, request)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": ("base_0_rgb", "base_0_rgb")}, "cameras must be some of"),
        ({"cameras": ("right_wrist_0_rgb", "base_0_rgb")}, "in this order"),
        ({"cameras": ("base_0_rgb", "head")}, "cameras must be some of"),
        ({"cameras": ("base_0_rgb",)}, r"images must be uint8 or float32 of shape \(1, 28, 28, 3\)"),
        ({"images": np.zeros((2, 28, 28, 3), np.float64)}, "not float64"),
        ({"images": np.zeros((2, 3, 28, 28), np.uint8)}, r"not uint8 of shape \(2, 3, 28, 28\)"),
        ({"tokens": np.zeros(13, np.int64)}, "13 prompt tokens exceed"),
        ({"tokens": np.full(12, 64)}, r"prompt tokens must lie in 0\.\.63"),
        ({"tokens": np.full(12, -1)}, r"prompt tokens must lie in 0\.\.63"),
        ({"token_mask": np.ones(11, np.bool_)}, "token_mask must be bool of shape"),
        ({"token_mask": np.arange(12) > 3}, "must begin with the real tokens"),
        ({"state": np.zeros(5)}, r"state must be float64 or float32 of shape \(6,\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_and_do_no_harm(change: dict[str, Any], message: str) -> None:
    backend, request = make_backend("pi05"), make_request("pi05", [True, True, False], 9)
    inputs, noise = model_inputs(request), request.noise[0].numpy()
    expected = backend.infer(inputs, noise).actions
    with pytest.raises(EngineError, match=message):
        backend.infer(dataclasses.replace(inputs, **change), noise)
    np.testing.assert_array_equal(backend.infer(inputs, noise).actions, expected)


@pytest.mark.parametrize("noise", [np.zeros((5, 6)), np.zeros((1, 5, 6), np.float32)])
def test_noise_that_does_not_fit_is_refused(noise: np.ndarray[Any, Any]) -> None:
    backend, request = make_backend("pi05"), make_request("pi05", [True, True, False], 9)
    with pytest.raises(EngineError, match=r"noise must be float32 of shape \(5, 6\)"):
        backend.infer(model_inputs(request), noise)
