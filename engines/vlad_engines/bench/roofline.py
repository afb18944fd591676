"""The floor: what a request costs at least on a device, by counting operations and bytes.

Model (Williams et al., "Roofline", 2009): each operation takes the longer of FLOPs / peak and bytes /
bandwidth, and operations follow each other. A matrix product `[M, K] x [K, N]` has 2MNK FLOPs and reads its
weights once; its activations stay in the cache. Attention of T queries over K keys has 4TK x heads x head_dim
FLOPs and moves Q, K, V and the result. Norms, activations, launches and gaps cost nothing here, so that no
program can be below this.

Counted is what an ideal program computes: real cameras and tokens only, only K and V in the last prefix
layer, all that depends on time alone (adaptive norms, time MLPs) beforehand, and pi0's first action product
folded into the projection before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from vlad_configs.models import GemmaConfig, ModelConfig
from vlad_configs.pruning import TokenPruning
from vlad_engines.bench.case import RequestShape

_TERA = 1e12
_ATTENTION_BYTES = 2
_WEIGHT_BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp8": 1}


@dataclasses.dataclass(frozen=True)
class DevicePeaks:
    """What a device can do at most.

    Attributes:
        flops: precision -> FLOP/s of dense matrix products. Attention runs at the bf16 rate under fp8.
        bandwidth: bytes per second from device memory.
        source: where the numbers are from.
    """

    flops: Mapping[str, float]
    bandwidth: float
    source: str


DEVICE_PEAKS: Mapping[str, DevicePeaks] = {
    "H200": DevicePeaks(
        {"fp32": 67 * _TERA, "bf16": 790 * _TERA, "fp8": 1580 * _TERA},
        4.3e12,
        "bf16 (8192^3, sustained) and bandwidth measured 2026-11-21; fp8 twice bf16; fp32 data sheet",
    ),
    "H100": DevicePeaks(
        {"fp32": 67 * _TERA, "bf16": 989 * _TERA, "fp8": 1979 * _TERA}, 3.35e12, "data sheet, SXM"
    ),
    "4090": DevicePeaks(
        {"fp32": 82.6 * _TERA, "bf16": 165 * _TERA, "fp8": 330 * _TERA},
        1.008e12,
        "data sheet, float32 accumulation",
    ),
    "Thor": DevicePeaks(
        {"fp32": 8 * _TERA, "bf16": 258 * _TERA, "fp8": 517 * _TERA}, 0.273e12, "data sheet, T5000 dense"
    ),
}
"""By a part of the product name."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """FLOPs of one kind, and the bytes that must move for them."""

    flops: float
    bytes: float
    attention: bool = False


@dataclasses.dataclass(frozen=True)
class Floor:
    """Least seconds by stage; `denoise` is all steps."""

    vision: float
    prefix: float
    denoise: float

    @property
    def total(self) -> float:
        """The whole request, or batch."""
        return self.vision + self.prefix + self.denoise

    def to_ms(self) -> dict[str, float]:
        """Milliseconds by stage, and `total`."""
        stages = {**dataclasses.asdict(self), "total": self.total}
        return {name: round(seconds * 1e3, 4) for name, seconds in stages.items()}


def device_peaks(device_name: str) -> DevicePeaks | None:
    """The peaks of a device by its product name; None for one that is not listed."""
    return next((peaks for part, peaks in DEVICE_PEAKS.items() if part.lower() in device_name.lower()), None)


def floor(
    model: ModelConfig,
    shape: RequestShape,
    *,
    steps: int,
    batch: int,
    precision: str,
    peaks: DevicePeaks,
    pruning: TokenPruning | None = None,
) -> Floor:
    """The floor of one batch.

    Args:
        pruning: which image tokens the prefix keeps; choosing them counts nothing.

    Raises:
        KeyError: for a precision without weights of a known size.
    """
    weight = _WEIGHT_BYTES[precision]
    image_tokens = shape.cameras * model.siglip.num_tokens
    if pruning is not None:
        image_tokens = pruning.slots(image_tokens)
    prefix_length = image_tokens + shape.prompt_tokens

    def seconds(operations: Iterator[Operation]) -> float:
        return sum(
            max(
                one.flops / peaks.flops[_attention_precision(precision) if one.attention else precision],
                one.bytes / peaks.bandwidth,
            )
            for one in operations
        )

    return Floor(
        vision=seconds(vision_operations(model, batch * shape.cameras, weight)),
        prefix=seconds(prefix_operations(model, batch, prefix_length, weight)),
        denoise=steps * seconds(step_operations(model, batch, prefix_length, weight)),
    )


def vision_operations(model: ModelConfig, images: int, weight_bytes: int) -> Iterator[Operation]:
    """SigLIP and projector for `images` pictures."""
    siglip, tokens = model.siglip, model.siglip.num_tokens
    rows, width = images * tokens, siglip.width
    yield _product(rows, 3 * siglip.patch_size**2, width, weight_bytes)
    for _ in range(siglip.depth):
        yield _product(rows, width, 3 * width, weight_bytes)
        yield _attention(images, tokens, tokens, width, kv_width=width)
        yield _product(rows, width, width, weight_bytes)
        yield _product(rows, width, siglip.mlp_dim, weight_bytes)
        yield _product(rows, siglip.mlp_dim, width, weight_bytes)
    yield _product(rows, width, model.vlm.width, weight_bytes)


def prefix_operations(model: ModelConfig, batch: int, length: int, weight_bytes: int) -> Iterator[Operation]:
    """The VLM over `length` tokens per sample, as far as keys and values need it."""
    gemma = model.vlm
    for _ in range(gemma.depth - 1):
        yield from _layer(gemma, batch, length, length, weight_bytes)
    yield _product(batch * length, gemma.width, 2 * gemma.num_kv_heads * gemma.head_dim, weight_bytes)


def step_operations(
    model: ModelConfig, batch: int, prefix_length: int, weight_bytes: int
) -> Iterator[Operation]:
    """One Euler step of the action expert."""
    gemma = model.expert
    suffix = model.action_horizon + (1 if model.family == "pi0" else 0)
    rows = batch * suffix
    yield _product(rows, model.action_dim, gemma.width, weight_bytes)
    if model.family == "pi0":
        yield _product(rows, gemma.width, gemma.width, weight_bytes)
    for _ in range(gemma.depth):
        yield from _layer(gemma, batch, suffix, prefix_length + suffix, weight_bytes)
    yield _product(batch * model.action_horizon, gemma.width, model.action_dim, weight_bytes)


def _layer(gemma: GemmaConfig, batch: int, queries: int, keys: int, weight_bytes: int) -> Iterator[Operation]:
    rows, heads = batch * queries, gemma.num_heads * gemma.head_dim
    kv_width = gemma.num_kv_heads * gemma.head_dim
    yield _product(rows, gemma.width, heads + 2 * kv_width, weight_bytes)
    yield _attention(batch, queries, keys, heads, kv_width)
    yield _product(rows, heads, gemma.width, weight_bytes)
    yield _product(rows, gemma.width, 2 * gemma.mlp_dim, weight_bytes)
    yield _product(rows, gemma.mlp_dim, gemma.width, weight_bytes)


def _product(rows: int, inputs: int, outputs: int, weight_bytes: int) -> Operation:
    return Operation(2.0 * rows * inputs * outputs, float(inputs * outputs * weight_bytes))


def _attention(batch: int, queries: int, keys: int, width: int, kv_width: int) -> Operation:
    moved = batch * (2 * queries * width + 2 * keys * kv_width) * _ATTENTION_BYTES
    return Operation(4.0 * batch * queries * keys * width, float(moved), attention=True)


def _attention_precision(precision: str) -> str:
    return "bf16" if precision == "fp8" else precision
