"""Reads LeRobotDataset v3: numbers into memory, pictures where they lie, decoded when asked for.

Pictures of feature dtype `image` are kept encoded in memory; those of dtype `video` are read from their
files with PyAV. Facts of the format: huggingface/lerobot, version 0.6.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlad_configs.environments import Environment
from vlad_training.errors import DatasetError
from vlad_training.video_frames import VideoFrames

STATE, ACTION = "observation.state", "action"

_ALOHA = {
    f"images/{name}": f"observation.images.{name}"
    for name in ("cam_high", "cam_left_wrist", "cam_right_wrist")
}

CAMERA_FEATURES: Mapping[str, Mapping[str, str]] = {
    "LIBERO": {
        "observation/image": "observation.images.image",
        "observation/wrist_image": "observation.images.image2",
    },
    "DROID": {
        "observation/exterior_image_1_left": "observation.images.exterior_1_left",
        "observation/wrist_image_left": "observation.images.wrist_left",
    },
    "ALOHA": _ALOHA,
    "ALOHA_SIM": _ALOHA,
}
"""For each robot: request key of a camera -> feature of the dataset."""


@dataclasses.dataclass(frozen=True)
class _Picture:
    """Where the pictures of a feature are: encoded ones frame by frame, or videos."""

    files: Sequence[bytes] | None
    videos: VideoFrames | None


class LeRobotDataset:
    """The frames of a dataset.

    Args:
        directory: with `meta/info.json`.
        environment: the robot whose observations the frames become.
        cameras: request key -> feature, where it differs from `CAMERA_FEATURES`.

    Attributes:
        states, actions: `[N, width]` float32, in the robot's units.
        episode_ends: `[N]` int64, for each frame the index after the last one of its episode.

    Raises:
        DatasetError: for another format or version, missing features, and widths of another robot.
    """

    def __init__(
        self, directory: pathlib.Path, environment: Environment, cameras: Mapping[str, str] | None = None
    ) -> None:
        self._root, self._environment = directory, environment
        self._info = _read_info(directory)
        self._parquet = _parquet()
        self._features = _camera_features(directory, environment, self._info["features"], cameras or {})
        episodes = self._episodes()
        self._columns: dict[str, Any] = {}
        table = self._frames(episodes)
        self.states = self._vectors(table, STATE, environment.state_width)
        self.actions = self._vectors(table, ACTION, environment.action_width)
        tasks = self._tasks()
        self.prompts = [self._prompt(tasks, index) for index in table["task_index"].to_pylist()]
        self._episode_of = table["episode_index"].to_numpy()
        self.episode_ends = _ends(self._episode_of)
        self._timestamps = table["timestamp"].to_numpy()
        self._pictures = {feature: self._picture(feature, episodes) for feature in self._features.values()}

    def __len__(self) -> int:
        return len(self.states)

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """Request keys of the cameras that the dataset has."""
        return tuple(self._features)

    def observation(self, index: int) -> dict[str, Any]:
        """A frame as the robot would have sent it."""
        observation: dict[str, Any] = {"prompt": self.prompts[index]}
        offset = 0
        for vector in self._environment.state:
            observation[vector.key] = self.states[index, offset : offset + vector.width]
            offset += vector.width
        for key, feature in self._features.items():
            camera = next(camera for camera in self._environment.cameras if camera.key == key)
            pixels = self._pixels(feature, index)
            group = observation
            for part in camera.path[:-1]:
                group = group.setdefault(part, {})
            group[camera.path[-1]] = np.moveaxis(pixels, -1, 0) if camera.layout == "chw" else pixels
        return observation

    def _pixels(self, feature: str, index: int) -> npt.NDArray[np.uint8]:
        picture = self._pictures[feature]
        if picture.videos is not None:
            return picture.videos.frame(int(self._episode_of[index]), float(self._timestamps[index]))
        assert picture.files is not None
        file = picture.files[index]
        try:
            with Image.open(io.BytesIO(file)) as image:
                return np.asarray(image.convert("RGB"))
        except OSError as error:
            raise DatasetError(
                f"{self._root}: frame {index} of '{feature}' is no picture: {error}"
            ) from error

    def _episodes(self) -> list[dict[str, Any]]:
        files = sorted((self._root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
        if not files:
            raise DatasetError(f"{self._root}: no meta/episodes/chunk-*/file-*.parquet; was it finalised?")
        rows = [row for file in files for row in self._read(file).to_pylist()]
        rows.sort(key=lambda row: int(row["episode_index"]))
        return rows

    def _frames(self, episodes: list[dict[str, Any]]) -> Any:
        """The numbers of all frames in one table, in the order of their global index."""
        import pyarrow as pa

        places = sorted({(row["data/chunk_index"], row["data/file_index"]) for row in episodes})
        pattern = self._info["data_path"]
        tables = [
            self._read(self._root / pattern.format(chunk_index=chunk, file_index=file))
            for chunk, file in places
        ]
        table = pa.concat_tables(tables)
        expected = sum(int(row["length"]) for row in episodes)
        if table.num_rows != expected:
            raise DatasetError(
                f"{self._root}: data files hold {table.num_rows} frames, meta/episodes announces {expected}"
            )
        # Numbers only: pictures of more than 2 GB do not fit into one of arrow's arrays.
        self._rows = np.argsort(table["index"].to_numpy(), kind="stable")
        numbers = [name for name in table.column_names if name not in self._features.values()]
        ordered = table.select(numbers).take(self._rows)
        for feature in set(table.column_names).difference(numbers):
            self._columns[feature] = table[feature]
        return ordered

    def _vectors(self, table: Any, name: str, width: int) -> npt.NDArray[np.float32]:
        if name not in table.column_names:
            raise DatasetError(f"{self._root}: no feature '{name}'; found: {', '.join(table.column_names)}")
        flat: npt.NDArray[np.float32] = (
            table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        )
        if table.num_rows == 0 or flat.size != table.num_rows * width:
            raise DatasetError(
                f"{self._root}: '{name}' must have {width} numbers in every frame for "
                f"{self._environment.name}; found {flat.size} numbers in {table.num_rows} frames"
            )
        if not np.isfinite(flat).all():
            raise DatasetError(f"{self._root}: '{name}' holds non-finite numbers")
        return flat.reshape(-1, width)

    def _tasks(self) -> dict[int, str]:
        rows = self._read(self._root / "meta" / "tasks.parquet").to_pylist()
        # A data frame written without its index's name calls that column so.
        name = "task" if rows and "task" in rows[0] else "__index_level_0__"
        if not rows or name not in rows[0]:
            raise DatasetError(f"{self._root}: meta/tasks.parquet has no column 'task'")
        return {int(row["task_index"]): str(row[name]) for row in rows}

    def _prompt(self, tasks: dict[int, str], index: int) -> str:
        if index not in tasks:
            raise DatasetError(f"{self._root}: task_index {index} is not in meta/tasks.parquet")
        return tasks[index]

    def _picture(self, feature: str, episodes: list[dict[str, Any]]) -> _Picture:
        if self._info["features"][feature]["dtype"] == "video":
            return _Picture(None, VideoFrames(self._root, self._info["video_path"], feature, episodes))
        return _Picture(_Encoded(self._columns[feature], self._rows), None)

    def _read(self, file: pathlib.Path) -> Any:
        try:
            return self._parquet.read_table(file)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{file} is not readable parquet: {error}") from error


class _Encoded(Sequence[bytes]):
    """Encoded pictures in arrow's memory, one copied out at a time.

    Args:
        column: chunks of structs with the field `bytes`.
        rows: for each frame its row.
    """

    def __init__(self, column: Any, rows: npt.NDArray[np.int64]) -> None:
        self._chunks = [chunk.field("bytes") for chunk in column.chunks]
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks)])
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        row = int(self._rows[index])
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._chunks[chunk][row - int(self._starts[chunk])].as_py()


def _read_info(directory: pathlib.Path) -> dict[str, Any]:
    path = directory / "meta" / "info.json"
    try:
        info = json.loads(path.read_text("utf-8"))
        version, features = info["codebase_version"], info["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{directory} is no LeRobotDataset: {path} is not readable ({error})") from error
    if not str(version).startswith("v3."):
        raise DatasetError(
            f"{directory} is a LeRobotDataset {version}, v3 is read here; convert it with "
            "python -m lerobot.scripts.convert_dataset_v21_to_v30"
        )
    if not isinstance(features, dict) or "data_path" not in info:
        raise DatasetError(f"{path} has no features or no data_path")
    return dict(info)


def _camera_features(
    root: pathlib.Path, environment: Environment, features: Mapping[str, Any], named: Mapping[str, str]
) -> dict[str, str]:
    known = [camera.key for camera in environment.cameras if camera.slot is not None]
    if unknown := sorted(set(named) - set(known)):
        raise DatasetError(f"'{unknown[0]}' is no camera of {environment.name}: {', '.join(known)}")
    wanted = {**CAMERA_FEATURES[environment.name], **named}
    pictures = [name for name, feature in features.items() if feature.get("dtype") in ("image", "video")]
    chosen = {}
    for camera in environment.cameras:
        if camera.slot is None:
            continue
        feature = wanted[camera.key]
        if feature in pictures:
            chosen[camera.key] = feature
        elif camera.required or camera.key in named:
            raise DatasetError(
                f"{root}: no picture '{feature}' for '{camera.key}'; "
                f"found: {', '.join(pictures) or 'none'}. Name one with --camera {camera.key}=FEATURE"
            )
    return chosen


def _ends(episode_of: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each frame the index behind the last frame of its episode; frames of an episode lie together."""
    borders = np.flatnonzero(np.diff(episode_of)) + 1
    bounds = np.concatenate((borders, [len(episode_of)]))
    return np.repeat(bounds, np.diff(np.concatenate(([0], bounds))))


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DatasetError(f"datasets need pyarrow ({error}); pip install 'vlad[train]'") from error
    return pyarrow.parquet
