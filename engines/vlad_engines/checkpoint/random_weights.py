"""Weights drawn by a seed instead of read from a file: any model size, without a byte on disk."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vlad_configs.models import ModelConfig
from vlad_engines.model.openpi_names import TOKEN_EMBEDDING, expected_tensors

_SHARP = (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.o_proj.", ".self_attn.out_proj.", ".dense.")


class RandomWeights(Mapping[str, Tensor]):
    """Every tensor of a network by its openpi name; each is drawn on the device when it is asked for.

    A name always gives the same values on the same device, so that several backends and the float32
    reference see one network without any of them holding it twice. Values are bfloat16, as openpi's
    converter writes them.

    Args:
        config: the network.
        device: where tensors are drawn. CPU and CUDA draw different numbers.
        seed: chooses another network.
    """

    def __init__(self, config: ModelConfig, device: str | torch.device, seed: int = 0) -> None:
        self._shapes = expected_tensors(config)
        self._device = torch.device(device)
        self._seed = seed

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(f"{self._seed}:{name}".encode()))
        scale, offset = spread_and_centre(name, shape)
        normal = torch.randn(shape, generator=generator, device=self._device, dtype=torch.float32)
        return normal.mul_(scale).add_(offset).to(torch.bfloat16)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def spread_and_centre(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Standard deviation and mean of the tensor of this openpi name.

    Keeps activations near one through all layers. Attention and modulations get half as much again:
    with softer ones, every token would look at all others alike, and a wrong mask or position would
    hardly show in the actions.
    """
    if name == TOKEN_EMBEDDING:
        return 1.0 / math.sqrt(shape[1]), 0.0
    if name.endswith("position_embedding.weight"):
        return 0.3, 0.0
    if len(shape) == 1:
        is_layer_norm = "layer_norm" in name or "post_layernorm" in name
        return 0.1, 1.0 if is_layer_norm and name.endswith(".weight") else 0.0
    return (1.5 if any(part in name for part in _SHARP) else 1.0) / math.sqrt(math.prod(shape[1:])), 0.0
