"""The device memory of a batch of requests of one shape, and its pinned host ends."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vlad_configs.models import ModelConfig
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.guidance_buffers import GuidanceBuffers


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
        images: `[B * C, size, size, 3]`, uint8 in 0..255 or float32 in -1..1.
        tokens: `[B, bucket]` int64.
        lengths: `[B]` int32, real prefix tokens.
        state: `[B, A]` float32.
        noise, actions: `[B, H, A]` float32.
        guidance: how the chunks continue earlier ones.
        embeddings: `[B, P, W]`, image tokens before prompt tokens.
        keys, values: `[layers, B, P + S, head_dim]`; the suffix's rows stand behind the prefix's.
    """

    def __init__(
        self,
        config: ModelConfig,
        key: SlotKey,
        dtype: torch.dtype,
        workspace: Workspace,
        num_steps: int,
        *,
        image_dtype: torch.dtype = torch.uint8,
    ) -> None:
        vlm, siglip, size = config.vlm, config.siglip, config.siglip.image_size
        batch, bucket = key.batch, key.prompt_bucket
        self.batch = batch
        self.prefix = key.cameras * siglip.num_tokens + bucket
        self.suffix = config.action_horizon + (1 if config.family == "pi0" else 0)
        self._image_rows = key.cameras * siglip.num_tokens
        actions = (batch, config.action_horizon, config.action_dim)
        cache = (vlm.depth, batch, self.prefix + self.suffix, vlm.head_dim)
        get = workspace.get
        self.images = get("slot.images", batch * key.cameras, size, size, 3, dtype=image_dtype)
        self.tokens = get("slot.tokens", batch, bucket, dtype=torch.int64)
        self.lengths = get("slot.lengths", batch, dtype=torch.int32)
        self.state = get("slot.state", batch, config.action_dim, dtype=torch.float32)
        self.noise = get("slot.noise", *actions, dtype=torch.float32)
        self.actions = get("slot.actions", *actions, dtype=torch.float32)
        self.guidance = GuidanceBuffers(config, num_steps, workspace.device, batch)
        self.embeddings = get("slot.embeddings", batch, self.prefix, vlm.width, dtype=dtype)
        self.keys = get("slot.keys", *cache, dtype=dtype)
        self.values = get("slot.values", *cache, dtype=dtype)

    @property
    def image_tokens(self) -> Tensor:
        """`[B, C * T, W]`, the first part of `embeddings`."""
        return self.embeddings[:, : self._image_rows]

    @property
    def prompt_embeddings(self) -> Tensor:
        """`[B, bucket, W]`, the second part of `embeddings`."""
        return self.embeddings[:, self._image_rows :]
