"""Distances: exact on cases that can be done by hand, and never blind to NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlad_configs.errors import EngineError
from vlad_configs.fidelity import ACTION_SCALE_FLOOR
from vlad_engines.fidelity.metrics import action_errors, action_scale, cosine, similarity


def test_cosine_by_hand() -> None:
    assert cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    assert cosine(np.zeros(3), np.zeros(3)) == 1.0
    assert cosine(np.zeros(3), np.ones(3)) == 0.0
    assert math.isnan(cosine(np.array([np.nan]), np.ones(1)))
    assert math.isnan(cosine(np.array([np.inf]), np.ones(1)))


def test_the_worst_row_of_the_worst_observation_counts() -> None:
    good = np.ones((3, 4), np.float32)
    turned = good.copy()
    turned[1, :2] = -1
    result = similarity([good, turned], [good, good])
    assert result.cosine == pytest.approx(0.0)
    assert result.worst_row == 1
    assert result.max_abs == 2.0


def test_nan_is_the_worst_row() -> None:
    good = np.ones((3, 4), np.float32)
    broken = good.copy()
    broken[2, 0] = np.nan
    result = similarity([broken, good], [good, good])
    assert math.isnan(result.cosine)
    assert result.worst_row == 2
    assert math.isinf(result.max_abs)


def test_errors_are_divided_by_the_spread_of_their_column() -> None:
    reference = np.zeros((2, 2, 2), np.float32)
    reference[0, :, 0], reference[1, :, 0] = 4.0, -4.0
    candidate = reference + np.float32(1.0)
    scale = action_scale(reference)
    np.testing.assert_allclose(scale, [4.0, ACTION_SCALE_FLOOR])
    errors = action_errors(candidate, reference, scale)
    assert errors.max_abs == 1.0
    assert errors.max == pytest.approx(1.0 / ACTION_SCALE_FLOOR)
    assert errors.p50 == pytest.approx((1.0 / 4.0 + 1.0 / ACTION_SCALE_FLOOR) / 2)


def test_nan_actions_have_infinite_errors() -> None:
    reference = np.ones((1, 2, 2), np.float32)
    candidate = reference.copy()
    candidate[0, 0, 0] = np.nan
    errors = action_errors(candidate, reference, action_scale(reference))
    assert math.isnan(errors.cosine)
    assert math.isinf(errors.p50)
    assert math.isinf(errors.max)


def test_arrays_of_different_shape_are_not_compared() -> None:
    with pytest.raises(EngineError, match=r"\(1, 2\).*\(1, 3\)"):
        similarity([np.ones((1, 2), np.float32)], [np.ones((1, 3), np.float32)])
