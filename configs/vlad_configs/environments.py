"""What each robot sends and receives: the environments of the daemon.

Request keys, cameras and widths are those of the openpi policies (LIBERO, DROID, ALOHA); see
`docs/protocol.md`. A new robot is one more `Environment`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from vlad_configs.errors import ObservationError
from vlad_configs.models import CAMERA_SLOTS

MAX_IMAGE_SIDE = 4096
MAX_PROMPT_CHARACTERS = 4096

_NUMBERS = (np.ndarray, np.generic, list, float, int)
"""A tuple, because the union of these types would be made anew for each request."""

StateConversion = Literal["none", "aloha"]


@dataclasses.dataclass(frozen=True)
class Camera:
    """One camera of a robot.

    Attributes:
        path: where the image lies in the request, outermost key first.
        slot: the model's camera slot that it fills; None for a camera that is accepted and not used.
        required: False where the request may leave it out (its slot is then masked).
        layout: `hwc_or_chw` takes both (a first axis of 3 means channels first), `chw` only channels first.
    """

    path: tuple[str, ...]
    slot: str | None
    required: bool = True
    layout: Literal["hwc_or_chw", "chw"] = "hwc_or_chw"

    @property
    def key(self) -> str:
        """The path as error messages write it."""
        return "/".join(self.path)


@dataclasses.dataclass(frozen=True)
class Vector:
    """One vector of numbers in the request; several are concatenated to the state.

    Attributes:
        key: request key.
        width: how many numbers.
        scalar: True where a bare number stands for a vector of one.
    """

    key: str
    width: int
    scalar: bool = False


@dataclasses.dataclass(frozen=True)
class Environment:
    """A robot: what it sends and what it executes.

    Attributes:
        name: as in `--env`.
        cameras: in the order in which checkpoints list them.
        state: the vectors that make the robot state, in order.
        action_width: columns of the chunk that the robot receives.
        conversion: joint conventions to translate between robot and model.
        bytes_prompt: True where the prompt may come as UTF-8 bytes.
        default_config: openpi configuration that `policy:default` serves.
        default_checkpoint: published checkpoint of `policy:default`, a `gs://` location.
    """

    name: str
    cameras: tuple[Camera, ...]
    state: tuple[Vector, ...]
    action_width: int
    conversion: StateConversion
    bytes_prompt: bool
    default_config: str
    default_checkpoint: str

    @property
    def state_width(self) -> int:
        """Numbers in the robot state."""
        return sum(vector.width for vector in self.state)

    @property
    def request_keys(self) -> frozenset[str]:
        """Top-level request keys that the environment reads."""
        return frozenset(
            ["prompt", *(vector.key for vector in self.state), *(camera.path[0] for camera in self.cameras)]
        )

    def check(self, observation: Any, *, prompt_optional: bool) -> None:
        """Refuse a request that this environment cannot use, before any work is spent on it.

        Looks at keys, shapes, dtypes and finiteness of the state; never copies an image.
        Unknown keys are ignored, as openpi does, except unknown cameras beside nested ones.

        Args:
            observation: the decoded request.
            prompt_optional: True where a default prompt exists.

        Raises:
            ObservationError: for the first key at fault.
        """
        if not isinstance(observation, Mapping):
            raise ObservationError("", "a map of observation keys", _describe(observation))
        for vector in self.state:
            _check_vector(observation, vector)
        for parent in self._camera_groups:
            self._check_camera_names(observation, parent)
        for camera in self.cameras:
            _check_camera(observation, camera)
        _check_prompt(observation, optional=prompt_optional, bytes_allowed=self.bytes_prompt)

    def optional_cameras(self, observation: Mapping[str, Any]) -> tuple[str, ...]:
        """Which of the model's cameras that may be absent a checked request has."""
        return tuple(camera.key for camera in self._optional_cameras if _has(observation, camera))

    @functools.cached_property
    def _optional_cameras(self) -> tuple[Camera, ...]:
        return tuple(camera for camera in self.cameras if not camera.required and camera.slot is not None)

    @functools.cached_property
    def _camera_groups(self) -> list[str]:
        return sorted({camera.path[0] for camera in self.cameras if len(camera.path) > 1})

    def _check_camera_names(self, observation: Mapping[str, Any], parent: str) -> None:
        group = observation.get(parent)
        known = [camera.path[-1] for camera in self.cameras if camera.path[0] == parent]
        if not isinstance(group, Mapping):
            raise ObservationError(
                parent, f"a map of cameras ({', '.join(known)})", _describe_at(observation, parent)
            )
        unknown = [str(name) for name in group if name not in known]
        if unknown:
            raise ObservationError(
                f"{parent}/{unknown[0]}", f"one of the cameras {', '.join(known)}", "another name"
            )


def _has(observation: Mapping[str, Any], camera: Camera) -> bool:
    group: Any = observation
    for part in camera.path[:-1]:
        group = group[part]
    return camera.path[-1] in group


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {tuple(value.shape)}"
    if isinstance(value, str | bytes):
        return f"{type(value).__name__} of length {len(value)}"
    if isinstance(value, Mapping):
        keys = ", ".join(repr(str(key)[:64]) for key in list(value)[:8])
        return f"a map with keys {keys or '(none)'}"
    return f"{type(value).__name__}"


def _describe_at(observation: Mapping[str, Any], key: str) -> str:
    if key in observation:
        return _describe(observation[key])
    return f"nothing ({_describe(observation)})"


