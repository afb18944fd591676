"""Runs the gate/up product with GeGLU in the interpreter beside torch and prints how far they are apart.

`python -m tests.support.triton_gated_product` with TRITON_INTERPRET=1: a line for each shape and form.
Float32 stands for bf16, which the interpreter does not multiply, and for float8 in the result: it rounds to
that without carrying into the exponent.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from triton.runtime import interpreter

from vlad_engines.backends.triton.kernels.gated_product import Tiling, gated_product
from vlad_engines.float8.scales import FLOAT8, MOST

TILING = Tiling(rows=16, columns=32, depth=32, warps=4, stages=2)
SHAPES = {
    "whole tiles": (32, 64, 64),
    "ragged rows": (37, 64, 64),
    "one row": (1, 64, 64),
    "ragged width and depth": (37, 80, 48),
}
"""Rows, hidden width, depth."""

FACTOR = 20.0
UNTOUCHED = -3.0
ROWS_BEHIND = 16


def reference(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None, factor: float | None = None
) -> torch.Tensor:
    """The result in float32; with a factor, what is rounded to float8."""
    product = x.float() @ weight.float().T
    if scale is not None:
        product *= scale
    gate, up = product.chunk(2, dim=1)
    hidden = F.gelu(gate, approximate="tanh") * up
    return hidden if factor is None else (hidden * factor).clamp(-MOST, MOST)


def differences(rows: int, hidden: int, depth: int, *, quantised: bool) -> dict[str, float | bool]:
    """Largest error, in parts of the largest result; part of the results at the edge of float8; whether rows
    behind the last one were left alone."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, depth, generator=generator)
    weight = torch.randn(2 * hidden, depth, generator=generator) * depth**-0.5
    scale = torch.logspace(-1, 1, 2 * hidden) if quantised else None
    factor = FACTOR if quantised else None
    dtype = FLOAT8 if quantised else torch.float32
    x, weight = x.to(dtype), weight.to(dtype)
    buffer = torch.full((rows + ROWS_BEHIND, hidden), UNTOUCHED)
    gated_product(x, weight, buffer[:rows], TILING, scale=scale, factor=factor)
    expected = reference(x, weight, scale, factor)
    error = (buffer[:rows] - expected).abs()
    return {
        "error": float(error.max() / expected.abs().max()),
        "clamped": float((expected.abs() == MOST).float().mean()),
        "untouched": bool((buffer[rows:] == UNTOUCHED).all()),
    }


def let_loops_end_at_tensors() -> None:
    """What a program counts to is an array of one number to the interpreter, and no integer to NumPy 2.4."""
    patch = interpreter._patch_lang_tensor

    def patch_and_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_index


if __name__ == "__main__":
    let_loops_end_at_tensors()
    for name, shape in SHAPES.items():
        for quantised in (False, True):
            print(
                json.dumps(
                    {"shape": name, "quantised": quantised, **differences(*shape, quantised=quantised)}
                )
            )
