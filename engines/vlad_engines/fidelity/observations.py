"""The fixed observations and noise of the check: drawn by code, or recorded ones from a file."""

from __future__ import annotations

import dataclasses
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.contract import Contract
from vlad_configs.environments import Environment
from vlad_configs.errors import ConfigError
from vlad_configs.models import IMAGE_SIZE, ModelConfig
from vlad_engines.processing.model_inputs import ModelInputs
from vlad_engines.processing.processor import Processor

MAX_RECORDED = 64
"""Of a recording; ranges of activations and errors of actions have settled long before."""

DEFAULT_OBSERVATIONS = 4
"""Enough for every prompt length below and, where a robot may leave a camera out, for that too."""

_PROMPTS = (
    "pick up the cup",
    "put the black bowl in the top drawer of the cabinet and close it",
    "open the drawer",
    "take the red block from the left side of the table, place it beside the plate and wipe the table",
)

_REST_STATES: Mapping[str, tuple[float, ...]] = {
    "LIBERO": (-0.06, 0.04, 1.1, 3.13, 0.0, -0.02, 0.03, -0.03),
    "DROID": (0.0, -0.63, 0.0, -2.51, 0.0, 1.88, 0.0, 0.5),
    "ALOHA": (0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.5) * 2,
    "ALOHA_SIM": (0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.5) * 2,
}
"""Where each robot usually begins, so that normalised states are as large as in real use."""

_JITTER = 0.03


@dataclasses.dataclass(frozen=True)
class FidelityCase:
    """One request of the check. `noise` is `[action_horizon, action_dim]`."""

    inputs: ModelInputs
    noise: npt.NDArray[np.float32]


def make_cases(
    processor: Processor, model: ModelConfig, observations: Sequence[Mapping[str, Any]]
) -> tuple[FidelityCase, ...]:
    """Process observations and give each its own fixed noise.

    Raises:
        ObservationError: for an observation that the processor refuses.
    """
    shape = (model.action_horizon, model.action_dim)
    return tuple(
        FidelityCase(
            processor.prepare(observation),
            np.random.Generator(np.random.PCG64(index)).standard_normal(shape, dtype=np.float32),
        )
        for index, observation in enumerate(observations)
    )


def synthetic_observations(
    environment: Environment, count: int = DEFAULT_OBSERVATIONS
) -> tuple[dict[str, Any], ...]:
    """Requests of a robot, always the same: pictures with structure, states near rest, four prompt lengths.

    Where the robot may leave cameras out, every second observation does.
    """
    return tuple(_observation(environment, index) for index in range(count))


def fitting_observations(
    processor: Processor, contract: Contract, count: int = DEFAULT_OBSERVATIONS
) -> tuple[dict[str, Any], ...]:
    """`synthetic_observations`, with prompts of fewer words where the model has no room for all of them."""
    observations = synthetic_observations(contract.environment, count)
    for observation in observations:
        words = observation["prompt"].split()
        while len(words) > 1 and processor.count_tokens(observation) > contract.model.max_token_len:
            words.pop()
            observation["prompt"] = " ".join(words)
    return observations


def calibration_observations(
    path: str | None, processor: Processor, contract: Contract
) -> tuple[dict[str, Any], ...]:
    """What `fp8` is calibrated with: recorded requests, or else drawn ones that the check does not use."""
    if path is not None:
        return recorded_observations(path, contract.environment)
    return fitting_observations(processor, contract, 3 * DEFAULT_OBSERVATIONS)[DEFAULT_OBSERVATIONS:]


def calibration_inputs(
    processor: Processor, contract: Contract, path: str | None = None
) -> tuple[ModelInputs, ...]:
    """`calibration_observations` as the network takes them.

    Raises:
        ConfigError: for a file that cannot be read, or holds nothing of this robot.
        ObservationError: for an observation that the processor refuses.
    """
    return tuple(map(processor.prepare, calibration_observations(path, processor, contract)))


