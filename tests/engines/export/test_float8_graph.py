"""The prefix with float8 products: the graph against a network in torch that rounds where the graph does."""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.onnx_runner import Arrays
from tests.support.tiny_networks import PaddedBatch, model_inputs, padded_batch, random_weights, tiny_config
from vlad_configs.errors import ConfigError
from vlad_configs.fidelity import fidelity_thresholds
from vlad_configs.models import Family
from vlad_engines.export.exporter import GraphExporter, export_bundle
from vlad_engines.export.spec import GraphForm
from vlad_engines.float8.calibration import PRODUCTS, Calibration, LayerPeaks, Product
from vlad_engines.float8.calibrator import Calibrator
from vlad_engines.model.pi0 import Pi0

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx.reference")

FAMILIES: tuple[Family, ...] = ("pi0", "pi05")
FLOAT32 = GraphForm(2, prefix_float8=True)
BFLOAT16 = GraphForm(2, "bfloat16", "bfloat16", "bfloat16", prefix_float8=True)
MODULES: dict[Product, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
TOLERANCE = 5e-3
"""Of the norm of a difference, as a share of the norm. Sums in another order differ by 1e-7 to 1e-6; where
that moves one input across the middle between two numbers of float8, a few keys change by a percent. Float8
itself changes 0.12."""

_folder = tempfile.TemporaryDirectory()


@functools.cache
def calibration(family: Family) -> Calibration:
    config = tiny_config(family)
    samples = [padded_batch(config, [[True, True, seed < 2]], [3 + seed], seed) for seed in range(3)]
    return Calibrator(config, random_weights(config), [model_inputs(sample) for sample in samples], "cpu")()


@functools.cache
def prefix_path(family: Family, form: GraphForm) -> pathlib.Path:
    config, folder = tiny_config(family), pathlib.Path(_folder.name) / f"{family}{abs(hash(form))}"
    folder.mkdir()
    calibrate = (lambda: calibration(family)) if form.prefix_float8 else None
    return (
        folder / GraphExporter(config, random_weights(config), form, calibrate).write("prefix", folder).file
    )


def prefix_model(family: Family, form: GraphForm = FLOAT32) -> Any:
    """With its weights."""
    return onnx.load(prefix_path(family, form))


def run(model: Any, inputs: Arrays) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def batch_of(family: Family, prompt_lengths: list[int]) -> PaddedBatch:
    return padded_batch(tiny_config(family), [[True, True, False]] * len(prompt_lengths), prompt_lengths, 7)


def prefix_inputs(network: Pi0, batch: PaddedBatch) -> Arrays:
    """What the prefix gets for the first two cameras, padding included."""
    with torch.inference_mode():
        tokens = network.embed_images(batch.images[:, :2].flatten(0, 1)).flatten(0, 0)
    return {
        "image_tokens": tokens.reshape(len(batch.tokens), -1, tokens.shape[-1]).numpy(),
        "prompt_tokens": batch.tokens.to(torch.int32).numpy(),
        "prefix_lengths": (8 + batch.token_mask.sum(dim=1)).to(torch.int32).numpy(),
    }


def rounded(x: Tensor, scale: Tensor | float) -> Tensor:
    """To float8 and back, as the standard defines both operators."""
    return (x / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn).float() * scale


def emulation(family: Family) -> Pi0:
    """The float32 network, rounding inputs and weights of the prefix's products."""
    config = tiny_config(family)
    network = Pi0.from_openpi_weights(config, {k: v.clone() for k, v in random_weights(config).items()})

    def rounding(scale: float) -> Callable[[Any, tuple[Tensor, ...]], Tensor]:
        return lambda module, arguments: rounded(arguments[0], torch.tensor(scale))

    for layer, peaks in zip(network.vlm.layers, calibration(family).layers, strict=False):
        for product, names in MODULES.items():
            for name in names:
                module = layer.get_submodule(name)
                scales = module.weight.abs().amax(dim=1, keepdim=True) / 448.0  # type: ignore[operator]
                module.weight.copy_(rounded(module.weight, scales))  # type: ignore[operator, arg-type]
                module.register_forward_pre_hook(rounding(2.0 * peaks.of(product) / 448.0))
    return network


def caches(network: Pi0, batch: PaddedBatch) -> Arrays:
    """Keys and values by the names of the graph's outputs; meaningless behind each sample's tokens."""
    with torch.inference_mode():
        cache = network.compute_prefix_kv_cache(network.embed_prefix(batch.observation()))
    parts = {"keys": cache.keys, "values": cache.values}
    return {
        f"{name}_{layer}": part.numpy()
        for name, tensor in parts.items()
        for layer, part in enumerate(tensor.unbind())
    }


def distance(mine: Arrays, theirs: Arrays, lengths: list[int]) -> float:
    """Norm of the difference as a share of the norm, over the real tokens of the worst output."""
    worst = 0.0
    for name, expected in theirs.items():
        pairs = [
            (mine[name][row, :, :length], expected[row, :, :length]) for row, length in enumerate(lengths)
        ]
        difference = np.concatenate([(left - right).ravel() for left, right in pairs])
        worst = max(worst, float(np.linalg.norm(difference) / np.linalg.norm(expected)))
    return worst


@pytest.mark.parametrize("prompt_lengths", [[12], [1], [3, 12, 7]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_is_the_network_that_rounds(family: Family, prompt_lengths: list[int]) -> None:
    batch, network = batch_of(family, prompt_lengths), emulation(family)
    mine = run(prefix_model(family), prefix_inputs(network, batch))
    lengths = [8 + length for length in prompt_lengths]
    assert distance(mine, caches(network, batch), lengths) < TOLERANCE
    config = tiny_config(family)
    exact = caches(Pi0.from_openpi_weights(config, random_weights(config)), batch)
    assert distance(mine, exact, lengths) > 3 * TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_every_product_is_that_of_its_rounded_factors(family: Family) -> None:
    """Product by product from the graph's own inputs, so that nothing adds up: only sums may differ."""
    model, weights = prefix_model(family), random_weights(tiny_config(family))
    network = emulation(family)
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    quantised = {f"float8.{layer}.{product}" for layer in range(2) for product in PRODUCTS}
    assert sources.keys() == {f"{name}.float8" for name in quantised}
    products = [
        node for node in model.graph.node if node.op_type == "MatMul" and node.input[1].endswith("quantised")
    ]
    assert len(products) == 2 * 7
    seen = {node.output[0] for node in products} | set(sources.values())
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in sorted(seen))
    values = run(model, prefix_inputs(network, batch_of(family, [12, 4])))
    for node in products:
        name = node.input[0].removesuffix(".input")
        layer, product = name.split(".")[1:]
        peak = calibration(family).layers[int(layer)].of(product)
        x = torch.from_numpy(values[sources[f"{name}.float8"]])
        source = node.input[1].removesuffix(".transposed.dequantised")
        weight = weights[
            f"paligemma_with_expert.paligemma.model.language_model.{source.removeprefix('vlm.')}"
        ]
        w = rounded(weight, weight.abs().amax(dim=1, keepdim=True) / 448.0)
        expected = rounded(x, torch.tensor(2.0 * peak / 448.0)) @ w.t()
        np.testing.assert_allclose(
            values[node.output[0]], expected.numpy(), rtol=1e-5, atol=1e-5 * float(expected.abs().max())
        )


def scaled_input(model: Any, factor: float) -> None:
    (scale,) = [item for item in model.graph.initializer if item.name == "float8.1.gate_up.scale"]
    scale.raw_data = (np.frombuffer(scale.raw_data, np.float32) * np.float32(factor)).tobytes()


def scaled_weights(model: Any, shift: int) -> None:
    (scales,) = [
        item
        for item in model.graph.initializer
        if item.name.endswith("0.mlp.down_proj.weight.transposed.scales")
    ]
    scales.raw_data = np.roll(np.frombuffer(scales.raw_data, np.float32), shift).tobytes()


def dequantised_otherwise(model: Any, factor: float) -> None:
    """Only on the way back."""
    (scale,) = [item for item in model.graph.initializer if item.name == "float8.0.qkv.scale"]
    other = onnx.TensorProto()
    other.CopyFrom(scale)
    other.name = "other"
    other.raw_data = (np.frombuffer(scale.raw_data, np.float32) * np.float32(factor)).tobytes()
    model.graph.initializer.append(other)
    (node,) = [node for node in model.graph.node if node.name == "float8.0.qkv.DequantizeLinear"]
    node.input[1] = "other"


@pytest.mark.parametrize(
    ("spoil", "by"),
    [
        (scaled_input, 1.25),
        (scaled_input, 1 / 64),
        (scaled_input, 4096.0),
        (scaled_weights, 1),
        (dequantised_otherwise, 1.02),
    ],
)
def test_a_wrong_scale_is_noticed(spoil: Callable[[Any, Any], None], by: float) -> None:
    model, batch, network = prefix_model("pi05"), batch_of("pi05", [12, 4]), emulation("pi05")
    inputs, expected = prefix_inputs(network, batch), caches(network, batch)
    assert distance(run(model, inputs), expected, [20, 12]) < TOLERANCE
    spoil(model, by)
    assert distance(run(model, inputs), expected, [20, 12]) > 2 * TOLERANCE


def test_calibration_finds_what_the_graph_shows() -> None:
    """The float32 graph's own inputs of products, over the same observations."""
    config = tiny_config("pi05")
    model = prefix_model("pi05", GraphForm(2))
    network = Pi0.from_openpi_weights(config, random_weights(config))
    sources = {
        f"vlm.layers.{layer}.{MODULES[product][0]}.weight.transposed": (layer, product)
        for layer in range(2)
        for product in PRODUCTS
    }
    found = {
        sources[node.input[1]]: node.input[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in sources
    }
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in sorted(set(found.values()))
    )
    batch = batch_of("pi05", [12])
    values = run(model, prefix_inputs(network, batch))
    inputs = dataclasses.replace(
        model_inputs(batch), images=batch.images[0, :2].permute(0, 2, 3, 1).contiguous().numpy()
    )
    noted = Calibrator(config, random_weights(config), [inputs], "cpu")()
    for (layer, product), name in found.items():
        assert noted.layers[layer].of(product) == pytest.approx(float(np.abs(values[name]).max()), rel=1e-4)


@pytest.mark.parametrize("form", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_types_are_what_a_strongly_typed_network_needs(form: GraphForm) -> None:
    """From onnx's own strict inference, which refuses unlike types."""
    proto = onnx.TensorProto
    kind = proto.BFLOAT16 if form is BFLOAT16 else proto.FLOAT
    model = onnx.load(prefix_path("pi05", form), load_external_data=False)
    assert [entry.version for entry in model.opset_import] == [19]
    types = element_types(model)
    scales = {item.name: item for item in prefix_model("pi05", form).graph.initializer}
    count: collections.Counter[str] = collections.Counter()
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert [types[name] for name in (*node.input, *node.output)] == [
                kind, kind, proto.FLOAT8E4M3FN, proto.FLOAT8E4M3FN,
            ]  # fmt: skip
        elif node.op_type == "DequantizeLinear":
            assert [types[name] for name in (*node.input, *node.output)] == [
                proto.FLOAT8E4M3FN, kind, proto.FLOAT8E4M3FN, kind,
            ]  # fmt: skip
            is_vector = bool(scales[node.input[1]].dims)
            assert [attribute.i for attribute in node.attribute] == ([1] if is_vector else [])
            count["weights" if is_vector else "inputs"] += 1
        elif node.op_type in ("Softmax", "ReduceMean", "Sqrt"):
            assert types[node.input[0]] == proto.FLOAT, node.name
        elif node.op_type == "MatMul":
            assert [types[name] for name in node.input] == [kind, kind], node.name
            count["products"] += 1
    # Two layers of three: 7 matrices, 4 inputs and two products of attention each. The last: keys and values.
    assert count == {"weights": 2 * 7, "inputs": 2 * 4, "products": 2 * (7 + 2) + 2}
    for name, item in scales.items():
        if name.endswith((".scale", ".scales")):
            assert (onnx.numpy_helper.to_array(item).astype(np.float32) > 0).all(), name


def element_types(model: Any) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def test_bfloat16_with_float8_products_is_as_close_as_fp8_must_be() -> None:
    """In onnx's own evaluator, which knows bfloat16 where onnxruntime's processor kernels do not."""
    batch = batch_of("pi05", [9])
    config = tiny_config("pi05")
    network = Pi0.from_openpi_weights(config, random_weights(config))
    inputs = prefix_inputs(network, batch)
    evaluator = onnx.reference.ReferenceEvaluator(str(prefix_path("pi05", BFLOAT16)))
    tokens = onnx.numpy_helper.to_array(
        onnx.helper.make_tensor(
            "tokens", onnx.TensorProto.BFLOAT16, inputs["image_tokens"].shape, inputs["image_tokens"].ravel()
        )
    )
    outputs = evaluator.run(None, {**inputs, "image_tokens": tokens})
    exact = caches(network, batch)
    for name, output in zip(evaluator.output_names, outputs, strict=True):
        mine, theirs = output[:, :, :17].astype(np.float64).ravel(), exact[name][:, :, :17].ravel()
        cosine = mine @ theirs / (np.linalg.norm(mine) * np.linalg.norm(theirs))
        assert fidelity_thresholds("fp8").component_cosine < cosine < 1 - 1e-5, name


def test_another_calibration_is_another_graph() -> None:
    config, noted = tiny_config("pi05"), calibration("pi05")
    first, *others = noted.layers
    changed = Calibration((dataclasses.replace(first, down=1.01 * first.down), *others))
    digests = {
        GraphExporter(config, random_weights(config), BFLOAT16, lambda given=given: given).digest("prefix")
        for given in (noted, changed, Calibration.from_json(noted.to_json()))
    }
    assert len(digests) == 2


def test_weights_without_content_have_scales_above_zero(tmp_path: pathlib.Path) -> None:
    config = tiny_config("pi05")
    weights = random_weights(config)
    name = "paligemma_with_expert.paligemma.model.language_model.layers.0.mlp.up_proj.weight"
    weights[name] = torch.zeros_like(weights[name])
    nothing = Calibration((LayerPeaks(0.0, 0.0, 0.0, 0.0),) * 2)
    GraphExporter(config, weights, BFLOAT16, lambda: nothing).write("prefix", tmp_path)
    for item in onnx.load(tmp_path / "prefix.onnx").graph.initializer:
        if item.name.endswith((".scale", ".scales")):
            assert (onnx.numpy_helper.to_array(item).astype(np.float32) > 0).all(), item.name
        if item.name.endswith(".float8"):
            assert np.isfinite(onnx.numpy_helper.to_array(item).astype(np.float32)).all(), item.name


@pytest.mark.parametrize(
    ("form", "given", "message"),
    [
        (FLOAT32, None, "a calibration belongs to graphs with float8 products, and to no others"),
        (GraphForm(2), Calibration(()), "a calibration belongs to graphs with float8 products"),
    ],
)
def test_form_and_calibration_that_contradict_each_other(
    tmp_path: pathlib.Path, form: GraphForm, given: Calibration | None, message: str
) -> None:
    config = tiny_config("pi05")
    with pytest.raises(ConfigError, match=message):
        export_bundle(config, random_weights(config), form, tmp_path, None, given)


def test_a_calibration_of_another_network_is_refused() -> None:
    config = tiny_config("pi05")
    exporter = GraphExporter(config, random_weights(config), FLOAT32, lambda: Calibration(()))
    with pytest.raises(ConfigError, match="is of 0 layers, this network needs one of 2"):
        exporter.digest("prefix")
