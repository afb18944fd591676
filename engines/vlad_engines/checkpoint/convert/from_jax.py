"""openpi's JAX checkpoints to openpi's PyTorch layout."""

from __future__ import annotations

import pathlib

import numpy as np
import torch

from vlad_configs.errors import CheckpointError
from vlad_configs.openpi_configs import openpi_config
from vlad_engines.checkpoint.convert.jax_arrays import JaxArrays
from vlad_engines.checkpoint.convert.jax_names import jax_model, openpi_tensors
from vlad_engines.checkpoint.convert.writing import (
    Dtype,
    new_directory,
    write_openpi_files,
    write_weights,
)
from vlad_engines.checkpoint.norm_stats import NORM_STATS_FILE, read_norm_stats_json
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint


def is_jax(directory: pathlib.Path) -> bool:
    """Whether a directory looks like an orbax checkpoint of openpi."""
    inner = directory / "params"
    place = inner if inner.is_dir() else directory
    return any((place / name).exists() for name in ("_METADATA", "manifest.ocdbt"))


def convert_jax(
    source: pathlib.Path,
    output: pathlib.Path,
    config: str,
    *,
    dtype: Dtype,
    tokenizer: pathlib.Path,
    norm_stats: pathlib.Path | None = None,
) -> None:
    """Convert a checkpoint; `output` is served as it is.

    Args:
        source: holds `params/` and, unless `norm_stats` is given, `assets/`.
        config: openpi configuration that it was trained with.
        dtype: of the file; openpi's converter writes bf16.

    Raises:
        ConfigError: for an unknown configuration.
        CheckpointError: for parameters or statistics that are missing, unknown or of another family.
    """
    named = openpi_config(config)
    arrays = JaxArrays(source)
    model = jax_model(arrays, named.action_horizon, named.max_token_len)
    if model.family != named.family:
        raise CheckpointError(f"{source} holds a {model.family} model, '{config}' is {named.family}")
    stats_file = norm_stats or source / "assets" / named.asset_id / NORM_STATS_FILE
    if not stats_file.is_file():
        raise CheckpointError(f"norm stats not found: looked for {stats_file}; name them with --norm-stats")
    stats = read_norm_stats_json(stats_file)
    with new_directory(output) as directory:
        tensors = (
            (name, torch.from_numpy(np.ascontiguousarray(array)))
            for name, array in openpi_tensors(arrays, model)
        )
        write_weights(directory, tensors, dtype)
        content = {"model": model.to_json(), "openpi_config": config}
        write_openpi_files(directory, content, named.asset_id, stats, tokenizer)
        open_policy_checkpoint(directory)
