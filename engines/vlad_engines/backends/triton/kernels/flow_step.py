"""Between two passes of the expert: final norm, velocity, Euler step in float32, next tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vlad_engines.backends.triton.kernels.norms import EPSILON
from vlad_engines.model.guided_flow import FlowGuidance


@triton.jit
def _embed_actions(
    x_t,
    weight_ptr,
    bias_ptr,
    out_ptr,
    ACTION_DIM: tl.constexpr,
    BLOCK_ACTION: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SILU: tl.constexpr,
):
    """Project one action `[BLOCK_ACTION]` to `[WIDTH]` and store it."""
    action = tl.arange(0, BLOCK_ACTION)
    real = action < ACTION_DIM
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < WIDTH
        weight = tl.load(
            weight_ptr + column[:, None] * ACTION_DIM + action[None, :],
            mask=inside[:, None] & real[None, :],
            other=0.0,
        )
        token = tl.sum(weight * x_t[None, :], axis=1) + tl.load(bias_ptr + column, mask=inside, other=0.0)
        if SILU:
            token = token * tl.sigmoid(token)
        tl.store(out_ptr + column, token.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _first_tokens(
    noise_ptr,
    x_t_ptr,
    weight_ptr,
    bias_ptr,
    token_ptr,
    ACTION_DIM: tl.constexpr,
    BLOCK_ACTION: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SILU: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    action = tl.arange(0, BLOCK_ACTION)
    real = action < ACTION_DIM
    x_t = tl.load(noise_ptr + row * ACTION_DIM + action, mask=real, other=0.0)
    tl.store(x_t_ptr + row * ACTION_DIM + action, x_t, mask=real)
    _embed_actions(
        x_t, weight_ptr, bias_ptr, token_ptr + row * WIDTH, ACTION_DIM, BLOCK_ACTION, WIDTH, BLOCK, SILU
    )


def first_tokens(
    noise: torch.Tensor,
    x_t: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    tokens: torch.Tensor,
    *,
    silu: bool,
) -> None:
    """Start a loop: `x_t = noise`, and its tokens.

    Args:
        noise, x_t: `[M, action_dim]` float32.
        weight, bias: `[width, action_dim]`, `[width]` float32.
        tokens: `[M, width]` float32; with `silu`, after a SiLU.
    """
    rows, action_dim = noise.shape
    width = tokens.shape[1]
    _first_tokens[(rows,)](
        noise,
        x_t,
        weight,
        bias,
        tokens,
        ACTION_DIM=action_dim,
        BLOCK_ACTION=triton.next_power_of_2(action_dim),
        WIDTH=width,
        BLOCK=min(triton.next_power_of_2(width), 256),
        SILU=silu,
        num_warps=4,
    )


@triton.jit
def _euler_step(
    hidden_ptr,
    scale_ptr,
    shift_ptr,
    out_weight_ptr,
    out_bias_ptr,
    x_t_ptr,
    guide_ptr,
    target_ptr,
    gains_ptr,
    time,
    in_weight_ptr,
    in_bias_ptr,
    token_ptr,
    index,
    STEPS: tl.constexpr,
    STEP: tl.constexpr,
    HORIZON: tl.constexpr,
    SUFFIX: tl.constexpr,
    ACTION_DIM: tl.constexpr,
    BLOCK_ACTION: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    FULL: tl.constexpr,
    IS_LAST: tl.constexpr,
    SILU: tl.constexpr,
    EPS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    # pi0's state token stands before the actions of each sample and predicts nothing.
    hidden_row = row // HORIZON * SUFFIX + row % HORIZON + (SUFFIX - HORIZON)
    full = tl.arange(0, FULL)
    everything = tl.load(hidden_ptr + hidden_row * WIDTH + full, mask=full < WIDTH, other=0.0).to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(everything * everything, axis=0) / WIDTH + EPS)

    action = tl.arange(0, BLOCK_ACTION)
    real = action < ACTION_DIM
    velocity = tl.load(out_bias_ptr + action, mask=real, other=0.0)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < WIDTH
        hidden = tl.load(hidden_ptr + hidden_row * WIDTH + column, mask=inside, other=0.0)
        scale = tl.load(scale_ptr + column, mask=inside, other=0.0)
        normed = hidden.to(tl.float32) * factor * scale + tl.load(shift_ptr + column, mask=inside, other=0.0)
        # The reference hands the final norm over in the residual's dtype.
        normed = normed.to(hidden_ptr.dtype.element_ty).to(tl.float32)
        weight = tl.load(
            out_weight_ptr + action[:, None] * WIDTH + column[None, :],
            mask=real[:, None] & inside[None, :],
            other=0.0,
        )
        velocity += tl.sum(weight * normed[None, :], axis=1)
    before = tl.load(x_t_ptr + row * ACTION_DIM + action, mask=real, other=0.0)
    guide = tl.load(guide_ptr + row * ACTION_DIM + action, mask=real, other=0.0)
    target = tl.load(target_ptr + row * ACTION_DIM + action, mask=real, other=0.0)
    gain = tl.load(gains_ptr + row // HORIZON * STEPS + index)
    x_t = before + STEP * velocity
    x_t = tl.where(guide != 0.0, x_t + gain * guide * (target - (before - time * velocity)), x_t)
    tl.store(x_t_ptr + row * ACTION_DIM + action, x_t, mask=real)
    if not IS_LAST:
        _embed_actions(
            x_t,
            in_weight_ptr,
            in_bias_ptr,
            token_ptr + row * WIDTH,
            ACTION_DIM,
            BLOCK_ACTION,
            WIDTH,
            BLOCK,
            SILU,
        )


def euler_step(
    hidden: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    out_projection: tuple[torch.Tensor, torch.Tensor],
    x_t: torch.Tensor,
    in_projection: tuple[torch.Tensor, torch.Tensor],
    tokens: torch.Tensor,
    *,
    guidance: FlowGuidance,
    index: int,
    time: float,
    step: float,
    horizon: int,
    suffix: int,
    is_last: bool,
    silu: bool,
) -> None:
    """`x_t += step * velocity(hidden)` in float32, then the tokens of the next pass unless it was the last.

    Where there is guidance, x_t is also pulled towards an earlier chunk; see `model/guided_flow.py`.

    Args:
        hidden: `[B * suffix, width]`, the residual behind the last layer, before the final norm.
        scale, shift: `[width]` float32 of the final norm: 1 + s and b.
        out_projection: `[action_dim, width]`, `[action_dim]` float32.
        x_t: `[B * horizon, action_dim]` float32.
        in_projection: `[width, action_dim]`, `[width]` float32.
        tokens: `[B * horizon, width]` float32; with `silu`, after a SiLU.
        index, time: of the step, and where it begins.
    """
    rows, action_dim = x_t.shape
    width = hidden.shape[1]
    _euler_step[(rows,)](
        hidden,
        scale,
        shift,
        *out_projection,
        x_t,
        guidance.weights,
        guidance.target,
        guidance.gains,
        time,
        *in_projection,
        tokens,
        index,
        STEPS=guidance.gains.shape[1],
        STEP=step,
        HORIZON=horizon,
        SUFFIX=suffix,
        ACTION_DIM=action_dim,
        BLOCK_ACTION=triton.next_power_of_2(action_dim),
        WIDTH=width,
        BLOCK=min(triton.next_power_of_2(width), 1024),
        FULL=triton.next_power_of_2(width),
        IS_LAST=is_last,
        SILU=silu,
        EPS=EPSILON,
        num_warps=16,
    )
