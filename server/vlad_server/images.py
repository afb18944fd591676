"""Images that come compressed: limits checked from their headers, decoded by threads of their own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlad_configs.environments import MAX_IMAGE_SIDE, Camera, Environment
from vlad_configs.errors import ObservationError

ENCODINGS = {"jpeg": "JPEG", "png": "PNG"}
"""By their name in requests, Pillow's names of the formats that are understood. No other is ever tried."""

DECODING_THREADS = 2

_MODES = {"RGB": 3, "L": 1}
"""Colour and grey images with 8 bits per channel, and their bytes per pixel."""


def has_encoded_images(observation: Mapping[str, Any], robot: Environment) -> bool:
    """True where one of the robot's images comes compressed: as a map in the place of an array."""
    for camera in robot.cameras:  # noqa: SIM110 - any() costs twice as much, for each request
        if type(_at(observation, camera)) is dict:
            return True
    return False


def decode_images(observation: Mapping[str, Any], robot: Environment, *, max_bytes: int) -> dict[str, Any]:
    """The observation with arrays in the place of its compressed images, in the layout of each camera.

    No image is decoded before the headers of all of them have been found to be within the limits.

    Args:
        max_bytes: of all of them together, once decoded.

    Raises:
        ObservationError: for an image that is not what it says, broken, or too large.
    """
    opened = {
        camera: _open(camera.key, value)
        for camera in robot.cameras
        if isinstance(value := _at(observation, camera), dict)
    }
    total = sum(image.width * image.height * 3 for image in opened.values())
    if total > max_bytes:
        key = next(iter(opened)).key
        raise ObservationError(key, f"images of at most {max_bytes} bytes once decoded", f"{total} bytes")
    decoded = dict(observation)
    for camera, image in opened.items():
        array = _pixels(camera.key, image)
        _put(decoded, camera, array.transpose(2, 0, 1) if camera.layout == "chw" else array)
    return decoded


class ImageDecoder:
    """Runs `decode_images` beside the event loop.

    Args:
        max_bytes: of the images of one observation together, once decoded.
    """

    def __init__(self, robot: Environment, max_bytes: int) -> None:
        self._robot = robot
        self._max_bytes = max_bytes
        self._threads = concurrent.futures.ThreadPoolExecutor(DECODING_THREADS, "images")

    def submit(
        self, observation: Mapping[str, Any], on_done: Callable[[dict[str, Any] | Exception], None]
    ) -> None:
        """Decode an observation's images; `on_done` gets it, or the error, on the event loop."""
        loop = asyncio.get_running_loop()

        def work() -> None:
            result: dict[str, Any] | Exception
            try:
                result = decode_images(observation, self._robot, max_bytes=self._max_bytes)
            except Exception as error:
                result = error
            loop.call_soon_threadsafe(on_done, result)

        self._threads.submit(work)

    def close(self) -> None:
        """Finish what is being decoded, and stop."""
        self._threads.shutdown(cancel_futures=True)


def _open(key: str, value: Mapping[str, Any]) -> Image.Image:
    encoding, data = value.get("encoding"), value.get("data")
    if not isinstance(encoding, str) or encoding not in ENCODINGS:
        received = f"{type(encoding).__name__} {encoding!r:.64}"
        raise ObservationError(f"{key}/encoding", f"one of {', '.join(ENCODINGS)}", received)
    if not isinstance(data, bytes):
        raise ObservationError(f"{key}/data", "bytes", type(data).__name__)
    try:
        image = Image.open(io.BytesIO(data), formats=[ENCODINGS[encoding]])
    except Exception as error:
        raise ObservationError(f"{key}/data", f"a {encoding} image", _reason(data, error)) from None
    if image.width > MAX_IMAGE_SIDE or image.height > MAX_IMAGE_SIDE:
        received = f"{image.width}x{image.height}"
        raise ObservationError(f"{key}/data", f"an image with sides of at most {MAX_IMAGE_SIDE}", received)
    if image.mode not in _MODES:
        expected = "8 bits of red, green and blue, or of grey"
        raise ObservationError(f"{key}/data", expected, f"mode {image.mode}")
    return image


def _pixels(key: str, image: Image.Image) -> npt.NDArray[np.uint8]:
    try:
        return np.asarray(image.convert("RGB"))
    except Exception as error:
        # Pillow raises many types for broken data; each of them is the sender's mistake.
        reason = f"{type(error).__name__}: {error}"
        raise ObservationError(f"{key}/data", f"a complete {image.format} image", reason[:256]) from None


def _reason(data: bytes, error: Exception) -> str:
    return f"{len(data)} bytes that are none ({type(error).__name__})"


def _at(observation: Mapping[str, Any], camera: Camera) -> Any:
    value = observation.get(camera.path[0])
    for name in camera.path[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _put(observation: dict[str, Any], camera: Camera, array: npt.NDArray[np.uint8]) -> None:
    *parents, name = camera.path
    target = observation
    for parent in parents:
        target[parent] = target = dict(target[parent])
    target[name] = array
