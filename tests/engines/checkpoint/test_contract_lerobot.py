from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.checkpoints import (
    lerobot_config,
    lerobot_pipelines,
    small_model,
    small_tensors,
    stats_for,
    write_json,
    write_lerobot,
)
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import CheckpointError
from vlad_configs.models import Family, ModelConfig
from vlad_engines.checkpoint.contract import derive_contract
from vlad_engines.checkpoint.detect import CheckpointFiles
from vlad_engines.checkpoint.header import SafetensorsHeader, TensorHeader
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint
from vlad_engines.checkpoint.tensor_names import resolve_names
from vlad_engines.model.openpi_names import expected_tensors

PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"

Change = Callable[[dict[str, Any]], None]


def write(
    directory: pathlib.Path,
    family: Family = "pi05",
    environment: str = "LIBERO",
    *,
    cameras: tuple[str, ...] = ("image", "image2"),
    relative: dict[str, Any] | None = None,
    **config: Any,
) -> pathlib.Path:
    robot, model = ENVIRONMENTS[environment], small_model(family)
    content = {**lerobot_config(model, robot, cameras), **config}
    return write_lerobot(directory, content, small_tensors(model), stats=stats_for(robot), relative=relative)


def edit(path: pathlib.Path, change: Change) -> None:
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def refusal(directory: pathlib.Path, environment: str = "LIBERO") -> str:
    with pytest.raises(CheckpointError) as caught:
        open_policy_checkpoint(directory, environment=environment)
    return str(caught.value)


def test_pi05_writes_the_state_into_the_prompt_and_uses_quantiles(tmp_path: pathlib.Path) -> None:
    contract = open_policy_checkpoint(write(tmp_path, "pi05", num_inference_steps=5)).contract
    assert contract.layout == "lerobot"
    assert (contract.prompt_template, contract.prompt_state_dims) == ("task_state_action", 8)
    assert contract.norm_kind == {"state": "quantile", "actions": "quantile"}
    assert (contract.norm_formula, contract.image_resize) == ("lerobot", "bilinear")
    assert contract.num_denoising_steps == 5
    assert contract.sources["num_denoising_steps"] == "config.json: num_inference_steps"
    assert contract.delta_mask is None


def test_pi0_ends_the_raw_text_with_a_newline_and_uses_zscores(tmp_path: pathlib.Path) -> None:
    contract = open_policy_checkpoint(write(tmp_path, "pi0")).contract
    assert (contract.prompt_template, contract.prompt_state_dims) == ("text_newline_joint", None)
    assert contract.norm_kind == {"state": "zscore", "actions": "zscore"}


def test_the_robots_own_joint_convention_is_kept(tmp_path: pathlib.Path) -> None:
    directory = write(tmp_path, "pi0", "ALOHA", cameras=("cam_high", "cam_left_wrist", "cam_right_wrist"))
    assert open_policy_checkpoint(directory, environment="ALOHA").contract.environment.conversion == "none"


def test_the_published_size_needs_no_model_of_ours(tmp_path: pathlib.Path) -> None:
    """A `config.json` as LeRobot writes it: defaults left out, no head counts anywhere."""
    robot, model = ENVIRONMENTS["LIBERO"], ModelConfig("pi05", max_token_len=200)
    config = lerobot_config(model, robot)
    for defaulted in ("model", "chunk_size", "num_inference_steps", "tokenizer_max_length"):
        del config[defaulted]
    for name, pipeline in lerobot_pipelines({**config, "tokenizer_max_length": 200}).items():
        write_json(tmp_path / f"{name}.json", pipeline)
    tensors = {f"model.{name}": TensorHeader(shape, "F32") for name, shape in expected_tensors(model).items()}
    header = SafetensorsHeader(tmp_path / "model.safetensors", tensors, {}, 0)
    files = CheckpointFiles(tmp_path, "lerobot", config, header)
    contract, named = derive_contract(files, resolve_names(files))
    assert named is None
    assert contract.model == model
    assert contract.sources["action_horizon"] == "LeRobot default of chunk_size"


def test_relative_actions_become_a_delta_mask(tmp_path: pathlib.Path) -> None:
    names = ["x", "y", "z", "roll", "pitch", "yaw", "Gripper_position"]
    relative = {"enabled": True, "exclude_joints": ["gripper"], "action_names": names}
    contract = open_policy_checkpoint(write(tmp_path / "named", relative=relative)).contract
    assert contract.delta_mask == (True,) * 6 + (False,)
    unnamed = {**relative, "action_names": None}
    contract = open_policy_checkpoint(write(tmp_path / "unnamed", relative=unnamed)).contract
    assert contract.delta_mask == (True,) * 7


def test_pipelines_that_disagree_on_relative_actions_are_refused(tmp_path: pathlib.Path) -> None:
    directory = write(tmp_path)
    edit(directory / POST, lambda content: content["steps"][1]["config"].update(enabled=True))
    assert "disagree on relative actions" in refusal(directory)


def test_cameras_are_paired_in_order_and_empty_ones_skipped(tmp_path: pathlib.Path) -> None:
    directory = write(tmp_path, cameras=("top", "empty_camera_0", "hand", "spare"))
    source = open_policy_checkpoint(directory).contract.sources["cameras"]
    assert source == "in order: top = observation/image, hand = observation/wrist_image; without image: spare"


