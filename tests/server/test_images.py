"""Compressed images: what is accepted, what is refused, and what is never even decoded."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ObservationError
from vlad_server.images import decode_images, has_encoded_images

LIBERO = ENVIRONMENTS["LIBERO"]
MAX_BYTES = 4 << 20
PIXELS = np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8)


def _encoded(pixels: np.ndarray[Any, Any], format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


PNG = _encoded(PIXELS, "PNG")
TRANSPARENT = _encoded(np.zeros((4, 4, 4), np.uint8), "PNG")


def _decode(encoding: Any, data: Any, robot: str = "LIBERO") -> Any:
    observation = {"observation/image": {"encoding": encoding, "data": data}, "prompt": "x"}
    return decode_images(observation, ENVIRONMENTS[robot], max_bytes=MAX_BYTES)["observation/image"]


def test_png_gives_every_pixel_back() -> None:
    np.testing.assert_array_equal(_decode("png", PNG), PIXELS)


def test_jpeg_gives_what_pillow_gives() -> None:
    data = _encoded(PIXELS, "JPEG", quality=90)
    np.testing.assert_array_equal(_decode("jpeg", data), np.asarray(Image.open(io.BytesIO(data))))


def test_grey_images_get_three_channels() -> None:
    grey = PIXELS[:, :, 0]
    np.testing.assert_array_equal(_decode("png", _encoded(grey, "PNG")), np.stack([grey] * 3, axis=-1))


def test_channels_come_first_where_the_robot_has_them_first() -> None:
    aloha = ENVIRONMENTS["ALOHA"]
    observation = {"images": {"cam_high": {"encoding": "png", "data": PNG}, "cam_low": PIXELS}, "state": 1}
    decoded = decode_images(observation, aloha, max_bytes=MAX_BYTES)
    np.testing.assert_array_equal(decoded["images"]["cam_high"], PIXELS.transpose(2, 0, 1))
    assert decoded["images"]["cam_low"] is PIXELS
    assert isinstance(observation["images"]["cam_high"], dict)


def test_arrays_are_left_alone() -> None:
    assert not has_encoded_images({"observation/image": PIXELS}, LIBERO)
    assert has_encoded_images({"observation/wrist_image": {}}, LIBERO)
    assert not has_encoded_images({"images": {"cam_high": PIXELS}}, ENVIRONMENTS["ALOHA"])


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + block(b"IHDR", header)
        + block(b"IDAT", zlib.compress(b""))
        + block(b"IEND", b"")
    )


REFUSED = {
    "unknown encoding": ("webp", PNG, "'observation/image/encoding'", "one of jpeg, png"),
    "no encoding": (5, PNG, "'observation/image/encoding'", "int 5"),
    "no bytes": ("png", "text", "'observation/image/data'", "str"),
    "nothing": ("png", None, "'observation/image/data'", "NoneType"),
    "another format": ("jpeg", PNG, "'observation/image/data'", "a jpeg image"),
    "garbage": ("png", b"garbage", "'observation/image/data'", "7 bytes"),
    "cut off": ("png", PNG[: len(PNG) // 2], "'observation/image/data'", "complete PNG"),
    "too wide": ("png", _png_header(5000, 10), "'observation/image/data'", "5000x10"),
    "a bomb": ("png", _png_header(200_000, 200_000), "'observation/image/data'", "image"),
    "transparent": (
        "png",
        _encoded(np.zeros((4, 4, 4), np.uint8), "PNG"),
        "'observation/image/data'",
        "mode RGBA",
    ),
}


@pytest.mark.parametrize(("encoding", "data", "key", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_by_name(encoding: Any, data: Any, key: str, words: str) -> None:
    with pytest.raises(ObservationError) as caught:
        _decode(encoding, data)
    assert key in str(caught.value)
    assert words in str(caught.value)


def test_images_too_large_together_are_refused_before_any_is_decoded() -> None:
    image = {"encoding": "png", "data": _png_header(1000, 1000)}
    observation = {"observation/image": image, "observation/wrist_image": image}
    tracemalloc.start()
    try:
        with pytest.raises(ObservationError, match="6000000 bytes"):
            decode_images(observation, LIBERO, max_bytes=MAX_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=200), st.integers(0, len(PNG)), st.sampled_from(["png", "jpeg"]))
@settings(max_examples=200, deadline=None)
def test_hostile_bytes_are_an_image_or_an_observation_error(junk: bytes, place: int, encoding: str) -> None:
    for data in (junk, PNG[:place] + junk + PNG[place + len(junk) :]):
        try:
            pixels = _decode(encoding, data)
        except ObservationError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
