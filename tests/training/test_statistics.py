"""Norm stats count what training normalises: every action of every chunk, relative ones as differences."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from vlad_configs.training import train_config
from vlad_engines.checkpoint.norm_stats import read_norm_stats_json
from vlad_training.invented_frames import InventedFrames
from vlad_training.statistics import compute_norm_stats, write_norm_stats
from vlad_training.task import task_contract


def test_statistics_are_those_of_all_chunks(tmp_path: pathlib.Path) -> None:
    contract = task_contract(train_config("debug_pi05"))
    contract = dataclasses.replace(contract, delta_mask=(True, False, True))
    source = InventedFrames(contract.environment, episodes=2)
    chunks = []
    for index in range(len(source)):
        last = source.episode_ends[index] - 1
        chunk = [source.actions[min(index + step, last)] for step in range(10)]
        anchor = np.zeros(7)
        anchor[[0, 2]] = source.states[index, [0, 2]]
        chunks.append(np.array(chunk, np.float64) - anchor)
    actions = np.concatenate(chunks)
    stats = compute_norm_stats(source, contract)
    np.testing.assert_allclose(stats.actions.mean, actions.mean(0), atol=1e-12)
    np.testing.assert_allclose(stats.actions.std, actions.std(0), atol=1e-12)
    np.testing.assert_allclose(stats.actions.q01, np.quantile(actions, 0.01, axis=0), atol=1e-12)
    np.testing.assert_allclose(stats.state.q99, np.quantile(source.states, 0.99, axis=0), atol=1e-6)
    write_norm_stats(stats, tmp_path / "assets" / "norm_stats.json")
    again = read_norm_stats_json(tmp_path / "assets" / "norm_stats.json")
    np.testing.assert_array_equal(again.actions.q99, stats.actions.q99)
