"""Weights and inputs of the full-size golden numbers: a closed-form integer hash, exact on every device.

For the flat index i of the tensor called n, all in uint32 arithmetic:

    x = i * 0x9E3779B1 + crc32(n)
    x ^= x >> 16;  x *= 0x21F0AAAD
    x ^= x >> 15;  x *= 0x735A2D97
    x ^= x >> 15
    u = (x >> 8) * 2^-23 - 1,  a float32 in [-1, 1)
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import numpy.typing as npt
import torch

from tests.support.golden import scale_and_offset
from vlad_configs.models import CAMERA_SLOTS, ModelConfig
from vlad_engines.model import openpi_names

_SPREAD, _FIRST, _SECOND = 0x9E3779B1, 0x21F0AAAD, 0x735A2D97
_CHUNK = 1 << 25


def hash_units(name: str, count: int, start: int = 0) -> npt.NDArray[np.float32]:
    """`count` values of u from index `start` on: the rule as it is written."""
    x = np.arange(start, start + count, dtype=np.uint32) * np.uint32(_SPREAD)
    x += np.uint32(zlib.crc32(name.encode()))
    x ^= x >> np.uint32(16)
    x *= np.uint32(_FIRST)
    x ^= x >> np.uint32(15)
    x *= np.uint32(_SECOND)
    x ^= x >> np.uint32(15)
    return (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


def torch_hash_units(name: str, count: int, start: int, device: torch.device) -> torch.Tensor:
    """The same on any device. torch multiplies no uint32, but no product here exceeds an int64."""
    x = torch.arange(start, start + count, dtype=torch.int64, device=device)
    x = x.mul_(_SPREAD).add_(zlib.crc32(name.encode())).bitwise_and_(0xFFFFFFFF)
    x.bitwise_xor_(x >> 16).mul_(_FIRST).bitwise_and_(0xFFFFFFFF)
    x.bitwise_xor_(x >> 15).mul_(_SECOND).bitwise_and_(0xFFFFFFFF)
    x.bitwise_xor_(x >> 15)
    return (x >> 8).float().mul_(2.0**-23).sub_(1.0)


def hash_weight(name: str, shape: tuple[int, ...], device: torch.device, chunk: int = _CHUNK) -> torch.Tensor:
    """The float32 tensor of this openpi name and shape, made in chunks."""
    scale, offset = scale_and_offset(name, shape)
    count = math.prod(shape)
    weight = torch.empty(count, device=device)
    for start in range(0, count, chunk):
        part = weight[start : start + chunk]
        part.copy_(torch_hash_units(name, len(part), start, device))
        part.mul_(float(np.float32(math.sqrt(3) * scale))).add_(float(np.float32(offset)))
    return weight.view(shape)


def hash_weights(config: ModelConfig, device: torch.device) -> dict[str, torch.Tensor]:
    """All tensors of a network, float32 on `device`."""
    shapes = openpi_names.expected_tensors(config)
    return {name: hash_weight(name, shape, device) for name, shape in shapes.items()}


def hash_images(num_cameras: int, size: int) -> npt.NDArray[np.uint8]:
    """`[num_cameras, size, size, 3]`: the images of the first camera slots."""
    units = [hash_units(f"input.image.{camera}", size * size * 3) for camera in CAMERA_SLOTS[:num_cameras]]
    images: npt.NDArray[np.uint8] = np.floor((np.stack(units) + 1) * 128).astype(np.uint8)
    return images.reshape(num_cameras, size, size, 3)


def hash_tokens(max_token_len: int, prompt_len: int, vocab_size: int) -> npt.NDArray[np.int64]:
    """`[max_token_len]`: BOS and hashed tokens up to `prompt_len`, then zeros."""
    tokens = 4 + np.floor((hash_units("input.tokens", max_token_len) + 1) * 0.5 * (vocab_size - 4))
    tokens[0] = 2
    tokens[prompt_len:] = 0
    return tokens.astype(np.int64)


def hash_noise(action_horizon: int, action_dim: int) -> npt.NDArray[np.float32]:
    """`[action_horizon, action_dim]`."""
    noise = hash_units("input.noise", action_horizon * action_dim) * np.float32(math.sqrt(3))
    return noise.reshape(action_horizon, action_dim)
