"""Token pruning in the exported graphs: what the pytorch backend selects and computes."""

from __future__ import annotations

import functools
import pathlib
import tempfile
from typing import Any

import numpy as np
import pytest
import torch

from tests.engines.export.test_graphs import TENSORRT_86_OPERATORS
from tests.support.onnx_runner import Arrays, OnnxRunner
from tests.support.tiny_networks import PaddedBatch, model_inputs, padded_batch, random_weights, tiny_config
from vlad_configs.models import Family
from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.base import BackendOptions, InferenceResult
from vlad_engines.backends.registry import create_backend
from vlad_engines.export.bundle import Bundle, read_bundle
from vlad_engines.export.exporter import export_bundle
from vlad_engines.export.spec import COMPONENTS, GraphForm, ShapeKey, input_shapes

onnx = pytest.importorskip("onnx")

STEPS = 3
_folder = tempfile.TemporaryDirectory()

PRUNINGS: dict[str, tuple[Family, TokenPruning]] = {
    "fixed original": ("pi05", TokenPruning(5)),
    "union compact": ("pi05", TokenPruning(5, mode="union", positions="compact")),
    "union original": ("pi0", TokenPruning(5, mode="union")),
}


@functools.cache
def bundle(family: Family, pruning: TokenPruning | None) -> Bundle:
    config = tiny_config(family)
    folder = pathlib.Path(_folder.name) / f"{family}{hash(pruning)}"
    return export_bundle(config, random_weights(config), GraphForm(STEPS, pruning=pruning), folder)


@functools.cache
def runner(family: Family, pruning: TokenPruning | None) -> OnnxRunner:
    return OnnxRunner(bundle(family, pruning))


@functools.cache
def pytorch_backend(family: Family, pruning: TokenPruning) -> Any:
    config = tiny_config(family)
    options = BackendOptions(STEPS, "fp32", "cpu", pruning=pruning)
    return create_backend("pytorch", config, random_weights(config), options)


def batch_of(cameras: int, lengths: list[int]) -> PaddedBatch:
    mask = [index < cameras for index in range(3)]
    return padded_batch(tiny_config("pi05"), [mask] * len(lengths), lengths, seed=cameras)


def graph_inputs(batch: PaddedBatch, cameras: int, slots: int, padding: int = 0) -> Arrays:
    images = (batch.images[:, :cameras] + 1.0).mul(127.5).round()
    lengths = batch.token_mask.sum(dim=1)
    return {
        "pixels": (images / 127.5 - 1.0).flatten(0, 1).permute(0, 2, 3, 1).contiguous().numpy(),
        "prompt_tokens": torch.where(batch.token_mask, batch.tokens, padding).to(torch.int32).numpy(),
        "prefix_lengths": (cameras * 4 + lengths).to(torch.int32).numpy(),
        "slots": np.arange(slots, dtype=np.int32),
        "state": batch.state.numpy(),
        "x_t": batch.noise.numpy(),
    }


def expected(family: Family, pruning: TokenPruning, batch: PaddedBatch) -> list[InferenceResult]:
    backend = pytorch_backend(family, pruning)
    samples = [batch.sample(index) for index in range(len(batch.noise))]
    return [backend.infer(model_inputs(sample), sample.noise[0].numpy()) for sample in samples]


@pytest.mark.parametrize("name", PRUNINGS)
def test_graphs_select_and_compute_what_the_pytorch_backend_does(name: str) -> None:
    family, pruning = PRUNINGS[name]
    for cameras, lengths in ((1, [5]), (2, [12, 1, 7]), (3, [9, 4])):
        batch = batch_of(cameras, lengths)
        inputs = graph_inputs(batch, cameras, pruning.slots(4 * cameras))
        outputs = runner(family, pruning).outputs(inputs)
        results = expected(family, pruning, batch)
        tokens = [(result.pruned.kept, result.pruned.voted) for result in results if result.pruned]
        assert outputs["selected"].tolist() == [list(pair) for pair in tokens]
        actions = np.stack([result.actions for result in results])
        np.testing.assert_allclose(outputs["x_path"][-1], actions, rtol=0, atol=1e-4)
        again = runner(family, pruning).outputs(inputs)
        np.testing.assert_array_equal(again["x_path"], outputs["x_path"])


