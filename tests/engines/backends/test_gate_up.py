"""Whether gate/up and GeGLU are one launch or two, and on a GPU, that both compute the same."""

from __future__ import annotations

import logging
import math
import pathlib

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with torch for CUDA, or alone")

from vlad_engines.backends.triton import gate_up
from vlad_engines.backends.triton.gate_up import GateUp, GateUpChoices, GateUpShape, choose
from vlad_engines.backends.triton.kernels.activations import geglu
from vlad_engines.backends.triton.kernels.gated_product import TILINGS, Tiling, gated_product
from vlad_engines.backends.triton.library.products import by_torch
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.float8.scales import FLOAT8, to_float8

SHAPE = GateUpShape(rows=2128, hidden=16384, depth=2048, dtype=torch.bfloat16)

on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs an NVIDIA GPU of compute capability 9.0",
)


class Clock:
    """Seconds of each way; whatever is not named takes one."""

    def __init__(self, seconds: dict[Tiling | None, float]) -> None:
        self._seconds = seconds
        self.asked: list[Tiling | None] = []

    def __call__(self, tiling: Tiling | None) -> float:
        self.asked.append(tiling)
        return self._seconds.get(tiling, 1.0)


def test_the_fastest_way_is_taken_and_never_measured_again(tmp_path: pathlib.Path) -> None:
    tilings = TILINGS[torch.bfloat16]
    clock = Clock({None: 1.0, tilings[1]: 0.9, tilings[2]: 0.95})
    path = tmp_path / "gpu.json"
    assert choose(SHAPE, GateUpChoices(path), clock) == tilings[1]
    assert clock.asked == [None, *tilings]
    slower_now = Clock({tilings[1]: 2.0})
    assert choose(SHAPE._replace(rows=2136), GateUpChoices(path), slower_now) == tilings[1]
    assert slower_now.asked == []


@pytest.mark.parametrize("one_launch_s", [0.995, 1.2, math.inf])
def test_two_launches_stay_where_one_is_not_clearly_faster(
    one_launch_s: float, tmp_path: pathlib.Path
) -> None:
    choices = GateUpChoices(tmp_path / "gpu.json")
    clock = Clock(dict.fromkeys(TILINGS[FLOAT8], one_launch_s))
    shape = SHAPE._replace(dtype=FLOAT8)
    assert choose(shape, choices, clock) is None
    assert choose(shape, choices, Clock(dict.fromkeys(TILINGS[FLOAT8], 0.1))) is None


def test_each_dtype_and_each_kind_of_rows_is_chosen_for_itself(tmp_path: pathlib.Path) -> None:
    choices = GateUpChoices(tmp_path / "gpu.json")
    choices.keep(SHAPE, None)
    for other in (
        SHAPE._replace(dtype=FLOAT8),
        SHAPE._replace(rows=4256),
        SHAPE._replace(hidden=8192),
        SHAPE._replace(depth=1024),
    ):
        assert other not in choices


def test_the_choice_is_described_and_logged(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    choices = GateUpChoices(tmp_path / "gpu.json")
    assert choices.describe() == "two launches"
    tiling = TILINGS[torch.bfloat16][0]
    with caplog.at_level(logging.INFO, "vlad.triton"):
        choose(SHAPE, choices, Clock({tiling: 0.5}))
    choices.keep(SHAPE._replace(rows=532), None)
    assert choices.describe() == (
        "1024x16384x2048 bfloat16: two launches; "
        "2560x16384x2048 bfloat16: 128x128x64, 8 warps, 4 stages, 1 per multiprocessor"
    )
    assert "taken: 128x128x64, 8 warps, 4 stages" in caplog.text


@pytest.mark.parametrize("text", ["[]", '{"512x1x1 bfloat16": {"rows": 1}}', '{"512x1x1 bfloat16": 3}'])
def test_an_unreadable_memory_counts_as_none(
    text: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    assert SHAPE not in GateUpChoices(path)
    assert "unreadable" in caplog.text


def _operands(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x, weight, out, scale."""
    generator = torch.Generator("cuda").manual_seed(rows)
    hidden, depth = 1024, 512
    x = torch.randn(rows, depth, device="cuda", generator=generator)
    weight = torch.randn(2 * hidden, depth, device="cuda", generator=generator) * depth**-0.5
    out = torch.empty(rows, hidden, device="cuda", dtype=dtype)
    scale = torch.logspace(-1, 1, 2 * hidden, device="cuda")
    if dtype == FLOAT8:
        return to_float8(x), to_float8(weight), out, scale
    return x.to(dtype), weight.to(dtype), out, scale


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, FLOAT8])
@pytest.mark.parametrize("rows", [1, 532, 2128])
def test_every_tiling_computes_the_product_with_geglu(rows: int, dtype: torch.dtype) -> None:
    x, weight, out, scale = _operands(rows, dtype)
    quantising = {"scale": scale, "factor": 20.0} if dtype == FLOAT8 else {}
    product = x.float() @ weight.float().T
    expected = torch.empty_like(out)
    geglu(product, expected, **quantising)
    for tiling in TILINGS[dtype]:
        gated_product(x, weight, out, tiling, **quantising)
        # One step of float8 is an eighth of a number, one of bfloat16 a 128th. Tensor cores add float8
        # products with fewer bits than float32 has, which shows in small differences of large sums.
        rtol, atol = (0.13, 0.25) if dtype == FLOAT8 else (0.01, 0.01)
        torch.testing.assert_close(out.float(), expected.float(), rtol=rtol, atol=atol)
        again = torch.empty_like(out)
        gated_product(x, weight, again, tiling, **quantising)
        assert torch.equal(again.view(torch.uint8), out.view(torch.uint8))


@pytest.mark.gpu
@on_hopper
def test_a_remembered_choice_is_captured_and_replayed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, out, _ = _operands(532, torch.bfloat16)
    choices = GateUpChoices(tmp_path / "gpu.json")
    choices.keep(GateUpShape(532, 1024, 512, torch.bfloat16), TILINGS[torch.bfloat16][0])
    monkeypatch.setattr(gate_up, "device_seconds", None)  # what is remembered is not measured again
    run = GateUp(by_torch, Workspace(torch.device("cuda")), choices)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run(x, weight, out)
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        run(x, weight, out)
    x.copy_(x.flip(0))
    expected = torch.empty_like(out)
    gated_product(x, weight, expected, TILINGS[torch.bfloat16][0])
    graph.replay()
    assert torch.equal(out, expected)


@pytest.mark.gpu
@on_hopper
def test_the_first_one_of_a_kind_is_measured(tmp_path: pathlib.Path) -> None:
    x, weight, out, _ = _operands(532, torch.bfloat16)
    choices = GateUpChoices(tmp_path / "gpu.json")
    GateUp(by_torch, Workspace(torch.device("cuda")), choices)(x, weight, out)
    assert GateUpShape(532, 1024, 512, torch.bfloat16) in choices
