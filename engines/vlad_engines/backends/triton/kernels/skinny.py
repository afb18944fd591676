"""Matrix products of a few rows, fused with what surrounds them in an expert layer.

With 10 to 64 rows these products read weights and do little else. Tiles are transposed, out^T = W x^T, so
that 64 weight rows fill the tensor cores' tall side and the few rows of x their flexible side; products
that would leave multiprocessors idle are split over their depth. A norm needs no pass of its own: with
y = n(x) (1 + s) + b, a product is  y W = rms(x)^-1 (x (1 + s)) W + b W.  Whoever writes x also writes
x (1 + s) and its columns' part of each row's sum of squares; b W is a constant of the step, made once.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlad_engines.backends.triton.kernels.activations import gelu_tanh
from vlad_engines.backends.triton.kernels.dependency import LAUNCH, prefetch_rows, wait_for_predecessor
from vlad_engines.backends.triton.kernels.norms import EPSILON
from vlad_engines.backends.triton.kernels.splits import arrive, combines, leave, run_together
from vlad_engines.backends.triton.kernels.tiling import (
    padded_rows,
    power_of_two_divisor,
    stages_in_flight,
)
from vlad_engines.backends.triton.workspace import Workspace

TILE_ROWS, MAX_TILE_ROWS = 16, 128
TILE_COLUMNS = 64
"""Weight rows of a tile: the height of a Hopper matrix instruction."""
TILE_DEPTH = 128
SPLIT_DEPTH = 512
"""Depth of one split: short enough for the expert's two projections to occupy an H200."""


def tile_columns(columns: int) -> int:
    """Output columns of a tile, for a product of `columns` columns."""
    return power_of_two_divisor(columns, TILE_COLUMNS)


