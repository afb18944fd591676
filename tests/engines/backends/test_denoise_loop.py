"""The whole-loop kernel: its packing everywhere, its compiler where there is one, its actions on a GPU."""

from __future__ import annotations

import pathlib

import pytest
import torch
from torch import Tensor

from vlad_configs.errors import EngineError
from vlad_configs.models import ModelConfig
from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.triton.cuda.packing import BLOCKS, UNIT, pack_layer

on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs an NVIDIA GPU of compute capability 9.0",
)

CHUNK = 8192
QKV, ATTENDED, WIDTH, MLP = 2560, 2048, 1024, 4096


def numbered(rows: int, columns: int) -> Tensor:
    """A matrix whose entries all differ."""
    return torch.arange(rows * columns, dtype=torch.int32).view(rows, columns)


def unit_of(chunk: Tensor, depth: int) -> Tensor:
    """8 rows of a matrix out of a chunk, as the kernel's lanes read it: `[8, depth]`."""
    rows = torch.empty(UNIT, depth, dtype=chunk.dtype)
    for block in range(depth // 32):
        for lane in range(32):
            k = block * 32 + lane % 4 * 8
            rows[lane // 4, k : k + 8] = chunk[(block * 32 + lane) * 8 :][:8]
    return rows


def test_every_block_gets_the_rows_that_the_kernel_expects() -> None:
    qkv, out, gate = numbered(QKV, WIDTH), numbered(WIDTH, ATTENDED), numbered(MLP, WIDTH)
    up, down = -numbered(MLP, WIDTH), numbered(WIDTH, MLP)
    packed = pack_layer(qkv, out, gate, up, down)
    assert packed.shape == (BLOCKS, 3 + 2 + 8 + 4, CHUNK)
    for block in (0, 1, 63, 64, 127):
        chunks = list(packed[block])
        for unit in range(3):
            rows = qkv[(block + unit * BLOCKS) * UNIT :][:UNIT]
            assert torch.equal(unit_of(chunks[unit], WIDTH), rows if len(rows) else torch.zeros(UNIT, WIDTH))
        pair, member = block // 2, block % 2
        for unit in range(2):
            columns = slice((2 * pair + unit) * UNIT, (2 * pair + unit + 1) * UNIT)
            assert torch.equal(unit_of(chunks[3 + unit], 1024), out[columns, member * 1024 :][:, :1024])
            for part in range(2):
                half = down[columns, member * 2048 + part * 1024 :][:, :1024]
                assert torch.equal(unit_of(chunks[13 + 2 * part + unit], 1024), half)
        for unit in range(4):
            rows = slice((block * 4 + unit) * UNIT, (block * 4 + unit + 1) * UNIT)
            assert torch.equal(unit_of(chunks[5 + 2 * unit], WIDTH), gate[rows])
            assert torch.equal(unit_of(chunks[6 + 2 * unit], WIDTH), up[rows])


@pytest.mark.gpu
@on_hopper
def test_a_source_that_does_not_compile_says_why(tmp_path: pathlib.Path) -> None:
    from vlad_engines.backends.triton.cuda.kernel import CudaKernel

    source = tmp_path / "broken.cu"
    source.write_text('extern "C" __global__ void broken() { nonsense; }')
    with pytest.raises(EngineError, match=r"broken\.cu.*nonsense"):
        CudaKernel(source, {}, cache=tmp_path)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize(
    ("horizon", "prompt", "pruning"),
    [
        (10, 20, None),
        (16, 200, None),
        (7, 3, None),
        (10, 20, TokenPruning(64, mode="union")),
        (10, 20, TokenPruning(24, mode="union", positions="compact")),
    ],
)
def test_one_launch_computes_what_the_chain_computes(
    horizon: int, prompt: int, pruning: TokenPruning | None
) -> None:
    from tests.support.denoise_comparison import compare_denoising

    config = ModelConfig("pi05", action_horizon=horizon)
    difference = compare_denoising(config, prompt=prompt, pruning=pruning)
    assert difference.chain_to_loop_mean < 0.008
    assert difference.chain_to_loop_max < 0.05
    assert difference.guided_to_loop_max < 0.05
    assert difference.repeated_exactly
    assert difference.stepwise_exactly
