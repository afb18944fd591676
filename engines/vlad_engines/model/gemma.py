"""The Gemma stack, twice in pi0: as PaliGemma's language model (prefix) and as action expert (suffix)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad_configs.models import GemmaConfig
from vlad_engines.model.attention import grouped_attention
from vlad_engines.model.rope import apply_rope

_EPSILON = 1e-6

KeyValue = tuple[Tensor, Tensor]
"""Keys (after RoPE) and values of one layer, each `[B, kv_heads, T, head_dim]`."""


class TokenPlacement(NamedTuple):
    """Where tokens stand and which keys they must not see.

    Attributes:
        cos, sin: `[B or 1, 1, T, head_dim / 2]` in the dtype of the heads.
        bias: see `attention.grouped_attention`; None where all keys are seen.
    """

    cos: Tensor
    sin: Tensor
    bias: Tensor | None


class Modulation(NamedTuple):
    """What an adaptive norm takes from its condition, each `[B, 1 or T, width]` float32.

    Attributes:
        factor: 1 + scale.
        shift: added behind it.
        gate: of the branch that the norm feeds.
    """

    factor: Tensor
    shift: Tensor
    gate: Tensor


def split_modulations(modulations: Tensor) -> tuple[Modulation, ...]:
    """`GemmaStack.modulations`, also with T instead of 1 tokens, to one for each norm, in its order."""
    scale, shift, gate = modulations.unbind(1)
    return tuple(
        map(Modulation._make, zip((1.0 + scale).unbind(), shift.unbind(), gate.unbind(), strict=True))
    )


class RMSNorm(nn.Module):
    """Root-mean-square norm with weight 1 + w, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, modulation: Modulation | None = None) -> tuple[Tensor, None]:
        """Norm `[..., width]`. Neither takes a modulation nor gates what follows."""
        return (_normalize(x) * (1.0 + self.weight)).to(x.dtype), None


