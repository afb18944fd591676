"""The weight rule of the tiny models: a mistake here would look like a mistake of the network."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.support.golden import index, make_weight, model_config
from tests.support.golden_lists import listed
from vlad_engines.model import openpi_names


@pytest.mark.parametrize("model", listed("weight_fingerprints.json"))
def test_names_shapes_and_bytes_of_all_tensors(model: tuple[str, Mapping[str, Any]]) -> None:
    name, fingerprints = model
    geometry, family = name.rsplit("_", 1)
    sizes = index()["geometries"][geometry]
    config = model_config(
        geometry,
        pi05=family == "pi05",
        action_horizon=sizes["action_horizon"],
        action_dim=sizes["action_dim"],
        max_token_len=1,
    )
    expected = openpi_names.expected_tensors(config)
    unused = {openpi_names.UNUSED_EXPERT_LM_HEAD: (config.vocab_size, config.expert.width)}
    shapes = {tensor: tuple(entry["shape"]) for tensor, entry in fingerprints.items()}
    assert shapes == expected | unused
    for tensor, entry in fingerprints.items():
        weight = make_weight(tensor, shapes[tensor])
        assert zlib.crc32(weight.astype("<f4").tobytes()) == entry["crc32"], tensor
        np.testing.assert_allclose(weight.astype(np.float64).sum(), entry["sum"], atol=1e-9)
