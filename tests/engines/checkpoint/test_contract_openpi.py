from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from tests.support.checkpoints import small_model, write_json, write_libero
from vlad_configs.contract import Contract
from vlad_configs.errors import CheckpointError, ConfigError
from vlad_configs.models import ModelConfig
from vlad_engines.checkpoint.contract import contract_warnings, derive_contract
from vlad_engines.checkpoint.detect import CheckpointFiles
from vlad_engines.checkpoint.header import SafetensorsHeader, TensorHeader
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint
from vlad_engines.checkpoint.tensor_names import resolve_names
from vlad_engines.model.openpi_names import expected_tensors


def published(family: Any = "pi05", **config: Any) -> CheckpointFiles:
    """A full-size file as openpi's converter leaves it: no complete model in config.json."""
    model = ModelConfig(family=family)
    tensors = {name: TensorHeader(shape, "BF16") for name, shape in expected_tensors(model).items()}
    path = pathlib.Path("checkpoint")
    return CheckpointFiles(
        path, "openpi", config, SafetensorsHeader(path / "model.safetensors", tensors, {}, 0)
    )


def derive(files: CheckpointFiles, environment: str | None = None, config: str | None = None) -> Contract:
    return derive_contract(files, resolve_names(files), environment, config)[0]


def test_a_named_configuration_decides_the_horizon() -> None:
    contract = derive(published(action_horizon=50), "DROID", "pi05_droid")
    assert contract.model.action_horizon == 15
    assert contract.sources["action_horizon"] == "named configuration pi05_droid (config.json says 50)"


def test_else_config_json_decides_the_horizon() -> None:
    contract = derive(published(action_horizon=50), "DROID")
    assert contract.model.action_horizon == 50
    assert contract.sources["action_horizon"] == "config.json: action_horizon"


def test_else_the_environments_default_decides_the_horizon() -> None:
    contract = derive(published(), "DROID")
    assert contract.model.action_horizon == 15
    assert contract.sources["action_horizon"] == "default configuration of DROID: pi05_droid"


def test_a_family_that_the_default_contradicts_asks_for_a_name() -> None:
    with pytest.raises(CheckpointError, match=r"holds a pi0 model.*pi05_libero.*one of pi0_libero") as caught:
        derive(published("pi0"), "LIBERO")
    assert "droid" not in str(caught.value)


def test_a_named_configuration_of_another_family_is_refused() -> None:
    with pytest.raises(CheckpointError, match="holds a pi05 model, but 'pi0_droid'"):
        derive(published(), "DROID", "pi0_droid")


def test_a_configuration_of_another_robot_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"LIBERO contradicts 'pi05_droid'.*drives DROID"):
        derive(published(), "LIBERO", "pi05_droid")


def test_both_aloha_environments_serve_each_others_configurations() -> None:
    contract = derive(published("pi0"), "ALOHA", "pi0_aloha_sim")
    assert contract.environment.name == "ALOHA"
    assert contract.default_prompt == "Transfer cube"


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown environment 'libero'; known: ALOHA"):
        derive(published(), "libero")
    with pytest.raises(ConfigError, match="'pi05_liber' not found; did you mean 'pi05_libero'"):
        derive(published(), None, "pi05_liber")


def test_the_configurations_robot_is_used_where_none_is_named() -> None:
    assert derive(published(), None, "pi05_droid").environment.name == "DROID"
    assert derive(published()).environment.name == "LIBERO"


def test_action_width_that_contradicts_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"config\.json .* says action_dim 14, action_in_proj\.weight has 32"
    ):
        derive(published(action_dim=14))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"paligemma_variant": "gemma_7b"}, "unknown paligemma_variant 'gemma_7b'; known: dummy, gemma_300m"),
        ({"action_horizon": "ten"}, "action_horizon must be a positive integer, not 'ten'"),
        ({"num_denoising_steps": 0}, "num_denoising_steps must be a positive integer, not 0"),
        ({"openpi_config": "mine"}, "unknown openpi_config 'mine'"),
        ({"model": {"family": "pi05"}}, "unreadable model configuration"),
        ({"model": ModelConfig("pi0").to_json()}, "describes a pi0 model, its tensors are of pi05"),
    ],
)
def test_a_contradictory_config_json_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        derive(published(**config))


def test_lora_names_are_read_as_their_base_and_warned_about() -> None:
    files = published("pi0", paligemma_variant="gemma_2b_lora", action_expert_variant="gemma_300m_lora")
    assert derive(files, config="pi0_libero_low_mem_finetune").model.vlm.width == 2048
    assert "gemma_2b_lora and gemma_300m_lora" in contract_warnings(files)[0]


def test_a_tower_of_unpublished_width_needs_the_complete_model(tmp_path: pathlib.Path) -> None:
    directory = write_libero(tmp_path)
    write_json(directory / "config.json", {"openpi_config": "pi05_libero"})
    with pytest.raises(CheckpointError, match=r"width 16 is no published SigLIP.*complete 'model'"):
        open_policy_checkpoint(directory)


def test_the_complete_model_wins_over_the_named_configuration(tmp_path: pathlib.Path) -> None:
    contract = open_policy_checkpoint(write_libero(tmp_path), config="pi05_libero").contract
    assert contract.model == small_model()
    assert contract.sources["action_horizon"] == "config.json: model"


def test_the_complete_model_is_held_against_the_tensors(tmp_path: pathlib.Path) -> None:
    directory = write_libero(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    config["model"]["expert"]["mlp_dim"] = 99
    write_json(directory / "config.json", config)
    with pytest.raises(CheckpointError, match=r"gate_proj.weight: expected \[99, 16\], found \[24, 16\]"):
        open_policy_checkpoint(directory)


def test_every_field_of_the_contract_names_its_source() -> None:
    contract = derive(published(), "ALOHA")
    fields = {
        *("layout", "environment", "model", "num_denoising_steps", "prompt_template", "prompt_state_dims"),
        *("norm_kind", "norm_formula", "delta_mask", "image_resize", "default_prompt", "metadata"),
        *("family", "action_horizon", "action_dim", "max_token_len", "cameras", "conversion"),
        "trained_max_delay",
    }
    assert {name for name, source in contract.sources.items() if source} == fields


def test_a_checkpoint_may_name_its_steps() -> None:
    assert derive(published()).num_denoising_steps == 10
    assert derive(published(num_denoising_steps=3)).num_denoising_steps == 3
