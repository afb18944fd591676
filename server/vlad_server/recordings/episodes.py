"""From recorded exchanges to the episodes of a data set: what each robot saw and was told to do, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.environments import Environment, prompt_text
from vlad_configs.errors import ConfigError
from vlad_server.recordings.exchange import RecordedExchange
from vlad_server.recordings.foxglove import pictures_of
from vlad_server.recordings.reader import Recording


@dataclasses.dataclass(frozen=True)
class Frame:
    """One observation and the action that answered it.

    Attributes:
        time_ns: Unix time at which the observation came.
        images: uint8 `[H, W, 3]` by the camera's name.
        state: float32 `[state_width]`.
        action: float32 `[action_width]`, the first of the chunk, in the robot's units.
    """

    time_ns: int
    images: Mapping[str, npt.NDArray[np.uint8]]
    state: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32]


@dataclasses.dataclass
class Episode:
    """Frames of one robot under one instruction."""

    task: str
    frames: list[Frame]
    last_number: int


def episodes(recordings: Iterable[Recording], gap_s: float) -> Iterator[Episode]:
    """Split recordings into episodes, each when it is complete.

    An episode ends where the robot says so (`vlad/reset`), gets another instruction, is silent for longer
    than `gap_s`, or where the daemon was started again. Exchanges on which the engine failed are left out.

    Raises:
        ConfigError: for a recording that cannot be read, and for requests without any instruction.
    """
    open_ones: dict[str | int, Episode] = {}
    for recording in recordings:
        for exchange in recording.exchanges():
            reply = recording.reply(exchange)
            if reply is None:
                continue
            observation = recording.observation(exchange)
            task = _task(recording, exchange, observation)
            robot = exchange.connection if exchange.session is None else exchange.session
            episode = open_ones.get(robot)
            if episode is not None and (
                observation.get("vlad/reset") is True
                or episode.task != task
                or exchange.number < episode.last_number
                or exchange.received_ns - episode.frames[-1].time_ns > 1e9 * gap_s
            ):
                yield open_ones.pop(robot)
                episode = None
            if episode is None:
                episode = open_ones[robot] = Episode(task, [], exchange.number)
            episode.frames.append(_frame(recording.robot, exchange, observation, reply))
            episode.last_number = exchange.number
    yield from open_ones.values()


def typical_rate(recordings: Iterable[Recording], gap_s: float) -> tuple[float, float]:
    """How many requests a second the robots made, from the median of the pauses in between.

    Returns:
        Hz, and how many times longer than the median the 95th percentile of the pauses is.

    Raises:
        ConfigError: where no robot made two requests within `gap_s`.
    """
    last: dict[str | int, int] = {}
    pauses = []
    for recording in recordings:
        for exchange in recording.exchanges():
            robot = exchange.connection if exchange.session is None else exchange.session
            pause = 1e-9 * (exchange.received_ns - last.get(robot, -(10**18)))
            if 0 < pause <= gap_s:
                pauses.append(pause)
            last[robot] = exchange.received_ns
    if not pauses:
        raise ConfigError(f"no two requests of a robot are within {gap_s:g} s; name the rate with --fps")
    median, high = np.percentile(pauses, [50, 95])
    return 1 / float(median), float(high / median)


def _task(recording: Recording, exchange: RecordedExchange, observation: Mapping[str, Any]) -> str:
    if "prompt" in observation:
        return prompt_text(observation["prompt"])
    default = recording.policy.get("default_prompt")
    if default is None:
        raise ConfigError(f"{recording.path}, exchange {exchange.number}: no prompt, and no default is known")
    return str(default)


def _frame(
    robot: Environment, exchange: RecordedExchange, observation: Mapping[str, Any], reply: Mapping[str, Any]
) -> Frame:
    images = {
        camera.path[-1].rpartition("/")[2]: _pixels(image, camera.layout == "chw")
        for camera, image in pictures_of(observation, robot)
        if isinstance(image, np.ndarray)
    }
    state = np.concatenate([np.ravel(observation[vector.key]) for vector in robot.state])
    return Frame(
        exchange.received_ns, images, state.astype(np.float32), reply["actions"][0].astype(np.float32)
    )


def _pixels(image: npt.NDArray[Any], channels_first: bool) -> npt.NDArray[np.uint8]:
    if channels_first or image.shape[0] == 3:
        image = np.moveaxis(image, 0, -1)
    if image.dtype != np.uint8:
        image = np.rint(np.nan_to_num(np.clip(image, 0.0, 1.0)) * 255).astype(np.uint8)
    return np.ascontiguousarray(image)
