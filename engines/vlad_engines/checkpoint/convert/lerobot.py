"""Between LeRobot's layout and openpi's.

The weights stay what they are; only names, statistics and descriptions change. What the two layouts do
differently stays different too: openpi adds 1e-6 to every span where LeRobot adds nothing, and shrinks
pictures with antialiasing where LeRobot does not.
"""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vlad_configs.contract import Contract
from vlad_configs.errors import CheckpointError
from vlad_configs.models import GEMMA_VARIANTS, IMAGE_SIZE
from vlad_configs.openpi_configs import openpi_config
from vlad_engines.checkpoint import lerobot_config
from vlad_engines.checkpoint.convert.writing import (
    Dtype,
    new_directory,
    write_json,
    write_openpi_files,
    write_weights,
)
from vlad_engines.checkpoint.detect import CONFIG_FILE, LEROBOT_PREFIX
from vlad_engines.checkpoint.loader import LazyWeights
from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint, open_policy_checkpoint
from vlad_engines.checkpoint.trained_delay import FIELD as TRAINED_DELAY
from vlad_engines.processing.normalization import NormStats

_NORM_MODES = {"zscore": "MEAN_STD", "quantile": "QUANTILES"}
_ABSOLUTE = "absolute"


def lerobot_to_openpi(checkpoint: PolicyCheckpoint, output: pathlib.Path, config: str, dtype: Dtype) -> None:
    """Write an openpi directory.

    Args:
        checkpoint: a LeRobot one.
        config: openpi configuration under which it will be served; it must mean the same.

    Raises:
        ConfigError: for an unknown configuration.
        CheckpointError: where the configuration means something else than the checkpoint.
    """
    contract, named = checkpoint.contract, openpi_config(config)
    wanted = {
        "family": (contract.model.family, named.family),
        "robot": (_robot(contract.environment.name), _robot(named.environment)),
        "state in the prompt": (
            contract.prompt_template == "task_state_action",
            named.discrete_state_input,
        ),
        "relative actions": (_columns(contract.delta_mask), _columns(named.delta_mask)),
        "normalisation": (
            set(contract.norm_kind.values()),
            {"zscore" if named.family == "pi0" else "quantile"},
        ),
    }
    _refuse_aloha(contract)
    if different := [
        f"{what}: {ours}, not {theirs}" for what, (ours, theirs) in wanted.items() if ours != theirs
    ]:
        raise CheckpointError(
            f"{checkpoint.files.path} cannot be served as '{config}': " + "; ".join(different)
        )
    content: dict[str, Any] = {"model": contract.model.to_json(), "openpi_config": config}
    content["num_denoising_steps"] = contract.num_denoising_steps
    if contract.trained_max_delay:
        content[TRAINED_DELAY] = contract.trained_max_delay
    with new_directory(output) as directory:
        write_weights(directory, LazyWeights(checkpoint.files, checkpoint.names).items(), dtype)
        write_openpi_files(directory, content, named.asset_id, checkpoint.norm_stats, checkpoint.tokenizer)
        open_policy_checkpoint(directory)


def openpi_to_lerobot(checkpoint: PolicyCheckpoint, output: pathlib.Path, dtype: Dtype) -> None:
    """Write a LeRobot directory: weights, `config.json`, both processor pipelines and their statistics.

    Raises:
        CheckpointError: for a checkpoint that LeRobot's pipelines cannot express.
    """
    contract = checkpoint.contract
    _refuse_aloha(contract)
    if contract.model.family == "pi05" and contract.prompt_template != "task_state_action":
        raise CheckpointError(
            f"{checkpoint.files.path} has no state in its prompt ({checkpoint.openpi_config}); "
            "LeRobot's pi05 always writes it there"
        )
    if (side := contract.model.siglip.image_size) != IMAGE_SIZE:
        raise CheckpointError(
            f"{checkpoint.files.path} looks at images of {side} pixels; LeRobot's networks want {IMAGE_SIZE}"
        )
    config = _config(contract)
    with new_directory(output) as directory:
        weights = LazyWeights(checkpoint.files, checkpoint.names)
        write_weights(directory, weights.items(), dtype, LEROBOT_PREFIX)
        write_json(directory / CONFIG_FILE, config)
        for file, pipeline in _pipelines(contract, config).items():
            write_json(directory / file, {"name": file.removesuffix(".json"), "steps": pipeline})
            for step in pipeline:
                if "state_file" in step:
                    save_file(_flat(checkpoint.norm_stats), directory / step["state_file"])
        (directory / "tokenizer").mkdir()
        shutil.copyfile(checkpoint.tokenizer, directory / "tokenizer" / "tokenizer.model")
        open_policy_checkpoint(directory, environment=contract.environment.name)


