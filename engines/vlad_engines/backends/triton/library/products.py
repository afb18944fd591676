"""Products as the stages call them: by torch, or by an algorithm that was measured to be faster."""

from __future__ import annotations

import functools
import pathlib
import re
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad_engines.backends.triton.library import cublaslt
from vlad_engines.backends.triton.library.choices import Choices, fastest
from vlad_engines.backends.triton.library.cublaslt import WORKSPACE_BYTES, Offer, Product, Shape
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.checkpoint.demo import cache_directory

MEASURED_FROM_ROWS = 1024
"""Of fewer rows, torch's own choice was the fastest wherever it was measured (docs/performance.md)."""

_MOST_OFFERS = 16
_RUNS, _REPETITIONS = 5, 5


class LibraryProducts:
    """The library products of one stage.

    The first product of a kind measures what the library offers for it, unless that was remembered; so let
    the stage run once before it is captured.

    Args:
        workspace, user: where algorithms take memory, under a name that no two streams share.
        choices: None for those of the workspace's device.
    """

    def __init__(self, workspace: Workspace, user: str, choices: Choices | None = None) -> None:
        self._workspace, self._user = workspace, user
        self._choices = choices
        self._products: dict[Shape, tuple[Product, Offer | None]] = {}

    def __call__(
        self, x: Tensor, weight: Tensor, out: Tensor, bias: Tensor | None = None, *, gelu: bool = False
    ) -> None:
        """`out = x weight^T`, plus bias, then GELU's tanh form.

        Args:
            x: `[M, K]`. weight: `[N, K]`. bias: `[N]`. out: `[M, N]`.
            gelu: only with a bias.
        """
        if not x.is_cuda or x.dtype != torch.bfloat16 or len(x) < MEASURED_FROM_ROWS:
            by_torch(x, weight, out, bias, gelu)
            return
        shape = Shape(len(x), len(weight), x.shape[1], bias is not None, gelu)
        scratch = self._workspace.get(f"{self._user}.product", WORKSPACE_BYTES, dtype=torch.uint8)
        if shape not in self._products:
            self._products[shape] = self._choose(shape, x, weight, out, bias, scratch)
        product, offer = self._products[shape]
        if offer is None:
            by_torch(x, weight, out, bias, gelu)
        else:
            product.run(offer, x, weight, bias, out, scratch)

    def _choose(
        self, shape: Shape, x: Tensor, weight: Tensor, out: Tensor, bias: Tensor | None, scratch: Tensor
    ) -> tuple[Product, Offer | None]:
        choices = choices_of(x.device) if self._choices is None else self._choices
        product = Product(shape)
        if shape not in choices:
            own_s = device_seconds(functools.partial(by_torch, x, weight, out, bias, shape.gelu))
            offers = product.offers(_MOST_OFFERS)
            times = [
                device_seconds(functools.partial(product.run, offer, x, weight, bias, out, scratch))
                for offer in offers
            ]
            best = fastest(own_s, times)
            choices.keep(shape, None if best is None else offers[best])
        offer = choices.get(shape)
        return product, offer if offer is None or product.takes(offer) else None


@functools.cache
def choices_of(device: torch.device) -> Choices:
    """What is remembered of a GPU like this one, in the user's cache directory."""
    return Choices(remembered_at(device))


def remembered_at(device: torch.device, what: str = "") -> pathlib.Path:
    """The file for choices of one GPU model and version of the library.

    Args:
        what: was chosen, where it is not the library's algorithm for a product.
    """
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name(device))
    name = "-".join(filter(None, (gpu, what, f"cublaslt-{cublaslt.version()}")))
    return cache_directory() / "products" / f"{name}.json"


def by_torch(x: Tensor, weight: Tensor, out: Tensor, bias: Tensor | None = None, gelu: bool = False) -> None:
    """The same by torch's own choice of algorithm. For arguments, see `LibraryProducts`."""
    if bias is None:
        torch.mm(x, weight.T, out=out)
    elif not gelu:
        torch.addmm(bias, x, weight.T, out=out)
    elif x.is_cuda:
        # The library's epilogue computes GELU's tanh form; on a CPU this function computes the exact one.
        torch._addmm_activation(bias, x, weight.T, use_gelu=True, out=out)
    else:
        out.copy_(F.gelu(F.linear(x, weight, bias), approximate="tanh"))


def device_seconds(run: Callable[[], None]) -> float:
    """Median time on the device of one of several runs in a row."""
    run()
    times: list[float] = []
    for _ in range(_RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(_REPETITIONS):
            run()
        end.record()
        end.synchronize()
        times.append(1e-3 * begin.elapsed_time(end) / _REPETITIONS)
    return statistics.median(times)
