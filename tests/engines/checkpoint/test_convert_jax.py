"""JAX checkpoints: written as orbax lays them out, converted, and every number found where it belongs."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from tests.support.checkpoints import TOKENIZER, small_model, small_tensors, stats_for
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import CheckpointError
from vlad_configs.models import Family, ModelConfig
from vlad_engines.checkpoint.convert.from_jax import convert_jax
from vlad_engines.checkpoint.convert.jax_arrays import JaxArrays
from vlad_engines.checkpoint.convert.jax_names import jax_arrays, jax_model, openpi_tensors
from vlad_engines.checkpoint.loader import LazyWeights
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint
from vlad_engines.model.openpi_names import TIED_LM_HEAD, TOKEN_EMBEDDING

ts = pytest.importorskip("tensorstore")

ASSETS = "physical-intelligence/libero"


def tensors_of(model: ModelConfig) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    tensors = small_tensors(model)
    tensors[TOKEN_EMBEDDING] = tensors.pop(TIED_LM_HEAD)
    return tensors


def write_orbax(
    directory: pathlib.Path,
    arrays: dict[str, np.ndarray],  # type: ignore[type-arg]
    *,
    ocdbt: bool = True,
    wrapped: bool = True,
) -> pathlib.Path:
    """Write a checkpoint in orbax' layout; `wrapped`: paths end in `value`, as in training runs."""
    params = directory / "params"
    params.mkdir(parents=True)
    (params / "_METADATA").write_text(json.dumps({"use_ocdbt": ocdbt}))
    for name, array in arrays.items():
        leaf = ".".join(["params", *name.split("/"), *(["value"] if wrapped else [])])
        base = {"driver": "ocdbt", "base": f"file://{params}/", "path": f"{leaf}/"}
        kvstore = base if ocdbt else {"driver": "file", "path": f"{params}/{leaf}/"}
        spec = {
            "driver": "zarr",
            "kvstore": kvstore,
            "metadata": {"dtype": "<f4", "shape": list(array.shape), "chunks": list(array.shape)},
        }
        ts.open(spec, create=True).result().write(np.ascontiguousarray(array)).result()
    assets = directory / "assets" / ASSETS
    assets.mkdir(parents=True)
    (assets / "norm_stats.json").write_text(json.dumps({"norm_stats": stats_for(ENVIRONMENTS["LIBERO"])}))
    return directory


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_a_converted_checkpoint_has_every_tensor_and_can_be_opened(
    tmp_path: pathlib.Path, family: Family, ocdbt: bool
) -> None:
    model = small_model(family, action_horizon=10 if family == "pi05" else 50)
    tensors = tensors_of(model)
    source = write_orbax(tmp_path / "jax", jax_arrays(tensors, model), ocdbt=ocdbt, wrapped=ocdbt)
    convert_jax(source, tmp_path / "out", f"{family}_libero", dtype="fp32", tokenizer=TOKENIZER)
    checkpoint = open_policy_checkpoint(tmp_path / "out")
    assert checkpoint.contract.model == model
    weights = LazyWeights(checkpoint.files, checkpoint.names)
    assert set(weights) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(weights[name].numpy(), tensor, err_msg=name)
    assert checkpoint.norm_stats.state.width == 8


def test_shapes_tell_the_network(tmp_path: pathlib.Path) -> None:
    model = small_model("pi05", action_horizon=10)
    arrays = JaxArrays(write_orbax(tmp_path / "jax", jax_arrays(tensors_of(model), model)))
    assert jax_model(arrays, 10, 200) == model


def test_lora_factors_are_merged(tmp_path: pathlib.Path) -> None:
    model = small_model("pi0", action_horizon=50)
    arrays = jax_arrays(tensors_of(model), model)
    random = np.random.default_rng(0)
    depth, heads, width, hd = arrays["PaliGemma/llm/layers/attn/q_einsum/w"].shape
    q, o = "PaliGemma/llm/layers/attn/q_einsum", "PaliGemma/llm/layers/attn/attn_vec_einsum"
    factors = {
        f"{q}/lora_a": random.normal(size=(depth, heads, width, 3)),
        f"{q}/lora_b": random.normal(size=(depth, heads, 3, hd)),
        f"{o}/lora_a": random.normal(size=(depth, heads, hd, 3)),
        f"{o}/lora_b": random.normal(size=(depth, heads, 3, width)),
    }
    with_lora = {**arrays, **{name: value.astype(np.float32) for name, value in factors.items()}}
    source = JaxArrays(write_orbax(tmp_path / "jax", with_lora))
    converted = dict(openpi_tensors(source, model))
    prefix = "paligemma_with_expert.paligemma.model.language_model.layers.1.self_attn."
    a, b = factors[f"{q}/lora_a"][1], factors[f"{q}/lora_b"][1]
    expected = arrays[f"{q}/w"][1] + np.stack([a[head] @ b[head] for head in range(heads)])
    expected = np.concatenate([expected[head].T for head in range(heads)])
    np.testing.assert_allclose(converted[f"{prefix}q_proj.weight"], expected, rtol=1e-5, atol=1e-5)
    a, b = factors[f"{o}/lora_a"][1], factors[f"{o}/lora_b"][1]
    expected = arrays[f"{o}/w"][1] + np.stack([a[head] @ b.sum(0) for head in range(heads)])
    expected = expected.reshape(heads * hd, width).T
    np.testing.assert_allclose(converted[f"{prefix}o_proj.weight"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_tree_of_other_parameters_is_refused_by_name(tmp_path: pathlib.Path, change: str) -> None:
    model = small_model("pi05", action_horizon=10)
    arrays = jax_arrays(tensors_of(model), model)
    if change == "missing":
        del arrays["PaliGemma/llm/final_norm/scale"]
        message = "lacks parameter 'PaliGemma/llm/final_norm/scale'"
    else:
        arrays["memory/kernel"] = np.zeros((2, 2), np.float32)
        message = "1 JAX parameters are not known here: memory/kernel"
    source = write_orbax(tmp_path / "jax", arrays)
    with pytest.raises(CheckpointError, match=message):
        convert_jax(source, tmp_path / "out", "pi05_libero", dtype="fp32", tokenizer=TOKENIZER)
    assert not (tmp_path / "out").exists()


def test_another_family_and_empty_folders_are_refused(tmp_path: pathlib.Path) -> None:
    model = small_model("pi0", action_horizon=50)
    source = write_orbax(tmp_path / "jax", jax_arrays(tensors_of(model), model))
    with pytest.raises(CheckpointError, match="holds a pi0 model, 'pi05_libero' is pi05"):
        convert_jax(source, tmp_path / "out", "pi05_libero", dtype="fp32", tokenizer=TOKENIZER)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no arrays of an orbax checkpoint"):
        JaxArrays(tmp_path / "empty")
