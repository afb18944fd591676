from __future__ import annotations

import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.checkpoints import (
    Tensors,
    lerobot_config,
    small_model,
    small_tensors,
    stats_for,
    write_lerobot,
    write_libero,
)
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import CheckpointError
from vlad_configs.models import Family
from vlad_engines.checkpoint.loader import LazyWeights
from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint, open_policy_checkpoint
from vlad_engines.model.openpi_names import (
    TIED_LM_HEAD,
    TOKEN_EMBEDDING,
    UNUSED_EXPERT_LM_HEAD,
    expected_tensors,
)

EXPERT_LAYER = "paligemma_with_expert.gemma_expert.model.layers.1"


def rewrite(directory: pathlib.Path) -> Tensors:
    """Write a fresh checkpoint and load its tensors, for a test to change and save again."""
    return dict(load_file(write_libero(directory) / "model.safetensors"))


def reopen(directory: pathlib.Path, tensors: Tensors) -> PolicyCheckpoint:
    save_file(tensors, directory / "model.safetensors")
    return open_policy_checkpoint(directory)


def refusal(directory: pathlib.Path, tensors: Tensors) -> str:
    with pytest.raises(CheckpointError) as caught:
        reopen(directory, tensors)
    return str(caught.value)


def test_every_wrong_tensor_is_listed_in_its_group(tmp_path: pathlib.Path) -> None:
    tensors = rewrite(tmp_path)
    gone = ["time_mlp_out.bias", f"{EXPERT_LAYER}.self_attn.q_proj.weight", TIED_LM_HEAD]
    for name in gone:
        del tensors[name]
    tensors["extra.weight"] = tensors["another.bias"] = np.zeros(3, np.float32)
    tensors["action_out_proj.weight"] = np.zeros((32, 17), np.float32)
    tensors["time_mlp_in.bias"] = np.zeros(16, np.int32)
    message = refusal(tmp_path, tensors)
    assert "3 missing, 2 unexpected, 2 of another shape or dtype" in message
    missing, _, rest = message.partition("\nmissing:")[2].partition("\nunexpected:")
    unexpected, _, wrong = rest.partition("\nof another shape or dtype:")
    for name in ("time_mlp_out.bias [16]", f"{EXPERT_LAYER}.self_attn.q_proj.weight [16, 16]"):
        assert name in missing
    assert f"{TOKEN_EMBEDDING} [512, 24] (or {TIED_LM_HEAD})" in missing
    assert unexpected.split() == ["another.bias", "extra.weight"]
    assert "action_out_proj.weight: expected [32, 16], found [32, 17]" in wrong
    assert "time_mlp_in.bias: expected a float dtype, found I32" in wrong


def test_unmerged_lora_weights_are_refused_with_advice(tmp_path: pathlib.Path) -> None:
    tensors = rewrite(tmp_path)
    tensors[f"{EXPERT_LAYER}.self_attn.q_proj.lora_a"] = np.zeros((2, 2), np.float32)
    message = refusal(tmp_path, tensors)
    assert "unmerged LoRA weights" in message
    assert "lora_a" in message


@pytest.mark.parametrize("names", [{TIED_LM_HEAD}, {TOKEN_EMBEDDING}, {TIED_LM_HEAD, TOKEN_EMBEDDING}])
def test_the_token_table_loads_under_either_name_or_both(tmp_path: pathlib.Path, names: set[str]) -> None:
    tensors = rewrite(tmp_path)
    table = tensors.pop(TIED_LM_HEAD)
    tensors.update({name: table.copy() for name in names})
    checkpoint = reopen(tmp_path, tensors)
    weights = LazyWeights(checkpoint.files, checkpoint.names)
    np.testing.assert_array_equal(weights[TOKEN_EMBEDDING].numpy(), table)
    assert set(weights) == set(expected_tensors(checkpoint.contract.model))
    assert len(weights) == len(expected_tensors(checkpoint.contract.model))


