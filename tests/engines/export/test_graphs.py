"""The exported graphs compute what the network computes, whatever the padding holds."""

from __future__ import annotations

import collections
import functools
import pathlib
import tempfile
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.onnx_runner import Arrays, OnnxRunner
from tests.support.tiny_networks import PaddedBatch, padded_batch, random_weights, tiny_config
from vlad_configs.models import Family
from vlad_engines.export.exporter import export_bundle
from vlad_engines.export.spec import COMPONENTS, GraphForm, ShapeKey, graph_spec
from vlad_engines.model.flow import euler_path, euler_schedule
from vlad_engines.model.pi0 import Pi0

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.reference")

STEPS = 3
FAMILIES: tuple[Family, ...] = ("pi0", "pi05")
_folder = tempfile.TemporaryDirectory()


@functools.cache
def exported(family: Family, form: GraphForm) -> OnnxRunner:
    return OnnxRunner(bundle(family, form))


@functools.cache
def bundle(family: Family, form: GraphForm) -> Any:
    config = tiny_config(family)
    folder = pathlib.Path(_folder.name) / f"{family}{abs(hash(form))}"
    return export_bundle(config, random_weights(config), form, folder)


def batch_for(family: Family, cameras: int, prompt_lengths: list[int]) -> PaddedBatch:
    mask = [index < cameras for index in range(3)]
    return padded_batch(tiny_config(family), [mask] * len(prompt_lengths), prompt_lengths, seed=cameras)


def graph_inputs(batch: PaddedBatch, cameras: int, bucket: int, padding: int = 0) -> Arrays:
    lengths = batch.token_mask.sum(dim=1)
    tokens = torch.where(batch.token_mask, batch.tokens, padding)[:, :bucket]
    image_tokens = cameras * 4
    return {
        "pixels": batch.images[:, :cameras].flatten(0, 1).permute(0, 2, 3, 1).contiguous().numpy(),
        "prompt_tokens": tokens.to(torch.int32).numpy(),
        "prefix_lengths": (image_tokens + lengths).to(torch.int32).numpy(),
        "state": batch.state.numpy(),
        "x_t": batch.noise.numpy(),
    }


def reference_path(family: Family, batch: PaddedBatch) -> np.ndarray[Any, Any]:
    config = tiny_config(family)
    model = Pi0.from_openpi_weights(config, random_weights(config))
    with torch.inference_mode():
        observation = batch.observation()
        prefix = model.embed_prefix(observation)
        cache = model.compute_prefix_kv_cache(prefix)
        suffix = model.place_suffix(prefix.embeddings.shape[1], prefix.lengths)
        conditioning = [model.as_conditioning(each) for each in model.step_conditioning(STEPS)]

        def velocity(step: int, x_t: torch.Tensor) -> torch.Tensor:
            return model.denoise_step_with_cache(x_t, conditioning[step], observation.state, cache, suffix)

        return torch.stack(list(euler_path(velocity, batch.noise, euler_schedule(STEPS)))).numpy()


