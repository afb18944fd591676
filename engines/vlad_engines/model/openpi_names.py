"""Names and shapes of openpi's tensors, and the names of the same tensors in `Pi0`. No torch here.

openpi nests the network in Hugging Face modules; ours is flat. The two namings differ only in the
beginnings listed in `_BEGINNINGS`, each of which stands for whole groups of tensors, so a name translates
both ways without a table per tensor:

    paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight
    <-> vision_tower.layers.0.mlp.fc1.weight

Two tensors of an openpi file need a rule instead of a name:

- `TOKEN_EMBEDDING` and `TIED_LM_HEAD` are one tensor. Files may hold either name or both;
  `expected_tensors` knows it as `TOKEN_EMBEDDING`.
- `UNUSED_EXPERT_LM_HEAD` takes part in no computation. It is in every openpi file and nowhere in `Pi0`.
"""

from __future__ import annotations

from collections.abc import Iterator

from vlad_configs.models import GemmaConfig, ModelConfig, SiglipConfig

TOKEN_EMBEDDING = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
"""Token table `[vocab_size, vlm width]`, under the name that `expected_tensors` uses."""

TIED_LM_HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
"""The other name of the very same tensor; what safetensors files usually hold."""

UNUSED_EXPERT_LM_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"
"""Random numbers `[vocab_size, expert width]` that openpi saves and never reads."""

_VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
_VLM = "paligemma_with_expert.paligemma.model.language_model."
_PROJECTOR = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear."
_EXPERT = "paligemma_with_expert.gemma_expert.model."
_HEADS = ("action_in_proj.", "action_out_proj.", "state_proj.", "action_time_mlp_", "time_mlp_")

# Disjoint on both sides: no entry begins with another one, so the order does not matter.
_BEGINNINGS = (
    (f"{_VISION}embeddings.patch_embedding.", "vision_tower.patch_embedding."),
    (f"{_VISION}embeddings.position_embedding.", "vision_tower.position_embedding."),
    (f"{_VISION}encoder.layers.", "vision_tower.layers."),
    (f"{_VISION}post_layernorm.", "vision_tower.post_layernorm."),
    (_PROJECTOR, "projector."),
    (f"{_VLM}embed_tokens.", "token_embedding."),
    (f"{_VLM}layers.", "vlm.layers."),
    (f"{_VLM}norm.", "vlm.norm."),
    (f"{_EXPERT}layers.", "expert.layers."),
    (f"{_EXPERT}norm.", "expert.norm."),
    *((head, head) for head in _HEADS),
)


def parameter_name(openpi_name: str) -> str:
    """The name in `Pi0.state_dict()` of an openpi tensor.

    Raises:
        KeyError: for a name that begins like no tensor of `Pi0`. The rest of a name is not checked;
            `expected_tensors` knows which names there are.
    """
    return _translate(openpi_name, 0, 1)


def openpi_name(parameter_name: str) -> str:
    """The openpi name of a tensor of `Pi0.state_dict()`; the reverse of `parameter_name`.

    Raises:
        KeyError: for a name that begins like none of `Pi0`.
    """
    return _translate(parameter_name, 1, 0)


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that `Pi0(config)` needs: openpi name -> shape, in the order of the network.

    These are exactly the tensors of `Pi0(config).state_dict()`. The final norm of the VLM and parts of
    its last layer are among them although inference does not need them, because every file has them.
    """
    return dict(_expected(config))


def _translate(name: str, source: int, target: int) -> str:
    for beginnings in _BEGINNINGS:
        if name.startswith(beginnings[source]):
            return beginnings[target] + name[len(beginnings[source]) :]
    raise KeyError(name)


def _expected(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    vlm, expert = config.vlm, config.expert
    yield from _vision_tensors(config.siglip)
    yield from _linear(_PROJECTOR.removesuffix("."), config.siglip.width, vlm.width)
    yield TOKEN_EMBEDDING, (config.vocab_size, vlm.width)
    yield from _gemma_tensors(_VLM, vlm, adaptive_norms=False)
    yield from _gemma_tensors(_EXPERT, expert, adaptive_norms=config.family == "pi05")
    yield from _linear("action_in_proj", config.action_dim, expert.width)
    yield from _linear("action_out_proj", expert.width, config.action_dim)
    if config.family == "pi05":
        yield from _linear("time_mlp_in", expert.width, expert.width)
        yield from _linear("time_mlp_out", expert.width, expert.width)
    else:
        yield from _linear("state_proj", config.action_dim, expert.width)
        yield from _linear("action_time_mlp_in", 2 * expert.width, expert.width)
        yield from _linear("action_time_mlp_out", expert.width, expert.width)


def _vision_tensors(siglip: SiglipConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = siglip.width
    yield f"{_VISION}embeddings.patch_embedding.weight", (width, 3, siglip.patch_size, siglip.patch_size)
    yield f"{_VISION}embeddings.patch_embedding.bias", (width,)
    yield f"{_VISION}embeddings.position_embedding.weight", (siglip.num_tokens, width)
    for index in range(siglip.depth):
        layer = f"{_VISION}encoder.layers.{index}"
        yield from _layer_norm(f"{layer}.layer_norm1", width)
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{projection}", width, width)
        yield from _layer_norm(f"{layer}.layer_norm2", width)
        yield from _linear(f"{layer}.mlp.fc1", width, siglip.mlp_dim)
        yield from _linear(f"{layer}.mlp.fc2", siglip.mlp_dim, width)
    yield from _layer_norm(f"{_VISION}post_layernorm", width)


def _gemma_tensors(
    stack: str, gemma: GemmaConfig, *, adaptive_norms: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, heads_width = gemma.width, gemma.num_heads * gemma.head_dim
    kv_width = gemma.num_kv_heads * gemma.head_dim
    for index in range(gemma.depth):
        layer = f"{stack}layers.{index}"
        yield from _rms_norm(f"{layer}.input_layernorm", width, adaptive_norms)
        yield f"{layer}.self_attn.q_proj.weight", (heads_width, width)
        yield f"{layer}.self_attn.k_proj.weight", (kv_width, width)
        yield f"{layer}.self_attn.v_proj.weight", (kv_width, width)
        yield f"{layer}.self_attn.o_proj.weight", (width, heads_width)
        yield from _rms_norm(f"{layer}.post_attention_layernorm", width, adaptive_norms)
        yield f"{layer}.mlp.gate_proj.weight", (gemma.mlp_dim, width)
        yield f"{layer}.mlp.up_proj.weight", (gemma.mlp_dim, width)
        yield f"{layer}.mlp.down_proj.weight", (width, gemma.mlp_dim)
    yield from _rms_norm(f"{stack}norm", width, adaptive_norms)


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _layer_norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _rms_norm(name: str, width: int, adaptive: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    if adaptive:
        yield from _linear(f"{name}.dense", width, 3 * width)
    else:
        yield f"{name}.weight", (width,)
