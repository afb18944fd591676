"""Writes a converted checkpoint: whole, checked by opening it, or not at all."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlad_configs.errors import CheckpointError
from vlad_engines.checkpoint.detect import CONFIG_FILE, WEIGHTS_FILE
from vlad_engines.checkpoint.norm_stats import NORM_STATS_FILE
from vlad_engines.model.openpi_names import TIED_LM_HEAD, TOKEN_EMBEDDING
from vlad_engines.processing.normalization import FeatureStats, NormStats

Dtype = Literal["fp32", "bf16", "fp16"]

_DTYPES: Mapping[Dtype, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@contextlib.contextmanager
def new_directory(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A place to write to, which becomes `output` once everything went well.

    Raises:
        CheckpointError: where `output` exists.
    """
    if output.exists():
        raise CheckpointError(f"{output} exists already; remove it or choose another directory")
    workshop = output.with_name(output.name + ".partial")
    shutil.rmtree(workshop, ignore_errors=True)
    workshop.mkdir(parents=True)
    try:
        yield workshop
        workshop.rename(output)
    except BaseException:
        shutil.rmtree(workshop, ignore_errors=True)
        raise


def write_weights(
    directory: pathlib.Path, tensors: Iterable[tuple[str, Tensor]], dtype: Dtype, prefix: str = ""
) -> None:
    """Write `model.safetensors` with the token table under the name that published files use.

    Raises:
        CheckpointError: for numbers that `dtype` cannot hold.
    """
    stored = {}
    for name, tensor in tensors:
        converted = tensor.to(_DTYPES[dtype]).contiguous()
        if not converted.isfinite().all():
            raise CheckpointError(f"'{name}' holds numbers that {dtype} cannot; choose another --dtype")
        stored[prefix + (TIED_LM_HEAD if name == TOKEN_EMBEDDING else name)] = converted
    save_file(stored, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write JSON, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def write_openpi_files(
    directory: pathlib.Path,
    config: Mapping[str, Any],
    asset_id: str,
    stats: NormStats,
    tokenizer: pathlib.Path,
) -> None:
    """Write everything of an openpi directory but the weights."""
    write_json(directory / CONFIG_FILE, config)
    content = {"state": _lists(stats.state), "actions": _lists(stats.actions)}
    write_json(directory / "assets" / asset_id / NORM_STATS_FILE, {"norm_stats": content})
    shutil.copyfile(tokenizer, directory / "tokenizer.model")


def _lists(feature: FeatureStats) -> dict[str, list[float]]:
    return {name: getattr(feature, name).tolist() for name in feature.present}
