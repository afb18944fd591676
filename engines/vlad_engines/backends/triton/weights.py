"""The checkpoint's tensors in the form that the kernels want: merged, reordered, with constants made.

Merging puts matrices that share an input under each other, so that one product serves them all.
Queries and keys are reordered to pair order (see `kernels/prefix_attention.py`). Both are exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vlad_configs.models import GemmaConfig, ModelConfig
from vlad_engines.backends.triton.cuda.packing import pack_layer
from vlad_engines.backends.triton.kernels.skinny import gate_up_tiles
from vlad_engines.model.flow import EulerSchedule, euler_schedule
from vlad_engines.model.gemma import GemmaLayer
from vlad_engines.model.pi0 import Pi0
from vlad_engines.model.precision import Precision
from vlad_engines.model.siglip import SiglipLayer


@dataclasses.dataclass(frozen=True)
class Linear:
    """`x weight^T + bias`. weight `[out, in]`, bias `[out]`."""

    weight: Tensor
    bias: Tensor


@dataclasses.dataclass(frozen=True)
class LayerNorm:
    """Weight and bias `[width]`."""

    weight: Tensor
    bias: Tensor


@dataclasses.dataclass(frozen=True)
class VisionLayer:
    """One SigLIP layer; `qkv` is `[3 * width, width]`."""

    norm1: LayerNorm
    qkv: Linear
    out: Linear
    norm2: LayerNorm
    fc1: Linear
    fc2: Linear


@dataclasses.dataclass(frozen=True)
class VisionWeights:
    """SigLIP and projector. `patches` and `positions` are float32, the rest has the activation dtype."""

    patches: Linear
    positions: Tensor
    layers: tuple[VisionLayer, ...]
    final_norm: LayerNorm
    projector: Linear


@dataclasses.dataclass(frozen=True)
class PrefixLayer:
    """One layer of the prefix.

    Attributes:
        norm1, norm2: `[width]` float32, the w of 1 + w.
        qkv: `[(heads + 2) * head_dim, width]` in pair order; `[2 * head_dim, width]` in the last layer.
        out, gate_up, down: None in the last layer, of which only keys and values are read.
    """

    norm1: Tensor
    qkv: Tensor
    out: Tensor | None = None
    norm2: Tensor | None = None
    gate_up: Tensor | None = None
    down: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class ExpertLayer:
    """One layer of the action expert: merged matrices in the activation dtype.

    `gate_up` is in tile order, see `kernels.skinny.gate_up_tiles`.
    """

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


@dataclasses.dataclass(frozen=True)
class ExpertConstants:
    """What the expert's norms do in each denoise step, all float32. pi0's do the same in every step.

    Attributes:
        scale: `[steps, 2 * layers + 1, width]`, 1 + s.
        shift: `[steps, 2 * layers + 1, width]`; zeros for pi0.
        gate: `[steps, 2 * layers, width]`; ones for pi0.
        qkv_shift: of each layer of `FusedWeights.expert`, `[steps, (heads + 2) * head_dim]`: the norm's shift
            times the merged matrix.
        gate_up_shift: likewise, `[steps, 2 * mlp_dim]`.
    """

    scale: Tensor
    shift: Tensor
    gate: Tensor
    qkv_shift: list[Tensor]
    gate_up_shift: list[Tensor]


@dataclasses.dataclass(frozen=True)
class ActionInput:
    """How a noisy action becomes a token, all float32.

    Attributes:
        project: from `[action_dim]` to the expert's width. For pi0 the product of `action_in_proj` and the
            action half of `action_time_mlp_in`, without a bias of its own.
        step_bias: `[steps, width]`: the bias of `project`; for pi0 with the step's time mixed in.
        mix: pi0's `action_time_mlp_out`, applied after a SiLU; None for pi0.5.
        state: pi0's `state_proj`; None for pi0.5.
    """

    project: Tensor
    step_bias: Tensor
    mix: Linear | None
    state: Linear | None


@dataclasses.dataclass(frozen=True)
class FusedWeights:
    """All that the three stages read. `schedule` fixes the steps that the constants belong to.

    The expert's layers are there in the forms that were asked for: `expert` for the chain of kernels,
    `expert_loop` `[layers, 128, chunks, 8192]` for `denoise_loop`, see `pack_layer`.
    """

    vision: VisionWeights
    token_embedding: Tensor
    prefix: tuple[PrefixLayer, ...]
    expert: tuple[ExpertLayer, ...]
    expert_loop: Tensor | None
    constants: ExpertConstants
    action_in: ActionInput
    action_out: Linear
    rope_cos: Tensor
    rope_sin: Tensor
    schedule: EulerSchedule

    def without_prefix(self) -> FusedWeights:
        """The same, but for the prefix's layers, which something else stands in for."""
        return dataclasses.replace(self, prefix=())


