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


def interpret(module: str, *arguments: str) -> list[dict[str, Any]]:
    """Every line that a module of `tests.support` prints in the interpreter."""
    return run_module(module, *arguments, interpreted="1")


def run_module(module: str, *arguments: str, interpreted: str) -> list[dict[str, Any]]:
    """Every line that a module of `tests.support` prints."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.support.{module}", *arguments],
        env={**os.environ, "TRITON_INTERPRET": interpreted, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def compare(*arguments: str) -> dict[str, Any]:
    """Largest absolute differences to the reference; see `triton_comparison`."""
    (differences,) = interpret("triton_comparison", *arguments)
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


@pytest.mark.parametrize("family", ["pi05", "pi0"])
def test_pruned_stages_compute_what_the_pytorch_backend_computes(family: str) -> None:
    results = interpret("triton_pruning", family)
    assert len(results) == {"pi05": 3, "pi0": 1}[family]
    assert all(result["difference"] < 2e-5 for result in results), results
    assert all(result["tokens_agree"] for result in results), results
    keeping_all = [result["by_pruning"] for result in results if result["by_pruning"] is not None]
    assert keeping_all == ([0.0] if family == "pi05" else [])


def test_a_product_with_geglu_is_what_torch_computes() -> None:
    lines = interpret("triton_gated_product")
    assert len(lines) == 8
    for line in lines:
        assert line["error"] < 1e-6, line
        assert line["untouched"], line
    assert max(line["clamped"] for line in lines) > 0.0


@pytest.mark.parametrize("network", ["libero_small", "pi05", "pi0"])
def test_kernels_compile_for_a_hopper_gpu(network: str) -> None:
    """Widths of small networks are no powers of two; shared memory is what a block of an H200 may have."""
    kernels = run_module("triton_compilation", network, interpreted="0")
    assert {"_gated_projection", "_norm_qkv", "_suffix_attention", "_euler_step"} <= {
        line["kernel"] for line in kernels
    }
    assert max(line["shared_bytes"] for line in kernels) <= 227 * 1024


def test_every_tiling_of_a_product_with_geglu_fits_a_hopper_gpu() -> None:
    kernels = run_module("triton_compilation", "gated_products", interpreted="0")
    assert len(kernels) == 16
    for line in kernels:
        assert line["kernel"] == "_gated_product"
        assert line["shared_bytes"] <= 227 * 1024, line
        assert line["spilled_bytes"] == 0, line
