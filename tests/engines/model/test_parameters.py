"""Names, shapes and dtypes of the parameters."""

from __future__ import annotations

import re

import pytest
import torch

from tests.support.tiny_networks import padded_batch, random_weights, tiny_config
from vlad_configs.errors import CheckpointError, ConfigError
from vlad_configs.models import Family, ModelConfig
from vlad_engines.model import openpi_names
from vlad_engines.model.pi0 import Pi0
from vlad_engines.model.precision import parameter_dtype

FAMILIES: tuple[Family, ...] = ("pi0", "pi05")


@pytest.mark.parametrize("config", [*map(tiny_config, FAMILIES), *map(ModelConfig, FAMILIES)], ids=repr)
def test_expected_tensors_are_the_parameters_of_the_network(config: ModelConfig) -> None:
    with torch.device("meta"):
        parameters = Pi0(config).state_dict()
    shapes = {openpi_names.openpi_name(name): tuple(tensor.shape) for name, tensor in parameters.items()}
    expected = openpi_names.expected_tensors(config)
    assert shapes == expected
    for name in expected:
        assert openpi_names.openpi_name(openpi_names.parameter_name(name)) == name


@pytest.mark.parametrize("family", FAMILIES)
def test_full_size_networks_have_as_many_tensors_as_the_files_of_openpi(family: Family) -> None:
    files = {"pi0": 777, "pi05": 812}  # the unused head of the expert is in them
    assert len(openpi_names.expected_tensors(ModelConfig(family))) == files[family] - 1


@pytest.mark.parametrize(
    "name",
    [openpi_names.TIED_LM_HEAD, openpi_names.UNUSED_EXPERT_LM_HEAD, "model.action_in_proj.weight", ""],
)
def test_other_names_have_no_parameter(name: str) -> None:
    with pytest.raises(KeyError):
        openpi_names.parameter_name(name)


def test_all_faults_of_weights_are_listed() -> None:
    config = tiny_config("pi05")
    weights = random_weights(config)
    del weights["time_mlp_in.bias"]
    weights["state_proj.weight"] = torch.zeros(1)
    weights["action_out_proj.bias"] = torch.zeros(99)
    with pytest.raises(CheckpointError) as refusal:
        Pi0.from_openpi_weights(config, weights)
    text = str(refusal.value)
    assert "missing time_mlp_in.bias" in text
    assert "unexpected state_proj.weight" in text
    assert "action_out_proj.bias has shape (99,), expected (6,)" in text


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_keeps_norms_patches_and_heads_in_float32(family: Family) -> None:
    config = tiny_config(family)
    model = Pi0.from_openpi_weights(config, random_weights(config), "bf16")
    matrices = r"(self_attn|mlp)\.\w+\.(weight|bias)$|^vision_tower\..*norm|^projector\.|^token_embedding\."
    for name, parameter in model.named_parameters():
        expected = torch.bfloat16 if re.search(matrices, name) else torch.float32
        assert parameter.dtype == expected, name
    assert model.rope_cos.dtype == model.rope_sin.dtype == torch.float32


def test_converting_a_network_equals_building_it_in_that_precision() -> None:
    config = tiny_config("pi05")
    batch = padded_batch(config, [[True, True, False]], [6])
    built = Pi0.from_openpi_weights(config, random_weights(config), "bf16")
    converted = Pi0.from_openpi_weights(config, random_weights(config)).to_precision("bf16")
    actions = built.sample_actions(batch.observation(), batch.noise)
    assert torch.equal(actions, converted.sample_actions(batch.observation(), batch.noise))
    back = converted.to_precision("fp32")
    assert {parameter.dtype for parameter in back.parameters()} == {torch.float32}
    full = back.sample_actions(batch.observation(), batch.noise)
    assert not torch.equal(full, actions)
    torch.testing.assert_close(full, actions, rtol=0, atol=0.1)


def test_float16_and_bfloat16_files_load_into_the_dtypes_of_the_precision() -> None:
    config = tiny_config("pi0")
    weights = {name: weight.bfloat16() for name, weight in random_weights(config).items()}
    model = Pi0.from_openpi_weights(config, weights, "fp32")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.state_proj.weight, weights["state_proj.weight"].float())


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fp32' or 'bf16', not 'fp16'"):
        parameter_dtype(openpi_names.TOKEN_EMBEDDING, "fp16")  # type: ignore[arg-type]


def test_weights_made_in_inference_mode_are_welcome() -> None:
    config = tiny_config("pi05")
    with torch.inference_mode():
        weights = random_weights(config)
    model = Pi0.from_openpi_weights(config, weights)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    batch = padded_batch(config, [[True, True, False]], [6])
    assert model.sample_actions(batch.observation(), batch.noise).isfinite().all()
