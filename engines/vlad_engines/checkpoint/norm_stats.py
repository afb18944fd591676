"""Finds and reads the statistics of a checkpoint. Without them nothing is served."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vlad_configs.contract import Contract
from vlad_configs.errors import CheckpointError
from vlad_engines.checkpoint import lerobot_config as lerobot
from vlad_engines.checkpoint.detect import CheckpointFiles, read_json
from vlad_engines.processing.normalization import SMALL_SPAN, FeatureStats, NormStats, small_spans
from vlad_engines.processing.processor import check_stats_width

NORM_STATS_FILE = "norm_stats.json"
_STATISTICS = ("mean", "std", "q01", "q99")


def load_norm_stats(
    files: CheckpointFiles, contract: Contract, asset_id: str | None, override: str | None = None
) -> tuple[NormStats, str]:
    """Read the statistics and hold their widths against the robot.

    Args:
        asset_id: folder below `assets/` where openpi keeps them; None for LeRobot checkpoints.
        override: a `norm_stats.json` to read instead, whatever the checkpoint has.

    Returns:
        The statistics, and the file or files that they came from.

    Raises:
        CheckpointError: where they are missing (lists every place looked in), unreadable, or of
            another robot's width.
    """
    if override is not None:
        path = pathlib.Path(override).expanduser()
        if not path.is_file():
            raise CheckpointError(f"norm stats not found: looked for {path} (--norm-stats)")
        stats, source = read_norm_stats_json(path), str(path)
    elif files.layout == "lerobot":
        stats, source = _lerobot_stats(files)
    else:
        path = _find(files, asset_id)
        stats, source = read_norm_stats_json(path), str(path)
    try:
        check_stats_width(contract, stats)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    return stats, source


def read_norm_stats_json(path: pathlib.Path) -> NormStats:
    """Read openpi's `norm_stats.json`.

    Raises:
        CheckpointError: where it is not one.
    """
    content = read_json(path)
    try:
        entries = content["norm_stats"]
        return NormStats(*(_feature(entries[name]) for name in ("state", "actions")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no norm_stats.json: expected {{'norm_stats': {{'state': ..., 'actions': ...}}}} "
            f"with lists of numbers ({type(error).__name__}: {error})"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def stats_warnings(contract: Contract, stats: NormStats) -> list[str]:
    """Statistics that can be used but deserve a look."""
    warnings = []
    for name, feature in (("state", stats.state), ("actions", stats.actions)):
        width = contract.environment.state_width if name == "state" else contract.environment.action_width
        columns = [index for index in small_spans(contract.norm_kind[name], feature) if index < width]
        if columns:
            warnings.append(
                f"norm stats of '{name}': span below {SMALL_SPAN:g} in columns {columns}; the tiniest change "
                "there becomes huge once normalised. Widen those entries if they should not matter"
            )
    return warnings


def _find(files: CheckpointFiles, asset_id: str | None) -> pathlib.Path:
    folders = [files.path]
    if asset_id is not None:
        folders = [files.path / "assets" / asset_id, files.path / asset_id, files.path]
    places = [folder / NORM_STATS_FILE for folder in folders]
    for place in places:
        if place.is_file():
            return place
    others = sorted(files.path.glob(f"**/{NORM_STATS_FILE}"))
    raise CheckpointError(
        "norm stats not found; looked in:\n  "
        + "\n  ".join(str(place) for place in places)
        + "\nname the file with --norm-stats; openpi keeps it in the JAX checkpoint's assets/ folder, "
        "which its converter does not always copy"
        + (f"\nother robots' statistics here: {', '.join(map(str, others))}" if others else "")
    )


def _feature(entry: dict[str, Any]) -> FeatureStats:
    return FeatureStats(
        **{
            name: np.array(entry[name], dtype=np.float64)
            for name in _STATISTICS
            if entry.get(name) is not None
        }
    )


def _lerobot_stats(files: CheckpointFiles) -> tuple[NormStats, str]:
    state, state_path = _lerobot_feature(files, lerobot.PREPROCESSOR, "normalizer_processor", lerobot.STATE)
    actions, actions_path = _lerobot_feature(
        files, lerobot.POSTPROCESSOR, "unnormalizer_processor", lerobot.ACTION
    )
    return NormStats(state, actions), f"{state_path} (state), {actions_path} (actions)"


def _lerobot_feature(
    files: CheckpointFiles, pipeline_file: str, step_name: str, feature: str
) -> tuple[FeatureStats, pathlib.Path]:
    pipeline = lerobot.read_pipeline(files, pipeline_file)
    step = pipeline.find(step_name)
    if step is None or step.state_file is None:
        raise CheckpointError(
            f"norm stats not found; {pipeline.path} has no {step_name} with a state_file; "
            "name a norm_stats.json with --norm-stats"
        )
    if not step.state_file.is_file():
        raise CheckpointError(
            f"norm stats not found; looked in:\n  {step.state_file} (named by {pipeline.path})\n"
            "name a norm_stats.json with --norm-stats"
        )
    try:
        tensors = load_file(step.state_file)
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{step.state_file} is not a readable safetensors file: {error}") from error
    found = {
        name: tensors[f"{feature}.{name}"].astype(np.float64).reshape(-1)
        for name in _STATISTICS
        if f"{feature}.{name}" in tensors
    }
    if not found:
        raise CheckpointError(
            f"norm stats of '{feature}' not found in {step.state_file}; "
            f"it holds: {', '.join(sorted(tensors))}"
        )
    try:
        return FeatureStats(**found), step.state_file
    except CheckpointError as error:
        raise CheckpointError(f"{step.state_file}: {feature}: {error}") from None