def _config(contract: Contract) -> dict[str, Any]:
    model, robot = contract.model, contract.environment
    modes = {name: _NORM_MODES[kind] for name, kind in contract.norm_kind.items()}
    images = {
        lerobot_config.IMAGE_PREFIX + camera.key.rpartition("/")[2]: {
            "type": "VISUAL",
            "shape": [3, IMAGE_SIZE, IMAGE_SIZE],
        }
        for camera in robot.cameras
        if camera.slot is not None
    }
    # LeRobot knows networks by the names of their parts; others can only be served from here.
    variants = {
        key: name
        for key, gemma in (("paligemma_variant", model.vlm), ("action_expert_variant", model.expert))
        for name, known in GEMMA_VARIANTS.items()
        if gemma == known
    }
    return {
        "type": model.family,
        **variants,
        "input_features": {
            **images,
            lerobot_config.STATE: {"type": "STATE", "shape": [robot.state_width]},
        },
        "output_features": {lerobot_config.ACTION: {"type": "ACTION", "shape": [robot.action_width]}},
        "chunk_size": model.action_horizon,
        "n_action_steps": model.action_horizon,
        "max_state_dim": model.action_dim,
        "max_action_dim": model.action_dim,
        "num_inference_steps": contract.num_denoising_steps,
        "tokenizer_max_length": model.max_token_len,
        "normalization_mapping": {
            "VISUAL": "IDENTITY",
            "STATE": modes["state"],
            "ACTION": modes["actions"],
        },
        TRAINED_DELAY: contract.trained_max_delay or 0,
        "model": model.to_json(),
    }


def _pipelines(contract: Contract, config: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    family, mask = contract.model.family, contract.delta_mask
    norm = {"eps": 1e-8, "features": {}, "norm_map": config["normalization_mapping"]}
    names = None
    if mask is not None:
        # A column is absolute where its name holds that of an excluded joint.
        names = [f"{'relative' if relative else _ABSOLUTE}_{index}" for index, relative in enumerate(mask)]
        names += [f"{_ABSOLUTE}_{index}" for index in range(len(mask), contract.environment.action_width)]
    relative = _step(
        "relative_actions_processor",
        {"enabled": mask is not None, "exclude_joints": [_ABSOLUTE], "action_names": names},
    )
    tokenize = _step(
        "tokenizer_processor",
        {"max_length": config["tokenizer_max_length"], "tokenizer_name": "tokenizer"},
    )
    device = _step("device_processor", {"device": "cpu"})
    rename = _step("rename_observations_processor", {"rename_map": {}})
    batch = _step("to_batch_processor", {})
    normalize = _step("normalizer_processor", norm)
    if family == "pi05":
        prepare = _step("pi05_prepare_state_tokenizer_processor_step", {})
        before = [rename, batch, relative, normalize, prepare, tokenize, device]
    else:
        newline = _step("pi0_new_line_processor", {})
        before = [rename, batch, newline, tokenize, device, relative, normalize]
    index = before.index(normalize)
    normalize["state_file"] = f"policy_preprocessor_step_{index}_normalizer_processor.safetensors"
    undo = _step("unnormalizer_processor", norm)
    undo["state_file"] = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    absolute = _step("absolute_actions_processor", {"enabled": mask is not None})
    return {
        lerobot_config.PREPROCESSOR: before,
        lerobot_config.POSTPROCESSOR: [undo, absolute, device],
    }


def _step(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"registry_name": name, "config": config}


def _flat(stats: NormStats) -> dict[str, Any]:
    features = {lerobot_config.STATE: stats.state, lerobot_config.ACTION: stats.actions}
    return {
        f"{feature}.{name}": getattr(values, name).astype(np.float32)
        for feature, values in features.items()
        for name in values.present
    }


def _columns(mask: tuple[bool, ...] | None) -> list[int]:
    return [index for index, relative in enumerate(mask or ()) if relative]


def _robot(environment: str) -> str:
    return environment.partition("_")[0]


def _refuse_aloha(contract: Contract) -> None:
    if _robot(contract.environment.name) == "ALOHA":
        raise CheckpointError(
            "openpi turns ALOHA's joints around and LeRobot does not; these layouts cannot be converted"
        )
