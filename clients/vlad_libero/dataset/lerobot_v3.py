"""Puts episodes together to a LeRobotDataset, version 3.0.

Images lie in the parquet files (feature dtype `image`), so that no video decoder is needed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from typing import TYPE_CHECKING, Any, Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vlad_libero.dataset.episode import (
    ACTION,
    ACTION_NAMES,
    FPS,
    IMAGES,
    STATE,
    STATE_NAMES,
    Episode,
)
from vlad_libero.errors import DatasetError, SimulatorMissingError

if TYPE_CHECKING:
    import pyarrow as pa

_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
_FILES_PER_CHUNK = 1000
_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
# Statistics of images come from every n-th frame and every m-th row and column: they serve no policy here,
# only the format, and all pixels of a thousand episodes would take minutes to sort.
_IMAGE_STRIDE, _PIXEL_STRIDE = 50, 8


@dataclasses.dataclass
class _OpenFile:
    """The data file that is being filled."""

    chunk: int = 0
    number: int = 0
    size_bytes: int = 0
    tables: list[Any] = dataclasses.field(default_factory=list)


def write_dataset(
    directory: pathlib.Path,
    episodes: Iterable[Callable[[], Episode]],
    *,
    robot: str = "panda",
    file_size_mb: int = 100,
) -> dict[str, Any]:
    """Write a dataset in one go; the directory appears when it is complete.

    Args:
        episodes: one call each gives the next episode, so that one is in memory at a time.
        robot: `robot_type` of the dataset.
        file_size_mb: at which a data file is closed.

    Returns:
        The content of `meta/info.json`.

    Raises:
        DatasetError: where the directory exists, or nothing can be written, or there is no episode.
        SimulatorMissingError: without pyarrow.
    """
    if directory.exists():
        raise DatasetError(f"{directory} exists already; remove it, or choose another directory")
    workshop = directory.with_name(directory.name + ".partial")
    shutil.rmtree(workshop, ignore_errors=True)
    try:
        writer = _Writer(workshop, file_size_mb)
        for load in episodes:
            writer.add(load())
        info = writer.finish(robot, file_size_mb)
        os.replace(workshop, directory)
    except OSError as error:
        raise DatasetError(f"{directory} cannot be written: {error}") from error
    return info


class _Writer:
    def __init__(self, root: pathlib.Path, file_size_mb: int) -> None:
        self._root = root
        self._limit = file_size_mb * 1024 * 1024
        self._file = _OpenFile()
        self._rows: list[dict[str, Any]] = []
        self._tasks: dict[str, int] = {}
        self._frames = 0
        self._numbers: dict[str, list[npt.NDArray[Any]]] = {STATE: [], ACTION: []}
        self._pixels: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in IMAGES}
        self._side: int | None = None
        self._origins: list[dict[str, Any]] = []

    def add(self, episode: Episode) -> None:
        if self._side not in (None, episode.side):
            raise DatasetError(f"episodes have images of {self._side} and of {episode.side} pixels")
        self._side = episode.side
        pa, _ = _pyarrow()
        number, frames = len(self._rows), len(episode.states)
        task = self._tasks.setdefault(episode.prompt, len(self._tasks))
        index = np.arange(self._frames, self._frames + frames)
        columns = {
            **{name: _image_column(files) for name, files in zip(IMAGES, episode.images, strict=True)},
            STATE: _vector_column(episode.states),
            ACTION: _vector_column(episode.actions),
            "timestamp": pa.array((np.arange(frames) / FPS).astype(np.float32)),
            "frame_index": pa.array(np.arange(frames)),
            "episode_index": pa.array(np.full(frames, number)),
            "index": pa.array(index),
            "task_index": pa.array(np.full(frames, task)),
        }
        self._numbers[STATE].append(episode.states)
        self._numbers[ACTION].append(episode.actions)
        for name, files in zip(IMAGES, episode.images, strict=True):
            some = (_pixels(file) for file in files[::_IMAGE_STRIDE])
            self._pixels[name].extend(picture[::_PIXEL_STRIDE, ::_PIXEL_STRIDE] for picture in some)
        self._rows.append(
            {
                "episode_index": number,
                "tasks": [episode.prompt],
                "length": frames,
                "dataset_from_index": self._frames,
                "dataset_to_index": self._frames + frames,
                "data/chunk_index": self._file.chunk,
                "data/file_index": self._file.number,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **_flattened(episode),
            }
        )
        self._origins.append({"episode_index": number, **episode.origin})
        self._frames += frames
        self._file.tables.append(pa.table(columns))
        self._file.size_bytes += sum(len(file) for files in episode.images for file in files)
        if self._file.size_bytes >= self._limit:
            self._close_file()

    def finish(self, robot: str, file_size_mb: int) -> dict[str, Any]:
        if not self._rows:
            raise DatasetError("a dataset needs at least one episode")
        if self._file.tables:
            self._close_file()
        pa, parquet = _pyarrow()
        meta = self._root / "meta"
        (self._root / _EPISODES_PATH).parent.mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(self._rows), self._root / _EPISODES_PATH)
        # The layout of a data frame whose index is the task, which readers restore by this note.
        tasks = pa.table({"task_index": list(self._tasks.values()), "task": list(self._tasks)})
        tasks = tasks.replace_schema_metadata({"pandas": json.dumps(_TASKS_INDEX)})
        parquet.write_table(tasks, meta / "tasks.parquet")
        statistics = {
            name: _statistics(np.concatenate(parts), axis=0) for name, parts in self._numbers.items()
        }
        for name, images in self._pixels.items():
            statistics[name] = _image_statistics(np.stack(images))
        _write_json(meta / "stats.json", statistics)
        _write_json(meta / "origins.json", self._origins)
        info = self._info(robot, file_size_mb)
        _write_json(meta / "info.json", info)
        return info

    def _info(self, robot: str, file_size_mb: int) -> dict[str, Any]:
        return {
            "codebase_version": "v3.0",
            "robot_type": robot,
            "total_episodes": len(self._rows),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": _FILES_PER_CHUNK,
            "data_files_size_in_mb": file_size_mb,
            "video_files_size_in_mb": 200,
            "fps": FPS,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": _DATA_PATH,
            "video_path": None,
            "features": _features(self._side or 0),
        }

    def _close_file(self) -> None:
        pa, parquet = _pyarrow()
        path = self._root / _DATA_PATH.format(chunk_index=self._file.chunk, file_index=self._file.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        # JPEG does not shrink further.
        parquet.write_table(pa.concat_tables(self._file.tables), path, compression="none")
        following = self._file.chunk * _FILES_PER_CHUNK + self._file.number + 1
        self._file = _OpenFile(*divmod(following, _FILES_PER_CHUNK))


_TASKS_INDEX = {
    "index_columns": ["task"],
    "column_indexes": [],
    "columns": [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {
            "name": "task",
            "field_name": "task",
            "pandas_type": "unicode",
            "numpy_type": "object",
            "metadata": None,
        },
    ],
    "pandas_version": "2.0.0",
}


def _features(side: int) -> dict[str, Any]:
    image = {"dtype": "image", "shape": [side, side, 3], "names": ["height", "width", "channel"]}
    return {
        **dict.fromkeys(IMAGES, image),
        STATE: {"dtype": "float32", "shape": [len(STATE_NAMES)], "names": list(STATE_NAMES)},
        ACTION: {"dtype": "float32", "shape": [len(ACTION_NAMES)], "names": list(ACTION_NAMES)},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **{
            name: {"dtype": "int64", "shape": [1], "names": None}
            for name in ("frame_index", "episode_index", "index", "task_index")
        },
    }


def _vector_column(values: npt.NDArray[np.float32]) -> pa.Array:
    pa, _ = _pyarrow()
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _image_column(files: Sequence[bytes]) -> pa.Array:
    pa, _ = _pyarrow()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": file, "path": None} for file in files], kind)


def _flattened(episode: Episode) -> dict[str, Any]:
    vectors = {STATE: episode.states, ACTION: episode.actions}
    return {
        f"stats/{name}/{key}": value
        for name, values in vectors.items()
        for key, value in _statistics(values, axis=0).items()
    }


def _statistics(values: npt.NDArray[Any], axis: int | tuple[int, ...]) -> dict[str, list[Any]]:
    values = values.astype(np.float64)
    numbers = {
        "min": values.min(axis),
        "max": values.max(axis),
        "mean": values.mean(axis),
        "std": values.std(axis),
        **{name: np.quantile(values, share, axis) for name, share in _QUANTILES.items()},
    }
    return {**{name: number.tolist() for name, number in numbers.items()}, "count": [len(values)]}


def _image_statistics(images: npt.NDArray[Any]) -> dict[str, list[Any]]:
    """Per channel, of values in 0..1, shaped [3, 1, 1]."""
    flat = _statistics(images / 255, axis=(0, 1, 2))
    return {
        name: value if name == "count" else [[[number]] for number in value] for name, value in flat.items()
    }


def _pixels(file: bytes) -> npt.NDArray[np.uint8]:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(file)))


def _write_json(path: pathlib.Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SimulatorMissingError(
            f"datasets need pyarrow ({error}); install it with: pip install 'vlad[libero]'"
        ) from error
    return pyarrow, pyarrow.parquet
