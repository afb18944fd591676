"""Weights to start from: a network of our own drawing, or a checkpoint."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vlad_configs.models import ModelConfig
from vlad_engines.model.openpi_names import TOKEN_EMBEDDING, expected_tensors, parameter_name
from vlad_engines.model.pi0 import Pi0


def scratch_weights(config: ModelConfig, seed: int, numbers: Sequence[int] = ()) -> dict[str, Tensor]:
    """Float32 weights by openpi name from which training from scratch begins.

    Matrices are normal with variance 1 / inputs. Adaptive norms begin at zero, as in openpi, so that the
    gates of the action expert are shut and each of its layers begins as the identity. Places of patches
    begin as waves over rows and columns (Beyer et al. 2022, arXiv 2205.01580), which are easier to tell apart
    than noise.

    Args:
        numbers: tokens of consecutive numbers, ascending. Their embeddings begin as waves over the
            number, so that neighbours are alike from the start: what is learned of one holds for the next.
    """
    weights = {}
    for name, shape in expected_tensors(config).items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        if name.endswith("position_embedding.weight"):
            weights[name] = patch_waves(math.isqrt(shape[0]), shape[1])
            continue
        if name == TOKEN_EMBEDDING:
            std = 1.0 / math.sqrt(shape[1])
        elif len(shape) == 1 or ".dense." in name:
            std = 0.0
        else:
            std = 1.0 / math.sqrt(math.prod(shape[1:]))
        weights[name] = torch.randn(shape, generator=generator) * std
        if (
            len(shape) == 1
            and name.endswith(".weight")
            and ("layer_norm" in name or "post_layernorm" in name)
        ):
            weights[name].fill_(1.0)
    if numbers:
        table, width = weights[TOKEN_EMBEDDING], config.vlm.width
        # The root of 2 gives waves the size of noise.
        waves = number_waves(len(numbers), width // 2) * math.sqrt(2 / width)
        # Zeros beside them: noise there would tell neighbours apart again.
        table[torch.tensor(numbers)] = torch.nn.functional.pad(waves, (0, width - waves.shape[1]))
    return weights


def number_waves(count: int, width: int) -> Tensor:
    """Sines and cosines of 0..count-1, `[count, width]` float32 in -1..1, half the width each.

    Half periods fall geometrically from twice the count, where they rise with the number, to 2.
    """
    half = width // 2
    shares = torch.arange(half) / max(1, half - 1)
    frequencies = torch.pi / (2 * count) * count**shares
    angles = torch.arange(count)[:, None] * frequencies
    return torch.nn.functional.pad(torch.cat((angles.sin(), angles.cos()), dim=1), (0, width - 2 * half))


def patch_waves(grid: int, width: int) -> Tensor:
    """Sines and cosines of row and column, `[grid * grid, width]` float32 in -1..1, patches row by row.

    A quarter of the width each, with frequencies falling geometrically from 1 to 1/100 per patch; zeros in
    what is left of a width that is no multiple of 4.
    """
    quarter = width // 4
    frequencies = 100.0 ** -(torch.arange(quarter) / max(1, quarter - 1))
    place = torch.arange(grid)
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (rows, columns)]
    waves = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.nn.functional.pad(waves, (0, width - 4 * quarter))


def trainable_network(config: ModelConfig, weights: Mapping[str, Tensor], device: torch.device) -> Pi0:
    """A float32 network whose parameters are its own.

    What the loss never reads is frozen: of the prefix's last layer only keys and values are used.

    Raises:
        CheckpointError: for weights that do not fit `config`.
    """
    model = Pi0.from_openpi_weights(config, weights, "fp32", device)
    for parameter in model.parameters():
        # Tensors of the right dtype and device were shared so far.
        parameter.data = parameter.data.clone()
    model.train().requires_grad_(True)
    last = model.vlm.layers[-1]
    unused: tuple[nn.Module, ...] = (
        model.vlm.norm,
        *(last.get_submodule(name) for name in ("self_attn.q_proj", "self_attn.o_proj")),
        *(last.get_submodule(name) for name in ("post_attention_layernorm", "mlp")),
    )
    for module in unused:
        module.requires_grad_(False)
    return model


def openpi_weights(model: Pi0, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of `model`, by their own names, under openpi's names and in the network's order."""
    return {name: parameters[parameter_name(name)] for name in expected_tensors(model.config)}
