"""The network as openpi trains it: masked tokens computed and masked, prefix and suffix in one pass.

Uses the matrices of a `Pi0`, but its own positions, masks, order of computation and attention, so that it
shares none of the shortcuts of the real thing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.support.tiny_networks import PaddedBatch
from vlad_engines.model.pi0 import Pi0


@torch.no_grad()
def dense_velocity(model: Pi0, batch: PaddedBatch, x_t: Tensor, time: Tensor) -> Tensor:
    """The velocity `[B, H, A]` of `x_t` at `time` `[B]`."""
    config = model.config
    images = torch.cat([model.embed_images(image) for image in batch.images.unbind(1)], dim=1)
    conditioning = model.as_conditioning(model.time_conditioning(time))
    streams = [
        torch.cat((images, model.embed_prompt(batch.tokens)), dim=1),
        model.embed_suffix(x_t, conditioning, batch.state),
    ]
    prefix_length, suffix_length = streams[0].shape[1], streams[1].shape[1]
    tokens_per_camera = config.siglip.num_tokens
    image_valid = batch.image_mask.repeat_interleave(tokens_per_camera, dim=1)
    suffix_valid = torch.ones(len(x_t), suffix_length, dtype=torch.bool)
    valid = torch.cat((image_valid, batch.token_mask, suffix_valid), dim=1)
    # Blocks by hand: the prefix is 0, a state token 1, the actions come last.
    suffix_blocks = [1] * suffix_length if config.family == "pi05" else [1] + [2] * (suffix_length - 1)
    blocks = torch.tensor([0] * prefix_length + suffix_blocks)
    allowed = (blocks[None, :] <= blocks[:, None]) & valid[:, None, :]
    positions = valid.long().cumsum(1) - 1

    modulations = [None] * (2 * config.expert.depth + 1) if isinstance(conditioning, Tensor) else conditioning
    for index, layers in enumerate(zip(model.vlm.layers, model.expert.layers, strict=True)):
        norms = [(None, None), modulations[2 * index : 2 * index + 2]]
        queries, keys, values, gates = [], [], [], []
        for x, layer, modulation in zip(streams, layers, norms, strict=True):
            normed, gate = layer.input_layernorm(x, modulation[0])
            gates.append(1.0 if gate is None else gate)
            queries.append(layer.self_attn.q_proj(normed))
            keys.append(layer.self_attn.k_proj(normed))
            values.append(layer.self_attn.v_proj(normed))
        mixed = _attend(*(torch.cat(part, 1) for part in (queries, keys, values)), positions, allowed, model)
        outputs = mixed.split([prefix_length, suffix_length], dim=1)
        for stream, (layer, modulation) in enumerate(zip(layers, norms, strict=True)):
            x = streams[stream] + layer.self_attn.o_proj(outputs[stream]) * gates[stream]
            normed, gate = layer.post_attention_layernorm(x, modulation[1])
            streams[stream] = x + layer.mlp(normed) * (1.0 if gate is None else gate)
    hidden, _ = model.expert.norm(streams[1], modulations[-1])
    velocity: Tensor = model.action_out_proj(hidden[:, -config.action_horizon :])
    return velocity


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, positions: Tensor, allowed: Tensor, model: Pi0
) -> Tensor:
    """One head after the other; `[B, T, heads * head_dim]`."""
    sizes = model.config.vlm
    head_dim, group = sizes.head_dim, sizes.num_heads // sizes.num_kv_heads
    outputs = []
    for head in range(sizes.num_heads):
        mine = slice(head * head_dim, (head + 1) * head_dim)
        shared = slice(head // group * head_dim, (head // group + 1) * head_dim)
        query, key = _rotate(queries[..., mine], positions), _rotate(keys[..., shared], positions)
        logits = torch.einsum("bqd,bkd->bqk", query, key) / head_dim**0.5
        logits = logits.masked_fill(~allowed, -1e30)
        outputs.append(logits.softmax(-1) @ values[..., shared])
    return torch.cat(outputs, -1)


def _rotate(x: Tensor, positions: Tensor) -> Tensor:
    """RoPE as a product of complex numbers."""
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-torch.arange(half) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * positions[..., None] * frequencies)
    return torch.cat((turned.real, turned.imag), -1)
