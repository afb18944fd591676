"""What Foxglove shows of an exchange: pictures, state, chunk and timings as JSON messages with schemas."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlad_configs.environments import Camera, Environment

JPEG_QUALITY = 90
"""Of the pictures to look at; the request itself is kept as it came."""


def _object(title: str, **properties: Any) -> dict[str, Any]:
    return {"title": title, "type": "object", "properties": properties}


_NUMBERS = {"type": "array", "items": {"type": "number"}}
_TIME = _object("time", sec={"type": "integer"}, nsec={"type": "integer"})

SCHEMAS: Mapping[str, dict[str, Any]] = {
    schema["title"]: schema
    for schema in (
        _object(
            "foxglove.CompressedImage",
            timestamp=_TIME,
            frame_id={"type": "string"},
            data={"type": "string", "contentEncoding": "base64"},
            format={"type": "string"},
        ),
        _object(
            "vlad.Observation",
            number={"type": "integer"},
            prompt={"type": "string"},
            state=_NUMBERS,
        ),
        _object(
            "vlad.ActionChunk",
            number={"type": "integer"},
            first=_NUMBERS,
            actions={"type": "array", "items": _NUMBERS},
        ),
        _object(
            "vlad.Timings", number={"type": "integer"}, server={"type": "object"}, policy={"type": "object"}
        ),
        _object("vlad.Failure", number={"type": "integer"}, error={"type": "string"}),
    )
}
"""JSON schemas by name. The first is one of Foxglove's well-known schemas, which its image panel draws."""


@dataclasses.dataclass(frozen=True)
class ViewMessage:
    """A message to look at. `topic` has no leading slash; `time_ns` is Unix time."""

    topic: str
    schema: str
    time_ns: int
    content: dict[str, Any]

    def to_json(self) -> bytes:
        """The message as JSON."""
        return json.dumps(self.content, separators=(",", ":"), allow_nan=False).encode()


def picture_message(camera: Camera, image: npt.NDArray[Any] | Mapping[str, Any], time_ns: int) -> ViewMessage:
    """A camera image as a compressed picture; one that came compressed stays as it is.

    Args:
        image: of a checked request, `[H, W, 3]` or `[3, H, W]` as the camera has it, or the map of a
            compressed image.
    """
    if isinstance(image, Mapping):
        data, encoding = image["data"], image["encoding"]
    else:
        data, encoding = _jpeg(_pixels(image, camera)), "jpeg"
    content = {
        "timestamp": {"sec": time_ns // 10**9, "nsec": time_ns % 10**9},
        "frame_id": camera.key,
        "data": base64.b64encode(data).decode(),
        "format": encoding,
    }
    return ViewMessage(f"camera/{camera.key}", "foxglove.CompressedImage", time_ns, content)


def pictures_of(
    observation: Mapping[str, Any], robot: Environment
) -> Iterator[tuple[Camera, npt.NDArray[Any] | Mapping[str, Any]]]:
    """The images of a checked request with their cameras."""
    for camera in robot.cameras:
        value: Any = observation
        for part in camera.path:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            yield camera, value


def _pixels(image: npt.NDArray[Any], camera: Camera) -> npt.NDArray[np.uint8]:
    if camera.layout == "chw" or image.shape[0] == 3:
        image = np.moveaxis(image, 0, -1)
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    unit = np.nan_to_num(np.clip(image, 0.0, 1.0))
    pixels: npt.NDArray[np.uint8] = np.rint(unit * 255).astype(np.uint8)
    return pixels


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
