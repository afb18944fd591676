"""Writes a trained network as the directory that `serve_policy --checkpoint` takes."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlad_configs.openpi_configs import OPENPI_CONFIGS
from vlad_configs.training import TrainConfig, WeightsDtype
from vlad_engines.checkpoint.detect import CONFIG_FILE, WEIGHTS_FILE
from vlad_engines.checkpoint.norm_stats import NORM_STATS_FILE
from vlad_engines.checkpoint.tokenizer_file import TOKENIZER_NAMES
from vlad_engines.checkpoint.trained_delay import FIELD as TRAINED_DELAY
from vlad_engines.model.openpi_names import TIED_LM_HEAD, TOKEN_EMBEDDING
from vlad_engines.processing.normalization import NormStats
from vlad_training.errors import TrainingError
from vlad_training.statistics import write_norm_stats

_DTYPES: Mapping[WeightsDtype, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def policy_config(config: TrainConfig) -> dict[str, Any]:
    """`config.json` of the served directory."""
    content: dict[str, Any] = {"model": config.model.to_json(), "openpi_config": config.openpi_config}
    if config.rtc_max_delay:
        content[TRAINED_DELAY] = config.rtc_max_delay
    return content


def write_policy(
    directory: pathlib.Path,
    config: TrainConfig,
    weights: Mapping[str, Tensor],
    norm_stats: NormStats,
    tokenizer: pathlib.Path,
) -> None:
    """Write weights, `config.json`, norm stats and tokenizer into an existing directory.

    Args:
        weights: float32 by openpi name.

    Raises:
        TrainingError: for weights that `weights_dtype` cannot hold.
    """
    dtype = _DTYPES[config.weights_dtype]
    tensors = {}
    for name, weight in weights.items():
        # openpi's own files hold the token table under the name of the tied head.
        stored = weight.detach().to("cpu", dtype).contiguous()
        if not stored.isfinite().all():
            raise TrainingError(f"'{name}' holds numbers that {config.weights_dtype} cannot, or none at all")
        tensors[TIED_LM_HEAD if name == TOKEN_EMBEDDING else name] = stored
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    (directory / CONFIG_FILE).write_text(json.dumps(policy_config(config), indent=2) + "\n", "utf-8")
    asset_id = OPENPI_CONFIGS[config.openpi_config].asset_id
    write_norm_stats(norm_stats, directory / "assets" / asset_id / NORM_STATS_FILE)
    shutil.copyfile(tokenizer, directory / TOKENIZER_NAMES[0])
