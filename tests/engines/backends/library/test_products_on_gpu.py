"""cuBLASLt's algorithms against torch's products, on a GPU."""

from __future__ import annotations

import pathlib

import pytest
import torch

from vlad_engines.backends.triton.library import products
from vlad_engines.backends.triton.library.choices import Choices
from vlad_engines.backends.triton.library.cublaslt import WORKSPACE_BYTES, Product, Shape
from vlad_engines.backends.triton.library.products import LibraryProducts, by_torch
from vlad_engines.backends.triton.workspace import Workspace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

ROWS, WIDTH, DEPTH = 1072, 768, 512
EPILOGUES = [(False, False), (True, False), (True, True)]


def _operands(bias: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, generator=generator)

    return draw(ROWS, DEPTH), draw(WIDTH, DEPTH) * DEPTH**-0.5, draw(WIDTH) if bias else None


@pytest.mark.parametrize(("bias", "gelu"), EPILOGUES)
def test_every_offer_computes_the_product(bias: bool, gelu: bool) -> None:
    x, weight, vector = _operands(bias)
    expected = torch.empty(ROWS, WIDTH, device="cuda", dtype=torch.bfloat16)
    by_torch(x, weight, expected, vector, gelu)
    product = Product(Shape(ROWS, WIDTH, DEPTH, bias, gelu))
    offers = product.offers(16)
    assert offers
    scratch = torch.empty(WORKSPACE_BYTES, device="cuda", dtype=torch.uint8)
    for offer in offers:
        out = torch.full_like(expected, torch.nan)
        product.run(offer, x, weight, vector, out, scratch)
        torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("bias", "gelu"), EPILOGUES)
def test_a_remembered_choice_is_captured_and_replayed(
    bias: bool, gelu: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, vector = _operands(bias)
    shape = Shape(ROWS, WIDTH, DEPTH, bias, gelu)
    choices = Choices(tmp_path / "gpu.json")
    choices.keep(shape, Product(shape).offers(16)[-1])
    monkeypatch.setattr(products, "device_seconds", None)  # what is remembered is not measured again
    multiply = LibraryProducts(Workspace(torch.device("cuda")), "test", Choices(tmp_path / "gpu.json"))
    out, expected = (torch.empty(ROWS, WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        multiply(x, weight, out, vector, gelu=gelu)
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        multiply(x, weight, out, vector, gelu=gelu)
    x.copy_(x.flip(0))
    by_torch(x, weight, expected, vector, gelu)
    graph.replay()
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)


def test_the_first_product_of_a_kind_is_measured(tmp_path: pathlib.Path) -> None:
    x, weight, vector = _operands(bias=False)
    choices = Choices(tmp_path / "gpu.json")
    out, expected = (torch.empty(ROWS, WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    LibraryProducts(Workspace(torch.device("cuda")), "test", choices)(x, weight, out, vector)
    by_torch(x, weight, expected, vector)
    assert Shape(ROWS, WIDTH, DEPTH, bias=False, gelu=False) in choices
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
