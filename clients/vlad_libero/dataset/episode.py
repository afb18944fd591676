"""One episode in memory and in its own file, until the dataset is put together."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
from typing import Any, Sequence

import numpy as np
import numpy.typing as npt

from vlad_libero.errors import DatasetError

FPS = 20
STATE, ACTION = "observation.state", "action"
# In the order of openpi's LIBERO keys: what the fixed camera sees, then the wrist's.
IMAGES = ("observation.images.image", "observation.images.image2")
JPEG_QUALITY = 95

STATE_NAMES = ("x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right")
ACTION_NAMES = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")


@dataclasses.dataclass(frozen=True)
class Episode:
    """What happened at each step of an episode.

    Attributes:
        prompt: the instruction.
        states: float32 [frames, 8], before the action.
        actions: float32 [frames, 7].
        images: JPEG files, one list per name in `IMAGES`, one file a frame.
        side: of the square images, pixels.
        origin: where it comes from, such as its seed; strings and numbers.
    """

    prompt: str
    states: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    images: tuple[tuple[bytes, ...], ...]
    side: int
    origin: dict[str, Any]

    def __post_init__(self) -> None:
        frames = len(self.states)
        lengths = [len(self.actions), *(len(files) for files in self.images)]
        if frames == 0 or any(length != frames for length in lengths):
            raise ValueError(f"an episode needs as many of everything: {frames} states, {lengths}")
        if self.states.shape[1:] != (len(STATE_NAMES),) or self.actions.shape[1:] != (len(ACTION_NAMES),):
            raise ValueError(f"states {self.states.shape} and actions {self.actions.shape} do not fit LIBERO")


class EpisodeRecorder:
    """Collects the frames of one episode."""

    def __init__(self, prompt: str, origin: dict[str, Any]) -> None:
        self._prompt, self._origin = prompt, origin
        self._states: list[npt.NDArray[Any]] = []
        self._actions: list[npt.NDArray[Any]] = []
        self._images: tuple[list[bytes], ...] = tuple([] for _ in IMAGES)
        self._side = 0

    def add(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        state: npt.NDArray[np.float64],
        action: npt.NDArray[np.float64],
    ) -> None:
        """Add what was seen and what the robot was told."""
        for files, image in zip(self._images, images, strict=True):
            files.append(encode_jpeg(image))
        self._side = images[0].shape[0]
        self._states.append(np.asarray(state, np.float32))
        self._actions.append(np.asarray(action, np.float32))

    def episode(self) -> Episode:
        """The episode so far."""
        return Episode(
            self._prompt,
            np.stack(self._states),
            np.stack(self._actions),
            tuple(tuple(files) for files in self._images),
            self._side,
            self._origin,
        )


def encode_jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    """The image as a JPEG file without colour subsampling: objects here are a few pixels large."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def save_episode(path: pathlib.Path, episode: Episode) -> None:
    """Write an episode into its own file, whole or not at all.

    Raises:
        DatasetError: where that is not possible.
    """
    arrays: dict[str, Any] = {
        "states": episode.states,
        "actions": episode.actions,
        "about": np.array(
            json.dumps({"prompt": episode.prompt, "side": episode.side, "origin": episode.origin})
        ),
    }
    for name, files in zip(IMAGES, episode.images, strict=True):
        arrays[f"{name}.bytes"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{name}.sizes"] = np.array([len(file) for file in files])
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)
        os.replace(partial, path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error}") from error


def load_episode(path: pathlib.Path) -> Episode:
    """Read an episode from its own file.

    Raises:
        DatasetError: where it is damaged.
    """
    try:
        with np.load(path) as arrays:
            about = json.loads(str(arrays["about"]))
            images = tuple(
                _split(arrays[f"{name}.bytes"].tobytes(), arrays[f"{name}.sizes"]) for name in IMAGES
            )
            return Episode(
                about["prompt"], arrays["states"], arrays["actions"], images, about["side"], about["origin"]
            )
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{path} is damaged ({error}); remove it, and it is made again") from error


def _split(content: bytes, sizes: npt.NDArray[np.int64]) -> tuple[bytes, ...]:
    ends = np.cumsum(sizes)
    return tuple(content[end - size : end] for end, size in zip(ends, sizes, strict=True))
