"""The three graphs as modules: what `spec` promises, over the parameters of a `Pi0`.

All tensors that a graph reads beside its inputs are parameters or persistent buffers, so that the exporter
sees them by name: the network lives on the meta device meanwhile, and its values are written later.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from vlad_configs.models import ModelConfig
from vlad_engines.export.layers import (
    MASKED,
    KeyValue,
    Placement,
    final_layer_norm,
    gemma_layer,
    key_value,
    rms_norm,
    siglip_layer,
)
from vlad_engines.export.spec import Component, GraphForm, graph_spec
from vlad_engines.model.attention import block_mask
from vlad_engines.model.flow import euler_schedule
from vlad_engines.model.gemma import GemmaLayer
from vlad_engines.model.pi0 import Pi0
from vlad_engines.model.rope import rope_tables
from vlad_engines.model.siglip import SiglipLayer
from vlad_engines.model.token_pruner import fill_slots, importance_scores, lay_out

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def make_graph(component: Component, model: Pi0, form: GraphForm, conditioning: Tensor) -> nn.Module:
    """The module of a component.

    Args:
        model: its parameters have the dtypes of the component's form.
        conditioning: `Pi0.step_conditioning(form.num_steps)`, float32; only denoise reads it.
    """
    if component == "vision":
        return VisionGraph(model, form)
    if component == "prefix":
        return PrefixGraph(model, form) if form.pruning is None else PrunedPrefixGraph(model, form)
    return DenoiseGraph(model, form, conditioning)


class VisionGraph(nn.Module):
    """Pixels to image tokens."""

    def __init__(self, model: Pi0, form: GraphForm) -> None:
        super().__init__()
        self.vision_tower = model.vision_tower
        self.projector = model.projector
        self._output = _DTYPES[form.prefix]

    def forward(self, pixels: Tensor) -> Tensor:
        """`[N, size, size, 3]` float32 to `[N, T, W]`."""
        tower = self.vision_tower
        x = tower.embed_patches(pixels.permute(0, 3, 1, 2))
        for layer in tower.layers:
            x = siglip_layer(cast(SiglipLayer, layer), x)
        tokens: Tensor = self.projector(final_layer_norm(tower.post_layernorm, x))
        return tokens.to(self._output)


class PrefixGraph(nn.Module):
    """Image tokens and prompt to K and V of every layer."""

    rope_cos: Tensor
    rope_sin: Tensor
    indices: Tensor

    def __init__(self, model: Pi0, form: GraphForm) -> None:
        super().__init__()
        self.token_embedding = model.token_embedding
        self.vlm = model.vlm
        # The last layer only gives keys and values; the rest of it must not reach the graph.
        self._scale = math.sqrt(model.config.vlm.width)
        self._output = _DTYPES[form.denoise]
        _add_positions(self, model.config, model.max_prefix_length)

    def forward(self, image_tokens: Tensor, prompt_tokens: Tensor, prefix_lengths: Tensor) -> list[Tensor]:
        """`[B, C*T, W]`, `[B, n]` int32 and `[B]` int32 to keys and values of each layer in turn."""
        x = self.unpruned(image_tokens, prompt_tokens)
        length = x.shape[1]
        placement = Placement(
            self.rope_cos[:length][None, None],
            self.rope_sin[:length][None, None],
            _padding_bias(self.indices[:length], prefix_lengths)[:, None],
        )
        return self.key_values(x, placement)

    def unpruned(self, image_tokens: Tensor, prompt_tokens: Tensor) -> Tensor:
        """`[B, C*T, W]` and `[B, n]` to `[B, C*T + n, W]`."""
        prompt = self.token_embedding(prompt_tokens) * self._scale
        return torch.cat((image_tokens, prompt), dim=1)

    def key_values(self, x: Tensor, placement: Placement) -> list[Tensor]:
        """`[B, P, W]` to keys and values of each layer in turn."""
        *layers, last = cast("list[GemmaLayer]", list(self.vlm.layers))
        cache: list[Tensor] = []
        for layer in layers:
            x, own = gemma_layer(layer, x, placement)
            cache.extend(own)
        cache.extend(key_value(last.self_attn, rms_norm(last.input_layernorm, x)[0], placement))
        return [part.to(self._output) for part in cache]


class PrunedPrefixGraph(PrefixGraph):
    """The same over the image tokens that are kept."""

    def __init__(self, model: Pi0, form: GraphForm) -> None:
        super().__init__(model, form)
        assert form.pruning is not None
        self._pruning = form.pruning

    def forward(  # type: ignore[override]  # a graph of its own, called by nobody who has the other
        self, image_tokens: Tensor, prompt_tokens: Tensor, prefix_lengths: Tensor, slots: Tensor
    ) -> list[Tensor]:
        """`[B, C*T, W]`, `[B, n]`, `[B]` and `[K]` int32 to the outputs of `spec`."""
        unpruned = self.unpruned(image_tokens, prompt_tokens)
        pool, room = image_tokens.shape[1], prompt_tokens.shape[1]
        words = prefix_lengths - pool
        real = self.indices[:room] < words[:, None]
        scores = importance_scores(image_tokens, unpruned[:, pool:], real)
        selection = fill_slots(scores, self.indices[:pool], slots, self._pruning.mode)
        places = self.indices[: slots.shape[0] + room]
        source = lay_out(selection, slots, words, pool, places)
        # One table of the rows of all samples.
        first = self.indices[: unpruned.shape[0], None] * unpruned.shape[1]
        x = nn.functional.embedding(source + first, unpruned.flatten(0, 1))
        seen = selection.kept + words
        if self._pruning.positions == "original":
            cos, sin = (
                nn.functional.embedding(source, table)[:, None] for table in (self.rope_cos, self.rope_sin)
            )
        else:
            length = x.shape[1]
            cos, sin = (table[:length][None, None] for table in (self.rope_cos, self.rope_sin))
        placement = Placement(cos, sin, _padding_bias(places, seen)[:, None])
        selected = torch.stack((selection.kept, selection.union), dim=1)
        return [*self.key_values(x, placement), seen, selected]


class DenoiseGraph(nn.Module):
    """One Euler step, or all of them, over the prefix's K and V."""

    rope_cos: Tensor
    rope_sin: Tensor
    indices: Tensor
    conditioning: Tensor
    suffix_bias: Tensor

    def __init__(self, model: Pi0, form: GraphForm, conditioning: Tensor) -> None:
        super().__init__()
        config = model.config
        self._config = config
        self._form = form
        self._schedule = euler_schedule(form.num_steps)
        self._names = [tensor.name for tensor in graph_spec("denoise", config, form).inputs]
        self._suffix = model.suffix_length
        self._activation = _DTYPES[form.denoise]
        self.expert = model.expert
        self.action_in_proj = model.action_in_proj
        self.action_out_proj = model.action_out_proj
        if config.family == "pi0":
            self.state_proj = model.state_proj
            self.action_time_mlp_in = model.action_time_mlp_in
            self.action_time_mlp_out = model.action_time_mlp_out
        self._model = [model]  # in a list: not a submodule, its other parameters stay outside
        self.register_buffer("conditioning", conditioning)
        self.register_buffer("suffix_bias", _suffix_bias(model))
        _add_positions(self, config, model.max_prefix_length + self._suffix)

    def forward(self, *tensors: Tensor) -> Tensor:
        """The inputs of `spec` in their order, to `x_next` or `x_path`."""
        inputs = dict(zip(self._names, tensors, strict=True))
        depth = self._config.vlm.depth
        cache = [(inputs[f"keys_{layer}"], inputs[f"values_{layer}"]) for layer in range(depth)]
        # Pruned prefixes may have gaps: how many tokens are seen does not tell where the suffix stands.
        seen = inputs["prefix_lengths" if self._form.pruning is None else "visible_lengths"]
        start = inputs.get("prefix_lengths", seen)
        placement = self._place(seen, start, prefix=cache[0][0].shape[2])
        x, state = inputs["x_t"], inputs.get("state")
        if self._form.denoise_form == "step":
            conditioning = self.conditioning.index_select(0, inputs["step"]).squeeze(0)
            return x + self._schedule.step * self._velocity(x, state, conditioning, placement, cache)
        path = []
        for conditioning in self.conditioning.unbind():
            x = x + self._schedule.step * self._velocity(x, state, conditioning, placement, cache)
            path.append(x)
        return torch.stack(path)

    def _velocity(
        self,
        x_t: Tensor,
        state: Tensor | None,
        conditioning: Tensor,
        placement: Placement,
        cache: list[KeyValue],
    ) -> Tensor:
        model = self._model[0]
        # pi0.5 does not look at the state, and its graph has none.
        tokens = model.embed_suffix(x_t, conditioning, x_t if state is None else state)
        x = tokens.to(self._activation)
        adaptive = self._config.family == "pi05"
        for index, (layer, past) in enumerate(zip(self.expert.layers, cache, strict=True)):
            modulations = conditioning[2 * index : 2 * index + 2] if adaptive else None
            x, _ = gemma_layer(cast(GemmaLayer, layer), x, placement, past, modulations)
        hidden, _ = rms_norm(self.expert.norm, x, conditioning[-1] if adaptive else None)
        actions = hidden[:, self._suffix - self._config.action_horizon :].float()
        velocity: Tensor = self.action_out_proj(actions)
        return velocity

    def _place(self, seen: Tensor, start: Tensor, prefix: int) -> Placement:
        positions = start[:, None] + self.indices[: self._suffix]
        padding = _padding_bias(self.indices[:prefix], seen)
        rows = self.suffix_bias.shape[0]
        bias = torch.cat(
            (
                padding.expand(-1, rows, -1),
                self.suffix_bias.expand(seen.shape[0], -1, -1),
            ),
            dim=-1,
        )
        cos, sin = (
            nn.functional.embedding(positions, table)[:, None] for table in (self.rope_cos, self.rope_sin)
        )
        return Placement(cos, sin, bias[:, None])


def _add_positions(graph: nn.Module, config: ModelConfig, length: int) -> None:
    cos, sin = rope_tables(config.vlm.head_dim, length)
    graph.register_buffer("rope_cos", cos)
    graph.register_buffer("rope_sin", sin)
    graph.register_buffer("indices", torch.arange(length, dtype=torch.int32))


def _padding_bias(indices: Tensor, lengths: Tensor) -> Tensor:
    """`[B, 1, P]` float32: 0 for the real tokens of each sample, `MASKED` for padding."""
    real = indices < lengths[:, None]
    return torch.where(real, 0.0, MASKED)[:, None]


def _suffix_bias(model: Pi0) -> Tensor:
    """What suffix tokens see of each other, `[rows, S]` float32.

    One row where all see all (pi0.5); for pi0 a row per query head of a group and token, because the state
    token does not see the actions.
    """
    length = model.suffix_length
    if model.config.family == "pi05":
        return torch.zeros(1, length)
    starts = model.suffix_block_starts[None]
    allowed = block_mask(torch.ones_like(starts), starts)[0]
    group = model.config.vlm.num_heads // model.config.vlm.num_kv_heads
    return torch.where(allowed, 0.0, MASKED).repeat(group, 1)
