"""Writes episodes as a LeRobotDataset v3.0, with images in its parquet files: no video codec is needed.

Layout and names are those that LeRobot 0.4 and newer read: `meta/info.json`, `meta/stats.json`,
`meta/tasks.parquet`, `meta/episodes/` and `data/` with many episodes a file.
"""

from __future__ import annotations

import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlad_configs.errors import ConfigError
from vlad_server.recordings.episodes import Episode
from vlad_server.recordings.lerobot_stats import PixelCounts, Stats, vector_stats

CODEBASE_VERSION = "v3.0"
CHUNKS_SIZE = 1000
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"

_IMAGE_AXES = ("height", "width", "channels")
_INDICES = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"}
_INDICES["task_index"] = "int64"


class LeRobotWriter:
    """Writes a data set into an empty directory.

    Args:
        directory: must not exist, or be empty.
        fps: frames per second; the time of frame i of an episode is i / fps.
        robot_type: for `meta/info.json`.

    Raises:
        ConfigError: for a directory that holds something.
    """

    def __init__(self, directory: pathlib.Path, fps: int, robot_type: str) -> None:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ConfigError(f"{directory} is there already and not empty; name another directory")
        self._directory = directory
        self._fps = fps
        self._robot_type = robot_type
        self._image_shapes: dict[str, tuple[int, ...]] = {}
        self._widths: dict[str, int] = {}
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._vectors: dict[str, list[npt.NDArray[Any]]] = {}
        self._pixels: dict[str, list[PixelCounts]] = {}
        self._frames = 0
        self._file = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, episode: Episode) -> None:
        """Append an episode.

        Raises:
            ConfigError: where cameras, image sizes or widths are not those of the first frame.
        """
        first = self._frames
        if not self._image_shapes:
            frame = episode.frames[0]
            self._image_shapes = {name: image.shape for name, image in frame.images.items()}
            self._widths = {"observation.state": len(frame.state), "action": len(frame.action)}
        for frame in episode.frames:
            shapes = {name: image.shape for name, image in frame.images.items()}
            if shapes != self._image_shapes:
                raise ConfigError(
                    f"all frames must have the same cameras and image sizes: the first has "
                    f"{self._image_shapes}, a later one {shapes}"
                )
        task_index = self._tasks.setdefault(episode.task, len(self._tasks))
        columns = self._columns(episode, task_index)
        pixels = {name: PixelCounts() for name in self._image_shapes}
        pictures: dict[str, list[dict[str, Any]]] = {name: [] for name in self._image_shapes}
        for number, frame in enumerate(episode.frames):
            for name, image in frame.images.items():
                pixels[name].add(image)
                pictures[name].append({"bytes": _png(image), "path": f"frame-{number:06d}.png"})
        chunk, file = self._write_rows(columns, pictures)
        for name, values in columns.items():
            self._vectors.setdefault(name, []).append(values)
        for name, counts in pixels.items():
            self._pixels.setdefault(name, []).append(counts)
        stats = {name: vector_stats(values) for name, values in columns.items()}
        stats |= {_image_key(name): counts.stats() for name, counts in pixels.items()}
        self._frames += len(episode.frames)
        self._episodes.append(
            {
                "episode_index": len(self._episodes),
                "tasks": [episode.task],
                "length": len(episode.frames),
                "dataset_from_index": first,
                "dataset_to_index": self._frames,
                "data/chunk_index": chunk,
                "data/file_index": file,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **{
                    f"stats/{feature}/{name}": value
                    for feature, row in stats.items()
                    for name, value in row.items()
                },
            }
        )

    def finish(self) -> None:
        """Write what belongs to the whole.

        Raises:
            ConfigError: where there was no episode.
        """
        if not self._episodes:
            raise ConfigError("the recordings hold no answered request: there is nothing to export")
        self._close_file()
        self._write_table(EPISODES_PATH, pa.Table.from_pylist(self._episodes))
        tasks = pa.table({"task_index": list(self._tasks.values()), "task": list(self._tasks)})
        self._write_table("meta/tasks.parquet", tasks.replace_schema_metadata(_TASKS_ARE_THE_INDEX))
        stats = {name: vector_stats(np.concatenate(parts)) for name, parts in self._vectors.items()}
        stats |= {_image_key(name): PixelCounts.merged(parts).stats() for name, parts in self._pixels.items()}
        self._write_json("meta/stats.json", stats)
        self._write_json("meta/info.json", self._info())

    def _columns(self, episode: Episode, task_index: int) -> dict[str, npt.NDArray[Any]]:
        """The features that are numbers, each `[frames, width]`."""
        length = len(episode.frames)
        frame_index = np.arange(length, dtype=np.int64)
        scalars: dict[str, Any] = {
            "timestamp": (frame_index / self._fps).astype(np.float32),
            "frame_index": frame_index,
            "episode_index": np.full(length, len(self._episodes), np.int64),
            "index": self._frames + frame_index,
            "task_index": np.full(length, task_index, np.int64),
        }
        vectors = {
            "observation.state": np.stack([frame.state for frame in episode.frames]),
            "action": np.stack([frame.action for frame in episode.frames]),
        }
        return {**vectors, **{name: column[:, None] for name, column in scalars.items()}}

    def _write_rows(
        self, columns: Mapping[str, npt.NDArray[Any]], pictures: Mapping[str, list[dict[str, Any]]]
    ) -> tuple[int, int]:
        arrays: dict[str, Any] = {}
        image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        for name, rows in pictures.items():
            arrays[_image_key(name)] = pa.array(rows, image_type)
        for name, column in columns.items():
            if name in _INDICES:
                arrays[name] = pa.array(column[:, 0])
            else:
                flat = pa.array(column.ravel())
                arrays[name] = pa.FixedSizeListArray.from_arrays(flat, column.shape[1])
        table = pa.table(arrays)
        path = self._directory / self._data_path()
        if self._writer is not None and path.stat().st_size > DATA_FILE_MB << 20:
            self._close_file()
            self._file += 1
            path = self._directory / self._data_path()
        if self._writer is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # PNG does not get smaller, and is what nearly all of it is.
            self._writer = pq.ParquetWriter(path, table.schema, compression="snappy")
        self._writer.write_table(table)
        return divmod(self._file, CHUNKS_SIZE)

    def _data_path(self) -> str:
        chunk, file = divmod(self._file, CHUNKS_SIZE)
        return DATA_PATH.format(chunk_index=chunk, file_index=file)

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _info(self) -> dict[str, Any]:
        features: dict[str, Any] = {
            _image_key(name): {
                "dtype": "image",
                "shape": list(shape),
                "names": ["height", "width", "channels"],
            }
            for name, shape in self._image_shapes.items()
        }
        for name, width in self._widths.items():
            features[name] = {"dtype": "float32", "shape": [width], "names": None}
        for name, dtype in _INDICES.items():
            features[name] = {"dtype": dtype, "shape": [1], "names": None}
        return {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": self._robot_type,
            "total_episodes": len(self._episodes),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNKS_SIZE,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA_PATH,
            "video_path": None,
            "features": features,
        }

    def _write_json(self, name: str, content: Mapping[str, Stats]) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=4) + "\n", "utf-8")

    def _write_table(self, name: str, table: Any) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)


_TASKS_ARE_THE_INDEX = {
    "pandas": json.dumps(
        {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {
                    "name": name,
                    "field_name": name,
                    "pandas_type": pandas_type,
                    "numpy_type": numpy_type,
                    "metadata": None,
                }
                for name, pandas_type, numpy_type in (
                    ("task_index", "int64", "int64"),
                    ("task", "unicode", "object"),
                )
            ],
            "pandas_version": "2.0.0",
        }
    )
}
"""Tells pandas, with which LeRobot reads the file, to look tasks up by their text."""


def _image_key(camera: str) -> str:
    return f"observation.images.{camera}"


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
