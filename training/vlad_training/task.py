"""What is trained for whom: the contract that the finished policy will be served with, before it exists."""

from __future__ import annotations

import dataclasses
import importlib.resources
import pathlib
from collections.abc import Mapping

from torch import Tensor

from vlad_configs.contract import Contract
from vlad_configs.environments import ENVIRONMENTS, Environment
from vlad_configs.errors import CheckpointError, ConfigError
from vlad_configs.openpi_configs import OPENPI_CONFIGS
from vlad_configs.training import TrainConfig
from vlad_engines.checkpoint.contract import derive_contract
from vlad_engines.checkpoint.detect import WEIGHTS_FILE, CheckpointFiles, open_checkpoint
from vlad_engines.checkpoint.header import SafetensorsHeader, TensorHeader
from vlad_engines.checkpoint.loader import LazyWeights
from vlad_engines.checkpoint.tensor_names import resolve_names
from vlad_engines.checkpoint.tokenizer_file import find_tokenizer
from vlad_engines.model.openpi_names import expected_tensors
from vlad_engines.processing.tokenizer import Tokenizer
from vlad_training.initial_weights import scratch_weights
from vlad_training.policy_files import policy_config


def task_contract(config: TrainConfig) -> Contract:
    """The contract that a directory written by this run will have."""
    path = pathlib.Path("a run in training")
    tensors = {name: TensorHeader(shape, "F32") for name, shape in expected_tensors(config.model).items()}
    files = CheckpointFiles(
        path=path,
        layout="openpi",
        config=policy_config(config),
        header=SafetensorsHeader(path / WEIGHTS_FILE, tensors, {}, file_bytes=0),
    )
    return derive_contract(files, resolve_names(files))[0]


def task_environment(config: TrainConfig) -> Environment:
    """The robot of a configuration."""
    return ENVIRONMENTS[OPENPI_CONFIGS[config.openpi_config].environment]


def first_weights(
    config: TrainConfig, checkpoint: pathlib.Path | None, tokenizer: Tokenizer
) -> Mapping[str, Tensor]:
    """The weights of a checkpoint directory, openpi or LeRobot; without one, our own drawing.

    Args:
        tokenizer: of the run; where it has a token for each bin of the state, these begin in order.

    Raises:
        ConfigError: for a configuration that cannot begin without weights.
        CheckpointError: for a directory that cannot be read.
    """
    if checkpoint is not None:
        files = open_checkpoint(checkpoint)
        return LazyWeights(files, resolve_names(files))
    if not config.from_scratch:
        raise ConfigError("this configuration is for fine-tuning: name a checkpoint with --weights")
    return scratch_weights(config.model, config.seed, number_tokens(tokenizer))


def number_tokens(tokenizer: Tokenizer) -> list[int]:
    """Tokens of the state's bins, -1 to 255, where each is one token of its own; empty otherwise."""
    ids = [tokenizer.encode(f" {number}", add_bos=False) for number in range(-1, 256)]
    alone = [one[0] for one in ids if len(one) == 1]
    return alone if len(set(alone)) == len(ids) else []


def task_tokenizer(config: TrainConfig, checkpoint: pathlib.Path | None, named: str | None) -> pathlib.Path:
    """The tokenizer to train with: the one named, the checkpoint's, or for small vocabularies our own.

    Raises:
        CheckpointError: where none is found.
    """
    if named is not None or checkpoint is not None:
        return find_tokenizer(checkpoint or pathlib.Path("."), named)
    packaged = _PACKAGED.get(config.model.vocab_size)
    if config.from_scratch and packaged is not None:
        package, file = packaged
        return pathlib.Path(str(importlib.resources.files(package) / file))
    raise CheckpointError("no tokenizer: name a SentencePiece file with --tokenizer")


_PACKAGED = {
    512: ("vlad_engines.checkpoint", "demo_data/tokenizer.model"),
    768: ("vlad_training", "data/libero_tokenizer.model"),
}
"""Tokenizers of our own by vocabulary: package and file."""


def overridden(config: TrainConfig, **changes: object) -> TrainConfig:
    """The configuration with what is not None replaced.

    Raises:
        ConfigError: for impossible values.
    """
    return dataclasses.replace(
        config,
        **{name: value for name, value in changes.items() if value is not None},  # type: ignore[arg-type]
    )