def test_a_camera_order_that_names_contradict_is_refused(tmp_path: pathlib.Path) -> None:
    message = refusal(write(tmp_path, cameras=("wrist_image", "image")))
    assert "camera order wrist_image, image contradicts that of LIBERO" in message


def test_too_few_cameras_are_refused(tmp_path: pathlib.Path) -> None:
    message = refusal(write(tmp_path, cameras=("image",)))
    assert "knows the cameras image; LIBERO sends observation/image, observation/wrist_image" in message


def test_another_robots_widths_are_refused(tmp_path: pathlib.Path) -> None:
    assert "'observation.state' has 8 numbers, ALOHA has 14" in refusal(write(tmp_path), "ALOHA")
    assert "'action' has 7 numbers, DROID has 8" in refusal(tmp_path, "DROID")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_period", 0.01),
        ("max_period", 1.0),
        ("image_resolution", [448, 448]),
        ("use_visual_memory", True),
        ("use_proprioceptive_memory", True),
    ],
)
def test_variants_of_the_network_are_refused(tmp_path: pathlib.Path, field: str, value: Any) -> None:
    message = refusal(write(tmp_path, **{field: value}))
    assert f"unsupported {field} = {value!r}" in message


@pytest.mark.parametrize("field", ["chunk_size", "num_inference_steps", "tokenizer_max_length"])
@pytest.mark.parametrize("value", [0, -1, "10", True, None])
def test_numbers_that_are_none_are_refused(tmp_path: pathlib.Path, field: str, value: Any) -> None:
    directory = write(tmp_path)
    edit(directory / "config.json", lambda content: content.update({field: value}))
    assert f"{field} must be a positive integer" in refusal(directory)


def test_a_vector_feature_that_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    directory = write(tmp_path)
    edit(directory / "config.json", lambda content: content["output_features"].clear())
    assert "output_features has no vector 'action'; present: none" in refusal(directory)


@pytest.mark.parametrize("name", [PRE, POST])
def test_a_missing_pipeline_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    (write(tmp_path) / name).unlink()
    assert f"has no {name}" in refusal(tmp_path)


@pytest.mark.parametrize("name", [PRE, POST])
def test_an_unknown_processing_step_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    edit(write(tmp_path) / name, lambda content: content["steps"].append({"registry_name": "blur_processor"}))
    assert "not supported: blur_processor" in refusal(tmp_path)


def test_a_pipeline_without_a_prompt_step_is_refused(tmp_path: pathlib.Path) -> None:
    edit(write(tmp_path) / PRE, lambda content: content["steps"].pop(4))
    assert "none of the steps that write a prompt" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", [[], {}, {"steps": [{}]}, {"steps": 3}, {"steps": ["normalizer_processor"]}]
)
def test_an_unreadable_pipeline_is_refused(tmp_path: pathlib.Path, content: Any) -> None:
    write_json(write(tmp_path) / PRE, content)
    assert PRE in refusal(tmp_path)


def test_an_unsupported_normalisation_is_refused(tmp_path: pathlib.Path) -> None:
    directory = write(tmp_path)
    edit(directory / PRE, lambda content: content["steps"][3]["config"]["norm_map"].update(STATE="MIN_MAX"))
    assert "normalisation mode 'MIN_MAX' for STATE" in refusal(directory)


def test_the_pipeline_decides_the_normalisation_not_config_json(tmp_path: pathlib.Path) -> None:
    directory = write(tmp_path)
    edit(directory / "config.json", lambda content: content["normalization_mapping"].update(STATE="MEAN_STD"))
    contract = open_policy_checkpoint(directory).contract
    assert contract.norm_kind["state"] == "quantile"
    assert "normalizer_processor: norm_map" in contract.sources["norm_kind"]


def test_a_named_configuration_only_names_the_robot(tmp_path: pathlib.Path) -> None:
    checkpoint = open_policy_checkpoint(write(tmp_path), config="pi05_libero")
    assert checkpoint.openpi_config is None
    assert checkpoint.contract.prompt_template == "task_state_action"
    with pytest.raises(CheckpointError, match="holds a pi05 model, but 'pi0_libero' is pi0"):
        open_policy_checkpoint(tmp_path, config="pi0_libero")


@pytest.mark.parametrize(("written", "delay"), [({}, None), ({"rtc_training_max_delay": 0}, None)])
def test_checkpoints_are_not_trained_for_delays_unless_they_say_so(
    written: dict[str, Any], delay: int | None, tmp_path: pathlib.Path
) -> None:
    assert open_policy_checkpoint(write(tmp_path, **written)).contract.trained_max_delay is delay


def test_the_longest_trained_delay_is_read_with_its_source(tmp_path: pathlib.Path) -> None:
    contract = open_policy_checkpoint(write(tmp_path, rtc_training_max_delay=3)).contract
    assert contract.trained_max_delay == 3
    assert contract.sources["trained_max_delay"] == "config.json: rtc_training_max_delay"


@pytest.mark.parametrize("delay", [-1, 6, True, "3", 2.0])
def test_a_trained_delay_that_is_none_is_refused(delay: Any, tmp_path: pathlib.Path) -> None:
    assert "rtc_training_max_delay must be an integer in 0..5" in refusal(
        write(tmp_path, rtc_training_max_delay=delay)
    )
