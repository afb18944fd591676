"""Norm stats of a dataset: what every state and action is normalised with, in training and in serving."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.contract import Contract
from vlad_engines.processing import robot_conventions
from vlad_engines.processing.normalization import FeatureStats, NormStats
from vlad_training.frames import FrameSource


def compute_norm_stats(source: FrameSource, contract: Contract) -> NormStats:
    """Mean, standard deviation, 1st and 99th percentile of states and of the actions in all chunks.

    As openpi does it: in the model's joint conventions, relative actions as differences to the state of the
    chunk's frame, and every chunk counts in full, so that the last action of an episode counts repeatedly.
    Percentiles are exact; openpi estimates them from a histogram of 5000 bins.
    """
    conversion = contract.environment.conversion
    states = robot_conventions.state_to_model(conversion, source.states.astype(np.float64))
    actions = robot_conventions.actions_to_model(conversion, source.actions.astype(np.float64))
    index = np.arange(len(source))[:, None] + np.arange(contract.model.action_horizon)
    index = np.minimum(index, source.episode_ends[:, None] - 1)
    relative = np.flatnonzero(contract.delta_mask or ())
    columns = [
        # One column at a time: all chunks at once are H times the dataset.
        actions[:, column][index] - (states[:, column, None] if column in relative else 0.0)
        for column in range(actions.shape[1])
    ]
    return NormStats(
        state=_feature([states[:, column] for column in range(states.shape[1])]), actions=_feature(columns)
    )


def write_norm_stats(stats: NormStats, path: pathlib.Path) -> None:
    """Write openpi's `norm_stats.json`, folders included."""
    content = {name: _lists(getattr(stats, name)) for name in ("state", "actions")}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"norm_stats": content}, indent=2) + "\n", "utf-8")


def _feature(columns: list[npt.NDArray[np.float64]]) -> FeatureStats:
    return FeatureStats(
        mean=np.array([column.mean() for column in columns]),
        std=np.array([column.std() for column in columns]),
        q01=np.array([np.quantile(column, 0.01) for column in columns]),
        q99=np.array([np.quantile(column, 0.99) for column in columns]),
    )


def _lists(feature: FeatureStats) -> dict[str, Any]:
    return {name: getattr(feature, name).tolist() for name in feature.present}