@torch.inference_mode()
def fuse_weights(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    num_steps: int,
    device: torch.device,
    precision: Precision = "bf16",
    with_layers: bool = True,
    with_loop: bool = False,
) -> FusedWeights:
    """Load tensors under their openpi names and fuse them.

    Args:
        precision: `bf16` keeps float32 where openpi does. `fp32` is for the interpreter, whose matrix
            products know no bf16.
        with_layers: make the expert's layers for the chain of Triton kernels.
        with_loop: make them for `denoise_loop`.

    Raises:
        CheckpointError: where names or shapes do not fit `config`.
    """
    model = Pi0.from_openpi_weights(config, weights, precision, device)
    layers = _layers(model.expert.layers)
    expert = tuple(_expert_layer(layer, config.expert) for layer in layers) if with_layers else ()
    return FusedWeights(
        vision=_vision(model),
        token_embedding=model.token_embedding.weight,
        prefix=_prefix(model, config.vlm),
        expert=expert,
        expert_loop=_expert_loop(layers, config.expert) if with_loop else None,
        constants=_constants(model, expert, num_steps),
        action_in=_action_input(model, num_steps),
        action_out=_linear(model.action_out_proj),
        rope_cos=model.rope_cos,
        rope_sin=model.rope_sin,
        schedule=euler_schedule(num_steps),
    )


def _layers(modules: nn.ModuleList) -> list[GemmaLayer]:
    return [module for module in modules if isinstance(module, GemmaLayer)]


def _linear(module: nn.Linear) -> Linear:
    return Linear(module.weight, module.bias)


def _layer_norm(module: nn.LayerNorm) -> LayerNorm:
    assert module.weight is not None
    return LayerNorm(module.weight, module.bias)


def _vision(model: Pi0) -> VisionWeights:
    tower = model.vision_tower
    patches = tower.patch_embedding
    assert patches.bias is not None
    return VisionWeights(
        patches=Linear(patches.weight.flatten(1), patches.bias),
        positions=tower.position_embedding.weight,
        layers=tuple(_vision_layer(layer) for layer in tower.layers if isinstance(layer, SiglipLayer)),
        final_norm=_layer_norm(tower.post_layernorm),
        projector=_linear(model.projector),
    )


def _vision_layer(layer: SiglipLayer) -> VisionLayer:
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return VisionLayer(
        norm1=_layer_norm(layer.layer_norm1),
        qkv=Linear(
            torch.cat([projection.weight for projection in projections]),
            torch.cat([projection.bias for projection in projections]),
        ),
        out=_linear(attention.out_proj),
        norm2=_layer_norm(layer.layer_norm2),
        fc1=_linear(layer.mlp.fc1),
        fc2=_linear(layer.mlp.fc2),
    )