def test_keeping_all_tokens_gives_the_bits_of_the_unpruned_graphs() -> None:
    pruning = TokenPruning(keep_ratio=1.0)
    for cameras, lengths in ((1, [5]), (3, [12, 4])):
        inputs = graph_inputs(batch_of(cameras, lengths), cameras, 4 * cameras)
        plain, kept = (runner("pi05", each).path(inputs) for each in (None, pruning))
        np.testing.assert_array_equal(plain, kept)


def test_padding_changes_no_bit() -> None:
    (family, pruning), batch = PRUNINGS["union original"], batch_of(2, [5, 3])
    zeros, others = (
        runner(family, pruning).outputs(graph_inputs(batch, 2, 5, padding)) for padding in (0, 63)
    )
    np.testing.assert_array_equal(zeros["selected"], others["selected"])
    np.testing.assert_array_equal(zeros["x_path"], others["x_path"])


def test_a_dropped_mask_and_a_wrong_position_would_be_noticed() -> None:
    (family, pruning), batch = PRUNINGS["union original"], batch_of(3, [5])
    run = runner(family, pruning)
    outputs = run.outputs(graph_inputs(batch, 3, 5))
    assert outputs["selected"][0, 0] < 5
    step = {**outputs, "step": np.array([0], np.int32)}
    right = run.run("denoise", step)["x_next"]
    for name, length in (("visible_lengths", 12 + 5), ("prefix_lengths", 5 + 5)):
        wrong = run.run("denoise", {**step, name: np.array([length], np.int32)})["x_next"]
        assert np.abs(wrong - right).max() > 1e-3


@pytest.mark.parametrize("name", PRUNINGS)
def test_tensorrt_86_knows_every_operator(name: str) -> None:
    more = {"And", "Greater", "Not", "Or", "ReduceMax", "ReduceMin", "ReduceSum", "Round"}
    for component in COMPONENTS:
        model = onnx.load(bundle(*PRUNINGS[name]).path(component), load_external_data=False)
        allowed = TENSORRT_86_OPERATORS | (more if component == "prefix" else set())
        assert {node.op_type for node in model.graph.node} <= allowed


def test_the_selection_is_computed_in_float32_whatever_the_precision() -> None:
    config, form = (
        tiny_config("pi05"),
        GraphForm(2, "bfloat16", "bfloat16", "bfloat16", pruning=TokenPruning(5)),
    )
    with tempfile.TemporaryDirectory() as folder:
        exported = export_bundle(config, random_weights(config), form, pathlib.Path(folder))
        model = onnx.load(exported.path("prefix"), load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    scored = [node for node in model.graph.node if node.op_type in ("ReduceMax", "Round")]
    assert scored
    assert {types[node.input[0]] for node in scored} == {onnx.TensorProto.FLOAT}
    # TensorRT 8.6 reduces floats only.
    reduced = [node for node in model.graph.node if node.op_type.startswith("Reduce")]
    assert {types[node.input[0]] for node in reduced} == {onnx.TensorProto.FLOAT}


def test_what_is_kept_is_a_part_of_form_digest_and_shapes() -> None:
    config = tiny_config("pi05")
    five, other = (bundle(*PRUNINGS[name]) for name in ("fixed original", "union compact"))
    assert read_bundle(five.folder).form == five.form
    assert five.form.to_json()["pruning"]["keep_tokens"] == 5
    assert "pruning" not in bundle("pi05", None).form.to_json()
    assert five.graphs["prefix"].graph_digest != other.graphs["prefix"].graph_digest
    shapes = [
        input_shapes("prefix", config, GraphForm(STEPS, pruning=TokenPruning(slots)), ShapeKey(1, 2, 8))
        for slots in (5, 6, 999)
    ]
    assert [each["slots"] for each in shapes] == [(5,), (6,), (8,)]
