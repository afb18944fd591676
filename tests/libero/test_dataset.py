"""Datasets as LeRobot's version 3.0 describes them."""

from __future__ import annotations

import functools
import io
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlad_libero.dataset.episode import (
    ACTION,
    IMAGES,
    STATE,
    Episode,
    EpisodeRecorder,
    load_episode,
    save_episode,
)
from vlad_libero.dataset.lerobot_v3 import write_dataset
from vlad_libero.demos.demonstration import DemoJob, DemoSettings
from vlad_libero.demos.generate import batches
from vlad_libero.errors import DatasetError
from vlad_libero.simulator.package import AssetTree


def _episode(seed: int, frames: int, prompt: str = "pick this") -> Episode:
    rng = np.random.default_rng(seed)
    recorder = EpisodeRecorder(prompt, {"seed": seed})
    for frame in range(frames):
        images = [np.full((32, 32, 3), 40 * view + frame, np.uint8) for view in range(2)]
        recorder.add(images, rng.normal(size=8), rng.normal(size=7))
    return recorder.episode()


def test_an_episode_survives_its_file(tmp_path: pathlib.Path) -> None:
    episode = _episode(1, 5)
    save_episode(tmp_path / "one.npz", episode)
    again = load_episode(tmp_path / "one.npz")
    assert (again.prompt, again.side, again.origin) == ("pick this", 32, {"seed": 1})
    assert (again.states == episode.states).all()
    assert (again.actions == episode.actions).all()
    assert again.images == episode.images


def test_a_damaged_episode_says_what_to_do(tmp_path: pathlib.Path) -> None:
    (tmp_path / "one.npz").write_bytes(b"PK but not much else")
    with pytest.raises(DatasetError, match=r"one\.npz is damaged .* remove it"):
        load_episode(tmp_path / "one.npz")


def test_an_episode_has_as_many_of_everything() -> None:
    episode = _episode(1, 5)
    with pytest.raises(ValueError, match="as many of everything"):
        Episode("p", episode.states[:4], episode.actions, episode.images, 32, {})


@pytest.fixture
def dataset(tmp_path: pathlib.Path) -> tuple[pathlib.Path, list[Episode]]:
    pytest.importorskip("pyarrow", reason="datasets need pyarrow (extra libero)")
    episodes = [_episode(1, 60), _episode(2, 30, "pick that"), _episode(3, 45)]
    calls = [functools.partial(lambda episode: episode, episode) for episode in episodes]
    write_dataset(tmp_path / "set", calls, file_size_mb=1)
    return tmp_path / "set", episodes


def _table(path: pathlib.Path) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)


def test_every_frame_is_found_through_its_episode(dataset: tuple[pathlib.Path, list[Episode]]) -> None:
    root, episodes = dataset
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["video_path"]) == ("v3.0", 20, None)
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 135, 2)
    tasks = {row["task_index"]: row["task"] for row in _table(root / "meta/tasks.parquet").to_pylist()}
    rows = _table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for row, episode in zip(rows, episodes, strict=True):
        path = info["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        frames = [
            frame
            for frame in _table(root / path).to_pylist()
            if frame["episode_index"] == row["episode_index"]
        ]
        indices = list(range(row["dataset_from_index"], row["dataset_to_index"]))
        assert [frame["index"] for frame in frames] == indices
        assert row["length"] == len(indices) == len(episode.states)
        assert row["tasks"] == [episode.prompt]
        assert {tasks[frame["task_index"]] for frame in frames} == {episode.prompt}
        assert frames[3]["frame_index"] == 3
        assert frames[3]["timestamp"] == pytest.approx(3 / 20)
        assert np.array(frames[3][STATE], np.float32) == pytest.approx(episode.states[3])
        assert np.array(frames[3][ACTION], np.float32) == pytest.approx(episode.actions[3])
        pixels = np.asarray(Image.open(io.BytesIO(frames[3][IMAGES[1]]["bytes"])))
        assert pixels.shape == (32, 32, 3)
        assert pixels.mean() == pytest.approx(43, abs=1)


def test_statistics_are_those_of_all_frames(dataset: tuple[pathlib.Path, list[Episode]]) -> None:
    root, episodes = dataset
    statistics = json.loads((root / "meta/stats.json").read_text())
    states = np.concatenate([episode.states for episode in episodes]).astype(np.float64)
    assert statistics[STATE]["q99"] == pytest.approx(np.quantile(states, 0.99, axis=0))
    assert statistics[STATE]["count"] == [135]
    assert np.shape(statistics[IMAGES[0]]["mean"]) == (3, 1, 1)


def test_an_existing_dataset_is_never_overwritten(tmp_path: pathlib.Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(DatasetError, match="exists already"):
        write_dataset(tmp_path / "set", [])


def test_nothing_is_left_of_a_dataset_that_failed(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("pyarrow", reason="datasets need pyarrow (extra libero)")
    with pytest.raises(DatasetError, match="at least one episode"):
        write_dataset(tmp_path / "set", [])
    assert not (tmp_path / "set").exists()


def _jobs(tasks: int, each: int) -> list[DemoJob]:
    settings = DemoSettings(AssetTree("procedural", pathlib.Path("assets")))
    return [
        DemoJob(settings, task, number, pathlib.Path(f"{task}-{number}"))
        for task in range(tasks)
        for number in range(each)
    ]


def test_batches_hold_one_task_each_and_take_turns() -> None:
    jobs = _jobs(tasks=3, each=25)
    made = batches(jobs, workers=2)
    assert sorted((job for batch in made for job in batch.jobs), key=jobs.index) == jobs
    assert all(len({job.task for job in batch.jobs}) == 1 for batch in made)
    assert [batch.jobs[0].task for batch in made[:4]] == [0, 1, 2, 0]


def test_many_processes_get_small_batches() -> None:
    assert {len(batch.jobs) for batch in batches(_jobs(tasks=2, each=4), workers=8)} == {1}
    assert batches([], workers=8) == []
