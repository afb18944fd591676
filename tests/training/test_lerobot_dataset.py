"""LeRobotDataset v3: every frame comes out as it went in, and everything else is refused by name."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tests.support.lerobot_datasets import IMAGES, write_dataset
from vlad_configs.environments import ENVIRONMENTS
from vlad_training.errors import DatasetError
from vlad_training.frames import chunk_indices
from vlad_training.lerobot_dataset import LeRobotDataset, _Encoded

LIBERO = ENVIRONMENTS["LIBERO"]


def test_every_frame_is_the_observation_that_the_robot_would_have_sent(tmp_path: pathlib.Path) -> None:
    arrays = write_dataset(tmp_path / "set")
    dataset = LeRobotDataset(tmp_path / "set", LIBERO)
    assert len(dataset) == 16
    np.testing.assert_array_equal(dataset.actions, arrays["actions"])
    for index in range(16):
        observation = dataset.observation(index)
        LIBERO.check(observation, prompt_optional=False)
        np.testing.assert_array_equal(observation["observation/state"], arrays["states"][index])
        np.testing.assert_array_equal(observation["observation/image"], arrays[IMAGES[0]][index])
        np.testing.assert_array_equal(observation["observation/wrist_image"], arrays[IMAGES[1]][index])
    prompts = [dataset.observation(index)["prompt"] for index in (0, 5, 12)]
    assert prompts == ["lift the bowl", "push the plate", "lift the bowl"]


def test_frames_of_videos_are_those_of_their_episode_and_time(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("av")
    arrays = write_dataset(tmp_path / "set", videos=True)
    dataset = LeRobotDataset(tmp_path / "set", LIBERO)
    for index in (15, 0, 1, 11, 12, 4):  # forwards and backwards, over the borders of episodes
        image = dataset.observation(index)["observation/image"].astype(int)
        assert abs(image - arrays[IMAGES[0]][index]).max() < 12
        others = [other for other in range(16) if other != index]
        distances = abs(arrays[IMAGES[0]].astype(int) - image).max(axis=(1, 2, 3))
        assert distances[index] < distances[others].min()


def test_chunks_repeat_the_last_action_of_their_own_episode(tmp_path: pathlib.Path) -> None:
    write_dataset(tmp_path / "set")
    ends = LeRobotDataset(tmp_path / "set", LIBERO).episode_ends
    indices, inside = chunk_indices(ends, 10, 5)
    assert indices.tolist() == [10, 11, 11, 11, 11]
    assert inside.tolist() == [True, True, False, False, False]
    assert chunk_indices(ends, 0, 3)[0].tolist() == [0, 1, 2]


def test_another_version_is_refused_with_the_converter(tmp_path: pathlib.Path) -> None:
    write_dataset(tmp_path / "set", version="v2.1")
    with pytest.raises(DatasetError, match=r"v2\.1.*convert_dataset_v21_to_v30"):
        LeRobotDataset(tmp_path / "set", LIBERO)


def test_another_robot_is_refused_by_its_width(tmp_path: pathlib.Path) -> None:
    write_dataset(tmp_path / "set")
    cameras = {
        "observation/exterior_image_1_left": IMAGES[0],
        "observation/wrist_image_left": IMAGES[1],
    }
    with pytest.raises(DatasetError, match="'action' must have 8 numbers in every frame for DROID"):
        LeRobotDataset(tmp_path / "set", ENVIRONMENTS["DROID"], cameras)


def test_a_missing_camera_is_refused_with_what_there_is(tmp_path: pathlib.Path) -> None:
    write_dataset(tmp_path / "set")
    with pytest.raises(DatasetError, match=r"no picture 'observation\.images\.top'.*found: observation"):
        LeRobotDataset(tmp_path / "set", LIBERO, {"observation/image": "observation.images.top"})


def test_a_lost_data_file_is_refused(tmp_path: pathlib.Path) -> None:
    write_dataset(tmp_path / "set")
    (tmp_path / "set" / "data" / "chunk-000" / "file-001.parquet").unlink()
    with pytest.raises(DatasetError, match=r"file-001\.parquet is not readable"):
        LeRobotDataset(tmp_path / "set", LIBERO)


def test_pictures_are_found_across_the_chunks_of_a_column() -> None:
    pa = pytest.importorskip("pyarrow")
    names = [[b"a", b"b"], [], [b"c"], [b"d", b"e"]]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    chunks = [pa.array([{"bytes": name, "path": None} for name in part], kind) for part in names]
    pictures = _Encoded(pa.chunked_array(chunks), np.array([4, 0, 2, 3, 1]))
    assert [pictures[index] for index in range(len(pictures))] == [b"e", b"a", b"c", b"d", b"b"]