def test_two_token_tables_that_differ_are_refused(tmp_path: pathlib.Path) -> None:
    tensors = rewrite(tmp_path)
    tensors[TOKEN_EMBEDDING] = tensors[TIED_LM_HEAD].copy()
    tensors[TOKEN_EMBEDDING][3, 4] += 1
    checkpoint = reopen(tmp_path, tensors)
    with pytest.raises(CheckpointError, match="one tied tensor, but their values differ"):
        LazyWeights(checkpoint.files, checkpoint.names)


def test_two_token_tables_of_different_shapes_are_refused(tmp_path: pathlib.Path) -> None:
    tensors = rewrite(tmp_path)
    tensors[TOKEN_EMBEDDING] = tensors[TIED_LM_HEAD][:-1]
    message = refusal(tmp_path, tensors)
    assert f"{TIED_LM_HEAD}: differs in shape or dtype from its twin {TOKEN_EMBEDDING}" in message


def test_the_unused_expert_head_is_left_out(tmp_path: pathlib.Path) -> None:
    tensors = rewrite(tmp_path)
    tensors[UNUSED_EXPERT_LM_HEAD] = np.zeros((512, 16), np.float32)
    checkpoint = reopen(tmp_path, tensors)
    assert set(checkpoint.names.ignored) == {UNUSED_EXPERT_LM_HEAD}
    assert UNUSED_EXPERT_LM_HEAD not in LazyWeights(checkpoint.files, checkpoint.names)


def lerobot_directory(directory: pathlib.Path, family: Family, tensors: Tensors) -> pathlib.Path:
    model, robot = small_model(family), ENVIRONMENTS["LIBERO"]
    return write_lerobot(directory, lerobot_config(model, robot), tensors, stats=stats_for(robot))


def test_lerobot_repairs_are_applied_to_lerobot_files(tmp_path: pathlib.Path) -> None:
    """What LeRobot's own loader leaves out or renames across families."""
    tensors = small_tensors(small_model("pi05"))
    for part in ("in.weight", "in.bias", "out.weight", "out.bias"):
        tensors[f"action_time_mlp_{part}"] = tensors.pop(f"time_mlp_{part}")
    tensors["state_proj.weight"] = np.zeros((16, 32), np.float32)
    tensors["state_proj.bias"] = np.zeros(16, np.float32)
    tensors[f"{EXPERT_LAYER}.input_layernorm.weight"] = np.zeros(16, np.float32)
    checkpoint = open_policy_checkpoint(lerobot_directory(tmp_path, "pi05", tensors))
    assert set(checkpoint.names.ignored) == {
        "model.state_proj.weight",
        "model.state_proj.bias",
        f"model.{EXPERT_LAYER}.input_layernorm.weight",
    }
    weights = LazyWeights(checkpoint.files, checkpoint.names)
    expected = tensors["action_time_mlp_in.weight"]
    np.testing.assert_array_equal(weights["time_mlp_in.weight"].numpy(), expected)


def test_lerobot_repairs_are_not_applied_to_openpi_files(tmp_path: pathlib.Path) -> None:
    tensors = rewrite(tmp_path)
    tensors["state_proj.weight"] = np.zeros((16, 32), np.float32)
    assert "1 unexpected" in refusal(tmp_path, tensors)


def test_the_memory_variant_of_lerobot_is_refused(tmp_path: pathlib.Path) -> None:
    tensors = small_tensors(small_model("pi05"))
    tensors["proprio_history_proj.weight"] = np.zeros((16, 8), np.float32)
    with pytest.raises(CheckpointError, match="memory variant"):
        open_policy_checkpoint(lerobot_directory(tmp_path, "pi05", tensors))


def test_lerobot_files_without_the_prefix_load_too(tmp_path: pathlib.Path) -> None:
    tensors = small_tensors(small_model("pi05"))
    directory = lerobot_directory(tmp_path, "pi05", tensors)
    save_file(tensors, directory / "model.safetensors")
    checkpoint = open_policy_checkpoint(directory)
    assert checkpoint.files.layout == "lerobot"
    assert set(checkpoint.names.in_file.values()) == set(tensors)
