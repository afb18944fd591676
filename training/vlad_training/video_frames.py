"""Frames of the mp4 files of a LeRobotDataset, by episode and time."""

from __future__ import annotations

import collections
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_training.errors import DatasetError

_OPEN_FILES = 4
_TOLERANCE_S = 0.02
"""Half a frame at 25 Hz; a frame further away than this is another frame."""


class VideoFrames:
    """Decodes single frames; neighbours in ascending order cost no new seek.

    Args:
        root: of the dataset.
        pattern: `video_path` of `info.json`.
        feature: the camera.
        episodes: rows of `meta/episodes`.

    Raises:
        DatasetError: without PyAV, and for a dataset whose episodes name no video.
    """

    def __init__(
        self, root: pathlib.Path, pattern: str | None, feature: str, episodes: list[dict[str, Any]]
    ) -> None:
        try:
            import av
        except ImportError as error:
            raise DatasetError(
                f"'{feature}' is a video and needs PyAV ({error}); pip install 'vlad[train]'"
            ) from error
        self._av: Any = av
        key = f"videos/{feature}"
        if pattern is None or any(f"{key}/from_timestamp" not in row for row in episodes):
            raise DatasetError(f"{root}: meta/episodes does not say where the videos of '{feature}' are")
        self._starts = {int(row["episode_index"]): float(row[f"{key}/from_timestamp"]) for row in episodes}
        self._files = {
            int(row["episode_index"]): root
            / pattern.format(
                video_key=feature, chunk_index=row[f"{key}/chunk_index"], file_index=row[f"{key}/file_index"]
            )
            for row in episodes
        }
        self._open: collections.OrderedDict[pathlib.Path, _Reader] = collections.OrderedDict()

    def frame(self, episode: int, timestamp_s: float) -> npt.NDArray[np.uint8]:
        """`[H, W, 3]` uint8 of the frame nearest to a time of an episode.

        Raises:
            DatasetError: for an unreadable file, and where no frame is near that time.
        """
        path = self._files[episode]
        if path not in self._open:
            try:
                self._open[path] = _Reader(self._av.open(str(path)))
            except (OSError, self._av.error.FFmpegError) as error:
                raise DatasetError(f"{path} is no readable video: {error}") from error
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        found = self._open[path].at(self._starts[episode] + timestamp_s)
        if found is None:
            raise DatasetError(f"{path}: no frame at {self._starts[episode] + timestamp_s:.3f} s")
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Open decoders do not travel to other processes.
        return {**self.__dict__, "_open": collections.OrderedDict(), "_av": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import av

        self.__dict__.update(state, _av=av)


class _Reader:
    def __init__(self, container: Any) -> None:
        self._container = container
        self._stream = container.streams.video[0]
        self._frames = container.decode(self._stream)
        self._last_s = -1.0

    def at(self, time_s: float) -> npt.NDArray[np.uint8] | None:
        """The frame at a time, or None where the nearest one is too far off."""
        if not self._last_s < time_s < self._last_s + 1.0:
            self._container.seek(int(max(0.0, time_s - 0.5) / self._stream.time_base), stream=self._stream)
            self._frames = self._container.decode(self._stream)
        for frame in self._frames:
            self._last_s = float(frame.pts * self._stream.time_base)
            if self._last_s > time_s - _TOLERANCE_S:
                if self._last_s > time_s + _TOLERANCE_S:
                    return None
                pixels: npt.NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
                return pixels
        return None

    def close(self) -> None:
        self._container.close()
