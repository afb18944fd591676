from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlad_client.image_encoding import ImageEncoder, image_encoder


def _image(*shape: int) -> np.ndarray[Any, Any]:
    y, x, channel = np.ogrid[:48, :64, :3]
    smooth = (2 * x + 3 * y + 40 * channel) % 256
    return np.moveaxis(smooth, -1, 0).astype(np.uint8) if shape == (3,) else smooth.astype(np.uint8)


def _decode(value: dict[str, Any]) -> np.ndarray[Any, Any]:
    picture = Image.open(io.BytesIO(value["data"]))
    assert picture.format == value["encoding"].upper()
    return np.asarray(picture)


def test_png_keeps_every_bit_at_any_depth() -> None:
    observation = {"images": {"cam_high": _image(3)}, "observation/image": _image()}
    encoded = ImageEncoder("png").encode(observation)
    np.testing.assert_array_equal(_decode(encoded["images"]["cam_high"]), _image())
    np.testing.assert_array_equal(_decode(encoded["observation/image"]), _image())


def test_the_observation_itself_is_left_alone() -> None:
    observation = {"images": {"cam_high": _image(3)}}
    ImageEncoder("png").encode(observation)
    assert observation["images"]["cam_high"].shape == (3, 48, 64)


def test_jpeg_is_smaller_at_lower_quality_and_close() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    high, low = (ImageEncoder("jpeg", quality).encode({"i": pixels})["i"] for quality in (95, 50))
    assert len(low["data"]) < len(high["data"])
    error = np.abs(_decode(high).astype(int) - pixels).mean()
    assert error < np.abs(_decode(low).astype(int) - pixels).mean()
    assert error < 8


def test_colours_are_not_subsampled() -> None:
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0] = 255
    decoded = _decode(ImageEncoder("jpeg", 95).encode({"i": stripes})["i"])
    assert np.abs(decoded.astype(int) - stripes).max() < 16


def test_everything_that_is_no_image_is_passed_on() -> None:
    observation = {
        "observation/state": np.arange(8.0),
        "matrix": np.zeros((3, 3)),
        "depth": np.zeros((48, 64), np.float32),
        "stack": np.zeros((2, 48, 64, 3), np.uint8),
        "prompt": "pick up the bowl",
        "n": 3,
    }
    encoded = ImageEncoder("jpeg").encode(observation)
    assert encoded.keys() == observation.keys()
    assert all(encoded[key] is value for key, value in observation.items())


def test_float_images_are_refused_with_their_key() -> None:
    with pytest.raises(ValueError, match=r"key 'images/cam_high': only uint8 images .* received float32"):
        ImageEncoder("jpeg").encode({"images": {"cam_high": np.zeros((3, 48, 64), np.float32)}})


@pytest.mark.parametrize(
    ("encoding", "quality", "complaint"),
    [
        ("webp", None, "must be one of jpeg, png, not 'webp'"),
        ("jpeg", 0, "from 1 to 100, not 0"),
        ("jpeg", 101, "from 1 to 100, not 101"),
        ("jpeg", True, "from 1 to 100, not True"),
        ("png", 90, "quality belongs to image_encoding='jpeg', not to 'png'"),
        (None, 90, "which was not asked for"),
    ],
)
def test_contradictory_options_are_refused(encoding: Any, quality: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        image_encoder(encoding, quality)


def test_plain_arrays_are_the_default() -> None:
    assert image_encoder(None, None) is None


def test_a_missing_pillow_is_told_when_the_option_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'vlad-client\[images\]'"):
        ImageEncoder("jpeg")
