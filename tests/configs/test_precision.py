"""Precisions by name."""

from __future__ import annotations

import pytest

from vlad_configs.errors import ConfigError
from vlad_configs.fidelity import FIDELITY_THRESHOLDS, fidelity_thresholds
from vlad_configs.precision import COMPONENTS, PRECISIONS, coarsest, parse_precision


def test_one_name_is_for_all_components() -> None:
    assert parse_precision("tf32") == dict.fromkeys(COMPONENTS, "tf32")


def test_each_component_may_have_its_own() -> None:
    mixed = parse_precision("vision=fp16, prefix=tf32,denoise=fp32")
    assert mixed == {"vision": "fp16", "prefix": "tf32", "denoise": "fp32"}
    assert coarsest("vision=fp16, prefix=tf32,denoise=fp32") == "fp16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int4", "precision must be one of fp32, tf32, fp16, bf16, fp8, or one for each of"),
        ("", "precision must be one of"),
        ("vision=fp16", "name each of vision, prefix, denoise once"),
        ("vision=fp16,prefix=fp64,denoise=fp32", "precision of prefix must be one of .* not 'fp64'"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_precision(text)


def test_every_precision_has_thresholds_and_coarser_ones_allow_no_less() -> None:
    assert FIDELITY_THRESHOLDS.keys() == set(PRECISIONS)
    errors = [FIDELITY_THRESHOLDS[name].action_error_p99 for name in PRECISIONS]
    assert errors == sorted(errors)
    assert fidelity_thresholds("vision=fp16,prefix=tf32,denoise=fp32") == FIDELITY_THRESHOLDS["fp16"]
