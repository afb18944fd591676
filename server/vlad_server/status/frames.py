"""Camera frames for the status page: small copies on the event loop, JPEG on a thread. Pure functions."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlad_configs.environments import Camera, Environment

MAX_SIDE = 320
"""Pixels that are copied at most on a side; larger images are thinned, not averaged, which costs nothing."""

JPEG_QUALITY = 80


def thumbnails(observation: Mapping[str, Any], environment: Environment) -> dict[str, npt.NDArray[np.uint8]]:
    """Small copies of the images of a checked observation, by camera key; uint8 `[h, w, 3]`."""
    frames: dict[str, npt.NDArray[np.uint8]] = {}
    for camera in environment.cameras:
        image: Any = observation
        for part in camera.path:
            image = image.get(part) if isinstance(image, Mapping) else None
        if isinstance(image, np.ndarray) and image.ndim == 3:
            frames[camera.key] = _thumbnail(image, camera)
    return frames


def jpeg_url(frame: npt.NDArray[np.uint8]) -> str:
    """A frame as a `data:` URL."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _thumbnail(image: npt.NDArray[Any], camera: Camera) -> npt.NDArray[np.uint8]:
    if camera.layout == "chw" or image.shape[0] == 3:
        image = image.transpose(1, 2, 0)
    stride = -(-max(image.shape[:2]) // MAX_SIDE)
    small = image[::stride, ::stride]
    if small.dtype == np.uint8:
        return np.array(small, order="C")
    finite = np.nan_to_num(small.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    return (255.0 * np.clip(finite, 0.0, 1.0)).astype(np.uint8)
