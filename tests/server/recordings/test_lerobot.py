"""The exported data set has LeRobot's v3.0 layout, and the recorded pixels and numbers in it."""

from __future__ import annotations

import io
import json
import pathlib
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.libero import libero_observation
from tests.support.recordings import STEP_NS, exchange, write_recording
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ConfigError
from vlad_engines.fidelity.observations import synthetic_observations
from vlad_server.recordings.episodes import episodes
from vlad_server.recordings.lerobot_cli import Args, run
from vlad_server.recordings.lerobot_stats import PixelCounts, vector_stats
from vlad_server.recordings.reader import open_recording


def _read(directory: pathlib.Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(directory / name).to_pylist()
    return rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two episodes of 3 and 2 frames, under two instructions."""
    folder = tmp_path_factory.mktemp("export")
    prompts = ["open the drawer"] * 3 + ["close it"] * 2
    exchanges = [
        exchange(number, observation=libero_observation(number, prompt))
        for number, prompt in enumerate(prompts)
    ]
    files = write_recording(folder / "runs", exchanges)
    assert run(Args((*files, folder / "dataset"))) == (2, 5)
    return folder / "dataset"


def test_info_says_what_there_is(dataset: pathlib.Path) -> None:
    info = json.loads((dataset / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert info["fps"] == 10
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, 5, 2)
    assert info["splits"] == {"train": "0:2"}
    assert info["video_path"] is None
    assert info["features"]["observation.images.wrist_image"]["shape"] == [224, 224, 3]
    assert info["features"]["observation.state"]["shape"] == [8]
    assert info["features"]["action"] == {"dtype": "float32", "shape": [7], "names": None}
    columns = set(pq.read_schema(dataset / info["data_path"].format(chunk_index=0, file_index=0)).names)
    assert columns == set(info["features"])


def test_frames_are_the_recorded_ones(dataset: pathlib.Path) -> None:
    rows = _read(dataset, "data/chunk-000/file-000.parquet")
    assert [row["index"] for row in rows] == list(range(5))
    assert [row["episode_index"] for row in rows] == [0, 0, 0, 1, 1]
    assert [row["frame_index"] for row in rows] == [0, 1, 2, 0, 1]
    assert [row["task_index"] for row in rows] == [0, 0, 0, 1, 1]
    assert [row["timestamp"] for row in rows] == pytest.approx([0.0, 0.1, 0.2, 0.0, 0.1])
    for number, row in enumerate(rows):
        observation = libero_observation(number)
        pixels = np.asarray(Image.open(io.BytesIO(row["observation.images.image"]["bytes"])))
        np.testing.assert_array_equal(pixels, observation["observation/image"])
        np.testing.assert_array_equal(
            row["observation.state"], observation["observation/state"].astype(np.float32)
        )
        assert row["action"] == [float(number)] * 7


def test_episodes_point_to_their_frames(dataset: pathlib.Path) -> None:
    first, second = _read(dataset, "meta/episodes/chunk-000/file-000.parquet")
    assert (first["length"], first["dataset_from_index"], first["dataset_to_index"]) == (3, 0, 3)
    assert (second["length"], second["dataset_from_index"], second["dataset_to_index"]) == (2, 3, 5)
    assert second["tasks"] == ["close it"]
    assert (second["data/chunk_index"], second["data/file_index"]) == (0, 0)
    assert second["stats/action/min"] == [3.0] * 7
    assert np.shape(second["stats/observation.images.image/mean"]) == (3, 1, 1)


def test_tasks_are_found_by_their_text(dataset: pathlib.Path) -> None:
    path = dataset / "meta" / "tasks.parquet"
    assert _read(dataset, "meta/tasks.parquet") == [
        {"task_index": 0, "task": "open the drawer"},
        {"task_index": 1, "task": "close it"},
    ]
    assert json.loads(pq.read_schema(path).metadata[b"pandas"])["index_columns"] == ["task"]


def test_statistics_are_those_of_the_frames(dataset: pathlib.Path) -> None:
    stats = json.loads((dataset / "meta" / "stats.json").read_text())
    actions = np.repeat(np.arange(5.0)[:, None], 7, axis=1)
    assert stats["action"]["mean"] == [2.0] * 7
    assert stats["action"]["q99"] == pytest.approx(np.quantile(actions, 0.99, axis=0).tolist())
    assert stats["action"]["count"] == [5]
    assert set(stats["observation.images.image"]) == set(vector_stats(actions))


def test_image_statistics_are_exact() -> None:
    image = np.random.default_rng(1).integers(256, size=(32, 32, 3), dtype=np.uint8)
    counts = PixelCounts()
    counts.add(image)
    pixels = image[::4, ::4].reshape(-1, 3) / 255
    stats = counts.stats()
    for name, expected in {
        "min": pixels.min(axis=0),
        "max": pixels.max(axis=0),
        "mean": pixels.mean(axis=0),
        "std": pixels.std(axis=0),
        "q50": np.quantile(pixels, 0.5, axis=0, method="inverted_cdf"),
        "q01": np.quantile(pixels, 0.01, axis=0, method="inverted_cdf"),
    }.items():
        np.testing.assert_allclose(np.ravel(stats[name]), expected, atol=1e-9)


def test_episodes_end_where_the_robot_says_so_or_falls_silent(tmp_path: pathlib.Path) -> None:
    first = {"received_ns": 10**18}

    def later(steps: int) -> dict[str, Any]:
        return {"received_ns": 10**18 + steps * STEP_NS}

    reset = {**libero_observation(2), "vlad/reset": True}
    files = write_recording(
        tmp_path,
        [
            exchange(0, **first),
            exchange(1, session="other", **later(1)),
            exchange(2, observation=reset, **later(2)),
            exchange(3, **later(3)),
            exchange(4, reply=b"", error="failed", **later(4)),
            exchange(5, **later(3 + 51)),
            exchange(0, **later(3 + 52)),
        ],
    )
    found = episodes([open_recording(path) for path in files], gap_s=5.0)
    assert sorted(len(episode.frames) for episode in found) == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_robot_can_be_exported(environment: str, tmp_path: pathlib.Path) -> None:
    robot = ENVIRONMENTS[environment]
    observation = synthetic_observations(robot, 1)[0]
    actions = np.zeros((10, robot.action_width))
    exchanges = [exchange(number, observation=observation, actions=actions) for number in range(2)]
    files = write_recording(tmp_path / "runs", exchanges, environment=environment)
    assert run(Args((*files, tmp_path / "dataset"))) == (1, 2)
    features = json.loads((tmp_path / "dataset" / "meta" / "info.json").read_text())["features"]
    assert features["observation.state"]["shape"] == [robot.state_width]
    assert sum(name.startswith("observation.images.") for name in features) == len(robot.cameras)


def test_mistakes_are_named(tmp_path: pathlib.Path) -> None:
    files = write_recording(tmp_path / "runs", [exchange(0), exchange(1)])
    with pytest.raises(ConfigError, match="and then the directory"):
        run(Args((tmp_path / "runs",)))
    with pytest.raises(ConfigError, match="not empty"):
        run(Args((*files, tmp_path / "runs")))
    droid = ENVIRONMENTS["DROID"]
    others = write_recording(
        tmp_path / "others",
        [exchange(0, observation=synthetic_observations(droid, 1)[0], actions=np.zeros((10, 8)))],
        environment="DROID",
    )
    with pytest.raises(ConfigError, match="several robots: DROID, LIBERO"):
        run(Args((*files, *others, tmp_path / "dataset")))
