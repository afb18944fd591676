"""Normalisation against openpi's, refusals included."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from tests.support.golden import Array, require_file
from tests.support.golden_lists import listed
from vlad_configs.contract import NormKind
from vlad_engines.checkpoint.norm_stats import read_norm_stats_json
from vlad_engines.processing.normalization import FeatureStats, Normalizer


def _array(entry: dict[str, Any]) -> Array:
    return np.array(entry["data"], dtype=entry["dtype"]).reshape(entry["shape"])


@pytest.mark.parametrize("direction", ["normalize", "unnormalize"])
@pytest.mark.parametrize("kind", ["zscore", "quantile"])
@pytest.mark.parametrize("case", listed("normalization.json", "cases"))
def test_every_case_gives_openpis_numbers(
    case: tuple[str, dict[str, Any]], kind: NormKind, direction: str
) -> None:
    _, entry = case
    stats = FeatureStats(**{name: _array(value) for name, value in entry["stats"].items() if value})
    normalizer = Normalizer.create(kind, "openpi", stats)
    expected = entry[f"{direction}_{kind}"]
    if isinstance(expected, str):
        assert expected == "error:ValueError"
        with pytest.raises(ValueError, match="columns"):
            getattr(normalizer, direction)(_array(entry["x"]))
        return
    result = getattr(normalizer, direction)(_array(entry["x"]))
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, _array(expected), rtol=1e-12, atol=1e-12)


def test_the_file_of_the_official_writer_is_read(tmp_path: pathlib.Path) -> None:
    text = json.loads(require_file("normalization.json").read_text())["norm_stats_json"]
    path = tmp_path / "norm_stats.json"
    path.write_text(text)
    stats = read_norm_stats_json(path)
    for name, feature in (("state", stats.state), ("actions", stats.actions)):
        for statistic, values in json.loads(text)["norm_stats"][name].items():
            np.testing.assert_array_equal(getattr(feature, statistic), values)
