from __future__ import annotations

import numpy as np
import pytest

from vlad_configs.contract import NormFormula, NormKind
from vlad_configs.errors import CheckpointError
from vlad_engines.processing.normalization import FeatureStats, Normalizer, small_spans

STATS = FeatureStats(
    mean=np.array([1.0, -2.0, 3.0]),
    std=np.array([0.5, 2.0, 0.0]),
    q01=np.array([-1.0, 0.0, 3.0]),
    q99=np.array([1.0, 4.0, 3.0]),
)
X = np.array([[1.5, 2.0, 3.0], [-4.0, 0.25, 3.5]])


def make(kind: NormKind, formula: NormFormula, stats: FeatureStats = STATS) -> Normalizer:
    normalizer = Normalizer.create(kind, formula, stats)
    assert normalizer is not None
    return normalizer


def test_lerobot_zscore_has_its_epsilon_on_the_way_in_only() -> None:
    normalizer = make("zscore", "lerobot")
    np.testing.assert_allclose(normalizer.normalize(X), (X - STATS.mean) / (STATS.std + 1e-8), rtol=1e-12)
    np.testing.assert_allclose(normalizer.unnormalize(X), X * STATS.std + STATS.mean, rtol=1e-12)


def test_lerobot_quantiles_guard_exact_zeros_only() -> None:
    normalizer = make("quantile", "lerobot")
    spans = np.array([2.0, 4.0, 1e-8])
    np.testing.assert_allclose(normalizer.normalize(X), 2 * (X - STATS.q01) / spans - 1, rtol=1e-12)
    np.testing.assert_allclose(normalizer.unnormalize(X), (X + 1) * spans / 2 + STATS.q01, rtol=1e-12)


def test_openpi_adds_its_epsilon_in_both_directions() -> None:
    normalizer = make("quantile", "openpi")
    spans = np.array([2.0, 4.0, 0.0]) + 1e-6
    np.testing.assert_allclose(normalizer.normalize(X), (X - STATS.q01) / spans * 2 - 1, rtol=1e-12)
    np.testing.assert_allclose(normalizer.unnormalize(X), (X + 1) / 2 * spans + STATS.q01, rtol=1e-12)


@pytest.mark.parametrize("formula", ["openpi", "lerobot"])
@pytest.mark.parametrize("kind", ["zscore", "quantile"])
def test_values_outside_the_statistics_are_not_clipped(kind: NormKind, formula: NormFormula) -> None:
    stats = FeatureStats(np.zeros(1), np.ones(1), -np.ones(1), np.ones(1))
    normalizer = make(kind, formula, stats)
    assert normalizer.normalize([50.0])[0] > 40
    assert normalizer.unnormalize(normalizer.normalize([50.0]))[0] == pytest.approx(50.0, abs=1e-4)


def test_identity_needs_no_statistics() -> None:
    assert Normalizer.create("identity", "openpi", FeatureStats()) is None


def test_missing_statistics_are_named() -> None:
    with pytest.raises(
        CheckpointError, match=r"quantile .* needs q01 and q99; missing: q99 \(present: mean, q01\)"
    ):
        Normalizer.create("quantile", "openpi", FeatureStats(mean=np.zeros(2), q01=np.zeros(2)))


def test_statistics_must_be_vectors_of_one_width_and_finite() -> None:
    with pytest.raises(CheckpointError, match="one width"):
        FeatureStats(mean=np.zeros(2), std=np.zeros(3))
    with pytest.raises(CheckpointError, match="one width"):
        FeatureStats(mean=np.zeros((2, 2)))
    with pytest.raises(CheckpointError, match="'std' hold non-finite"):
        FeatureStats(mean=np.zeros(2), std=np.array([1.0, np.inf]))


def test_constant_columns_are_found() -> None:
    assert small_spans("zscore", STATS) == [2]
    assert small_spans("quantile", STATS) == [2]
    assert small_spans("identity", STATS) == []
