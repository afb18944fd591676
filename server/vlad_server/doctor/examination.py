"""What can be seen of an observation: pure logic, no clock, no socket, a tenth of a millisecond.

Requests that cannot be used are refused by `Environment.check`. What is found here is served all the same:
it is legal, and most likely a mistake.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.environments import Camera, Environment, prompt_text

KINDS = (
    *("image_black", "image_flat", "image_levels", "image_small", "image_frozen"),
    *("images_identical", "channels_swapped"),
    *("state_zero", "state_frozen", "state_out_of_range"),
    *("observation_frozen", "prompt_empty", "prompt_cut"),
)

THUMBNAIL_SIDE = 28
"""Images are judged by every n-th row and column, about so many of each."""

BLACK_LEVEL = 12
"""Of 255: nothing in the picture is brighter."""

FLAT_LEVELS = 2
"""Of 255: between the darkest and the brightest value of each channel."""

SMALL_SIDE = 112
"""Half of what the model sees: smaller images are enlarged more than twofold."""

FROZEN_AFTER = 30
"""Examined observations in a row without a change."""

BLUE_CAST = 12.0
BLUE_CAST_AFTER = 8
"""Levels of 255 by which blue outshines red in the mean of so many pictures. Wood, skin, cardboard and lamps
are redder than they are blue; a blue table is not, so this is a suspicion."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is probably wrong.

    Attributes:
        kind: one of `KINDS`.
        key: request key that it is about.
        text: what was seen, and what to look at.
    """

    kind: str
    key: str
    text: str


class History:
    """What earlier observations of the same robot looked like; a kilobyte per camera."""

    def __init__(self) -> None:
        self.pictures: dict[str, int] = {}
        self.same_pictures: collections.Counter[str] = collections.Counter()
        self.state: bytes | None = None
        self.same_state = 0
        self.blue_cast: dict[str, tuple[float, int]] = {}


def examine(robot: Environment, observation: Mapping[str, Any], history: History) -> list[Finding]:
    """Look at an observation that `robot.check` has passed.

    Args:
        history: of this robot; brought up to date.
    """
    findings: list[Finding] = []
    fingerprints: dict[str, int] = {}
    for camera, image in _images(robot, observation):
        thumbnail = _thumbnail(image, camera)
        findings += _picture_findings(camera.key, image, thumbnail)
        if not findings or findings[-1].key != camera.key:
            findings += _colour_findings(camera.key, thumbnail, history)
        fingerprints[camera.key] = hash(thumbnail.tobytes())
    findings += _identical(fingerprints, {finding.key for finding in findings})
    findings += _state_findings(robot, observation)
    findings += _frozen(robot, observation, fingerprints, history)
    if "prompt" in observation and not prompt_text(observation["prompt"]).strip():
        findings.append(Finding("prompt_empty", "prompt", "the instruction is empty"))
    return findings


def notes_of_policy(robot: Environment, notes: Mapping[str, Any]) -> list[Finding]:
    """What the policy's processing saw, which alone knows norm statistics and tokens.

    Args:
        notes: `cut_tokens`, how many tokens did not fit; `state_outside`, pairs of an index in the state and
            its normalised value. Either may be missing.
    """
    findings = []
    if cut := notes.get("cut_tokens"):
        text = f"the last {cut} tokens do not fit the model and are cut; shorten the instruction"
        findings.append(Finding("prompt_cut", "prompt", text))
    keys = [f"{vector.key}[{index}]" for vector in robot.state for index in range(vector.width)]
    for index, value in notes.get("state_outside", ()):
        text = (
            f"far outside what the policy was trained on: {value:.3g} once normalised, usual is -1 to 1; "
            "look at units, joint order and norm stats"
        )
        findings.append(Finding("state_out_of_range", keys[index], text))
    return findings


def _images(robot: Environment, observation: Mapping[str, Any]) -> Iterator[tuple[Camera, npt.NDArray[Any]]]:
    for camera in robot.cameras:
        value: Any = observation
        for part in camera.path:
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, np.ndarray) and camera.slot is not None:
            yield camera, value


def _thumbnail(image: npt.NDArray[Any], camera: Camera) -> npt.NDArray[np.uint8]:
    """`[3, pixels]` in levels of 0..255: with channels first, reductions cost a fifth."""
    if camera.layout != "chw" and image.shape[0] != 3:
        image = image.transpose(2, 0, 1)
    rows = max(1, image.shape[1] // THUMBNAIL_SIDE)
    columns = max(1, image.shape[2] // THUMBNAIL_SIDE)
    pixels = image[:, ::rows, ::columns].reshape(3, -1)
    if pixels.dtype == np.uint8:
        return pixels
    levels: npt.NDArray[np.uint8] = (np.nan_to_num(np.clip(pixels, 0.0, 1.0)) * 255).astype(np.uint8)
    return levels


def _picture_findings(key: str, image: npt.NDArray[Any], thumbnail: npt.NDArray[np.uint8]) -> list[Finding]:
    low, high = np.minimum.reduce(thumbnail, axis=1), np.maximum.reduce(thumbnail, axis=1)
    brightest = int(high.max())
    if brightest == 1 and image.dtype == np.uint8:
        text = "only the levels 0 and 1 occur: a float image in 0..1 that was cast to uint8 without scaling"
        return [Finding("image_levels", key, text)]
    if brightest <= BLACK_LEVEL:
        return [Finding("image_black", key, "the picture is black: lens cap, exposure, or no frame yet")]
    if int((high - low).max()) <= FLAT_LEVELS:
        text = f"one colour everywhere ({', '.join(str(level) for level in high.tolist())}): no real picture"
        return [Finding("image_flat", key, text)]
    height, width = sorted(image.shape)[-2:]
    if min(height, width) < SMALL_SIDE:
        text = f"{height} pixels on its shorter side, enlarged to 224: the policy sees a blur"
        return [Finding("image_small", key, text)]
    return []


def _colour_findings(key: str, thumbnail: npt.NDArray[np.uint8], history: History) -> list[Finding]:
    red, _, blue = np.add.reduce(thumbnail, axis=1, dtype=np.int64).tolist()
    mean, count = history.blue_cast.get(key, (0.0, 0))
    count += 1
    mean += ((blue - red) / thumbnail.shape[1] - mean) / min(count, 4 * BLUE_CAST_AFTER)
    history.blue_cast[key] = (mean, count)
    if count < BLUE_CAST_AFTER or mean < BLUE_CAST:
        return []
    text = (
        f"blue outshines red by {mean:.0f} of 255 levels on average: red and blue may be swapped "
        "(OpenCV delivers BGR, policies want RGB)"
    )
    return [Finding("channels_swapped", key, text)]


def _identical(fingerprints: Mapping[str, int], known_bad: set[str]) -> list[Finding]:
    seen: dict[int, str] = {}
    for key, fingerprint in fingerprints.items():
        if key in known_bad:
            continue
        if fingerprint in seen:
            text = f"the same picture as {seen[fingerprint]}: is one camera wired to both?"
            return [Finding("images_identical", key, text)]
        seen[fingerprint] = key
    return []


def _state_findings(robot: Environment, observation: Mapping[str, Any]) -> list[Finding]:
    if not any(np.any(observation[vector.key]) for vector in robot.state):
        keys = ", ".join(vector.key for vector in robot.state)
        return [Finding("state_zero", keys, "all numbers are 0: is the state filled in?")]
    return []


def _frozen(
    robot: Environment, observation: Mapping[str, Any], fingerprints: Mapping[str, int], history: History
) -> list[Finding]:
    state = b"".join(np.asarray(observation[vector.key]).tobytes() for vector in robot.state)
    history.same_state = history.same_state + 1 if state == history.state else 0
    history.state = state
    for key, fingerprint in fingerprints.items():
        is_same = history.pictures.get(key) == fingerprint
        history.same_pictures[key] = history.same_pictures[key] + 1 if is_same else 0
        history.pictures[key] = fingerprint
    return _frozen_findings(
        ", ".join(vector.key for vector in robot.state),
        history.same_state,
        {key: history.same_pictures[key] for key in fingerprints},
    )


def _frozen_findings(state_key: str, same_state: int, same_pictures: Mapping[str, int]) -> list[Finding]:
    frozen: Sequence[str] = [key for key, count in same_pictures.items() if count >= FROZEN_AFTER]
    if same_state >= FROZEN_AFTER and len(frozen) == len(same_pictures):
        text = f"nothing has changed in {FROZEN_AFTER} observations: is an old one sent again and again?"
        return [Finding("observation_frozen", "", text)]
    findings = [
        Finding("image_frozen", key, f"the same picture {FROZEN_AFTER} times, while the rest changes")
        for key in frozen
    ]
    if same_state >= FROZEN_AFTER:
        text = f"the same numbers {FROZEN_AFTER} times while pictures change; fine for a robot at rest"
        findings.append(Finding("state_frozen", state_key, text))
    return findings