@dataclasses.dataclass(frozen=True)
class Residual:
    """The residual stream between two branches.

    Attributes:
        x: `[M, width]`.
        scaled: `[M, width]`: x (1 + s) of the norm that comes next.
        squares: `[parts, M]` float32: sums of squares of x over its blocks of columns.
    """

    x: Tensor
    scaled: Tensor
    squares: Tensor

    @classmethod
    def over(cls, workspace: Workspace, rows: int, width: int, dtype: torch.dtype) -> Residual:
        """Buffers from a workspace."""
        return cls(
            workspace.get("residual.x", rows, width, dtype=dtype),
            workspace.get("residual.scaled", rows, width, dtype=dtype),
            workspace.get("residual.squares", width // tile_columns(width), rows, dtype=torch.float32),
        )


@triton.jit
def _enter_layers(
    token_ptr,
    state_ptr,
    scale_ptr,
    x_ptr,
    scaled_ptr,
    squares_ptr,
    rows,
    SUFFIX: tl.constexpr,
    HAS_STATE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_BLOCK: tl.constexpr,
    EPS: tl.constexpr,
):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    if HAS_STATE:
        sample = row // SUFFIX
        token = row % SUFFIX
        if token == 0:
            value = tl.load(state_ptr + sample * WIDTH + column, mask=inside, other=0.0)
        else:
            source = sample * (SUFFIX - 1) + token - 1
            value = tl.load(token_ptr + source * WIDTH + column, mask=inside, other=0.0)
    else:
        value = tl.load(token_ptr + row * WIDTH + column, mask=inside, other=0.0)
    x = value.to(x_ptr.dtype.element_ty)
    tl.store(x_ptr + row * WIDTH + column, x, mask=inside)
    x = x.to(tl.float32)
    scale = tl.load(scale_ptr + column, mask=inside, other=0.0)
    tl.store(scaled_ptr + row * WIDTH + column, (x * scale).to(x_ptr.dtype.element_ty), mask=inside)
    # One block sees the whole row: its sum stands first, the other parts are zero.
    part = tl.arange(0, PARTS_BLOCK)
    total = tl.where(part == 0, tl.sum(x * x, axis=0), 0.0)
    tl.store(squares_ptr + part * rows + row, total, mask=part < PARTS)


def enter_layers(tokens: Tensor, state: Tensor | None, scale: Tensor, residual: Residual) -> None:
    """Make the residual stream of the first layer.

    Args:
        tokens: `[B * H, width]` float32.
        state: `[B, width]` float32, a token before each sample's others, or None.
        scale: `[width]` float32, 1 + s of the first norm.
    """
    rows, width = residual.x.shape
    parts = residual.squares.shape[0]
    _enter_layers[(rows,)](
        tokens,
        tokens if state is None else state,
        scale,
        residual.x,
        residual.scaled,
        residual.squares,
        rows,
        SUFFIX=1 if state is None else rows // state.shape[0],
        HAS_STATE=state is not None,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        PARTS=parts,
        PARTS_BLOCK=triton.next_power_of_2(parts),
        EPS=EPSILON,
        num_warps=4,
    )


@triton.jit
def _load_squares(squares_ptr, row, inside, rows, PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr):
    part = tl.arange(0, PARTS_BLOCK)[:, None]
    seen = (part < PARTS) & inside[None, :]
    return tl.load(squares_ptr + part * rows + row[None, :], mask=seen, other=0.0)


@triton.jit
def _rotate_columns(product, cos, sin, ROWS: tl.constexpr, PAIRS: tl.constexpr):
    """RoPE of `[2 * PAIRS, ROWS]` in pair order by `[PAIRS, ROWS]` angles."""
    first, second = tl.split(tl.permute(tl.reshape(product, (PAIRS, 2, ROWS)), (0, 2, 1)))
    rotated = tl.join(first * cos - second * sin, second * cos + first * sin)
    return tl.reshape(tl.permute(rotated, (0, 2, 1)), (2 * PAIRS, ROWS))


@triton.jit
def _norm_qkv(
    scaled_ptr,
    squares_ptr,
    weight_ptr,
    shift_ptr,
    cos_ptr,
    sin_ptr,
    start_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    cache_stride,
    prefix,
    rows,
    SUFFIX: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_COLUMNS
    column = first + tl.arange(0, BLOCK_COLUMNS)
    prefetch_rows(weight_ptr + first * WIDTH, WIDTH, BLOCK_COLUMNS, WIDTH, OVERLAP)
    shift = tl.load(shift_ptr + column)
    wait_for_predecessor(OVERLAP)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = row < rows
    # What the epilogue needs is asked for now, so that it arrives behind the matrix product's loads.
    squares = _load_squares(squares_ptr, row, inside, rows, PARTS, PARTS_BLOCK)
    sample = row // SUFFIX
    token = row % SUFFIX
    position = tl.load(start_ptr + sample, mask=inside, other=0) + token
    pairs: tl.constexpr = BLOCK_COLUMNS // 2
    pair = (first % HEAD_DIM) // 2 + tl.arange(0, pairs)
    angle = position[None, :] * (HEAD_DIM // 2) + pair[:, None]
    cos = tl.load(cos_ptr + angle, mask=inside[None, :], other=0.0)
    sin = tl.load(sin_ptr + angle, mask=inside[None, :], other=0.0)
    product = tl.zeros((BLOCK_COLUMNS, BLOCK_ROWS), tl.float32)
    for start in range(0, WIDTH, BLOCK_WIDTH):
        k = start + tl.arange(0, BLOCK_WIDTH)
        weight = tl.load(weight_ptr + column[:, None] * WIDTH + k[None, :])
        x = tl.load(scaled_ptr + row[:, None] * WIDTH + k[None, :], mask=inside[:, None], other=0.0)
        product += tl.dot(weight, tl.trans(x))
    factor = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / WIDTH + EPS)
    product = product * factor[None, :] + shift[:, None]
    if first < (HEADS + 1) * HEAD_DIM:
        product = _rotate_columns(product, cos, sin, BLOCK_ROWS, pairs)
    result = product.to(query_ptr.dtype.element_ty)
    if first < HEADS * HEAD_DIM:
        at = row[None, :] * (HEADS * HEAD_DIM) + column[:, None]
        tl.store(query_ptr + at, result, mask=inside[None, :])
    else:
        entry = column % HEAD_DIM
        at = sample[None, :] * cache_stride + (prefix + token[None, :]) * HEAD_DIM + entry[:, None]
        if first < (HEADS + 1) * HEAD_DIM:
            tl.store(key_ptr + at, result, mask=inside[None, :])
        else:
            tl.store(value_ptr + at, result, mask=inside[None, :])


def norm_qkv(
    residual: Residual,
    weight: Tensor,
    shift: Tensor,
    cos: Tensor,
    sin: Tensor,
    start: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    prefix: int,
) -> None:
    """Norm, merged QKV projection, RoPE; keys and values go behind the prefix in the cache.

    Args:
        residual: of `B * suffix` rows.
        weight: `[(heads + 2) * head_dim, width]`, queries and keys in pair order.
        shift: `[(heads + 2) * head_dim]` float32, b W.
        cos, sin: `[positions, head_dim / 2]` float32.
        start: `[B]` int32, the position of the first suffix token.
        queries: `[B * suffix, heads, head_dim]`.
        keys, values: one layer's cache `[B, prefix + suffix, head_dim]`.
    """
    rows, width = residual.x.shape
    heads, head_dim = queries.shape[1:]
    parts = residual.squares.shape[0]
    block_rows = min(padded_rows(rows), MAX_TILE_ROWS)
    block_columns, block_width = tile_columns(head_dim), power_of_two_divisor(width, TILE_DEPTH)
    _norm_qkv[(weight.shape[0] // block_columns, triton.cdiv(rows, block_rows))](
        residual.scaled,
        residual.squares,
        weight,
        shift,
        cos,
        sin,
        start,
        queries,
        keys,
        values,
        keys.stride(0),
        prefix,
        rows,
        SUFFIX=rows // start.shape[0],
        WIDTH=width,
        HEADS=heads,
        HEAD_DIM=head_dim,
        PARTS=parts,
        PARTS_BLOCK=triton.next_power_of_2(parts),
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
        BLOCK_WIDTH=block_width,
        EPS=EPSILON,
        num_warps=4,
        num_stages=stages_in_flight((block_columns + block_rows) * block_width * weight.element_size()),
        **LAUNCH,
    )


@triton.jit
def _norm_geglu(
    scaled_ptr,
    squares_ptr,
    weight_ptr,
    shift_ptr,
    out_ptr,
    rows,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    # A tile holds the gate rows of some columns, then the up rows of the same columns.
    half: tl.constexpr = BLOCK_COLUMNS // 2
    first = tl.program_id(0) * BLOCK_COLUMNS
    merged = first + tl.arange(0, BLOCK_COLUMNS)
    prefetch_rows(weight_ptr + first * WIDTH, WIDTH, BLOCK_COLUMNS, WIDTH, OVERLAP)
    shift = tl.load(shift_ptr + merged)
    wait_for_predecessor(OVERLAP)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = row < rows
    squares = _load_squares(squares_ptr, row, inside, rows, PARTS, PARTS_BLOCK)
    product = tl.zeros((BLOCK_COLUMNS, BLOCK_ROWS), tl.float32)
    for start in range(0, WIDTH, BLOCK_WIDTH):
        k = start + tl.arange(0, BLOCK_WIDTH)
        weight = tl.load(weight_ptr + merged[:, None] * WIDTH + k[None, :])
        x = tl.load(scaled_ptr + row[:, None] * WIDTH + k[None, :], mask=inside[:, None], other=0.0)
        product += tl.dot(weight, tl.trans(x))
    factor = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / WIDTH + EPS)
    product = product * factor[None, :] + shift[:, None]
    gate, up = tl.split(tl.permute(tl.reshape(product, (2, half, BLOCK_ROWS)), (1, 2, 0)))
    hidden = gelu_tanh(gate) * up
    column = tl.program_id(0) * half + tl.arange(0, half)
    at = row[None, :] * HIDDEN + column[:, None]
    tl.store(out_ptr + at, hidden.to(out_ptr.dtype.element_ty), mask=inside[None, :])


def gate_up_tiles(gate: Tensor, up: Tensor) -> Tensor:
    """Merge two `[hidden, ...]` tensors so that each tile of `norm_geglu` holds both of its columns."""
    half = tile_columns(2 * len(gate)) // 2
    tiles = torch.stack((gate.unflatten(0, (-1, half)), up.unflatten(0, (-1, half))), dim=1)
    return tiles.flatten(0, 2)


def norm_geglu(residual: Residual, weight: Tensor, shift: Tensor, out: Tensor) -> None:
    """Norm, merged gate/up projection, GeGLU.

    Args:
        weight: `[2 * hidden, width]` in tile order, see `gate_up_tiles`.
        shift: `[2 * hidden]` float32, b W in the same order.
        out: `[M, hidden]`.
    """
    rows, width = residual.x.shape
    hidden = out.shape[1]
    parts = residual.squares.shape[0]
    block_rows = min(padded_rows(rows), MAX_TILE_ROWS)
    block_columns, block_width = tile_columns(2 * hidden), power_of_two_divisor(width, TILE_DEPTH)
    _norm_geglu[(2 * hidden // block_columns, triton.cdiv(rows, block_rows))](
        residual.scaled,
        residual.squares,
        weight,
        shift,
        out,
        rows,
        WIDTH=width,
        HIDDEN=hidden,
        PARTS=parts,
        PARTS_BLOCK=triton.next_power_of_2(parts),
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
        BLOCK_WIDTH=block_width,
        EPS=EPSILON,
        num_warps=4,
        num_stages=stages_in_flight((block_columns + block_rows) * block_width * weight.element_size()),
        **LAUNCH,
    )


@triton.jit
def _gated_projection(
    input_ptr,
    weight_ptr,
    gate_ptr,
    scale_ptr,
    x_ptr,
    scaled_ptr,
    squares_ptr,
    partial_ptr,
    counter_ptr,
    rows,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    TOGETHER: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    column_block = tl.program_id(0)
    split = tl.program_id(1)
    row_block = tl.program_id(2)
    first = column_block * BLOCK_COLUMNS
    depth: tl.constexpr = DEPTH // SPLITS
    prefetch_rows(weight_ptr + first * DEPTH + split * depth, DEPTH, BLOCK_COLUMNS, depth, OVERLAP)
    column = first + tl.arange(0, BLOCK_COLUMNS)
    gate = tl.load(gate_ptr + column)
    scale = tl.load(scale_ptr + column)
    wait_for_predecessor(OVERLAP)
    row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = row < rows
    # Each of the splits finishes a share of the rows, or one finishes them all.
    share: tl.constexpr = BLOCK_ROWS // SPLITS if TOGETHER else BLOCK_ROWS
    local_row = (split if TOGETHER else 0) * share + tl.arange(0, share)
    own_row = row_block * BLOCK_ROWS + local_row
    own_inside = (own_row < rows)[:, None]
    at = own_row[:, None] * WIDTH + column[None, :]
    x = tl.load(x_ptr + at, mask=own_inside, other=0.0).to(tl.float32)
    product = tl.zeros((BLOCK_COLUMNS, BLOCK_ROWS), tl.float32)
    for start in range(0, depth, BLOCK_DEPTH):
        k = split * depth + start + tl.arange(0, BLOCK_DEPTH)
        weight = tl.load(weight_ptr + column[:, None] * DEPTH + k[None, :])
        inputs = tl.load(input_ptr + row[:, None] * DEPTH + k[None, :], mask=inside[:, None], other=0.0)
        product += tl.dot(weight, tl.trans(inputs))
    counter = counter_ptr + row_block * tl.num_programs(0) + column_block
    finishes = True
    if SPLITS > 1:
        tile = (row_block * tl.num_programs(0) + column_block) * SPLITS
        size: tl.constexpr = BLOCK_ROWS * BLOCK_COLUMNS
        offset = tl.arange(0, BLOCK_COLUMNS)
        local = tl.arange(0, BLOCK_ROWS)[None, :] * BLOCK_COLUMNS + offset[:, None]
        tl.store(partial_ptr + (tile + split) * size + local, product, mask=inside[None, :])
        finishes = combines(counter, arrive(counter), SPLITS, TOGETHER)
    if finishes:
        if SPLITS > 1:
            # Summed in the order of the splits, so that the result never depends on who came last.
            total = tl.zeros((share, BLOCK_COLUMNS), tl.float32)
            place = local_row[:, None] * BLOCK_COLUMNS + offset[None, :]
            for other in tl.static_range(SPLITS):
                part = partial_ptr + (tile + other) * size + place
                total += tl.load(part, mask=own_inside, other=0.0, cache_modifier=".cg")
        else:
            total = tl.trans(product)
        x = (x + total * gate[None, :]).to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + at, x, mask=own_inside)
        x = x.to(tl.float32)
        scaled = (x * scale[None, :]).to(x_ptr.dtype.element_ty)
        tl.store(scaled_ptr + at, scaled, mask=own_inside)
        tl.store(squares_ptr + column_block * rows + own_row, tl.sum(x * x, axis=1), mask=own_row < rows)
        if SPLITS > 1:
            leave(counter, SPLITS, TOGETHER)


class GatedProjection:
    """`x += (inputs weight^T) * gate`, the end of a branch, and what the next norm needs of the new x.

    One object serves all layers of a stage.

    Args:
        rows: M. width: of the residual. depth: of the inputs.
        alone: nothing else runs on the GPU meanwhile, so that blocks may well wait for each other.
    """

    def __init__(self, rows: int, width: int, depth: int, workspace: Workspace, *, alone: bool) -> None:
        self._block_rows = min(padded_rows(rows), MAX_TILE_ROWS)
        self._splits = max(1, depth // SPLIT_DEPTH)
        self._block_columns = tile_columns(width)
        row_blocks, column_blocks = triton.cdiv(rows, self._block_rows), width // self._block_columns
        self._grid = (column_blocks, self._splits, row_blocks)
        tiles = row_blocks * column_blocks
        # The few rows of one short chunk are combined sooner than the others could be waited for.
        self._together = alone and self._block_rows > TILE_ROWS and run_together(tiles * self._splits)
        size = self._block_rows * self._block_columns
        self._partial = workspace.get("projection.partial", tiles * self._splits * size, dtype=torch.float32)
        # All zero between launches.
        self._counters = workspace.get("projection.counters", tiles, dtype=torch.int32)

    def __call__(
        self, inputs: Tensor, weight: Tensor, gate: Tensor, next_scale: Tensor, residual: Residual
    ) -> None:
        """Launch.

        Args:
            inputs: `[M, depth]`. weight: `[width, depth]`. gate: `[width]` float32.
            next_scale: `[width]` float32, 1 + s of the norm that comes next.
        """
        rows, depth = inputs.shape
        block_depth = power_of_two_divisor(depth // self._splits, TILE_DEPTH)
        _gated_projection[self._grid](
            inputs,
            weight,
            gate,
            next_scale,
            residual.x,
            residual.scaled,
            residual.squares,
            self._partial,
            self._counters,
            rows,
            DEPTH=depth,
            WIDTH=residual.x.shape[1],
            SPLITS=self._splits,
            BLOCK_ROWS=self._block_rows,
            BLOCK_COLUMNS=self._block_columns,
            BLOCK_DEPTH=block_depth,
            TOGETHER=self._together,
            num_warps=4,
            num_stages=stages_in_flight(
                (self._block_columns + self._block_rows) * block_depth * weight.element_size()
            ),
            **LAUNCH,
        )
