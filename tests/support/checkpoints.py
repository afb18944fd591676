"""Writes small checkpoints in the layouts of openpi and LeRobot, for tests to load, break and compare."""

from __future__ import annotations

import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from vlad_configs.environments import ENVIRONMENTS, Environment
from vlad_configs.models import Family, GemmaConfig, ModelConfig, SiglipConfig
from vlad_engines.model.openpi_names import TIED_LM_HEAD, TOKEN_EMBEDDING, expected_tensors

TOKENIZER = pathlib.Path(__file__).resolve().parents[1] / "golden" / "model" / "tiny_tokenizer.model"

Tensors = dict[str, npt.NDArray[Any]]
Stats = dict[str, dict[str, list[float]]]


def small_model(family: Family = "pi05", **changes: Any) -> ModelConfig:
    """A network of a few thousand parameters whose prompts and actions are still of usual sizes."""
    gemma = {"depth": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    sizes: dict[str, Any] = {
        "siglip": SiglipConfig(width=16, depth=1, mlp_dim=24, num_heads=2),
        "vlm": GemmaConfig(width=24, mlp_dim=32, **gemma),
        "expert": GemmaConfig(width=16, mlp_dim=24, **gemma),
        "vocab_size": 512,
        "action_horizon": 6,
        "max_token_len": 200 if family == "pi05" else 48,
    }
    return ModelConfig(family=family, **{**sizes, **changes})


def small_tensors(model: ModelConfig) -> Tensors:
    """Random weights by openpi name, with the token table under the name that openpi's files use."""
    tensors = {}
    for name, shape in expected_tensors(model).items():
        random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        fan_in = max(1, int(np.prod(shape[1:])))
        tensors[name] = random.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(fan_in))
    tensors[TIED_LM_HEAD] = tensors.pop(TOKEN_EMBEDDING)
    return tensors


def stats_for(robot: Environment, seed: int = 0) -> Stats:
    """Plausible statistics of the robot's own widths, as `norm_stats.json` holds them."""
    random = np.random.default_rng(seed)

    def feature(width: int) -> dict[str, list[float]]:
        mean, std = random.normal(size=width), random.uniform(0.5, 1.5, size=width)
        values = {"mean": mean, "std": std, "q01": mean - 2 * std, "q99": mean + 2 * std}
        # float32 numbers, so that LeRobot's files can hold them exactly.
        return {name: value.astype(np.float32).astype(float).tolist() for name, value in values.items()}

    return {"state": feature(robot.state_width), "actions": feature(robot.action_width)}


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write JSON, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_openpi(
    directory: pathlib.Path,
    model: ModelConfig,
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    stats: Stats,
    asset_id: str,
    config: Mapping[str, Any] | None = None,
    tokenizer: pathlib.Path = TOKENIZER,
) -> pathlib.Path:
    """Write an openpi PyTorch checkpoint whose `config.json` carries the complete model."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), directory / "model.safetensors")
    write_json(directory / "config.json", {"model": model.to_json(), **(config or {})})
    write_json(directory / "assets" / asset_id / "norm_stats.json", {"norm_stats": stats})
    (directory / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    return directory


def write_libero(directory: pathlib.Path, family: Family = "pi05", **config: Any) -> pathlib.Path:
    """Write a complete openpi LIBERO checkpoint of the small model."""
    model = small_model(family)
    return write_openpi(
        directory,
        model,
        small_tensors(model),
        stats=stats_for(ENVIRONMENTS["LIBERO"]),
        asset_id="physical-intelligence/libero",
        config={"openpi_config": f"{family}_libero", **config},
    )


def lerobot_config(
    model: ModelConfig, robot: Environment, cameras: tuple[str, ...] = ("image", "image2")
) -> dict[str, Any]:
    """A LeRobot `config.json`, with our `model` so that a small network can be described."""
    norm = "MEAN_STD" if model.family == "pi0" else "QUANTILES"
    images = {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, 224, 224]} for name in cameras}
    return {
        "type": model.family,
        "input_features": {**images, "observation.state": {"type": "STATE", "shape": [robot.state_width]}},
        "output_features": {"action": {"type": "ACTION", "shape": [robot.action_width]}},
        "chunk_size": model.action_horizon,
        "n_action_steps": model.action_horizon,
        "max_state_dim": model.action_dim,
        "max_action_dim": model.action_dim,
        "num_inference_steps": 10,
        "tokenizer_max_length": model.max_token_len,
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": norm, "ACTION": norm},
        "image_resolution": [224, 224],
        "some_field_of_a_later_version": 1,
        "model": model.to_json(),
    }


def write_lerobot(
    directory: pathlib.Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    stats: Stats,
    relative: Mapping[str, Any] | None = None,
    tokenizer: pathlib.Path = TOKENIZER,
) -> pathlib.Path:
    """Write a LeRobot directory: weights with prefix, both pipelines, their statistics."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({f"model.{name}": value for name, value in tensors.items()}, directory / "model.safetensors")
    write_json(directory / "config.json", config)
    for name, pipeline in lerobot_pipelines(config, relative).items():
        write_json(directory / f"{name}.json", pipeline)
        for step in pipeline["steps"]:
            if "state_file" in step:
                save_file(_flat_stats(stats), directory / step["state_file"])
    (directory / "tokenizer").mkdir(exist_ok=True)
    (directory / "tokenizer" / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    return directory


def lerobot_pipelines(
    config: Mapping[str, Any], relative: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """The two processor pipelines as LeRobot orders them for the family."""
    relative = relative or {"enabled": False, "exclude_joints": ["gripper"], "action_names": None}
    norm = {"eps": 1e-8, "features": {}, "norm_map": config["normalization_mapping"]}
    rename = {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}}
    batch = {"registry_name": "to_batch_processor", "config": {}}
    to_relative = {"registry_name": "relative_actions_processor", "config": dict(relative)}
    tokenize = {
        "registry_name": "tokenizer_processor",
        "config": {"max_length": config["tokenizer_max_length"], "tokenizer_name": "tokenizer"},
        "artifacts": {"tokenizer_name": "tokenizer"},
    }
    device = {"registry_name": "device_processor", "config": {"device": "cpu"}}

    def normalize(index: int) -> dict[str, Any]:
        state_file = f"policy_preprocessor_step_{index}_normalizer_processor.safetensors"
        return {"registry_name": "normalizer_processor", "config": norm, "state_file": state_file}

    if config["type"] == "pi05":
        prepare = {"registry_name": "pi05_prepare_state_tokenizer_processor_step", "config": {}}
        steps = [rename, batch, to_relative, normalize(3), prepare, tokenize, device]
    else:
        newline = {"registry_name": "pi0_new_line_processor", "config": {}}
        steps = [rename, batch, newline, tokenize, device, to_relative, normalize(6)]
    unnormalize = {
        "registry_name": "unnormalizer_processor",
        "config": norm,
        "state_file": "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
    }
    to_absolute = {"registry_name": "absolute_actions_processor", "config": {"enabled": relative["enabled"]}}
    return {
        "policy_preprocessor": {"name": "policy_preprocessor", "steps": steps},
        "policy_postprocessor": {"name": "policy_postprocessor", "steps": [unnormalize, to_absolute, device]},
    }


def _flat_stats(stats: Stats) -> Tensors:
    features = {"observation.state": stats["state"], "action": stats["actions"]}
    return {
        f"{feature}.{name}": np.array(values, np.float32)
        for feature, entry in features.items()
        for name, values in entry.items()
    }
