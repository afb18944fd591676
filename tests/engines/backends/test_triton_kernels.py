"""The Triton stages against the reference network, in Triton's interpreter, on small shapes in float32.

The interpreter is chosen when Triton is imported, so the comparison runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: it comes with torch for CUDA, or alone",
)


def compare(*arguments: str) -> dict[str, Any]:
    """Largest absolute differences to the reference; see `triton_comparison`."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.support.triton_comparison", *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    differences: dict[str, Any] = json.loads(result.stdout)
    return differences


@pytest.mark.parametrize("family", ["pi05", "pi0"])
def test_stages_compute_what_the_reference_computes(family: str) -> None:
    differences = compare(family)
    assert differences["vision_tokens"] < 2e-5
    assert differences["prefix_keys"] < 2e-5
    assert differences["prefix_values"] < 2e-5
    assert differences["actions"] < 2e-5
    assert differences["guided_actions"] < 2e-5
    assert differences["guided_by"] > 0.1


@pytest.mark.parametrize("mistake", ["gate", "position"])
def test_the_comparison_notices_a_mistake(mistake: str) -> None:
    assert compare("pi05", mistake)["actions"] > 1e-3
