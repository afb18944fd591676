"""Peaks of inputs, what they are kept as, and what makes two sets of observations differ."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_networks import model_inputs, padded_batch, random_weights, tiny_config
from vlad_configs.errors import ConfigError
from vlad_engines.float8.calibration import Calibration, LayerPeaks, PeakRecorder, inputs_digest
from vlad_engines.float8.calibrator import Calibrator
from vlad_engines.float8.scales import MOST, column_scales, divided_columns, input_scale, to_float8
from vlad_engines.processing.model_inputs import ModelInputs

PEAKS = Calibration((LayerPeaks(1.0, 2.5, 0.0, 1e4), LayerPeaks(3.0, 0.1, 7.0, 8.0)))


def sample(seed: int = 0) -> ModelInputs:
    return model_inputs(padded_batch(tiny_config("pi05"), [[True, True, False]], [7], seed))


def test_the_largest_of_all_runs_is_kept() -> None:
    recorder = PeakRecorder(depth=3)
    for peak in (1.0, 3.0, 2.0):
        recorder.note(1, "out", peak)
    first, second = recorder.calibration().layers
    assert first == LayerPeaks(0.0, 0.0, 0.0, 0.0)
    assert second == LayerPeaks(0.0, 3.0, 0.0, 0.0)


@pytest.mark.parametrize("peak", [math.nan, math.inf])
def test_a_network_that_is_not_finite_cannot_be_calibrated(peak: float) -> None:
    recorder = PeakRecorder(depth=3)
    recorder.note(0, "down", 5.0)
    with pytest.raises(ConfigError, match="the input of down in layer 0 of the prefix is not finite"):
        recorder.note(0, "down", peak)


def test_weights_that_are_not_finite_are_named() -> None:
    config = tiny_config("pi05")
    weights = random_weights(config)
    weights["paligemma_with_expert.paligemma.model.language_model.layers.1.mlp.up_proj.weight"][0] = math.nan
    with pytest.raises(ConfigError, match="the input of down in layer 1 of the prefix is not finite"):
        Calibrator(config, weights, [sample()], "cpu")()


def test_it_survives_its_file() -> None:
    again = Calibration.from_json(PEAKS.to_json())
    assert again == PEAKS
    assert again.digest == PEAKS.digest


def test_every_peak_counts() -> None:
    for index, layer in enumerate(PEAKS.layers):
        for field in dataclasses.fields(LayerPeaks):
            other = dataclasses.replace(layer, **{field.name: 1.25 + layer.of(field.name)})  # type: ignore[arg-type]
            layers = [other if place == index else kept for place, kept in enumerate(PEAKS.layers)]
            assert Calibration(tuple(layers)).digest != PEAKS.digest


@pytest.mark.parametrize("peak", [-1.0, math.nan, math.inf, "1", None, True])
def test_what_is_no_size_is_refused(peak: Any) -> None:
    with pytest.raises(ConfigError, match="the largest input of out must be finite and at least 0, not"):
        LayerPeaks(1.0, peak, 1.0, 1.0)


@pytest.mark.parametrize(
    "data", [None, [None], [{"qkv": 1.0}], [{**PEAKS.to_json()[0], "odd": 1.0}], ["text"]]
)
def test_a_file_that_is_something_else_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match="unreadable calibration"):
        Calibration.from_json(data)


@pytest.mark.parametrize("field", ["images", "tokens", "token_mask", "cameras"])
def test_observations_differ_in_whatever_the_prefix_sees(field: str) -> None:
    one, others = sample(), sample(1)
    changed = {"token_mask": np.zeros_like(one.token_mask), "cameras": one.cameras[::-1]}
    other = dataclasses.replace(one, **{field: changed.get(field, getattr(others, field))})
    assert inputs_digest([one]) != inputs_digest([other])
    assert inputs_digest([one]) == inputs_digest([sample()])
    assert inputs_digest([one]) != inputs_digest([one, one])


def test_scales_leave_room_for_twice_the_peak_and_are_never_zero() -> None:
    assert 2 * 3.0 / input_scale(3.0) == pytest.approx(MOST)
    assert input_scale(0.0) > 0
    weight = torch.tensor([[0.0, 0.0], [-8.0, 4.0]])
    scales = column_scales(weight).to(torch.bfloat16)
    assert (scales > 0).all()
    assert divided_columns(weight, scales).float()[0].tolist() == [0.0, 0.0]
    assert divided_columns(weight, scales).float()[1, 0] == pytest.approx(-MOST)


def test_what_is_too_large_becomes_the_largest() -> None:
    assert to_float8(torch.tensor([1e9, -1e9])).float().tolist() == [MOST, -MOST]
