"""Which tensor has which dtype at run time.

`bf16` follows openpi's PyTorch model: the matrices of SigLIP and of both Gemma stacks are bfloat16, while
patch and position embedding, every RMSNorm (adaptive ones included) and the action and time projections
stay float32. Unlike there, RoPE frequencies stay float32 too: rounding them is an accident of casting the
whole module, and costs as much accuracy as all other rounding together.
"""

from __future__ import annotations

from typing import Literal

import torch

from vlad_configs.errors import ConfigError

Precision = Literal["fp32", "bf16"]

_INSIDE_STACKS = "paligemma_with_expert."
_FLOAT32_PARTS = (
    "vision_tower.vision_model.embeddings.",
    "input_layernorm",
    "post_attention_layernorm",
    "model.norm",
)


def activation_dtype(precision: Precision) -> torch.dtype:
    """The dtype of image tokens, prefix embeddings, K/V and the residual streams.

    Raises:
        ConfigError: for an unknown precision.
    """
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    raise ConfigError(f"precision must be 'fp32' or 'bf16', not {precision!r}")


def parameter_dtype(openpi_name: str, precision: Precision) -> torch.dtype:
    """The dtype in which the tensor of this openpi name takes part in the computation.

    Raises:
        ConfigError: for an unknown precision.
    """
    kept = not openpi_name.startswith(_INSIDE_STACKS) or any(part in openpi_name for part in _FLOAT32_PARTS)
    return torch.float32 if kept else activation_dtype(precision)
