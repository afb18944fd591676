"""Writes a graph and its weights: the graph small and readable, the weights beside it in one file.

The module is traced without values, on the meta device, so a graph of any size takes seconds and no memory;
the weights then stream from the checkpoint into the file, one tensor at a time.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from vlad_configs.errors import CheckpointError
from vlad_engines.export.spec import GraphSpec, TensorSpec
from vlad_engines.float8.scales import FLOAT8

OPSET = 17
"""The newest that TensorRT 8.6 reads completely."""

_ALIGNMENT = 4096
_TRACE_SIZES = {"batch": 2, "images": 4, "image_tokens": 6, "prompt": 5, "slots": 3, "prefix": 11}
"""Any sizes do as long as none is 1, which would broadcast."""

_TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
}
_ONNX = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.int32: onnx.TensorProto.INT32,
    FLOAT8: onnx.TensorProto.FLOAT8E4M3FN,
}


@dataclasses.dataclass(frozen=True)
class Initializer:
    """A tensor that a graph reads: which one of the module, and what the graph wants of it.

    Attributes:
        convert: makes a tensor of `dtype` of the module's tensor, before that is transposed.
    """

    name: str
    source: str
    transposed: bool
    dtype: torch.dtype
    shape: tuple[int, ...]
    convert: Callable[[Tensor, torch.dtype], Tensor] = Tensor.to

    @property
    def size_bytes(self) -> int:
        """Its room in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class TracedGraph:
    """A graph whose weights are named but not there yet."""

    model: Any
    initializers: tuple[Initializer, ...]


def trace_graph(module: nn.Module, spec: GraphSpec, opset: int = OPSET) -> TracedGraph:
    """Trace a module whose parameters are on the meta device.

    Its parameters and persistent buffers become initializers; a matrix that the graph only uses transposed
    is stored that way, so that no engine builder has to turn gigabytes around.
    """
    module = module.to("meta")
    arguments = tuple(
        torch.empty(tensor.sizes(_TRACE_SIZES), dtype=_TORCH[tensor.dtype], device="meta")
        for tensor in spec.inputs
    )
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter warns that it is not the default one. That one cannot trace without values.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            arguments,
            cast("Any", buffer),  # files too, says its documentation; its annotation does not
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_axes=_dynamic_axes((*spec.inputs, *spec.outputs)),
            opset_version=opset,
            dynamo=False,
            do_constant_folding=False,
            export_params=False,
            # Otherwise the exporter compares the values of parameters, and there are none.
            keep_initializers_as_inputs=True,
        )
    model = onnx.load_from_string(buffer.getvalue())
    _declare_outputs(model, spec.outputs)
    _fold_unsqueezed_constants(model.graph)
    return TracedGraph(model, _take_initializers(model, module.state_dict(), spec))


def finished_graph(graph: TracedGraph, weights_name: str) -> bytes:
    """The content of the graph's file; its initializers point into the file `weights_name` beside it."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for initializer, offset in _layout(graph):
        model.graph.initializer.append(_external(initializer, weights_name, offset))
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def write_graph(graph: TracedGraph, path: pathlib.Path, values: Callable[[str], Tensor]) -> None:
    """Write `path` and, beside it, `weights_file(path)`.

    Args:
        values: the tensor of the module's parameter or buffer of this name, any float dtype.

    Raises:
        CheckpointError: for a value of another shape than the network's.
    """
    weights = weights_file(path)
    with weights.open("wb") as file:
        for initializer, offset in _layout(graph):
            value = initializer.convert(values(initializer.source).detach().cpu(), initializer.dtype)
            value = (value.t() if initializer.transposed else value).contiguous()
            if tuple(value.shape) != initializer.shape:
                raise CheckpointError(
                    f"{initializer.source} has shape {tuple(value.shape)}, expected {initializer.shape}"
                )
            file.seek(offset)
            file.write(tensor_bytes(value))
    path.write_bytes(finished_graph(graph, weights.name))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, of any dtype."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _layout(graph: TracedGraph) -> Iterator[tuple[Initializer, int]]:
    offset = 0
    for initializer in graph.initializers:
        yield initializer, offset
        offset += initializer.size_bytes
        offset += -offset % _ALIGNMENT


def weights_file(path: pathlib.Path) -> pathlib.Path:
    """Where the weights of the graph at `path` are."""
    return path.with_suffix(".weights")


def _dynamic_axes(tensors: Sequence[TensorSpec]) -> dict[str, dict[int, str]]:
    return {
        tensor.name: {index: axis for index, axis in enumerate(tensor.shape) if isinstance(axis, str)}
        for tensor in tensors
    }


def _declare_outputs(model: onnx.ModelProto, outputs: Sequence[TensorSpec]) -> None:
    """The exporter's guesses at output shapes are names of inner nodes; say what they are."""
    for output, tensor in zip(model.graph.output, outputs, strict=True):
        kind = _ONNX[_TORCH[tensor.dtype]]
        output.CopyFrom(onnx.helper.make_tensor_value_info(tensor.name, kind, list(tensor.shape)))


