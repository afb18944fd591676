from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest

from tests.support.checkpoints import (
    lerobot_config,
    small_model,
    small_tensors,
    stats_for,
    write_json,
    write_lerobot,
    write_libero,
)
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import CheckpointError
from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint, open_policy_checkpoint
from vlad_engines.unified_policy import UnifiedPolicy

LIBERO = ENVIRONMENTS["LIBERO"]
ASSETS = pathlib.Path("assets/physical-intelligence/libero/norm_stats.json")


def refusal(directory: pathlib.Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_policy_checkpoint(directory, **options)
    return str(caught.value)


def with_stats(directory: pathlib.Path, content: Any) -> pathlib.Path:
    write_json(write_libero(directory) / ASSETS, content)
    return directory


def lerobot(directory: pathlib.Path) -> pathlib.Path:
    model = small_model()
    return write_lerobot(
        directory, lerobot_config(model, LIBERO), small_tensors(model), stats=stats_for(LIBERO)
    )


def test_every_place_looked_in_is_listed(tmp_path: pathlib.Path) -> None:
    shutil.rmtree(write_libero(tmp_path) / "assets")
    write_json(tmp_path / "assets" / "droid" / "norm_stats.json", {})
    message = refusal(tmp_path)
    for place in (ASSETS, "physical-intelligence/libero/norm_stats.json", "norm_stats.json"):
        assert f"\n  {tmp_path / place}" in message
    assert "--norm-stats" in message
    assert f"other robots' statistics here: {tmp_path / 'assets/droid/norm_stats.json'}" in message


@pytest.mark.parametrize("place", [ASSETS, ASSETS.relative_to("assets"), pathlib.Path("norm_stats.json")])
def test_each_place_is_used(tmp_path: pathlib.Path, place: pathlib.Path) -> None:
    directory = write_libero(tmp_path)
    text = (directory / ASSETS).read_text()
    shutil.rmtree(directory / "assets")
    write_json(directory / place, json.loads(text))
    assert open_policy_checkpoint(directory).norm_stats_source == str(directory / place)


@pytest.mark.parametrize("make", [write_libero, lerobot])
def test_a_named_file_replaces_the_checkpoints_own(make: Any, tmp_path: pathlib.Path) -> None:
    directory = make(tmp_path / "checkpoint")
    own = open_policy_checkpoint(directory).norm_stats
    other = tmp_path / "other.json"
    write_json(other, {"norm_stats": stats_for(LIBERO, seed=5)})
    named: PolicyCheckpoint = open_policy_checkpoint(directory, norm_stats=str(other))
    assert named.norm_stats_source == str(other)
    assert named.norm_stats.state.q01 is not None
    assert own.state.q01 is not None
    assert (named.norm_stats.state.q01 != own.state.q01).all()
    assert str(tmp_path / "gone.json") in refusal(directory, norm_stats=str(tmp_path / "gone.json"))


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"norm_stats": {}},
        {"norm_stats": {"state": stats_for(LIBERO)["state"]}},
        {"norm_stats": {**stats_for(LIBERO), "actions": [1, 2]}},
        {"norm_stats": {**stats_for(LIBERO), "state": {"q01": ["a"], "q99": ["b"]}}},
        {"norm_stats": {**stats_for(LIBERO), "state": {"q01": [[1], [1, 2]]}}},
    ],
)
def test_something_else_than_statistics_is_refused(tmp_path: pathlib.Path, content: Any) -> None:
    assert "norm_stats.json" in refusal(with_stats(tmp_path, content))


def test_quantiles_that_are_null_are_refused_where_they_are_needed(tmp_path: pathlib.Path) -> None:
    stats = stats_for(LIBERO)
    without: Any = {name: {**feature, "q01": None, "q99": None} for name, feature in stats.items()}
    directory = with_stats(tmp_path, {"norm_stats": without})
    with pytest.raises(CheckpointError, match="needs q01 and q99; missing: q01, q99"):
        UnifiedPolicy(str(directory), device="cpu")


def test_another_robots_statistics_are_refused_with_both_widths(tmp_path: pathlib.Path) -> None:
    message = refusal(with_stats(tmp_path, {"norm_stats": stats_for(ENVIRONMENTS["ALOHA"])}))
    assert "norm stats of 'state' have 14 numbers; LIBERO has 8" in message
    assert str(ASSETS) in message


def test_non_finite_statistics_are_refused(tmp_path: pathlib.Path) -> None:
    stats = stats_for(LIBERO)
    stats["actions"]["q99"][2] = float("nan")
    assert "'q99' hold non-finite numbers" in refusal(with_stats(tmp_path, {"norm_stats": stats}))


def test_constant_columns_are_warned_about(tmp_path: pathlib.Path) -> None:
    stats = stats_for(LIBERO)
    stats["state"]["q99"][3] = stats["state"]["q01"][3] + 5e-5
    checkpoint = open_policy_checkpoint(with_stats(tmp_path, {"norm_stats": stats}))
    assert len(checkpoint.warnings) == 1
    assert "'state': span below 0.0001 in columns [3]" in checkpoint.warnings[0]


def test_lerobot_statistics_come_from_the_files_that_the_pipelines_name(tmp_path: pathlib.Path) -> None:
    checkpoint = open_policy_checkpoint(lerobot(tmp_path))
    expected = stats_for(LIBERO)
    assert checkpoint.norm_stats.state.q01 is not None
    assert checkpoint.norm_stats.actions.std is not None
    assert checkpoint.norm_stats.state.q01.tolist() == expected["state"]["q01"]
    assert checkpoint.norm_stats.actions.std.tolist() == expected["actions"]["std"]
    assert "policy_preprocessor_step_3_normalizer_processor.safetensors" in checkpoint.norm_stats_source


def test_a_missing_or_broken_lerobot_statistics_file_is_named(tmp_path: pathlib.Path) -> None:
    path = lerobot(tmp_path) / "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    assert f"{path} is not a readable safetensors file" in refusal(tmp_path)
    path.unlink()
    assert str(path) in refusal(tmp_path)
