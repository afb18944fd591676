"""Which torch a fresh machine gets."""

from __future__ import annotations

import pytest

from scripts.set_up import torch_requirement

OFFERED = ["2.15.0", "2.14.0+cpu", "2.14.0", "2.13.0+cpu", "2.13.0", "2.9.1+cpu", "2.9.1", "2.7.0+cpu"]


@pytest.mark.parametrize(
    ("versions", "has_gpu", "chosen"),
    [
        (OFFERED, False, "torch==2.13.0+cpu"),
        (OFFERED, True, "torch==2.13.0"),
        (["2.14.0+cpu", "2.13.0"], False, "torch>=2.8,<2.14"),
        (["2.7.0+cpu"], False, "torch>=2.8,<2.14"),
        ([], False, "torch>=2.8,<2.14"),
        ([], True, "torch>=2.8,<2.14"),
    ],
)
def test_torch_is_the_newest_in_range_that_suits_the_machine(
    versions: list[str], has_gpu: bool, chosen: str
) -> None:
    assert torch_requirement("torch>=2.8,<2.14", versions, has_gpu=has_gpu) == chosen


def test_versions_are_compared_as_numbers() -> None:
    assert torch_requirement("torch<3", ["2.9.0+cpu", "2.10.0+cpu"], has_gpu=False) == "torch==2.10.0+cpu"
