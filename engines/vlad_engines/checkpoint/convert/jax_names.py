"""openpi's JAX parameters as tensors under openpi's PyTorch names, and back.

Layers lie stacked along the first axis in JAX and matrices the other way round. The mapping was checked
against the JAX network by those who wrote it down; LoRA factors are merged into the matrices they belong to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from vlad_configs.errors import CheckpointError, ConfigError
from vlad_configs.models import GemmaConfig, ModelConfig, SiglipConfig
from vlad_engines.checkpoint.convert.jax_arrays import Array
from vlad_engines.model.openpi_names import TOKEN_EMBEDDING

_IMG, _LLM = "PaliGemma/img", "PaliGemma/llm"
_BLOCK = f"{_IMG}/Transformer/encoderblock"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"
_PALIGEMMA = "paligemma_with_expert.paligemma.model."
_VISION = f"{_PALIGEMMA}vision_tower.vision_model."
_STACKS = (("", f"{_PALIGEMMA}language_model."), ("_1", "paligemma_with_expert.gemma_expert.model."))
_LORA = ("lora_a", "lora_b")


class ArraySource(Protocol):
    """Arrays by path, and their shapes without reading them; `JaxArrays`."""

    def __getitem__(self, name: str) -> Array: ...

    def __contains__(self, name: object) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...


def jax_model(arrays: ArraySource, action_horizon: int, max_token_len: int) -> ModelConfig:
    """The network that JAX parameters belong to. Their shapes say everything but the two arguments.

    Raises:
        CheckpointError: for missing parameters and contradictory shapes.
    """
    try:
        depth, width, heads, _ = arrays.shape(f"{_ATTENTION}/query/kernel")
        patch = arrays.shape(f"{_IMG}/embedding/kernel")[0]
        side = round(arrays.shape(f"{_IMG}/pos_embedding")[1] ** 0.5)
        mlp = arrays.shape(f"{_BLOCK}/MlpBlock_0/Dense_0/kernel")[-1]
        vlm, expert = (_gemma(arrays, suffix) for suffix, _ in _STACKS)
        return ModelConfig(
            family="pi05" if "time_mlp_in/kernel" in arrays else "pi0",
            siglip=SiglipConfig(width, depth, mlp, heads, patch, side * patch),
            vlm=vlm,
            expert=expert,
            vocab_size=arrays.shape(f"{_LLM}/embedder/input_embedding")[0],
            action_dim=arrays.shape("action_in_proj/kernel")[0],
            action_horizon=action_horizon,
            max_token_len=max_token_len,
        )
    except KeyError as error:
        raise CheckpointError(
            f"this is no pi0 / pi0.5 JAX checkpoint: parameter {error} is missing"
        ) from error
    except (ConfigError, ValueError) as error:
        raise CheckpointError(f"the JAX parameters contradict each other: {error}") from error


def openpi_tensors(arrays: ArraySource, model: ModelConfig) -> Iterator[tuple[str, Array]]:
    """Every tensor of the network under its openpi name, float32.

    Raises:
        CheckpointError: for missing parameters, and for parameters that belong nowhere.
    """
    used = _Reading(arrays)
    try:
        yield from _vision(used, model)
        yield TOKEN_EMBEDDING, used[f"{_LLM}/embedder/input_embedding"]
        for suffix, prefix in _STACKS:
            yield from _stack(used, suffix, prefix, adaptive=bool(suffix) and model.family == "pi05")
        for name in _heads(model):
            yield f"{name}.weight", used[f"{name}/kernel"].T
            yield f"{name}.bias", used[f"{name}/bias"]
    except KeyError as error:
        raise CheckpointError(f"the JAX checkpoint lacks parameter {error}") from error
    if left := sorted(set(arrays) - used.names):
        raise CheckpointError(
            f"{len(left)} JAX parameters are not known here: {', '.join(left[:8])}"
            + (", ..." if len(left) > 8 else "")
        )


def jax_arrays(tensors: Mapping[str, Array], model: ModelConfig) -> dict[str, Array]:
    """Undo `openpi_tensors`, without LoRA."""
    arrays: dict[str, Array] = {}
    siglip = model.siglip
    heads = (siglip.num_heads, siglip.width // siglip.num_heads)
    arrays[f"{_IMG}/embedding/kernel"] = tensors[f"{_VISION}embeddings.patch_embedding.weight"].transpose(
        2, 3, 1, 0
    )
    arrays[f"{_IMG}/embedding/bias"] = tensors[f"{_VISION}embeddings.patch_embedding.bias"]
    arrays[f"{_IMG}/pos_embedding"] = tensors[f"{_VISION}embeddings.position_embedding.weight"][None]

    def stacked(name: str, prefix: str, depth: int) -> Array:
        return np.stack([tensors[f"{prefix}{index}.{name}"] for index in range(depth)])

    layers, depth = f"{_VISION}encoder.layers.", siglip.depth
    for index in (0, 1):
        norm = f"{_BLOCK}/LayerNorm_{index}"
        arrays[f"{norm}/scale"] = stacked(f"layer_norm{index + 1}.weight", layers, depth)
        arrays[f"{norm}/bias"] = stacked(f"layer_norm{index + 1}.bias", layers, depth)
        dense = f"{_BLOCK}/MlpBlock_0/Dense_{index}"
        arrays[f"{dense}/kernel"] = stacked(f"mlp.fc{index + 1}.weight", layers, depth).transpose(0, 2, 1)
        arrays[f"{dense}/bias"] = stacked(f"mlp.fc{index + 1}.bias", layers, depth)
    for name, ours in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        kernel = stacked(f"self_attn.{ours}.weight", layers, depth).transpose(0, 2, 1)
        arrays[f"{_ATTENTION}/{name}/kernel"] = kernel.reshape(depth, siglip.width, *heads)
        bias = stacked(f"self_attn.{ours}.bias", layers, depth)
        arrays[f"{_ATTENTION}/{name}/bias"] = bias.reshape(depth, *heads)
    kernel = stacked("self_attn.out_proj.weight", layers, depth).transpose(0, 2, 1)
    arrays[f"{_ATTENTION}/out/kernel"] = kernel.reshape(depth, *heads, siglip.width)
    arrays[f"{_ATTENTION}/out/bias"] = stacked("self_attn.out_proj.bias", layers, depth)
    arrays[f"{_IMG}/Transformer/encoder_norm/scale"] = tensors[f"{_VISION}post_layernorm.weight"]
    arrays[f"{_IMG}/Transformer/encoder_norm/bias"] = tensors[f"{_VISION}post_layernorm.bias"]
    projector = f"{_PALIGEMMA}multi_modal_projector.linear"
    arrays[f"{_IMG}/head/kernel"] = tensors[f"{projector}.weight"].T
    arrays[f"{_IMG}/head/bias"] = tensors[f"{projector}.bias"]
    arrays[f"{_LLM}/embedder/input_embedding"] = tensors[TOKEN_EMBEDDING]
    for (suffix, prefix), gemma in zip(_STACKS, (model.vlm, model.expert), strict=True):
        adaptive = bool(suffix) and model.family == "pi05"
        arrays.update(_jax_stack(tensors, suffix, prefix, gemma, adaptive=adaptive))
    for name in _heads(model):
        arrays[f"{name}/kernel"] = tensors[f"{name}.weight"].T
        arrays[f"{name}/bias"] = tensors[f"{name}.bias"]
    return arrays


@dataclasses.dataclass
class _Reading:
    """Notes which parameters were read."""

    arrays: ArraySource
    names: set[str] = dataclasses.field(default_factory=set)

    def __getitem__(self, name: str) -> Array:
        self.names.add(name)
        return self.arrays[name]

    def merged(self, folder: str, name: str, factors: tuple[str, str] = _LORA) -> Array:
        """A matrix with its LoRA factors, where it has any, multiplied out and added. Scale 1."""
        matrix, (a, b) = self[f"{folder}/{name}"], (f"{folder}/{factor}" for factor in factors)
        if a not in self.arrays:
            return matrix
        down, up = self[a], self[b]
        if folder.rpartition("/")[2].startswith("attn_vec_einsum"):
            # openpi's einsum sums the second factor over the heads before it meets the first.
            return np.asarray(matrix + np.einsum("lnhr,lrd->lnhd", down, up.sum(axis=1)))
        return np.asarray(matrix + down @ up)


def _gemma(arrays: ArraySource, suffix: str) -> GemmaConfig:
    depth, heads, width, head_dim = arrays.shape(f"{_LLM}/layers/attn/q_einsum{suffix}/w")
    kv_heads = arrays.shape(f"{_LLM}/layers/attn/kv_einsum{suffix}/w")[2]
    mlp = arrays.shape(f"{_LLM}/layers/mlp{suffix}/gating_einsum")[-1]
    return GemmaConfig(width, depth, mlp, heads, kv_heads, head_dim)


def _heads(model: ModelConfig) -> tuple[str, ...]:
    time = ("time_mlp_in", "time_mlp_out")
    own = time if model.family == "pi05" else ("state_proj", *(f"action_{name}" for name in time))
    return ("action_in_proj", "action_out_proj", *own)


def _vision(used: _Reading, model: ModelConfig) -> Iterator[tuple[str, Array]]:
    width = model.siglip.width
    embeddings = f"{_VISION}embeddings."
    yield f"{embeddings}patch_embedding.weight", used[f"{_IMG}/embedding/kernel"].transpose(3, 2, 0, 1)
    yield f"{embeddings}patch_embedding.bias", used[f"{_IMG}/embedding/bias"]
    yield f"{embeddings}position_embedding.weight", used[f"{_IMG}/pos_embedding"][0]
    names = {}
    for index in (0, 1):
        norm, dense = f"{_BLOCK}/LayerNorm_{index}", f"{_BLOCK}/MlpBlock_0/Dense_{index}"
        names[f"layer_norm{index + 1}.weight"] = used[f"{norm}/scale"]
        names[f"layer_norm{index + 1}.bias"] = used[f"{norm}/bias"]
        names[f"mlp.fc{index + 1}.weight"] = used[f"{dense}/kernel"].transpose(0, 2, 1)
        names[f"mlp.fc{index + 1}.bias"] = used[f"{dense}/bias"]
    for name, ours in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj")):
        kernel = used[f"{_ATTENTION}/{name}/kernel"]
        square = kernel.reshape(len(kernel), width, width).transpose(0, 2, 1)
        names[f"self_attn.{ours}.weight"] = square
        names[f"self_attn.{ours}.bias"] = used[f"{_ATTENTION}/{name}/bias"].reshape(len(kernel), width)
    yield from _unstacked(f"{_VISION}encoder.layers.", names)
    yield f"{_VISION}post_layernorm.weight", used[f"{_IMG}/Transformer/encoder_norm/scale"]
    yield f"{_VISION}post_layernorm.bias", used[f"{_IMG}/Transformer/encoder_norm/bias"]
    projector = f"{_PALIGEMMA}multi_modal_projector.linear"
    yield f"{projector}.weight", used[f"{_IMG}/head/kernel"].T
    yield f"{projector}.bias", used[f"{_IMG}/head/bias"]


def _stack(used: _Reading, suffix: str, prefix: str, *, adaptive: bool) -> Iterator[tuple[str, Array]]:
    attention, mlp = f"{_LLM}/layers/attn", f"{_LLM}/layers/mlp{suffix}"
    queries = used.merged(f"{attention}/q_einsum{suffix}", "w").transpose(0, 1, 3, 2)  # [L, heads, hd, W]
    depth, _, _, width = queries.shape
    both = used.merged(f"{attention}/kv_einsum{suffix}", "w").transpose(1, 0, 2, 4, 3)
    output = used.merged(f"{attention}/attn_vec_einsum{suffix}", "w")  # [L, heads, hd, W]
    gating = used.merged(mlp, "gating_einsum", ("gating_einsum_lora_a", "gating_einsum_lora_b"))
    names = {
        "self_attn.q_proj.weight": queries.reshape(depth, -1, width),
        "self_attn.k_proj.weight": both[0].reshape(depth, -1, width),
        "self_attn.v_proj.weight": both[1].reshape(depth, -1, width),
        "self_attn.o_proj.weight": output.reshape(depth, -1, width).transpose(0, 2, 1),
        "mlp.gate_proj.weight": gating[:, 0].transpose(0, 2, 1),
        "mlp.up_proj.weight": gating[:, 1].transpose(0, 2, 1),
        "mlp.down_proj.weight": used.merged(mlp, "linear", ("linear_lora_a", "linear_lora_b")).transpose(
            0, 2, 1
        ),
    }
    for theirs, ours in (
        ("pre_attention_norm", "input_layernorm"),
        ("pre_ffw_norm", "post_attention_layernorm"),
    ):
        norm = f"{_LLM}/layers/{theirs}{suffix}"
        if adaptive:
            names[f"{ours}.dense.weight"] = used[f"{norm}/Dense_0/kernel"].transpose(0, 2, 1)
            names[f"{ours}.dense.bias"] = used[f"{norm}/Dense_0/bias"]
        else:
            names[f"{ours}.weight"] = used[f"{norm}/scale"]
    yield from _unstacked(f"{prefix}layers.", names)
    final = f"{_LLM}/final_norm{suffix}"
    if adaptive:
        yield f"{prefix}norm.dense.weight", used[f"{final}/Dense_0/kernel"].T
        yield f"{prefix}norm.dense.bias", used[f"{final}/Dense_0/bias"]
    else:
        yield f"{prefix}norm.weight", used[f"{final}/scale"]


def _unstacked(prefix: str, stacks: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    for name, stack in stacks.items():
        for index, layer in enumerate(stack):
            yield f"{prefix}{index}.{name}", layer


def _jax_stack(
    tensors: Mapping[str, Array], suffix: str, prefix: str, gemma: GemmaConfig, *, adaptive: bool
) -> dict[str, Array]:
    def stacked(name: str) -> Array:
        return np.stack([tensors[f"{prefix}layers.{index}.{name}"] for index in range(gemma.depth)])

    depth, width, head_dim = gemma.depth, gemma.width, gemma.head_dim
    attention, mlp = f"{_LLM}/layers/attn", f"{_LLM}/layers/mlp{suffix}"
    queries = stacked("self_attn.q_proj.weight").reshape(depth, gemma.num_heads, head_dim, width)
    kv_shape = (depth, gemma.num_kv_heads, head_dim, width)
    both = np.stack([stacked(f"self_attn.{name}_proj.weight").reshape(kv_shape) for name in "kv"], axis=1)
    output = stacked("self_attn.o_proj.weight").transpose(0, 2, 1)
    gating = np.stack([stacked(f"mlp.{name}_proj.weight") for name in ("gate", "up")], axis=1)
    arrays = {
        f"{attention}/q_einsum{suffix}/w": queries.transpose(0, 1, 3, 2),
        f"{attention}/kv_einsum{suffix}/w": both.transpose(0, 1, 2, 4, 3),
        f"{attention}/attn_vec_einsum{suffix}/w": output.reshape(depth, gemma.num_heads, head_dim, width),
        f"{mlp}/gating_einsum": gating.transpose(0, 1, 3, 2),
        f"{mlp}/linear": stacked("mlp.down_proj.weight").transpose(0, 2, 1),
    }
    for theirs, ours in (
        ("pre_attention_norm", "input_layernorm"),
        ("pre_ffw_norm", "post_attention_layernorm"),
    ):
        norm = f"{_LLM}/layers/{theirs}{suffix}"
        if adaptive:
            arrays[f"{norm}/Dense_0/kernel"] = stacked(f"{ours}.dense.weight").transpose(0, 2, 1)
            arrays[f"{norm}/Dense_0/bias"] = stacked(f"{ours}.dense.bias")
        else:
            arrays[f"{norm}/scale"] = stacked(f"{ours}.weight")
    final = f"{_LLM}/final_norm{suffix}"
    if adaptive:
        arrays[f"{final}/Dense_0/kernel"] = tensors[f"{prefix}norm.dense.weight"].T
        arrays[f"{final}/Dense_0/bias"] = tensors[f"{prefix}norm.dense.bias"]
    else:
        arrays[f"{final}/scale"] = tensors[f"{prefix}norm.weight"]
    return arrays
