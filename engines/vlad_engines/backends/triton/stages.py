"""The three components as sequences of kernel launches over fixed buffers.

A stage keeps what it hands on in buffers at fixed addresses, so that it can be captured into a CUDA graph,
and reads the real prompt length from the device, so that one graph serves every prompt of its bucket.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad_configs.models import ModelConfig
from vlad_engines.backends.triton.gate_up import GateUp
from vlad_engines.backends.triton.kernels import (
    flow_step,
    norms,
    patches,
    prefix_attention,
    skinny,
)
from vlad_engines.backends.triton.kernels.suffix_attention import SuffixAttention
from vlad_engines.backends.triton.library.products import LibraryProducts, by_torch
from vlad_engines.backends.triton.pruning import prune_slot
from vlad_engines.backends.triton.slot import Slot
from vlad_engines.backends.triton.weights import FusedWeights
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.float8.calibration import Product

ObserveInput = Callable[[int, Product, Tensor], None]
"""Layer, product (`qkv`, `out`, `gate_up` or `down`), and its input `[M, in]`."""


class VisionStage:
    """Images of a slot to its image tokens."""

    def __init__(self, config: ModelConfig, weights: FusedWeights, slot: Slot, workspace: Workspace) -> None:
        self._config, self._weights, self._slot = config.siglip, weights.vision, slot
        siglip, dtype = config.siglip, weights.token_embedding.dtype
        self._product = LibraryProducts(workspace, "vision")
        rows = slot.images.shape[0] * siglip.num_tokens

        def buffer(name: str, width: int, dtype: torch.dtype = dtype) -> Tensor:
            return workspace.get(f"vision.{name}", rows, width, dtype=dtype)

        self._patches = buffer("patches", 3 * siglip.patch_size**2, torch.float32)
        self._embedded = buffer("embedded", siglip.width, torch.float32)
        self._residual = buffer("residual", siglip.width)
        self._normed = buffer("normed", siglip.width)
        self._branch = buffer("branch", siglip.width)
        self._qkv = buffer("qkv", 3 * siglip.width)
        self._hidden = buffer("hidden", siglip.mlp_dim)
        self._tokens = buffer("tokens", config.vlm.width)

    def __call__(self) -> None:
        """Enqueue."""
        weights, slot = self._weights, self._slot
        patches.extract_patches(slot.images, self._patches, self._config.patch_size)
        torch.addmm(weights.patches.bias, self._patches, weights.patches.weight.T, out=self._embedded)
        images = self._embedded.view(-1, *weights.positions.shape)
        torch.add(images, weights.positions, out=self._residual.view_as(images))
        branch: tuple[Tensor, Tensor] | None = None
        for layer in weights.layers:
            norms.residual_layer_norm(
                self._residual, branch, layer.norm1.weight, layer.norm1.bias, self._normed
            )
            self._product(self._normed, layer.qkv.weight, self._qkv, layer.qkv.bias)
            self._product(self._attend(), layer.out.weight, self._branch)
            branch = (self._branch, layer.out.bias)
            norms.residual_layer_norm(
                self._residual, branch, layer.norm2.weight, layer.norm2.bias, self._normed
            )
            self._product(self._normed, layer.fc1.weight, self._hidden, layer.fc1.bias, gelu=True)
            self._product(self._hidden, layer.fc2.weight, self._branch)
            branch = (self._branch, layer.fc2.bias)
        final = weights.final_norm
        norms.residual_layer_norm(self._residual, branch, final.weight, final.bias, self._normed)
        self._product(self._normed, weights.projector.weight, self._tokens, weights.projector.bias)
        slot.image_tokens.copy_(self._tokens.view_as(slot.image_tokens))

    def _attend(self) -> Tensor:
        """Attention of each image's tokens among themselves, `[rows, width]`."""
        tokens, heads, width = self._config.num_tokens, self._config.num_heads, self._config.width
        queries, keys, values = self._qkv.view(-1, tokens, 3, heads, width // heads).unbind(2)
        mixed = F.scaled_dot_product_attention(
            queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        )
        return mixed.transpose(1, 2).reshape(-1, width)


class PrefixStage:
    """Image tokens and prompt of a slot to the keys and values of all layers in its cache."""

    def __init__(self, config: ModelConfig, weights: FusedWeights, slot: Slot, workspace: Workspace) -> None:
        self._config, self._weights, self._slot = config.vlm, weights, slot
        self._product = LibraryProducts(workspace, "prefix")
        self._gated_product = GateUp(self._product, workspace)
        vlm, dtype = config.vlm, weights.token_embedding.dtype
        rows = slot.batch * slot.prefix

        def buffer(name: str, *shape: int) -> Tensor:
            return workspace.get(f"prefix.{name}", rows, *shape, dtype=dtype)

        self._normed, self._branch = buffer("normed", vlm.width), buffer("branch", vlm.width)
        self._qkv = buffer("qkv", (vlm.num_heads + 2) * vlm.head_dim)
        self._queries = buffer("queries", vlm.num_heads, vlm.head_dim)
        self._mixed = buffer("mixed", vlm.num_heads, vlm.head_dim)
        self._hidden = buffer("hidden", vlm.mlp_dim)
        self._prompt = workspace.get("prefix.prompt", slot.tokens.numel(), vlm.width, dtype=dtype)

    def __call__(self, observe: ObserveInput | None = None) -> None:
        """Enqueue.

        Args:
            observe: told the input of every product of every layer but the last, right after it was made.
        """
        tell = observe or _observe_nothing
        weights, slot, tokens = self._weights, self._slot, self._slot.prefix
        embed_prefix(slot, weights.token_embedding, self._prompt)
        residual = slot.embeddings.flatten(0, 1)
        branch: Tensor | None = None
        for index, (layer, keys, values) in enumerate(
            zip(weights.prefix, slot.keys, slot.values, strict=True)
        ):
            norms.residual_rms_norm(residual, branch, layer.norm1, self._normed)
            is_last = layer.out is None
            product = self._qkv.flatten()[: len(residual) * len(layer.qkv)].view(len(residual), -1)
            self._product(self._normed, layer.qkv, product)
            prefix_attention.split_heads(
                product,
                weights.rope_cos,
                weights.rope_sin,
                None if is_last else self._queries,
                keys,
                values,
                tokens,
                positions=slot.positions,
            )
            if layer.out is None or layer.norm2 is None or layer.gate_up is None or layer.down is None:
                break
            tell(index, "qkv", self._normed)
            prefix_attention.prefix_attention(self._queries, keys, values, slot.visible, self._mixed, tokens)
            tell(index, "out", self._mixed.flatten(1))
            self._product(self._mixed.flatten(1), layer.out, self._branch)
            norms.residual_rms_norm(residual, self._branch, layer.norm2, self._normed)
            tell(index, "gate_up", self._normed)
            self._gated_product(self._normed, layer.gate_up, self._hidden)
            tell(index, "down", self._hidden)
            self._product(self._hidden, layer.down, self._branch)
            branch = self._branch


def embed_prefix(slot: Slot, embedding: Tensor, scratch: Tensor) -> None:
    """Put the prompt's embeddings, times the root of their width, behind the image tokens, and prune those.

    Args:
        embedding: `[vocabulary, W]`. scratch: `[B * bucket, W]`.
    """
    if slot.tokens.numel():
        torch.index_select(embedding, 0, slot.tokens.flatten(), out=scratch)
        prompt = slot.prompt_embeddings
        torch.mul(scratch.view_as(prompt), math.sqrt(embedding.shape[1]), out=prompt)
    if slot.pruning is not None:
        prune_slot(slot, slot.pruning)


def _observe_nothing(layer: int, product: Product, inputs: Tensor) -> None:
    """Nobody asked."""


class DenoiseStage:
    """Noise of a slot to actions: every Euler step of the action expert over the slot's cache.

    Args:
        alone: nothing else runs on the GPU meanwhile; see `kernels.splits`.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: FusedWeights,
        slot: Slot,
        workspace: Workspace,
        *,
        alone: bool = True,
    ) -> None:
        self._config, self._weights, self._slot = config, weights, slot
        expert, dtype = config.expert, weights.token_embedding.dtype
        self._has_state = weights.action_in.state is not None
        rows, actions = slot.batch * slot.suffix, slot.batch * config.action_horizon

        def buffer(name: str, *shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return workspace.get(f"denoise.{name}", *shape, dtype=dtype)

        self._residual = skinny.Residual.over(workspace, rows, expert.width, dtype)
        self._queries = buffer("queries", rows, expert.num_heads, expert.head_dim)
        self._mixed = buffer("mixed", rows, expert.num_heads, expert.head_dim)
        self._hidden = buffer("hidden", rows, expert.mlp_dim)
        self._attention = SuffixAttention(
            samples=slot.batch,
            prefix=slot.prefix,
            suffix=slot.suffix,
            heads=expert.num_heads,
            head_dim=expert.head_dim,
            has_state=self._has_state,
            alone=alone,
            workspace=workspace,
        )
        self._project_attention = skinny.GatedProjection(
            rows, expert.width, expert.num_heads * expert.head_dim, workspace, alone=alone
        )
        self._project_hidden = skinny.GatedProjection(
            rows, expert.width, expert.mlp_dim, workspace, alone=alone
        )
        # pi0 mixes action and time before they become tokens; pi0.5's actions are tokens at once.
        self._tokens = buffer("tokens", actions, expert.width, dtype=torch.float32)
        self._mixing = self._tokens
        if self._has_state:
            self._mixing = buffer("mixing", actions, expert.width, dtype=torch.float32)
        self._state = buffer("state", slot.batch, expert.width, dtype=torch.float32)

    def __call__(self) -> None:
        """Enqueue."""
        for _ in self.path():
            pass

    def path(self) -> Iterator[Tensor]:
        """Enqueue step by step; yields the slot's actions, `[B, H, A]`, after each Euler step."""
        weights, slot, config = self._weights, self._slot, self._config
        action_in, constants = weights.action_in, weights.constants
        x_t = slot.actions.flatten(0, 1)
        if action_in.state is not None:
            torch.addmm(action_in.state.bias, slot.state, action_in.state.weight.T, out=self._state)
        flow_step.first_tokens(
            slot.noise.flatten(0, 1),
            x_t,
            action_in.project,
            action_in.step_bias[0],
            self._mixing,
            silu=self._has_state,
        )
        steps = len(weights.schedule.times)
        for step in range(steps):
            if action_in.mix is not None:
                by_torch(self._mixing, action_in.mix.weight, self._tokens, action_in.mix.bias)
            skinny.enter_layers(
                self._tokens,
                self._state if self._has_state else None,
                constants.scale[step, 0],
                self._residual,
            )
            for index in range(len(weights.expert)):
                self._run_layer(step, index)
            is_last = step == steps - 1
            flow_step.euler_step(
                self._residual.x,
                constants.scale[step, -1],
                constants.shift[step, -1],
                (weights.action_out.weight, weights.action_out.bias),
                x_t,
                (action_in.project, action_in.step_bias[step if is_last else step + 1]),
                self._mixing,
                guidance=slot.guidance.device,
                index=step,
                time=weights.schedule.times[step],
                step=weights.schedule.step,
                horizon=config.action_horizon,
                suffix=slot.suffix,
                is_last=is_last,
                silu=self._has_state,
            )
            yield slot.actions

    def _run_layer(self, step: int, index: int) -> None:
        weights, slot, constants = self._weights, self._slot, self._weights.constants
        layer, keys, values = weights.expert[index], slot.keys[index], slot.values[index]
        scale, gate = constants.scale[step], constants.gate[step]
        skinny.norm_qkv(
            self._residual,
            layer.qkv,
            constants.qkv_shift[index][step],
            weights.rope_cos,
            weights.rope_sin,
            slot.suffix_start,
            self._queries,
            keys,
            values,
            prefix=slot.prefix,
        )
        self._attention(self._queries, keys, values, slot.visible, self._mixed)
        self._project_attention(
            self._mixed.flatten(1), layer.out, gate[2 * index], scale[2 * index + 1], self._residual
        )
        skinny.norm_geglu(self._residual, layer.gate_up, constants.gate_up_shift[index][step], self._hidden)
        self._project_hidden(
            self._hidden, layer.down, gate[2 * index + 1], scale[2 * index + 2], self._residual
        )