def _pair_order(weight: Tensor, head_dim: int) -> Tensor:
    """Rows i and i + head_dim/2 of each head become neighbours."""
    halves = weight.view(-1, 2, head_dim // 2, weight.shape[-1])
    return halves.transpose(1, 2).reshape(weight.shape)


def from_pair_order(heads: Tensor) -> Tensor:
    """Undo the reordering on the last axis of `[..., head_dim]`."""
    pairs = heads.view(*heads.shape[:-1], -1, 2)
    return pairs.transpose(-1, -2).flatten(-2)


def _merged_qkv(layer: GemmaLayer, head_dim: int, *, keys_only: bool = False) -> Tensor:
    attention = layer.self_attn
    rows = [_pair_order(attention.k_proj.weight, head_dim), attention.v_proj.weight]
    if not keys_only:
        rows.insert(0, _pair_order(attention.q_proj.weight, head_dim))
    return torch.cat(rows)


def _prefix(model: Pi0, config: GemmaConfig) -> tuple[PrefixLayer, ...]:
    layers = _layers(model.vlm.layers)
    fused = []
    for index, layer in enumerate(layers):
        norm1 = _plain_scale(layer.input_layernorm)
        if index == len(layers) - 1:
            fused.append(PrefixLayer(norm1, _merged_qkv(layer, config.head_dim, keys_only=True)))
            continue
        fused.append(
            PrefixLayer(
                norm1=norm1,
                qkv=_merged_qkv(layer, config.head_dim),
                out=layer.self_attn.o_proj.weight,
                norm2=_plain_scale(layer.post_attention_layernorm),
                gate_up=torch.cat((layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight)),
                down=layer.mlp.down_proj.weight,
            )
        )
    return tuple(fused)


def _plain_scale(norm: nn.Module) -> Tensor:
    assert isinstance(norm.weight, Tensor)
    return norm.weight


def _expert_layer(layer: GemmaLayer, config: GemmaConfig) -> ExpertLayer:
    return ExpertLayer(
        qkv=_merged_qkv(layer, config.head_dim),
        out=layer.self_attn.o_proj.weight,
        gate_up=gate_up_tiles(layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight),
        down=layer.mlp.down_proj.weight,
    )


def _expert_loop(layers: list[GemmaLayer], config: GemmaConfig) -> Tensor:
    return torch.stack(
        [
            pack_layer(
                _merged_qkv(layer, config.head_dim),
                layer.self_attn.o_proj.weight,
                layer.mlp.gate_proj.weight,
                layer.mlp.up_proj.weight,
                layer.mlp.down_proj.weight,
            )
            for layer in layers
        ]
    )


def _constants(model: Pi0, layers: tuple[ExpertLayer, ...], num_steps: int) -> ExpertConstants:
    steps = len(euler_schedule(num_steps).times)
    if model.config.family == "pi05":
        # [steps, 2 * layers + 1, 3, width]
        modulations = model.step_conditioning(num_steps).squeeze(-2).squeeze(-2)
        scale, shift, gate = modulations.unbind(dim=2)
    else:
        norms = [_plain_scale(norm) for layer in _layers(model.expert.layers) for norm in _both_norms(layer)]
        scale = torch.stack([*norms, _plain_scale(model.expert.norm)]).expand(steps, -1, -1)
        shift, gate = torch.zeros_like(scale), torch.ones_like(scale)
    return ExpertConstants(
        scale=(1.0 + scale).contiguous(),
        shift=shift.contiguous(),
        # The reference rounds the gate to the residual's dtype.
        gate=gate[:, :-1].to(model.activation_dtype).float().contiguous(),
        qkv_shift=[shift[:, 2 * index] @ layer.qkv.float().T for index, layer in enumerate(layers)],
        gate_up_shift=[
            shift[:, 2 * index + 1] @ layer.gate_up.float().T for index, layer in enumerate(layers)
        ],
    )


def _both_norms(layer: GemmaLayer) -> tuple[nn.Module, nn.Module]:
    return layer.input_layernorm, layer.post_attention_layernorm


def _action_input(model: Pi0, num_steps: int) -> ActionInput:
    embed = model.action_in_proj
    if model.config.family == "pi05":
        steps = len(euler_schedule(num_steps).times)
        return ActionInput(embed.weight, embed.bias.expand(steps, -1).contiguous(), None, None)
    mix = model.action_time_mlp_in
    for_action, for_time = mix.weight.chunk(2, dim=1)
    times = model.step_conditioning(num_steps)[:, 0]
    return ActionInput(
        project=(for_action @ embed.weight).contiguous(),
        step_bias=for_action @ embed.bias + times @ for_time.T + mix.bias,
        mix=_linear(model.action_time_mlp_out),
        state=_linear(model.state_proj),
    )
