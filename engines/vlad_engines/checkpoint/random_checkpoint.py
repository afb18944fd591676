"""Checkpoints that exist in memory only: `random:pi05` and its kin stand wherever a directory can stand.

They carry no trained weights and serve measurements and checks at any size, without a file on disk. All
that a real checkpoint would bring along, the contract above all, is derived by the same code.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import pathlib
from collections.abc import Mapping

import numpy as np

from vlad_configs.environments import ENVIRONMENTS, Environment
from vlad_configs.errors import ConfigError
from vlad_configs.models import Family, ModelConfig
from vlad_configs.openpi_configs import OPENPI_CONFIGS
from vlad_engines.checkpoint.demo import DEMO_MODEL
from vlad_engines.checkpoint.detect import WEIGHTS_FILE, CheckpointFiles
from vlad_engines.checkpoint.header import SafetensorsHeader, TensorHeader
from vlad_engines.model.openpi_names import expected_tensors
from vlad_engines.processing.normalization import FeatureStats, NormStats

RANDOM_PREFIX = "random:"

_STATE_SPAN = 3.5
"""Radians and metres of every robot lie within."""

RANDOM_MODELS: Mapping[str, ModelConfig] = {
    "pi05": ModelConfig("pi05"),
    "pi0": ModelConfig("pi0"),
    "pi05_dummy": DEMO_MODEL,
    "pi0_dummy": dataclasses.replace(DEMO_MODEL, family="pi0"),
}
"""Size by name: the published ones, and those of the demo. Horizon and prompt length follow the robot."""


def is_random(checkpoint: str | pathlib.Path) -> bool:
    """Whether a checkpoint's name stands for one in memory."""
    return str(checkpoint).startswith(RANDOM_PREFIX)


def random_model(size: str) -> ModelConfig:
    """The network of a size.

    Raises:
        ConfigError: for an unknown size.
    """
    if size not in RANDOM_MODELS:
        raise ConfigError(
            f"unknown random model '{size}': expected one of {', '.join(RANDOM_MODELS)} "
            f"(as a checkpoint: {RANDOM_PREFIX}{next(iter(RANDOM_MODELS))})"
        )
    return RANDOM_MODELS[size]


def random_files(checkpoint: str, environment: str, config: str | None = None) -> CheckpointFiles:
    """What a directory of this name would say about itself.

    Args:
        checkpoint: `random:` and a size.
        environment: robot, a name of `ENVIRONMENTS`.
        config: a name of `OPENPI_CONFIGS`; None for the robot's default of the same family.

    Raises:
        ConfigError: for unknown names.
    """
    model = random_model(checkpoint.removeprefix(RANDOM_PREFIX))
    name = config if config is not None else _fitting_config(environment, model.family)
    if name not in OPENPI_CONFIGS:
        raise ConfigError(f"config '{name}' not found; known: {', '.join(sorted(OPENPI_CONFIGS))}")
    openpi = OPENPI_CONFIGS[name]
    model = dataclasses.replace(
        model,
        action_dim=openpi.action_dim,
        action_horizon=openpi.action_horizon,
        max_token_len=openpi.max_token_len,
    )
    path = pathlib.Path(checkpoint)
    tensors = {key: TensorHeader(shape, "BF16") for key, shape in expected_tensors(model).items()}
    return CheckpointFiles(
        path=path,
        layout="openpi",
        config={"model": model.to_json(), "openpi_config": name, "weights": "random"},
        header=SafetensorsHeader(path / WEIGHTS_FILE, tensors, {}, file_bytes=0),
    )


def random_norm_stats(environment: Environment) -> NormStats:
    """Statistics as of a robot whose numbers fill their range evenly."""

    def feature(width: int, span: float) -> FeatureStats:
        full = np.full(width, span)
        return FeatureStats(mean=np.zeros(width), std=full / np.sqrt(3.0), q01=-full, q99=full)

    return NormStats(feature(environment.state_width, _STATE_SPAN), feature(environment.action_width, 1.0))


def packaged_tokenizer() -> pathlib.Path:
    """The small SentencePiece model that the demo uses too."""
    return pathlib.Path(str(importlib.resources.files(__package__) / "demo_data" / "tokenizer.model"))


def _fitting_config(environment: str, family: Family) -> str:
    if environment not in ENVIRONMENTS:
        raise ConfigError(f"unknown environment '{environment}'; known: {', '.join(sorted(ENVIRONMENTS))}")
    default = ENVIRONMENTS[environment].default_config
    robot = environment.partition("_")[0]
    fitting = [
        name
        for name, config in OPENPI_CONFIGS.items()
        if config.family == family and config.environment.partition("_")[0] == robot
    ]
    return default if default in fitting else fitting[0]
