"""Layers of the network written out for export: the parameters of `vlad_engines.model`, explicit dtypes.

The network's own modules leave the dtype of softmax, norms and rotations to PyTorch's kernels. A graph has
to say it: here these run in float32 whatever the dtype of the matrix products is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad_engines.model.gemma import GemmaAttention, GemmaLayer, GemmaMlp
from vlad_engines.model.siglip import SiglipLayer

_EPSILON = 1e-6

MASKED = -1e9
"""Added to the float32 logit of a key that must not be seen. Its probability is exactly zero, as with the
network's own fill value, and bfloat16 can hold it."""

KeyValue = tuple[Tensor, Tensor]
"""Keys (after RoPE) and values of one layer, each `[B, kv_heads, tokens, head_dim]`."""


class Placement(NamedTuple):
    """Where tokens stand and what they see.

    Attributes:
        cos, sin: `[B or 1, 1, T, head_dim / 2]` float32.
        bias: float32, added to logits `[B, kv_heads, group * T, keys]`; the group of query heads that share
            a key/value head comes before T.
    """

    cos: Tensor
    sin: Tensor
    bias: Tensor


def siglip_layer(layer: SiglipLayer, x: Tensor) -> Tensor:
    """`[N, T, width]` to the same shape."""
    attention, dtype = layer.self_attn, x.dtype
    heads, head_dim = attention.heads
    normed = _layer_norm(layer.layer_norm1, x)
    queries, keys, values = (
        _heads(projection(normed), heads, head_dim)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    logits = torch.matmul(queries * head_dim**-0.5, keys.transpose(2, 3)).float()
    mixed = torch.matmul(torch.softmax(logits, dim=-1).to(dtype), values)
    x = x + attention.out_proj(_join_heads(mixed))
    hidden = layer.mlp.fc1(_layer_norm(layer.layer_norm2, x))
    output: Tensor = x + layer.mlp.fc2(F.gelu(hidden, approximate="tanh"))
    return output


def final_layer_norm(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    """The norm behind the last SigLIP layer, `[N, T, width]` to the same shape."""
    return _layer_norm(norm, x)


def gemma_layer(
    layer: GemmaLayer,
    x: Tensor,
    placement: Placement,
    past: KeyValue | None = None,
    modulations: Tensor | None = None,
) -> tuple[Tensor, KeyValue]:
    """One layer of the prefix or the suffix.

    Args:
        x: `[B, T, width]`.
        past: keys and values of the prefix.
        modulations: pi0.5's expert: scale, shift and gate of both norms, `[2, 3, 1, 1, width]` float32.

    Returns:
        The new `[B, T, width]`, and the layer's own keys and values, without `past`.
    """
    first, second = (None, None) if modulations is None else (modulations[0], modulations[1])
    normed, gate = rms_norm(layer.input_layernorm, x, first)
    own = key_value(layer.self_attn, normed, placement)
    seen = own if past is None else (torch.cat((past[0], own[0]), 2), torch.cat((past[1], own[1]), 2))
    x = _gated_sum(x, _attend(layer.self_attn, normed, seen, placement), gate)
    normed, gate = rms_norm(layer.post_attention_layernorm, x, second)
    return _gated_sum(x, _geglu(layer.mlp, normed), gate), own


def key_value(attention: GemmaAttention, x: Tensor, placement: Placement) -> KeyValue:
    """Keys and values of normed tokens `[B, T, width]`."""
    head_dim = attention.head_dim
    kv_heads = attention.k_proj.out_features // head_dim
    keys = _rotate(_heads(attention.k_proj(x), kv_heads, head_dim), placement)
    return keys, _heads(attention.v_proj(x), kv_heads, head_dim)


def rms_norm(
    norm: torch.nn.Module, x: Tensor, modulation: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Norm `[B, T, width]` in float32.

    Args:
        modulation: scale, shift and gate of an adaptive norm, `[3, 1, 1, width]` float32.

    Returns:
        The normed tokens in the dtype of `x`, and the gate of an adaptive norm.
    """
    wide = x.float()
    wide = wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + _EPSILON)
    if modulation is None:
        assert isinstance(norm.weight, Tensor)
        return (wide * (1.0 + norm.weight)).to(x.dtype), None
    return (wide * (1.0 + modulation[0]) + modulation[1]).to(x.dtype), modulation[2].to(x.dtype)


def _attend(attention: GemmaAttention, x: Tensor, seen: KeyValue, placement: Placement) -> Tensor:
    keys, values = seen
    head_dim = attention.head_dim
    heads, kv_heads = (
        projection.out_features // head_dim for projection in (attention.q_proj, attention.k_proj)
    )
    queries = _rotate(_heads(attention.q_proj(x), heads, head_dim), placement)
    batch, length = x.shape[:2]
    group = heads // kv_heads
    # One product per key/value head. The scale is a power of two for head widths that are powers of four.
    stacked = (queries * head_dim**-0.5).reshape(batch, kv_heads, group * length, head_dim)
    logits = torch.matmul(stacked, keys.transpose(2, 3)).float() + placement.bias
    mixed = torch.matmul(torch.softmax(logits, dim=-1).to(values.dtype), values)
    projected: Tensor = attention.o_proj(_join_heads(mixed.reshape(batch, heads, length, head_dim)))
    return projected


def _geglu(mlp: GemmaMlp, x: Tensor) -> Tensor:
    projected: Tensor = mlp.down_proj(F.gelu(mlp.gate_proj(x), approximate="tanh") * mlp.up_proj(x))
    return projected


def _rotate(x: Tensor, placement: Placement) -> Tensor:
    wide, half = x.float(), int(x.shape[-1]) // 2
    # Slices with plain numbers: a chunk becomes arithmetic on shapes that TensorRT 8.6 does not know.
    first, second = wide[..., :half], wide[..., half:]
    cos, sin = placement.cos, placement.sin
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _heads(projected: Tensor, heads: int, head_dim: int) -> Tensor:
    batch, length = projected.shape[:2]
    return projected.view(batch, length, heads, head_dim).transpose(1, 2)


def _join_heads(x: Tensor) -> Tensor:
    batch, heads, length, head_dim = x.shape
    return x.transpose(1, 2).reshape(batch, length, int(heads) * int(head_dim))


def _gated_sum(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return x + branch if gate is None else x + branch * gate


def _layer_norm(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    scaled = centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + _EPSILON)
    return (scaled * norm.weight.float() + norm.bias.float()).to(x.dtype)
