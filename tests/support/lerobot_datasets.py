"""Writes small LeRobotDataset v3 directories as LeRobot lays them out."""

from __future__ import annotations

import io
import json
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 20
IMAGES = ("observation.images.image", "observation.images.image2")


def encoded(image: npt.NDArray[np.uint8]) -> bytes:
    """The image as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_dataset(
    directory: pathlib.Path,
    lengths: tuple[int, ...] = (5, 7, 4),
    *,
    files: tuple[int, ...] = (0, 0, 1),
    videos: bool = False,
    version: str = "v3.0",
    side: int = 32,
) -> dict[str, npt.NDArray[Any]]:
    """Write episodes of these lengths into these data files.

    Returns:
        `states` `[N, 8]`, `actions` `[N, 7]`, and one `[N, side, side, 3]` per name in `IMAGES`.
    """
    random = np.random.default_rng(0)
    count = sum(lengths)
    arrays: dict[str, npt.NDArray[Any]] = {
        "states": random.normal(size=(count, 8)).astype(np.float32),
        "actions": random.normal(size=(count, 7)).astype(np.float32),
    }
    for name in IMAGES:
        # Flat colours, which survive a video codec.
        colours = random.integers(20, 236, (count, 1, 1, 3), dtype=np.uint8)
        arrays[name] = np.broadcast_to(colours, (count, side, side, 3)).copy()
    feature = {"dtype": "video" if videos else "image", "shape": [side, side, 3]}
    info = {
        "codebase_version": version,
        "fps": FPS,
        "features": {
            **dict.fromkeys(IMAGES, feature),
            "observation.state": {"dtype": "float32", "shape": [8]},
            "action": {"dtype": "float32", "shape": [7]},
        },
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "total_episodes": len(lengths),
        "total_frames": count,
        "a_field_of_a_later_version": 1,
    }
    (directory / "meta").mkdir(parents=True)
    (directory / "meta" / "info.json").write_text(json.dumps(info))
    tasks = pa.table({"task_index": [0, 1], "task": ["lift the bowl", "push the plate"]})
    pq.write_table(tasks, directory / "meta" / "tasks.parquet")
    rows, first = [], 0
    for number, (length, file) in enumerate(zip(lengths, files, strict=True)):
        row = {
            "episode_index": number,
            "length": length,
            "dataset_from_index": first,
            "dataset_to_index": first + length,
            "data/chunk_index": 0,
            "data/file_index": file,
        }
        for name in IMAGES if videos else ():
            row[f"videos/{name}/chunk_index"] = row[f"videos/{name}/file_index"] = 0
            row[f"videos/{name}/from_timestamp"] = first / FPS
        rows.append(row)
        first += length
    path = directory / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    for file in sorted(set(files)):
        members = [row for row, place in zip(rows, files, strict=True) if place == file]
        tables = [_episode(row, arrays, videos) for row in members]
        path = directory / info["data_path"].format(chunk_index=0, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), path)
    for name in IMAGES if videos else ():
        path = directory / info["video_path"].format(video_key=name, chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True)
        _write_video(path, arrays[name])
    return arrays


def _episode(row: dict[str, Any], arrays: dict[str, npt.NDArray[Any]], videos: bool) -> pa.Table:
    first, length = row["dataset_from_index"], row["length"]
    span = slice(first, first + length)
    columns = {
        "observation.state": _vectors(arrays["states"][span]),
        "action": _vectors(arrays["actions"][span]),
        "timestamp": pa.array((np.arange(length) / FPS).astype(np.float32)),
        "frame_index": pa.array(np.arange(length)),
        "episode_index": pa.array(np.full(length, row["episode_index"])),
        "index": pa.array(np.arange(first, first + length)),
        "task_index": pa.array(np.full(length, row["episode_index"] % 2)),
    }
    for name in () if videos else IMAGES:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pictures = [{"bytes": encoded(image), "path": None} for image in arrays[name][span]]
        columns[name] = pa.array(pictures, kind)
    return pa.table(columns)


def _vectors(values: npt.NDArray[np.float32]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _write_video(path: pathlib.Path, frames: npt.NDArray[np.uint8]) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
