"""The device memory of a batch of requests of one shape, and its pinned host ends."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vlad_configs.models import ModelConfig


@dataclasses.dataclass(frozen=True)
class SlotKey:
    """The shape of a batch: what a captured graph is made for.

    Attributes:
        batch: requests computed together.
        cameras: images of each request.
        prompt_bucket: prompt tokens of each request, padding included.
    """

    batch: int
    cameras: int
    prompt_bucket: int

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.cameras} cameras, prompt of at most {self.prompt_bucket} tokens"


class Slot:
    """Buffers at fixed addresses; B = batch, C = cameras, P = prefix rows, S = suffix rows.

    Attributes:
        images: `[B * C, size, size, 3]` uint8.
        tokens: `[B, bucket]` int64.
        lengths: `[B]` int32, real prefix tokens.
        state: `[B, A]` float32.
        noise, actions: `[B, H, A]` float32.
        embeddings: `[B, P, W]`, image tokens before prompt tokens.
        keys, values: `[layers, B, P + S, head_dim]`; the suffix's rows stand behind the prefix's.
    """

    def __init__(self, config: ModelConfig, key: SlotKey, dtype: torch.dtype, device: torch.device) -> None:
        vlm, siglip = config.vlm, config.siglip
        self.device = device
        self.batch = key.batch
        self.prefix = key.cameras * siglip.num_tokens + key.prompt_bucket
        self.suffix = config.action_horizon + (1 if config.family == "pi0" else 0)
        self._image_rows = key.cameras * siglip.num_tokens
        size = siglip.image_size
        self.images = torch.zeros(key.batch * key.cameras, size, size, 3, dtype=torch.uint8, device=device)
        self.tokens = torch.zeros(key.batch, key.prompt_bucket, dtype=torch.int64, device=device)
        self.lengths = torch.full((key.batch,), self.prefix, dtype=torch.int32, device=device)
        self.state = torch.zeros(key.batch, config.action_dim, device=device)
        self.noise = torch.zeros(key.batch, config.action_horizon, config.action_dim, device=device)
        self.actions = torch.zeros_like(self.noise)
        self.embeddings = torch.zeros(key.batch, self.prefix, vlm.width, dtype=dtype, device=device)
        cache = (vlm.depth, key.batch, self.prefix + self.suffix, vlm.head_dim)
        self.keys = torch.zeros(cache, dtype=dtype, device=device)
        self.values = torch.zeros(cache, dtype=dtype, device=device)

    @property
    def image_tokens(self) -> Tensor:
        """`[B, C * T, W]`, the first part of `embeddings`."""
        return self.embeddings[:, : self._image_rows]

    @property
    def prompt_embeddings(self) -> Tensor:
        """`[B, bucket, W]`, the second part of `embeddings`."""
        return self.embeddings[:, self._image_rows :]
