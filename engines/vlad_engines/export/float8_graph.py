"""Puts the prefix's products into float8: explicit QuantizeLinear and DequantizeLinear in its graph.

Each product x W becomes DQ(Q(x)) DQ(W8): the input divided by one constant, rounded to float8 and multiplied
again; the weights as float8 with a constant for each output column. So TensorRT's strongly typed networks and
its ONNX parser want it: the type of the zero point says float8; scales are constants above zero, one for a
tensor or, for weights, a vector along an axis; and they have the type of what goes in and comes out, because
operator set 19 gives the result of DequantizeLinear the type of its scale.

Attention, norms, GELU and the residual do not change, and the last layer, of which only keys and values are
used, not at all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import torch
from torch import Tensor

from vlad_configs.errors import ConfigError
from vlad_engines.export.onnx_file import Initializer, TracedGraph, tensor_bytes
from vlad_engines.float8.calibration import PRODUCTS, Calibration, Product
from vlad_engines.float8.scales import FLOAT8, column_scales, divided_columns, input_scale

FLOAT8_OPSET = 19
"""The first with float8, and with scales in bfloat16."""

_ZERO = "float8.zero"
_MATRICES: Mapping[Product, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def check_float8_export() -> None:
    """Refuse to begin where float8 cannot be written down.

    Raises:
        ConfigError: for an onnx package that is too old.
    """
    newest = onnx.defs.onnx_opset_version()
    if newest < FLOAT8_OPSET:
        raise ConfigError(
            f"float8 needs ONNX operator set {FLOAT8_OPSET}; onnx {onnx.__version__} ends at {newest}: "
            "install onnx 1.17 or newer"
        )


def quantise_products(graph: TracedGraph, calibration: Calibration) -> TracedGraph:
    """The prefix's graph with float8 products.

    Args:
        graph: traced with `FLOAT8_OPSET`.
        calibration: of a network with as many layers.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    matrices = {
        f"vlm.layers.{layer}.{module}.weight": (layer, product)
        for layer in range(len(calibration.layers))
        for product in PRODUCTS
        for module in _MATRICES[product]
    }
    quantised = {item.name: item for item in graph.initializers if item.source in matrices}
    assert len(quantised) == len(matrices)
    nodes: list[Any] = []
    sources: dict[tuple[int, Product], str] = {}
    for node in model.graph.node:
        matrix = quantised.get(node.input[1]) if node.op_type == "MatMul" else None
        if matrix is not None:
            layer, product = matrices[matrix.source]
            name, source = f"float8.{layer}.{product}", node.input[0]
            if (layer, product) not in sources:
                sources[layer, product] = source
                scale = torch.tensor(input_scale(calibration.layers[layer].of(product)), dtype=matrix.dtype)
                model.graph.initializer.append(_constant(f"{name}.scale", scale))
                nodes.extend(_round_trip(source, name))
            assert sources[layer, product] == source, "matrices of one product read different inputs"
            nodes.append(_dequantise(matrix))
            node.input[:] = [f"{name}.input", f"{matrix.name}.dequantised"]
        nodes.append(node)
    assert len(sources) == len(PRODUCTS) * len(calibration.layers)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(_constant(_ZERO, torch.zeros((), dtype=FLOAT8)))
    for columns in sorted({item.shape[1] for item in quantised.values()}):
        model.graph.initializer.append(_constant(_zeros(columns), torch.zeros(columns, dtype=FLOAT8)))
    return TracedGraph(model, tuple(_stored(graph, quantised)))


def _stored(graph: TracedGraph, quantised: Mapping[str, Initializer]) -> Iterator[Initializer]:
    """What is read from the file of weights: for a matrix in float8 itself and its scales."""
    for item in graph.initializers:
        if item.name not in quantised:
            yield item
            continue
        assert item.transposed
        weights = functools.partial(_float8_columns, scale_dtype=item.dtype)
        yield Initializer(f"{item.name}.float8", item.source, True, FLOAT8, item.shape, weights)
        yield Initializer(f"{item.name}.scales", item.source, False, item.dtype, item.shape[1:], _scales)


def _float8_columns(weight: Tensor, dtype: torch.dtype, scale_dtype: torch.dtype) -> Tensor:
    # With the scales as they are stored, so that dividing and multiplying meet.
    return divided_columns(weight, _scales(weight, scale_dtype))


def _scales(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return column_scales(weight).to(dtype)


def _round_trip(source: str, name: str) -> Iterator[Any]:
    scale, rounded = f"{name}.scale", f"{name}.float8"
    yield onnx.helper.make_node(
        "QuantizeLinear", [source, scale, _ZERO], [rounded], name=f"{name}.QuantizeLinear"
    )
    yield onnx.helper.make_node(
        "DequantizeLinear", [rounded, scale, _ZERO], [f"{name}.input"], name=f"{name}.DequantizeLinear"
    )


def _dequantise(matrix: Initializer) -> Any:
    """Axis 1: matrices lie in the graph as `[in, out]`."""
    return onnx.helper.make_node(
        "DequantizeLinear",
        [f"{matrix.name}.float8", f"{matrix.name}.scales", _zeros(matrix.shape[1])],
        [f"{matrix.name}.dequantised"],
        name=f"{matrix.name}.DequantizeLinear",
        axis=1,
    )


def _zeros(count: int) -> str:
    return f"{_ZERO}s.{count}"


def _constant(name: str, value: Tensor) -> Any:
    kinds = {
        torch.float32: onnx.TensorProto.FLOAT,
        torch.bfloat16: onnx.TensorProto.BFLOAT16,
        FLOAT8: onnx.TensorProto.FLOAT8E4M3FN,
    }
    content = bytes(tensor_bytes(value))
    return onnx.TensorProto(name=name, data_type=kinds[value.dtype], dims=value.shape, raw_data=content)
