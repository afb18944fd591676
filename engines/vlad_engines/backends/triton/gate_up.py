"""The prefix's gate/up product and its GeGLU: two launches, or one where that was measured to be faster.

On a GPU without the one launch's instructions, and in the interpreter, it is always two.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from vlad_engines.backends.triton.kernels import activations
from vlad_engines.backends.triton.kernels.gated_product import TILINGS, Tiling, gated_product
from vlad_engines.backends.triton.library.choices import fastest
from vlad_engines.backends.triton.library.products import device_seconds, remembered_at
from vlad_engines.backends.triton.library.remembered import Remembered, rounded_rows
from vlad_engines.backends.triton.workspace import Workspace

logger = logging.getLogger("vlad.triton")

_HOPPER = (9, 0)
_COPY_BYTES = 16
"""Rows that the one launch copies begin at multiples of it."""

Multiply = Callable[[Tensor, Tensor, Tensor], None]
"""x `[M, K]`, weight `[N, K]`, out `[M, N]`."""


class GateUpShape(NamedTuple):
    """Of x `[rows, depth]` and weight `[2 * hidden, depth]`, both of the dtype."""

    rows: int
    hidden: int
    depth: int
    dtype: torch.dtype


class GateUpChoices(Remembered[GateUpShape, Tiling]):
    """The choices of one GPU model; None stands for two launches."""

    def describe(self) -> str:
        """Every kind, since the choice changes bits."""
        kinds = (
            f"{name}: {'two launches' if tiling is None else _described(tiling)}"
            for name, tiling in sorted(self._chosen.items())
        )
        return "; ".join(kinds) or "two launches"

    @staticmethod
    def _name(kind: GateUpShape) -> str:
        dtype = str(kind.dtype).removeprefix("torch.")
        return f"{rounded_rows(kind.rows)}x{kind.hidden}x{kind.depth} {dtype}"

    @staticmethod
    def _to_json(chosen: Tiling) -> Any:
        return chosen._asdict()

    @staticmethod
    def _from_json(document: Any) -> Tiling:
        return Tiling(**{name: int(number) for name, number in document.items()})


def choose(
    shape: GateUpShape, choices: GateUpChoices, seconds: Callable[[Tiling | None], float]
) -> Tiling | None:
    """What computes a shape; measured where nothing is remembered, and remembered then.

    Args:
        seconds: what a tiling takes, or two launches for None; infinite where it cannot be launched.
    """
    if shape not in choices:
        in_two_s = seconds(None)
        tilings = TILINGS[shape.dtype]
        times = [seconds(tiling) for tiling in tilings]
        best = fastest(in_two_s, times)
        choices.keep(shape, None if best is None else tilings[best])
        logger.info(
            "gate/up of %s: two launches take %.0f us, one %s; taken: %s",
            shape,
            1e6 * in_two_s,
            ", ".join(
                f"{1e6 * time:.0f} ({_described(tiling)})"
                for tiling, time in zip(tilings, times, strict=True)
            ),
            "two" if best is None else _described(tilings[best]),
        )
    return choices.get(shape)


class GateUp:
    """`gelu(x gate^T) * (x up^T)` of one stage.

    The first one of a kind measures both ways, unless the choice was remembered; so let the stage run once
    before it is captured.

    Args:
        multiply: the product where it is a launch of its own.
        workspace: holds that launch's result, where it is needed.
        choices: None for those of the workspace's device.
    """

    def __init__(
        self, multiply: Multiply, workspace: Workspace, choices: GateUpChoices | None = None
    ) -> None:
        self._multiply, self._workspace, self._choices = multiply, workspace, choices
        # Captured graphs write there, so it must stay, even when the workspace has a larger one.
        self._products: dict[GateUpShape, Tensor] = {}
        self._tilings: dict[GateUpShape, Tiling | None] = {}

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        out: Tensor,
        *,
        scale: Tensor | None = None,
        factor: float | None = None,
    ) -> None:
        """Enqueue. For arguments, see `gated_product`.

        Two launches round gate and up to bfloat16 in between, one does not.
        """
        shape = GateUpShape(len(x), out.shape[1], x.shape[1], x.dtype)

        def run(tiling: Tiling | None) -> None:
            if tiling is None:
                product = self._stored_product(shape)
                self._multiply(x, weight, product)
                activations.geglu(product, out, scale=scale, factor=factor)
            else:
                gated_product(x, weight, out, tiling, scale=scale, factor=factor)

        if shape not in self._tilings:
            self._tilings[shape] = None
            if _fits_one_launch(x, weight, out):
                choices = gate_up_choices_of(x.device) if self._choices is None else self._choices
                self._tilings[shape] = choose(shape, choices, _timed(run))
        run(self._tilings[shape])

    def _stored_product(self, shape: GateUpShape) -> Tensor:
        if shape not in self._products:
            dtype = torch.float32 if shape.dtype == torch.float32 else torch.bfloat16
            self._products[shape] = self._workspace.get(
                "prefix.gate_up", shape.rows, 2 * shape.hidden, dtype=dtype
            )
        return self._products[shape]


@functools.cache
def gate_up_choices_of(device: torch.device) -> GateUpChoices:
    """What is remembered of a GPU like this one under these versions, in the user's cache directory."""
    return GateUpChoices(remembered_at(device, f"gate-up-triton-{triton.__version__}"))


def _fits_one_launch(x: Tensor, weight: Tensor, out: Tensor) -> bool:
    return (
        x.is_cuda
        and x.dtype in TILINGS
        and torch.cuda.get_device_capability(x.device) == _HOPPER
        and all(tensor.stride(0) * tensor.itemsize % _COPY_BYTES == 0 for tensor in (x, weight, out))
    )


def _timed(run: Callable[[Tiling | None], None]) -> Callable[[Tiling | None], float]:
    def seconds(tiling: Tiling | None) -> float:
        try:
            return device_seconds(functools.partial(run, tiling))
        except triton.TritonError as error:
            if tiling is None:
                raise
            logger.warning("gate/up cannot run in one launch by %s: %s", _described(tiling), error)
            return math.inf

    return seconds


def _described(tiling: Tiling) -> str:
    return (
        f"{tiling.rows}x{tiling.columns}x{tiling.depth}, {tiling.warps} warps, {tiling.stages} stages, "
        f"{tiling.programs} per multiprocessor"
    )
