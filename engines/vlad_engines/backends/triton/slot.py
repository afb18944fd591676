"""The device memory of a batch of requests of one shape, and its pinned host ends."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vlad_configs.models import ModelConfig
from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.guidance_buffers import GuidanceBuffers


@dataclasses.dataclass(frozen=True)
class SlotKey:
    """The shape of a batch: what a captured graph is made for.

    Attributes:
        batch: requests computed together.
        cameras: images of each request.
        prompt_bucket: prompt tokens of each request, padding included.
        pruning: which image tokens the prefix keeps; None for all.
    """

    batch: int
    cameras: int
    prompt_bucket: int
    pruning: TokenPruning | None = None

    def __str__(self) -> str:
        shape = f"batch {self.batch}, {self.cameras} cameras, prompt of at most {self.prompt_bucket} tokens"
        return shape if self.pruning is None else f"{shape}, pruned"

    def image_tokens(self, config: ModelConfig) -> int:
        """Image tokens of each request, before any are left out."""
        return self.cameras * config.siglip.num_tokens

    def prefix(self, config: ModelConfig) -> int:
        """P: rows of each request's prefix, padding and masked slots included."""
        tokens = self.image_tokens(config)
        return (tokens if self.pruning is None else self.pruning.slots(tokens)) + self.prompt_bucket


class Slot:
    """Buffers at fixed addresses; B = batch, C = cameras, P = prefix rows, S = suffix rows.

    Without pruning, `unpruned` is `embeddings`, and `visible` and `suffix_start` are `lengths`; with it they
    are made on the device, by `pruning.prune_slot`.

    Attributes:
        pruning: from the key.
        images: `[B * C, size, size, 3]`, uint8 in 0..255 or float32 in -1..1.
        tokens: `[B, bucket]` int64.
        lengths: `[B]` int32, real tokens of the unpruned prefix.
        visible: `[B]` int32, rows at the beginning of each sample's prefix that others see.
        suffix_start: `[B]` int32, the position of the first suffix token.
        positions: `[B, P]` int32, where each row of the prefix stands; None where that is its index.
        selected: `[B, 2]` int32, image tokens kept and voted for; None without pruning.
        state: `[B, A]` float32.
        noise, actions: `[B, H, A]` float32.
        guidance: how the chunks continue earlier ones.
        unpruned: `[B, C * T + bucket, W]`, image tokens before prompt tokens.
        embeddings: `[B, P, W]`, those of them that the prefix consists of.
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
        vlm, size = config.vlm, config.siglip.image_size
        batch, bucket = key.batch, key.prompt_bucket
        self.batch = batch
        self.pruning = key.pruning
        self.prefix = key.prefix(config)
        self.suffix = config.action_horizon + (1 if config.family == "pi0" else 0)
        self.image_rows = key.image_tokens(config)
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
        self.unpruned = self.embeddings
        self.visible = self.suffix_start = self.lengths
        self.positions: Tensor | None = None
        self.selected: Tensor | None = None
        if key.pruning is not None:
            self.unpruned = get("slot.unpruned", batch, self.image_rows + bucket, vlm.width, dtype=dtype)
            self.selected = get("slot.selected", batch, 2, dtype=torch.int32)
            self.visible = self.suffix_start = get("slot.visible", batch, dtype=torch.int32)
            if key.pruning.positions == "original":
                self.suffix_start = self.lengths
                self.positions = get("slot.positions", batch, self.prefix, dtype=torch.int32)
        self.keys = get("slot.keys", *cache, dtype=dtype)
        self.values = get("slot.values", *cache, dtype=dtype)

    @property
    def image_tokens(self) -> Tensor:
        """`[B, C * T, W]`, the first part of `unpruned`."""
        return self.unpruned[:, : self.image_rows]

    @property
    def prompt_embeddings(self) -> Tensor:
        """`[B, bucket, W]`, the second part of `unpruned`."""
        return self.unpruned[:, self.image_rows :]
