"""The recorded deployments: whole policies of openpi, each with checkpoint, request, noise and actions."""

from __future__ import annotations

import pathlib
from typing import Any

from tests.support.checkpoints import write_openpi
from tests.support.golden import Array, load_arrays, make_weight, model_config, require_file
from vlad_engines.model.openpi_names import TIED_LM_HEAD, TOKEN_EMBEDDING, expected_tensors

Case = tuple[str, dict[str, Any]]
"""Name and entry of `policy_e2e.json`."""

GEOMETRY = "dummy"
"""All recorded deployments use openpi's own dummy sizes."""


def deployment_arrays(case: Case) -> dict[str, Array]:
    """All arrays of a deployment, without its name."""
    prefix = case[0] + "|"
    require_file("policy_e2e.npz")
    arrays = load_arrays("policy_e2e.npz")
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def deployment_request(case: Case) -> dict[str, Any]:
    """The request as the robot sent it."""
    recorded: dict[str, Any] = {**deployment_arrays(case), **case[1]}
    entries = {key.removeprefix("obs|"): value for key, value in recorded.items() if key.startswith("obs|")}
    request: dict[str, Any] = {}
    for key, value in entries.items():
        *parents, leaf = key.replace("~", "/").split("|")
        group = request
        for parent in parents:
            group = group.setdefault(parent, {})
        group[leaf] = value
    return request


def write_deployment(folder: pathlib.Path, case: Case) -> pathlib.Path:
    """Write the checkpoint directory of a deployment into `folder`, unless it is there."""
    name, entry = case
    directory = folder / name
    if directory.is_dir():
        return directory
    keys = ("pi05", "action_horizon", "action_dim", "max_token_len")
    model = model_config(GEOMETRY, **{key: entry[key] for key in keys})
    tensors = {key: make_weight(key, shape) for key, shape in expected_tensors(model).items()}
    tensors[TIED_LM_HEAD] = tensors.pop(TOKEN_EMBEDDING)
    stats: dict[str, dict[str, list[float]]] = {"state": {}, "actions": {}}
    for key, value in deployment_arrays(case).items():
        if key.startswith("stats|"):
            _, feature, statistic = key.split("|")
            stats[feature][statistic] = value.tolist()
    return write_openpi(
        directory,
        model,
        tensors,
        stats=stats,
        asset_id=entry["asset_id"],
        tokenizer=require_file("tiny_tokenizer.model"),
    )