def _check_vector(observation: Mapping[str, Any], vector: Vector) -> None:
    expected = f"{vector.width} finite numbers"
    value = observation.get(vector.key)
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise ObservationError(vector.key, expected, _describe_at(observation, vector.key))
    try:
        array = np.asarray(value)
    except ValueError:
        raise ObservationError(vector.key, expected, "a ragged list") from None
    shape_fits = array.shape == (vector.width,) or (vector.scalar and array.shape == ())
    if array.dtype.kind not in "fiu" or not shape_fits:
        raise ObservationError(vector.key, expected, _describe(array))
    # On eight numbers, Python's own loop is several times faster than two calls of numpy.
    if not all(map(math.isfinite, array.ravel().tolist())):
        raise ObservationError(
            vector.key, expected, f"non-finite values at index {np.flatnonzero(~np.isfinite(array)).tolist()}"
        )


def _check_camera(observation: Mapping[str, Any], camera: Camera) -> None:
    group: Any = observation
    for part in camera.path[:-1]:
        group = group[part]
    if camera.path[-1] not in group:
        if camera.required:
            raise ObservationError(camera.key, _expected_image(camera), f"nothing ({_describe(group)})")
        return
    image = group[camera.path[-1]]
    if (
        not isinstance(image, np.ndarray)
        or image.ndim != 3
        or not (image.dtype == np.uint8 or image.dtype.kind == "f")
    ):
        raise ObservationError(camera.key, _expected_image(camera), _describe(image))
    channels_first = camera.layout == "chw" or image.shape[0] == 3
    height, width, channels = (
        (image.shape[1], image.shape[2], image.shape[0]) if channels_first else image.shape
    )
    if channels != 3 or not (1 <= height <= MAX_IMAGE_SIDE and 1 <= width <= MAX_IMAGE_SIDE):
        raise ObservationError(camera.key, _expected_image(camera), _describe(image))


def _expected_image(camera: Camera) -> str:
    layout = "channels-first [3, H, W]" if camera.layout == "chw" else "[H, W, 3] (or [3, H, W])"
    return f"a {layout} image, uint8 in 0..255 or float in 0..1, sides at most {MAX_IMAGE_SIDE}"


def _check_prompt(observation: Mapping[str, Any], *, optional: bool, bytes_allowed: bool) -> None:
    expected = f"a text of at most {MAX_PROMPT_CHARACTERS} characters"
    prompt = observation.get("prompt")
    if "prompt" not in observation:
        if optional:
            return
        raise ObservationError("prompt", f"{expected} (this policy has no default prompt)", "nothing")
    try:
        text = prompt_text(prompt)
    except ValueError:
        raise ObservationError("prompt", expected, _describe(prompt)) from None
    if isinstance(prompt, bytes) and not bytes_allowed:
        raise ObservationError("prompt", expected, _describe(prompt))
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise ObservationError("prompt", expected, f"{len(text)} characters")


def prompt_text(prompt: Any) -> str:
    """The prompt of a request as a str.

    Args:
        prompt: str, UTF-8 bytes, or a numpy string array with one element.

    Raises:
        ValueError: for anything else, or bytes that are not UTF-8.
    """
    if isinstance(prompt, np.ndarray | np.generic):
        if prompt.dtype.kind not in "US" or prompt.size != 1:
            raise ValueError("not a single string")
        prompt = prompt.item()
    if isinstance(prompt, bytes):
        return prompt.decode("utf-8")
    if not isinstance(prompt, str):
        raise ValueError("not a string")
    return prompt


def _aloha(name: str, default_config: str, default_checkpoint: str) -> Environment:
    return Environment(
        name=name,
        cameras=(
            Camera(("images", "cam_high"), CAMERA_SLOTS[0], layout="chw"),
            Camera(("images", "cam_left_wrist"), CAMERA_SLOTS[1], required=False, layout="chw"),
            Camera(("images", "cam_right_wrist"), CAMERA_SLOTS[2], required=False, layout="chw"),
            Camera(("images", "cam_low"), None, required=False, layout="chw"),
        ),
        state=(Vector("state", 14),),
        action_width=14,
        conversion="aloha",
        bytes_prompt=False,
        default_config=default_config,
        default_checkpoint=default_checkpoint,
    )


_PUBLISHED = "gs://openpi-assets/checkpoints/"

ENVIRONMENTS: Mapping[str, Environment] = {
    "LIBERO": Environment(
        name="LIBERO",
        cameras=(
            Camera(("observation/image",), CAMERA_SLOTS[0]),
            Camera(("observation/wrist_image",), CAMERA_SLOTS[1]),
        ),
        state=(Vector("observation/state", 8),),
        action_width=7,
        conversion="none",
        bytes_prompt=False,
        default_config="pi05_libero",
        default_checkpoint=_PUBLISHED + "pi05_libero",
    ),
    "DROID": Environment(
        name="DROID",
        cameras=(
            Camera(("observation/exterior_image_1_left",), CAMERA_SLOTS[0]),
            Camera(("observation/wrist_image_left",), CAMERA_SLOTS[1]),
        ),
        state=(
            Vector("observation/joint_position", 7),
            Vector("observation/gripper_position", 1, scalar=True),
        ),
        action_width=8,
        conversion="none",
        bytes_prompt=True,
        default_config="pi05_droid",
        default_checkpoint=_PUBLISHED + "pi05_droid",
    ),
    "ALOHA": _aloha("ALOHA", "pi05_aloha", _PUBLISHED + "pi05_base"),
    "ALOHA_SIM": _aloha("ALOHA_SIM", "pi0_aloha_sim", _PUBLISHED + "pi0_aloha_sim"),
}
