"""The shapes of the network, from what a checkpoint says and from its tensors.

Head counts and the action horizon are written in no tensor. They come from `config.json` where one
of our own writers left the complete `"model"`, and else from the named variants of openpi.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlad_configs.errors import CheckpointError, ConfigError
from vlad_configs.models import (
    GEMMA_VARIANTS,
    SIGLIP_SO400M,
    Family,
    GemmaConfig,
    ModelConfig,
    SiglipConfig,
)
from vlad_engines.checkpoint.detect import CheckpointFiles
from vlad_engines.checkpoint.tensor_names import TensorNames
from vlad_engines.model.openpi_names import TOKEN_EMBEDDING

PALIGEMMA_VOCABULARY = 257152
PUBLISHED_ACTION_DIM = 32

_PALIGEMMA = "paligemma_with_expert.paligemma.model."
_PATCHES = _PALIGEMMA + "vision_tower.vision_model.embeddings.patch_embedding.weight"
_VLM_WIDTH = _PALIGEMMA + "language_model.layers.0.self_attn.q_proj.weight"
_EXPERT_WIDTH = "paligemma_with_expert.gemma_expert.model.layers.0.self_attn.q_proj.weight"


def written_model(files: CheckpointFiles, family: Family) -> ModelConfig | None:
    """The complete geometry that our own checkpoints carry in `config.json`, or None.

    Raises:
        CheckpointError: where it is unreadable or names another family than the tensors.
    """
    if "model" not in files.config:
        return None
    try:
        model = ModelConfig.from_json(files.config["model"])
    except ConfigError as error:
        raise CheckpointError(f"config.json in {files.path}: {error}") from error
    if model.family != family:
        raise CheckpointError(
            f"config.json in {files.path} describes a {model.family} model, its tensors are of {family}"
        )
    return model


def derive_model(
    files: CheckpointFiles,
    names: TensorNames,
    family: Family,
    *,
    action_horizon: int,
    max_token_len: int,
) -> ModelConfig:
    """Build the geometry from variant names and tensor shapes.

    Where a tensor is missing, the published size stands in, so that the accounting that follows can
    list everything that is wrong at once.

    Raises:
        CheckpointError: for shapes of no known variant, and for contradictions.
    """
    action_dim = _action_dim(files, names)
    table = _shape(names, TOKEN_EMBEDDING, 2)
    siglip = _siglip(files, names)
    vlm = _gemma(files, names, "paligemma_variant", _VLM_WIDTH, "gemma_2b")
    expert = _gemma(files, names, "action_expert_variant", _EXPERT_WIDTH, "gemma_300m")
    try:
        return ModelConfig(
            family=family,
            siglip=siglip,
            vlm=vlm,
            expert=expert,
            vocab_size=PALIGEMMA_VOCABULARY if table is None else table[0],
            action_dim=action_dim,
            action_horizon=action_horizon,
            max_token_len=max_token_len,
        )
    except ConfigError as error:
        raise CheckpointError(f"{files.path}: {error}") from error


def lora_variants(config: Mapping[str, Any]) -> list[str]:
    """LoRA variant names in `config.json`.

    openpi's converter drops LoRA deltas without a word, so weights that it converted from such a
    configuration may be the untouched base model.
    """
    variants = (config.get(key) for key in ("paligemma_variant", "action_expert_variant"))
    return [variant for variant in variants if isinstance(variant, str) and variant.endswith("_lora")]


def _siglip(files: CheckpointFiles, names: TensorNames) -> SiglipConfig:
    patches = _shape(names, _PATCHES, 4)
    if patches is None or patches[0] == SIGLIP_SO400M.width:
        return SIGLIP_SO400M
    raise CheckpointError(
        f"{files.path}: vision tower of width {patches[0]} is no published SigLIP "
        f"({SIGLIP_SO400M.width}); its head count must come from a complete 'model' in config.json"
    )


def _gemma(files: CheckpointFiles, names: TensorNames, key: str, tensor: str, published: str) -> GemmaConfig:
    variant = files.config.get(key)
    if isinstance(variant, str):
        if (name := variant.removesuffix("_lora")) in GEMMA_VARIANTS:
            return GEMMA_VARIANTS[name]
        raise CheckpointError(
            f"config.json in {files.path}: unknown {key} {variant!r}; known: {', '.join(GEMMA_VARIANTS)}"
        )
    shape = _shape(names, tensor, 2)
    if shape is None:
        return GEMMA_VARIANTS[published]
    width = shape[1]
    for gemma in GEMMA_VARIANTS.values():
        if gemma.width == width:
            return gemma
    known = ", ".join(f"{name} {gemma.width}" for name, gemma in GEMMA_VARIANTS.items())
    raise CheckpointError(
        f"{files.path}: '{tensor}' has width {width}, which is no known variant ({known}); "
        f"name one as '{key}' or write a complete 'model' into config.json"
    )


def _action_dim(files: CheckpointFiles, names: TensorNames) -> int:
    shape = _shape(names, "action_in_proj.weight", 2)
    key = "max_action_dim" if files.layout == "lerobot" else "action_dim"
    written = files.config.get(key)
    if shape is None:
        return written if isinstance(written, int) else PUBLISHED_ACTION_DIM
    if written is not None and written != shape[1]:
        raise CheckpointError(
            f"config.json in {files.path} says {key} {written}, action_in_proj.weight has {shape[1]}"
        )
    return shape[1]


def _shape(names: TensorNames, name: str, axes: int) -> tuple[int, ...] | None:
    """Shape of a tensor; None where it is missing or so odd that only the accounting can tell."""
    tensor = names.tensors.get(name)
    return None if tensor is None or len(tensor.shape) != axes else tensor.shape