def _fold_unsqueezed_constants(graph: Any) -> None:
    """Make constants of unsqueezed ones: TensorRT 8.6 refuses to slice along axes that are computed."""
    constants: dict[str, Any] = {}
    for node in graph.node:
        if node.op_type == "Unsqueeze" and all(name in constants for name in node.input):
            value, axes = (onnx.numpy_helper.to_array(constants[name]) for name in node.input)
            tensor = onnx.numpy_helper.from_array(np.expand_dims(value, tuple(axes.tolist())))
            node.CopyFrom(
                onnx.helper.make_node("Constant", [], list(node.output), name=node.name, value=tensor)
            )
        if node.op_type == "Constant":
            constants[node.output[0]] = node.attribute[0].t


def _take_initializers(
    model: onnx.ModelProto, state: dict[str, Tensor], spec: GraphSpec
) -> tuple[Initializer, ...]:
    """Turn parameters from inputs into initializers; a matrix that is only used transposed is turned."""
    inputs = {tensor.name for tensor in spec.inputs}
    graph = model.graph
    kept = [value for value in graph.input if value.name in inputs]
    names = [value.name for value in graph.input if value.name not in inputs]
    del graph.input[:]
    graph.input.extend(kept)
    users: dict[str, list[Any]] = {name: [] for name in names}
    for node in graph.node:
        for used in node.input:
            if used in users:
                users[used].append(node)
    initializers, turned = [], {}
    for name in (name for name in names if users[name]):
        value, turns = state[name], all(_turns(node) for node in users[name])
        if turns:
            turned.update({node.output[0]: f"{name}.transposed" for node in users[name]})
        initializers.append(
            Initializer(
                name=f"{name}.transposed" if turns else name,
                source=name,
                transposed=turns,
                dtype=value.dtype,
                shape=tuple(reversed(value.shape)) if turns else tuple(value.shape),
            )
        )
    _replace(graph, turned)
    return tuple(initializers)


def _turns(node: Any) -> bool:
    return node.op_type == "Transpose" and list(node.attribute[0].ints) == [1, 0]


def _replace(graph: Any, tensors: Mapping[str, str]) -> None:
    """Read `tensors` from elsewhere (old name -> new name), and leave out the nodes that made them."""
    nodes = [node for node in graph.node if node.output[0] not in tensors]
    for node in nodes:
        for index, name in enumerate(node.input):
            if name in tensors:
                node.input[index] = tensors[name]
    del graph.node[:]
    graph.node.extend(nodes)


def _external(initializer: Initializer, file: str, offset: int) -> onnx.TensorProto:
    proto = onnx.TensorProto(
        name=initializer.name,
        data_type=_ONNX[initializer.dtype],
        dims=initializer.shape,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    entries = {"location": file, "offset": offset, "length": initializer.size_bytes}
    for key, value in entries.items():
        proto.external_data.add(key=key, value=str(value))
    return proto