@pytest.mark.parametrize("form", [GraphForm(STEPS), GraphForm(STEPS, denoise_form="unrolled")], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("cameras", "prompt_lengths", "bucket"),
    [(1, [5], 5), (2, [5], 8), (3, [12], 12), (3, [1], 12), (2, [3, 12, 7], 12), (1, [8, 8], 8)],
)
def test_every_step_is_that_of_the_network(
    family: Family, form: GraphForm, cameras: int, prompt_lengths: list[int], bucket: int
) -> None:
    batch = batch_for(family, cameras, prompt_lengths)
    path = exported(family, form).path(graph_inputs(batch, cameras, bucket))
    assert path.dtype == np.float32
    np.testing.assert_allclose(path, reference_path(family, batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_bit(family: Family) -> None:
    runner, batch = exported(family, GraphForm(STEPS)), batch_for(family, 2, [5, 3])
    zeros, others = (runner.path(graph_inputs(batch, 2, 12, padding)) for padding in (0, 63))
    np.testing.assert_array_equal(zeros, others)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dropped_mask_would_be_noticed(family: Family) -> None:
    runner, batch = exported(family, GraphForm(STEPS)), batch_for(family, 2, [5])
    inputs = graph_inputs(batch, 2, 12)
    expected = runner.path(inputs)
    wrong = runner.path({**inputs, "prefix_lengths": inputs["prefix_lengths"] + 7})
    assert np.abs(wrong - expected).max() > 1e-3


def test_vision_in_float16_stays_close_and_hands_over_what_the_prefix_wants() -> None:
    form = GraphForm(STEPS, vision="float16")
    batch = batch_for("pi05", 3, [9])
    inputs = graph_inputs(batch, 3, 12)
    tokens = exported("pi05", form).run("vision", inputs)["image_tokens"]
    expected = exported("pi05", GraphForm(STEPS)).run("vision", inputs)["image_tokens"]
    assert tokens.dtype == np.float32
    assert 0 < np.abs(tokens - expected).max() < 2e-2 * np.abs(expected).max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", [GraphForm(2), GraphForm(2, "bfloat16", "bfloat16", "bfloat16")], ids=str)
def test_graphs_declare_what_the_specification_says(family: Family, form: GraphForm) -> None:
    kinds = {
        onnx.TensorProto.FLOAT: "float32",
        onnx.TensorProto.BFLOAT16: "bfloat16",
        onnx.TensorProto.INT32: "int32",
    }
    config, exported_bundle = tiny_config(family), bundle(family, form)
    for component in COMPONENTS:
        spec = graph_spec(component, config, form)
        graph = onnx.load(exported_bundle.path(component), load_external_data=False).graph
        for values, tensors in ((graph.input, spec.inputs), (graph.output, spec.outputs)):
            declared = [
                (
                    value.name,
                    kinds[value.type.tensor_type.elem_type],
                    tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
                )
                for value in values
            ]
            assert declared == [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]


TENSORRT_86_OPERATORS = frozenset(
    [
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "Flatten",
        "Gather",
        "Gemm",
        "Less",
        "MatMul",
        "Mul",
        "ReduceMean",
        "Reshape",
        "Shape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
"""From the list of operators of its ONNX parser, those that our graphs may use."""


@pytest.mark.parametrize("form", [GraphForm(2), GraphForm(2, denoise_form="unrolled")], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_tensorrt_86_knows_every_operator(family: Family, form: GraphForm) -> None:
    for component in COMPONENTS:
        model = onnx.load(bundle(family, form).path(component), load_external_data=False)
        assert [entry.version for entry in model.opset_import] == [17]
        assert {node.op_type for node in model.graph.node} <= TENSORRT_86_OPERATORS


def test_bfloat16_products_and_float32_islands() -> None:
    """Every softmax, norm and rotation sees float32, every large product bfloat16."""
    exported_bundle = bundle("pi05", GraphForm(2, "bfloat16", "bfloat16", "bfloat16"))
    for component in COMPONENTS:
        model = onnx.load(exported_bundle.path(component), load_external_data=False)
        types = element_types(model)
        products: collections.Counter[int] = collections.Counter()
        for node in model.graph.node:
            if node.op_type in ("Softmax", "ReduceMean", "Sqrt"):
                assert types[node.input[0]] == onnx.TensorProto.FLOAT, f"{component}: {node.name}"
            if node.op_type == "MatMul":
                left, right = (types[name] for name in node.input)
                assert left == right, f"{component}: {node.name} multiplies unlike types"
                products[left] += 1
        # Patch embedding, and the action and time projections, are float32 in every precision.
        assert products[onnx.TensorProto.FLOAT] <= 2, component
        assert products[onnx.TensorProto.BFLOAT16] > 10, component


@pytest.mark.parametrize("family", FAMILIES)
def test_rotations_and_the_integration_are_float32_in_bfloat16_graphs(family: Family) -> None:
    """A strongly typed network computes in the types of its graph, so these have to be in there."""
    exported_bundle = bundle(family, GraphForm(2, "bfloat16", "bfloat16", "bfloat16"))
    for component in ("prefix", "denoise"):
        model = onnx.load(exported_bundle.path(component), load_external_data=False)
        types = element_types(model)
        angles, rotations = {"rope_cos", "rope_sin"}, 0
        for node in model.graph.node:
            if node.op_type in ("Slice", "Gather", "Unsqueeze") and node.input[0] in angles:
                angles.add(node.output[0])
            if node.op_type == "Mul" and angles.intersection(node.input):
                assert {types[name] for name in node.input} == {onnx.TensorProto.FLOAT}, node.name
                rotations += 1
        # Queries and keys, two halves times two tables; of the prefix's last layer only the keys.
        assert rotations == (5 if component == "prefix" else 6) * 4
    makers = {node.output[0]: node for node in model.graph.node}
    step = makers["x_next"]
    assert step.op_type == "Add"
    assert {types[name] for name in step.input} == {onnx.TensorProto.FLOAT}
    assert "x_t" in step.input
    (velocity,) = (makers[name] for name in step.input if name != "x_t")
    assert velocity.op_type == "Mul"
    assert {types[name] for name in velocity.input} == {onnx.TensorProto.FLOAT}


def test_bfloat16_graphs_are_no_further_from_float32_than_pytorch_in_bfloat16() -> None:
    """In onnx's own evaluator, which knows bfloat16 where onnxruntime's processor kernels do not."""
    exported_bundle = bundle("pi05", GraphForm(STEPS, "bfloat16", "bfloat16", "bfloat16"))
    evaluators = {
        component: onnx.reference.ReferenceEvaluator(str(exported_bundle.path(component)))
        for component in COMPONENTS
    }
    batch = batch_for("pi05", 2, [5])
    values: Arrays = graph_inputs(batch, 2, 8)

    def run(component: str) -> None:
        evaluator = evaluators[component]
        outputs = evaluator.run(None, {name: values[name] for name in evaluator.input_names})
        values.update(zip(evaluator.output_names, outputs, strict=True))

    run("vision")
    values["image_tokens"] = values["image_tokens"].reshape(1, -1, values["image_tokens"].shape[-1])
    run("prefix")
    for step in range(STEPS):
        values["step"] = np.array([step], np.int32)
        run("denoise")
        values["x_t"] = values["x_next"]
    config = tiny_config("pi05")
    network = Pi0.from_openpi_weights(config, random_weights(config), "bf16")
    pytorch = network.sample_actions(batch.observation(), batch.noise, STEPS).numpy()
    exact = reference_path("pi05", batch)[-1]
    assert 0 < np.abs(values["x_t"] - exact).max() < 1.5 * np.abs(pytorch - exact).max()


def element_types(model: Any) -> dict[str, int]:
    """Name -> element type, from onnx's own inference; strict, so a graph of unlike types is an error."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def test_graphs_hold_no_values_and_do_not_depend_on_them() -> None:
    config, form = tiny_config("pi05"), GraphForm(2)
    with tempfile.TemporaryDirectory() as folder:
        one = export_bundle(config, random_weights(config, 0), form, pathlib.Path(folder, "one"))
        two = export_bundle(config, random_weights(config, 1), form, pathlib.Path(folder, "two"))
        for component in COMPONENTS:
            assert one.graphs[component].file_digest == two.graphs[component].file_digest
            assert one.graphs[component].weights_file_digest != two.graphs[component].weights_file_digest
    assert one.weights_digest != two.weights_digest


def test_shapes_of_a_key() -> None:
    axes = ShapeKey(2, 3, 8).axes(tiny_config("pi05"))
    assert axes == {"batch": 2, "images": 6, "image_tokens": 12, "prompt": 8, "slots": 12, "prefix": 20}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("component", COMPONENTS)
def test_slices_name_their_axes_and_steps(family: Family, component: Any, tmp_path: pathlib.Path) -> None:
    config = tiny_config(family)
    form = GraphForm(STEPS)
    export_bundle(config, random_weights(config), form, tmp_path)
    graph = onnx.load(tmp_path / f"{component}.onnx", load_external_data=False).graph
    constants = {node.output[0] for node in graph.node if node.op_type == "Constant"}
    computed = [
        node.name
        for node in graph.node
        if node.op_type == "Slice" and not constants.issuperset(node.input[3:])
    ]
    assert computed == []
