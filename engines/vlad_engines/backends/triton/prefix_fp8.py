"""The prefix with its matrix products in float8 (see `vlad_engines.float8`): weights, calibration, the stage.

Calibrated with the bf16 prefix. Producers round to float8 themselves. A product leaves its columns unscaled;
whatever reads it multiplies. Attention, norms and the residual are those of bf16, and so is the last layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from vlad_configs.models import ModelConfig
from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.triton.gate_up import GateUp
from vlad_engines.backends.triton.kernels import norms, prefix_attention
from vlad_engines.backends.triton.slot import Slot, SlotKey
from vlad_engines.backends.triton.stages import PrefixStage, VisionStage, embed_prefix
from vlad_engines.backends.triton.weights import FusedWeights, PrefixLayer
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.float8.calibration import Calibration, PeakRecorder, Product
from vlad_engines.float8.scales import FLOAT8, column_scales, divided_columns, input_scale
from vlad_engines.processing.model_inputs import ModelInputs


@dataclasses.dataclass(frozen=True)
class Quantised:
    """A matrix in float8.

    Attributes:
        weight: `[out, in]` float8.
        columns: `[out]` float32: what makes an unscaled product of float8 inputs the product.
        factor: by what inputs are multiplied before they become float8.
    """

    weight: Tensor
    columns: Tensor
    factor: float

    @classmethod
    def of(cls, weight: Tensor, largest_input: float) -> Quantised:
        """Quantise `[out, in]` for inputs of up to `scales.MARGIN` times this size."""
        scales = column_scales(weight)
        factor = 1.0 / input_scale(largest_input)
        return cls(divided_columns(weight, scales), scales / factor, factor)


@dataclasses.dataclass(frozen=True)
class Fp8PrefixLayer:
    """One layer but the last; `norm1`, `norm2` as in `PrefixLayer`."""

    norm1: Tensor
    qkv: Quantised
    out: Quantised
    norm2: Tensor
    gate_up: Quantised
    down: Quantised


@dataclasses.dataclass(frozen=True)
class Fp8Prefix:
    """All layers of the prefix, the last one in bf16."""

    layers: tuple[Fp8PrefixLayer, ...]
    last: PrefixLayer


@torch.inference_mode()
def calibrate(
    config: ModelConfig,
    weights: FusedWeights,
    inputs: Sequence[ModelInputs],
    device: torch.device,
    pruning: TokenPruning | None = None,
) -> Calibration:
    """Run bf16 vision and prefix over observations and note how large the inputs of products become."""
    recorder = PeakRecorder(config.vlm.depth)
    workspace = Workspace(device)
    for sample in inputs:
        count = int(sample.token_mask.sum())
        key = SlotKey(1, len(sample.cameras), count, pruning)
        images = torch.from_numpy(sample.images)
        slot = Slot(
            config,
            key,
            weights.token_embedding.dtype,
            workspace,
            len(weights.schedule.times),
            image_dtype=images.dtype,
        )
        slot.images.copy_(images)
        slot.tokens.copy_(torch.from_numpy(sample.tokens[:count]))
        slot.lengths.fill_(slot.image_rows + count)
        VisionStage(config, weights, slot, workspace)()

        def note(layer: int, product: Product, x: Tensor) -> None:
            recorder.note(layer, product, float(x.abs().max()))

        PrefixStage(config, weights, slot, workspace)(note)
    return recorder.calibration()


@torch.inference_mode()
def quantise(layers: Sequence[PrefixLayer], calibration: Calibration) -> Fp8Prefix:
    """The prefix in float8; `layers` may be dropped afterwards."""
    quantised = []
    for layer, peaks in zip(layers[:-1], calibration.layers, strict=True):
        assert layer.out is not None
        assert layer.norm2 is not None
        assert layer.gate_up is not None
        assert layer.down is not None
        quantised.append(
            Fp8PrefixLayer(
                layer.norm1,
                Quantised.of(layer.qkv, peaks.qkv),
                Quantised.of(layer.out, peaks.out),
                layer.norm2,
                Quantised.of(layer.gate_up, peaks.gate_up),
                Quantised.of(layer.down, peaks.down),
            )
        )
    return Fp8Prefix(tuple(quantised), layers[-1])


class Fp8PrefixStage:
    """Prefix embeddings of a slot to the keys and values of all layers in its cache."""

    def __init__(
        self,
        config: ModelConfig,
        weights: FusedWeights,
        prefix: Fp8Prefix,
        slot: Slot,
        workspace: Workspace,
    ) -> None:
        self._weights, self._prefix, self._slot = weights, prefix, slot
        vlm, dtype = config.vlm, weights.token_embedding.dtype
        rows = slot.batch * slot.prefix

        def buffer(name: str, *shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return workspace.get(f"prefix.{name}", rows, *shape, dtype=dtype)

        self._normed = buffer("normed", vlm.width)
        self._normed8 = buffer("normed8", vlm.width, dtype=FLOAT8)
        self._branch = buffer("branch", vlm.width)
        self._qkv = buffer("qkv", (vlm.num_heads + 2) * vlm.head_dim)
        self._queries = buffer("queries", vlm.num_heads, vlm.head_dim)
        self._mixed = buffer("mixed8", vlm.num_heads, vlm.head_dim, dtype=FLOAT8)
        self._hidden = buffer("hidden8", vlm.mlp_dim, dtype=FLOAT8)
        self._prompt = workspace.get("prefix.prompt", slot.tokens.numel(), vlm.width, dtype=dtype)
        self._one = torch.ones((), device=workspace.device)
        self._gated_product = GateUp(self._multiply, workspace)

    def __call__(self) -> None:
        """Enqueue."""
        weights, slot, tokens = self._weights, self._slot, self._slot.prefix
        embed_prefix(slot, weights.token_embedding, self._prompt)
        residual = slot.embeddings.flatten(0, 1)
        branch: Tensor | None = None
        branch_scale: Tensor | None = None
        for layer, keys, values in zip(self._prefix.layers, slot.keys, slot.values, strict=False):
            norms.residual_rms_norm(
                residual,
                branch,
                layer.norm1,
                self._normed8,
                branch_scale=branch_scale,
                factor=layer.qkv.factor,
            )
            self._multiply(self._normed8, layer.qkv.weight, self._qkv)
            prefix_attention.split_heads(
                self._qkv,
                weights.rope_cos,
                weights.rope_sin,
                self._queries,
                keys,
                values,
                tokens,
                scale=layer.qkv.columns,
                positions=slot.positions,
            )
            prefix_attention.prefix_attention(
                self._queries, keys, values, slot.visible, self._mixed, tokens, factor=layer.out.factor
            )
            self._multiply(self._mixed.flatten(1), layer.out.weight, self._branch)
            norms.residual_rms_norm(
                residual,
                self._branch,
                layer.norm2,
                self._normed8,
                branch_scale=layer.out.columns,
                factor=layer.gate_up.factor,
            )
            self._gated_product(
                self._normed8,
                layer.gate_up.weight,
                self._hidden,
                scale=layer.gate_up.columns,
                factor=layer.down.factor,
            )
            self._multiply(self._hidden, layer.down.weight, self._branch)
            branch, branch_scale = self._branch, layer.down.columns
        last = self._prefix.last
        norms.residual_rms_norm(residual, branch, last.norm1, self._normed, branch_scale=branch_scale)
        product = self._qkv.flatten()[: len(residual) * len(last.qkv)].view(len(residual), -1)
        torch.mm(self._normed, last.qkv.T, out=product)
        prefix_attention.split_heads(
            product,
            weights.rope_cos,
            weights.rope_sin,
            None,
            slot.keys[-1],
            slot.values[-1],
            tokens,
            positions=slot.positions,
        )

    def _multiply(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        torch._scaled_mm(
            x,
            weight.T,
            scale_a=self._one,
            scale_b=self._one,
            out_dtype=out.dtype,
            use_fast_accum=False,
            out=out,
        )
