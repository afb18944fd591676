"""The floor, against sums that were made by hand and on paper."""

from __future__ import annotations

import dataclasses

import pytest

from vlad_configs.models import ModelConfig
from vlad_engines.bench.case import RequestShape
from vlad_engines.bench.roofline import (
    DEVICE_PEAKS,
    device_peaks,
    floor,
    prefix_operations,
    step_operations,
    vision_operations,
)

PI05 = ModelConfig("pi05", action_horizon=10, max_token_len=200)
PI0 = ModelConfig("pi0")


def test_work_of_the_published_sizes() -> None:
    per_camera = sum(one.flops for one in vision_operations(PI05, 1, 2))
    assert per_camera == pytest.approx(220.2e9, rel=1e-3)
    # 2 x 110.1 M x 17 layers per token, attention 4 x 2048 per pair of tokens and layer, K/V of the last.
    prefix = sum(one.flops for one in prefix_operations(PI05, 1, 532, 2))
    layer = 2048 * 2560 + 2048 * 2048 + 2048 * 32768 + 16384 * 2048
    assert prefix == 532 * 2 * (17 * layer + 2048 * 512) + 17 * 4 * 2048 * 532**2
    step = list(step_operations(PI05, 1, 532, 2))
    assert sum(one.bytes for one in step if not one.attention) == pytest.approx(623e6, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "shape", "batch", "precision", "expected_ms"),
    [
        (PI05, RequestShape(2, 20), 1, "bf16", 4.62),
        (PI05, RequestShape(2, 20), 1, "fp8", 2.36),
        (PI05, RequestShape(3, 200), 1, "bf16", 7.11),
        (PI05, RequestShape(2, 20), 8, "bf16", 26.79),
        (PI0, RequestShape(2, 20), 1, "bf16", 4.65),
        (PI0, RequestShape(3, 48), 1, "fp8", 3.31),
    ],
)
def test_floor_of_an_h200_agrees_with_an_independent_count(
    model: ModelConfig, shape: RequestShape, batch: int, precision: str, expected_ms: float
) -> None:
    least = floor(
        model, shape, steps=10, batch=batch, precision=precision, peaks=DEVICE_PEAKS["H200"]
    ).to_ms()
    assert least["total"] == pytest.approx(expected_ms, rel=5e-3)
    assert least["total"] == pytest.approx(least["vision"] + least["prefix"] + least["denoise"], abs=1e-3)


def test_more_work_never_lowers_the_floor() -> None:
    peaks = DEVICE_PEAKS["H200"]
    base = {"steps": 10, "batch": 1, "precision": "bf16", "peaks": peaks}
    least = floor(PI05, RequestShape(2, 20), **base).total  # type: ignore[arg-type]
    for shape, change in (
        (RequestShape(3, 20), {}),
        (RequestShape(2, 21), {}),
        (RequestShape(2, 20), {"steps": 11}),
        (RequestShape(2, 20), {"batch": 2}),
        (RequestShape(2, 20), {"precision": "fp32"}),
    ):
        assert floor(PI05, shape, **{**base, **change}).total > least  # type: ignore[arg-type]
    longer = dataclasses.replace(PI05, action_horizon=50)
    assert floor(longer, RequestShape(2, 20), **base).total > least  # type: ignore[arg-type]


def test_devices_are_found_by_their_product_name() -> None:
    assert device_peaks("NVIDIA H200") is DEVICE_PEAKS["H200"]
    assert device_peaks("NVIDIA H100 80GB HBM3") is DEVICE_PEAKS["H100"]
    assert device_peaks("cpu") is None