def recorded_observations(path: str | pathlib.Path, environment: Environment) -> tuple[dict[str, Any], ...]:
    """Read observations from a recording of the daemon or from a npz file.

    Args:
        path: a `.mcap` file of `serve_policy --record`, of which at most `MAX_RECORDED` requests are taken,
            spread evenly over it. Or a npz file, all of it: one array per request key, nested keys joined
            with a slash, with one row per observation. The last part of a key is enough where it is
            unique: `image` stands for `observation/image`.

    Raises:
        ConfigError: for a file that is unreadable, or lacks a key that the robot requires.
    """
    if pathlib.Path(path).suffix == ".mcap":
        from vlad_server.recordings.reader import recorded_requests

        return recorded_requests(path, environment, MAX_RECORDED)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is not a readable npz file: {error}") from error
    columns: dict[tuple[str, ...], npt.NDArray[Any]] = {}
    missing = []
    paths = [(camera.path, camera.required) for camera in environment.cameras]
    paths += [((vector.key,), True) for vector in environment.state] + [(("prompt",), True)]
    for key, required in paths:
        full = "/".join(key)
        name = next((name for name in (full, full.rpartition("/")[2]) if name in arrays), None)
        if name is not None:
            columns[key] = arrays[name]
        elif required:
            missing.append(full)
    if missing:
        raise ConfigError(
            f"{path} lacks {', '.join(missing)} of {environment.name}; "
            f"it holds {', '.join(arrays) or 'nothing'}"
        )
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1 or not min(lengths):
        raise ConfigError(f"{path}: arrays must have one row per observation, they have {sorted(lengths)}")
    return tuple(_row(columns, index) for index in range(lengths.pop()))


def _row(columns: Mapping[tuple[str, ...], npt.NDArray[Any]], index: int) -> dict[str, Any]:
    observation: dict[str, Any] = {}
    for key, column in columns.items():
        _put(observation, key, str(column[index]) if key == ("prompt",) else column[index])
    return observation


def _observation(environment: Environment, index: int) -> dict[str, Any]:
    random = np.random.Generator(np.random.PCG64([zlib.crc32(environment.name.encode()), index]))
    observation: dict[str, Any] = {"prompt": _PROMPTS[index % len(_PROMPTS)]}
    rest = np.array(_REST_STATES[environment.name])
    state = rest + _JITTER * random.uniform(-1.0, 1.0, rest.shape)
    offset = 0
    for vector in environment.state:
        observation[vector.key] = state[offset : offset + vector.width]
        offset += vector.width
    for camera in environment.cameras:
        picture = _picture(random)
        if camera.required or index % 2 == 0:
            image = np.moveaxis(picture, -1, 0) if camera.layout == "chw" else picture
            _put(observation, camera.path, np.ascontiguousarray(image))
    return observation


def _picture(random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A lit table with a few coloured boxes and discs on it, and some camera noise."""
    rows, columns = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] / IMAGE_SIZE
    light = 0.5 + 0.35 * np.sin(3.0 * rows + random.uniform(0, 6)) * np.cos(2.0 * columns)
    picture = light[..., None] * random.uniform(0.5, 1.0, 3)
    for index in range(6):
        row, column = random.uniform(0.1, 0.9, 2)
        size = random.uniform(0.05, 0.2)
        if index % 2:
            inside = (rows - row) ** 2 + (columns - column) ** 2 < size**2
        else:
            inside = (abs(rows - row) < size) & (abs(columns - column) < size / 2)
        picture[inside] = random.uniform(0.0, 1.0, 3) * light[inside][:, None]
    picture += 0.02 * random.standard_normal(picture.shape)
    pixels: npt.NDArray[np.uint8] = (np.clip(picture, 0.0, 1.0) * 255).astype(np.uint8)
    return pixels


def _put(observation: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *parents, last = path
    for parent in parents:
        observation = observation.setdefault(parent, {})
    observation[last] = value
