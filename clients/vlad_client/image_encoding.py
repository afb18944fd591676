"""Images as JPEG or PNG inside an observation, for links that are too thin for raw ones.

A raw 224 x 224 image is 150 kB. PNG is exact; JPEG is smaller still and changes the pixels, and with
them the actions, a little. Needs Pillow.
"""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np

from vlad_client.capabilities import ServerCapabilities
from vlad_client.errors import PolicyConnectionError

ENCODINGS = ("jpeg", "png")
DEFAULT_QUALITY = 90


@dataclasses.dataclass(frozen=True)
class ImageEncoder:
    """Replaces the images of an observation by maps of `encoding` and `data`.

    Attributes:
        encoding: `jpeg` or `png`.
        quality: of JPEG, 1 to 100; None for 90. Colours keep their full resolution whatever the quality.

    Raises:
        ValueError: for other encodings and qualities, and for a quality of PNG, which loses nothing.
        ImportError: if Pillow is not installed.
    """

    encoding: str
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(f"image_encoding must be one of {', '.join(ENCODINGS)}, not {self.encoding!r}")
        if self.quality is not None:
            if self.encoding != "jpeg":
                raise ValueError(f"quality belongs to image_encoding='jpeg', not to {self.encoding!r}")
            if isinstance(self.quality, bool) or self.quality not in range(1, 101):
                raise ValueError(f"quality must be an integer from 1 to 100, not {self.quality!r}")
        _pillow()

    def encode(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Copy `observation` with every image in it, at any depth of maps, encoded.

        An array of three axes of which the first or the last has length 3 is an image; it is encoded
        with its channels last. All other values are passed on as they are.

        Raises:
            ValueError: for an image that is not uint8, naming its key.
        """
        return {key: self._encode_value(value, str(key)) for key, value in observation.items()}

    def _encode_value(self, value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {key: self._encode_value(item, f"{path}/{key}") for key, item in value.items()}
        if not isinstance(value, np.ndarray) or value.ndim != 3 or 3 not in (value.shape[0], value.shape[2]):
            return value
        if value.dtype != np.uint8:
            raise ValueError(
                f"key '{path}': only uint8 images can be encoded as {self.encoding}, received "
                f"{value.dtype} of shape {value.shape}; see image_tools.convert_to_uint8"
            )
        # Servers take a first axis of 3 for channels, whatever the last one is.
        pixels = np.moveaxis(value, 0, -1) if value.shape[0] == 3 else value
        return {"encoding": self.encoding, "data": self._compress(pixels)}

    def _compress(self, pixels: np.ndarray[Any, Any]) -> bytes:
        options: dict[str, Any] = {"format": "PNG", "compress_level": 1}
        if self.encoding == "jpeg":
            quality = DEFAULT_QUALITY if self.quality is None else self.quality
            options = {"format": "JPEG", "quality": quality, "subsampling": 0}
        buffer = io.BytesIO()
        _pillow().fromarray(np.ascontiguousarray(pixels)).save(buffer, **options)
        return buffer.getvalue()

    def check_server(self, uri: str, capabilities: ServerCapabilities | None) -> None:
        """Refuse a server that does not take such images.

        Raises:
            PolicyConnectionError: names what it takes.
        """
        offered = () if capabilities is None else capabilities.image_encodings
        if self.encoding not in offered:
            alternatives = ", ".join(offered) or "plain arrays only"
            raise PolicyConnectionError(
                f"{uri} takes no {self.encoding} images, but {alternatives}", retryable=False
            )


def image_encoder(encoding: str | None, quality: int | None) -> ImageEncoder | None:
    """The encoder for a client's options; None for plain arrays.

    Raises:
        ValueError, ImportError: as `ImageEncoder`; also for a quality without an encoding.
    """
    if encoding is not None:
        return ImageEncoder(encoding, quality)
    if quality is not None:
        raise ValueError("quality belongs to image_encoding='jpeg', which was not asked for")
    return None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("image_encoding needs Pillow: pip install 'vlad-client[images]'") from None
    return Image