class AdaptiveRMSNorm(nn.Module):
    """Root-mean-square norm whose scale, shift and gate come from a condition (adaRMS)."""

    def __init__(self, width: int, condition_width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(condition_width, 3 * width)

    def modulation(self, condition: Tensor) -> Tensor:
        """Condition `[B, condition_width]` to scale, shift and gate, `[3, B, 1, width]` float32."""
        dense: Tensor = self.dense(condition)
        return torch.stack(dense.unsqueeze(1).chunk(3, dim=-1))

    def forward(self, x: Tensor, modulation: Modulation | None) -> tuple[Tensor, Tensor]:
        """Norm `[B, T, width]`; returns it and the gate for the branch that it feeds."""
        assert modulation is not None
        factor, shift, gate = modulation
        return torch.addcmul(shift, _normalize(x), factor).to(x.dtype), gate.to(x.dtype)


def gated_sum(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    """Residual sum; adaptive norms scale the branch by their gate, in the dtype of `x`."""
    return x + branch if gate is None else x + branch * gate


class GemmaAttention(nn.Module):
    """Projections of grouped-query attention; none has a bias."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.width, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.width, bias=False)

    def key_value(self, x: Tensor, placement: TokenPlacement) -> KeyValue:
        """Keys and values of `[B, T, width]`."""
        keys = apply_rope(self._heads(self.k_proj(x)), placement.cos, placement.sin)
        return keys, self._heads(self.v_proj(x))

    def attend(self, x: Tensor, key_value: KeyValue, placement: TokenPlacement) -> Tensor:
        """Let `[B, T, width]` attend `key_value` and project back to `[B, T, width]`."""
        queries = apply_rope(self._heads(self.q_proj(x)), placement.cos, placement.sin)
        projected: Tensor = self.o_proj(grouped_attention(queries, *key_value, placement.bias))
        return projected

    def _heads(self, projected: Tensor) -> Tensor:
        batch, length, _ = projected.shape
        return projected.view(batch, length, -1, self.head_dim).transpose(1, 2)


class GemmaMlp(nn.Module):
    """GeGLU with a tanh-GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` to the same shape."""
        projected: Tensor = self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))
        return projected


class GemmaLayer(nn.Module):
    """One pre-norm layer; with `condition_width`, its norms are adaptive and gate both branches."""

    def __init__(self, config: GemmaConfig, condition_width: int | None) -> None:
        super().__init__()
        self.input_layernorm = _norm(config.width, condition_width)
        self.self_attn = GemmaAttention(config)
        self.post_attention_layernorm = _norm(config.width, condition_width)
        self.mlp = GemmaMlp(config.width, config.mlp_dim)

    def key_value(self, x: Tensor, placement: TokenPlacement) -> KeyValue:
        """Only keys and values of `[B, T, width]`; for layers with plain norms."""
        normed, _ = self.input_layernorm(x)
        key_value: KeyValue = self.self_attn.key_value(normed, placement)
        return key_value

    def forward(
        self,
        x: Tensor,
        placement: TokenPlacement,
        past: KeyValue | None = None,
        modulations: Sequence[Modulation | None] = (None, None),
    ) -> tuple[Tensor, KeyValue]:
        """Run the layer.

        Args:
            x: `[B, T, width]`.
            past: keys and values that come before those of `x`.
            modulations: of the two norms, where they are adaptive.

        Returns:
            The new `[B, T, width]`, and the layer's own keys and values, without `past`.
        """
        normed, gate = self.input_layernorm(x, modulations[0])
        own = self.self_attn.key_value(normed, placement)
        seen = own if past is None else (torch.cat((past[0], own[0]), 2), torch.cat((past[1], own[1]), 2))
        x = gated_sum(x, self.self_attn.attend(normed, seen, placement), gate)
        normed, gate = self.post_attention_layernorm(x, modulations[1])
        return gated_sum(x, self.mlp(normed), gate), own


class GemmaStack(nn.Module):
    """All layers and the final norm. Token embeddings come in from outside, already scaled."""

    def __init__(self, config: GemmaConfig, condition_width: int | None = None) -> None:
        super().__init__()
        self.adaptive = condition_width is not None
        self.layers = nn.ModuleList(GemmaLayer(config, condition_width) for _ in range(config.depth))
        self.norm = _norm(config.width, condition_width)

    def modulations(self, condition: Tensor) -> Tensor:
        """Scale, shift and gate of every adaptive norm, `[2 * depth + 1, 3, B, 1, width]` float32.

        Order: both norms of layer 0, of layer 1, ..., the final norm. Depends on `condition`
        `[B, condition_width]` alone, never on the tokens.
        """
        assert self.adaptive
        norms = [module for module in self.modules() if isinstance(module, AdaptiveRMSNorm)]
        return torch.stack([norm.modulation(condition) for norm in norms])

    def key_values(self, x: Tensor, placement: TokenPlacement) -> Iterator[KeyValue]:
        """Keys and values of each layer for tokens `[B, T, width]`, layer by layer.

        Of the last layer nothing else is computed, because nobody reads it.
        """
        for layer in self.layers[:-1]:
            x, key_value = layer(x, placement)
            yield key_value
        last = self.layers[-1]
        assert isinstance(last, GemmaLayer)
        yield last.key_value(x, placement)

    def forward(
        self,
        x: Tensor,
        placement: TokenPlacement,
        past: KeyValue,
        modulations: Sequence[Modulation] | None,
    ) -> Tensor:
        """Run tokens through the stack.

        Args:
            x: `[B, T, width]`.
            past: keys and values of earlier tokens, each `[depth, B, kv_heads, K, head_dim]`.
            modulations: from `split_modulations`, with B or 1 samples; None for plain norms.

        Returns:
            `[B, T, width]` after the final norm.
        """
        of_norms: Sequence[Modulation | None] = modulations or (None,) * (2 * len(self.layers) + 1)
        for index, (layer, keys, values) in enumerate(zip(self.layers, *past, strict=True)):
            x, _ = layer(x, placement, (keys, values), of_norms[2 * index : 2 * index + 2])
        normed: Tensor = self.norm(x, of_norms[-1])[0]
        return normed


def _norm(width: int, condition_width: int | None) -> nn.Module:
    return RMSNorm(width) if condition_width is None else AdaptiveRMSNorm(width, condition_width)


def _normalize(x: Tensor) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], eps=_EPSILON)
