"""The check lets honest arithmetic pass, and catches the mistakes that engines are known to make."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from tests.support.fidelity import (
    STEPS,
    WithoutTrace,
    backend,
    checkpoint,
    network,
    reference,
    tiny_model,
)
from vlad_configs.errors import ConfigError, EngineError
from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.base import Backend, BackendOptions, InferenceResult
from vlad_engines.backends.capabilities import Traceable
from vlad_engines.backends.pytorch.backend import PytorchBackend
from vlad_engines.checkpoint.open_weights import open_weights
from vlad_engines.fidelity.check import check_backend
from vlad_engines.fidelity.reference import compute_reference
from vlad_engines.fidelity.report import FidelityReport
from vlad_engines.model.gemma import TokenPlacement
from vlad_engines.model.pi0 import Pi0
from vlad_engines.model.precision import Precision
from vlad_engines.processing.model_inputs import ModelInputs

FAMILIES = ("pi05", "pi0")


def check(candidate: Backend, family: str, precision: Precision = "bf16") -> FidelityReport:
    return check_backend(candidate, reference(family), name="candidate", precision=precision)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_honest_arithmetic_passes(family: str, precision: Precision) -> None:
    report = check(backend(network(family, precision), precision), family, precision)
    assert report.passed, report.table()
    assert report.traced
    assert set(report.components) == {
        "vision_tokens",
        "prefix_keys",
        "prefix_values",
        "velocity",
        "displacement",
    }
    assert set(report.actions) == {"1", "2", "3", "final"}


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_does_not_pass_for_fp32(family: str) -> None:
    report = check(backend(network(family, "bf16"), "bf16"), family, "fp32")
    assert not report.passed
    assert any(line.startswith("vision_tokens") for line in report.failures)


def test_prefixes_whose_rows_may_be_other_tokens_are_not_compared() -> None:
    pruning = TokenPruning(24)
    whole = reference("pi05")
    exact = compute_reference(
        tiny_model("pi05"), open_weights(checkpoint("pi05"), "cpu"), whole.cases, STEPS, "cpu", pruning
    )
    options = BackendOptions(STEPS, "fp32", "cpu", pruning=pruning)
    pruned = PytorchBackend(network("pi05", "fp32"), options, torch.device("cpu"))
    report = check_backend(pruned, exact, name="pruned", precision="fp32", pruned=True)
    assert report.passed, report.table()
    assert set(report.components) == {"vision_tokens", "velocity", "displacement"}
    assert not check_backend(pruned, whole, name="pruned", precision="fp32", pruned=True).passed


def test_without_trace_only_what_is_returned_is_compared() -> None:
    report = check(WithoutTrace(backend(network("pi05", "bf16"), "bf16")), "pi05")
    assert report.passed
    assert not report.traced
    assert set(report.components) == {"displacement"}
    assert set(report.actions) == {"final"}
    assert "shows no components" in report.table()


def swap_layers_of_the_prefix(model: Pi0) -> None:
    layers = list(model.vlm.layers)
    layers[1], layers[2] = layers[2], layers[1]
    model.vlm.layers = nn.ModuleList(layers)


def swap_layers_of_the_expert(model: Pi0) -> None:
    layers = list(model.expert.layers)
    layers[1], layers[2] = layers[2], layers[1]
    model.expert.layers = nn.ModuleList(layers)


class _NoNorm(nn.Module):
    def forward(self, x: Tensor, modulation: Tensor | None = None) -> tuple[Tensor, None]:
        return x, None


def leave_out_the_first_norm(model: Pi0) -> None:
    model.vlm.layers[0].input_layernorm = _NoNorm()


def leave_out_a_norm_before_an_mlp(model: Pi0) -> None:
    model.vlm.layers[1].post_attention_layernorm = _NoNorm()


def shift_positions_of_the_suffix(model: Pi0) -> None:
    place = model.place_suffix

    def place_one_further(
        prefix_length: int, lengths: Tensor | None = None, start: Tensor | None = None
    ) -> TokenPlacement:
        shifted = place(prefix_length + 1, lengths, start)
        return TokenPlacement(shifted.cos, shifted.sin, place(prefix_length, lengths, start).bias)

    model.place_suffix = place_one_further  # type: ignore[method-assign]


MUTATIONS: Sequence[Callable[[Pi0], None]] = (
    swap_layers_of_the_prefix,
    swap_layers_of_the_expert,
    leave_out_the_first_norm,
    leave_out_a_norm_before_an_mlp,
    shift_positions_of_the_suffix,
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_mistake_of_structure_is_caught_with_and_without_a_trace(
    family: str, mutate: Callable[[Pi0], None]
) -> None:
    model = network(family, "bf16")
    mutate(model)
    broken = backend(model, "bf16")
    report = check_backend(broken, reference(family, observations=2), name="broken", precision="bf16")
    in_components = [line for line in report.failures if not line.startswith(("displacement", "actions"))]
    in_actions = [line for line in report.failures if line.startswith(("displacement", "actions"))]
    assert in_components, report.table()
    assert in_actions, report.table()


class _WithoutPromptMask(WithoutTrace):
    """Attends padding as if it were part of the prompt."""

    def infer(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> InferenceResult:
        unmasked = dataclasses.replace(inputs, token_mask=np.ones_like(inputs.token_mask))
        return super().infer(unmasked, noise)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dropped_prompt_mask_is_caught(family: str) -> None:
    report = check(_WithoutPromptMask(backend(network(family, "bf16"), "bf16")), family)
    assert not report.passed, report.table()


def test_the_worst_layer_is_named() -> None:
    model = network("pi05", "bf16")
    with torch.no_grad():
        model.vlm.layers[2].self_attn.v_proj.weight.neg_()
    report = check(backend(model, "bf16"), "pi05")
    assert report.components["prefix_values"].worst_row == 2
    assert report.components["prefix_values"].cosine < -0.9


class _Stale(WithoutTrace):
    """Returns the actions of the request before."""

    def infer(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> InferenceResult:
        fresh = super().infer(inputs, noise)
        stale, self._last = getattr(self, "_last", fresh), fresh
        return stale


def test_actions_of_another_request_are_caught() -> None:
    candidate = _Stale(backend(network("pi05", "fp32"), "fp32"))
    report = check_backend(candidate, reference("pi05", observations=2), name="stale", precision="bf16")
    assert not report.passed


class _WithTrace(WithoutTrace):
    """Shows perfect components and returns something else."""

    def infer(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> InferenceResult:
        result = super().infer(inputs, noise)
        return dataclasses.replace(result, actions=result.actions + np.float32(0.5))

    def trace(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> object:
        return self._backend.trace(inputs, noise)


def test_the_verdict_is_about_what_infer_returns_not_about_the_trace() -> None:
    candidate = _WithTrace(backend(network("pi05", "fp32"), "fp32"))
    assert isinstance(candidate, Traceable)
    report = check(candidate, "pi05", "fp32")
    assert report.components["velocity"].cosine > 0.9999
    assert not report.passed


class _NotANumber(WithoutTrace):
    def infer(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> InferenceResult:
        result = super().infer(inputs, noise)
        result.actions[0, 0] = np.nan
        return result


def test_a_single_nan_is_caught() -> None:
    report = check(_NotANumber(backend(network("pi05", "bf16"), "bf16")), "pi05")
    assert not report.passed
    assert report.summary()["action_cosine"] is None


class _Batching(WithoutTrace):
    """Runs batches; mixes their samples up where told to."""

    def __init__(self, model: Pi0, mixes_up: bool) -> None:
        super().__init__(backend(model, "bf16"))
        self._mixes_up = mixes_up

    def infer_batch(
        self, inputs: Sequence[ModelInputs], noise: Sequence[npt.NDArray[np.float32]]
    ) -> list[InferenceResult]:
        results = [self.infer(*request) for request in zip(inputs, noise, strict=True)]
        return results[::-1] if self._mixes_up else results


@pytest.mark.parametrize("mixes_up", [False, True])
def test_batches_are_held_against_the_reference_too(mixes_up: bool) -> None:
    candidate = _Batching(network("pi05", "bf16"), mixes_up)
    report = check_backend(
        candidate, reference("pi05", observations=2), name="batching", precision="bf16", batch_sizes=(1, 2, 4)
    )
    assert {"batch of 2", "batch of 4"} <= set(report.actions)
    assert report.passed is not mixes_up
    assert all("batch of" in line for line in report.failures)


class _AnotherHorizon(WithoutTrace):
    def infer(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> InferenceResult:
        result = super().infer(inputs, noise)
        return dataclasses.replace(result, actions=result.actions[:-1])


def test_another_shape_is_an_error_with_both_shapes() -> None:
    with pytest.raises((EngineError, ValueError), match="9"):
        check(_AnotherHorizon(backend(network("pi05", "fp32"), "fp32")), "pi05", "fp32")


def test_a_precision_without_thresholds_cannot_be_checked() -> None:
    with pytest.raises(ConfigError, match="int4"):
        check_backend(backend(network("pi05", "fp32"), "fp32"), reference("pi05"), name="x", precision="int4")
