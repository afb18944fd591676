"""The key accounting against files that openpi really saved, and against the full-size layout."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.checkpoints import stats_for, write_json
from tests.support.golden import FOLDER, index, model_config, require_file
from tests.support.golden_lists import listed
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.models import GEMMA_VARIANTS, SIGLIP_SO400M
from vlad_engines.checkpoint.accounting import account_for_tensors
from vlad_engines.checkpoint.detect import CheckpointFiles
from vlad_engines.checkpoint.geometry import derive_model
from vlad_engines.checkpoint.header import SafetensorsHeader, TensorHeader
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint
from vlad_engines.checkpoint.tensor_names import family_of, resolve_names

SAVED = sorted(path.name for path in FOLDER.glob("checkpoint_layout_*_*.json"))


@pytest.mark.parametrize(
    "name",
    SAVED
    or [pytest.param("", marks=pytest.mark.skip(reason=f"{FOLDER} holds no checkpoint_layout_*_*.json"))],
)
def test_a_file_that_openpi_saved_is_fully_accounted_for(name: str, tmp_path: pathlib.Path) -> None:
    layout = json.loads(require_file(name).read_text())
    geometry = name.removesuffix(".json").rpartition("_")[2]
    sizes = index()["geometries"][geometry]
    pi05 = "time_mlp_in.weight" in layout["tensors"]
    model = model_config(
        geometry,
        pi05=pi05,
        action_horizon=sizes["action_horizon"],
        action_dim=sizes["action_dim"],
        max_token_len=200 if pi05 else 48,
    )
    save_file(
        {key: np.zeros(shape, np.float32) for key, (shape, _) in layout["tensors"].items()},
        tmp_path / "model.safetensors",
        metadata=layout["metadata"],
    )
    write_json(tmp_path / "config.json", {"model": model.to_json()})
    write_json(tmp_path / "norm_stats.json", {"norm_stats": stats_for(ENVIRONMENTS["LIBERO"])})
    (tmp_path / "tokenizer.model").write_bytes(require_file("tiny_tokenizer.model").read_bytes())
    checkpoint = open_policy_checkpoint(tmp_path, config="pi05_libero" if pi05 else "pi0_libero")
    assert checkpoint.contract.model == model
    assert len(checkpoint.names.tensors) + len(checkpoint.names.ignored) == len(layout["tensors"])


@pytest.mark.parametrize("case", listed("checkpoint_layout_full.json"))
def test_the_published_size_is_derived_from_names_and_shapes_alone(case: tuple[str, dict[str, Any]]) -> None:
    family, patterns = case
    tensors = {
        pattern.replace("{i}", str(layer)): TensorHeader(tuple(entry["shape"]), "BF16")
        for pattern, entry in patterns.items()
        if entry["in_file"]
        for layer in range(entry["count"])
    }
    path = pathlib.Path("published")
    header = SafetensorsHeader(path / "model.safetensors", tensors, {}, 0)
    files = CheckpointFiles(path, "openpi", {}, header)
    names = resolve_names(files)
    assert family_of(files)[0] == family
    model = derive_model(files, names, family_of(files)[0], action_horizon=10, max_token_len=48)
    account_for_tensors(files, names, model)
    assert (model.siglip, model.vlm, model.expert, model.vocab_size, model.action_dim) == (
        SIGLIP_SO400M,
        GEMMA_VARIANTS["gemma_2b"],
        GEMMA_VARIANTS["gemma_300m"],
        257152,
        32,
    )
