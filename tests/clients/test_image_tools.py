from __future__ import annotations

import hashlib
import json
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlad_client import image_tools
from vlad_engines.processing import images

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "serving" / "golden_vectors.json"
CASES: list[dict[str, Any]] = json.loads(GOLDEN.read_text())["resize_with_pad"]


def _pattern(height: int, width: int) -> np.ndarray[Any, Any]:
    y, x, channel = np.ogrid[:height, :width, :3]
    return ((7 * x + 13 * y + 31 * channel) % 256).astype(np.uint8)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case["in"])))
def test_resizing_gives_the_pixels_of_openpi(case: dict[str, Any]) -> None:
    resized = image_tools.resize_with_pad(_pattern(*case["in"]), *case["out"])
    for place, pixel in case["px"].items():
        y, x = map(int, place.split(","))
        assert resized[y, x].tolist() == pixel
    assert hashlib.sha256(resized.tobytes()).hexdigest() == case["sha256"]


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    target=st.tuples(st.integers(1, 256), st.integers(1, 256)),
    seed=st.integers(0, 2**32 - 1),
)
@example(size=(480, 640), target=(224, 224), seed=0)
@example(size=(500, 1), target=(8, 8), seed=0)
@example(size=(1, 500), target=(7, 9), seed=0)
@example(size=(225, 224), target=(224, 224), seed=0)
def test_client_and_server_resize_to_the_same_bits(
    size: tuple[int, int], target: tuple[int, int], seed: int
) -> None:
    image = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    resized = image_tools.resize_with_pad(image, *target)
    np.testing.assert_array_equal(resized, images.resize_with_pad(image, *target))


def test_floats_become_the_uint8_that_the_server_would_make_of_them() -> None:
    image = np.random.default_rng(0).random((60, 80, 3), np.float32)
    np.testing.assert_array_equal(image_tools.convert_to_uint8(image), images.to_uint8(image))


def test_leading_axes_are_kept_and_each_image_is_resized_alone() -> None:
    stack = np.stack([[_pattern(60, 80), _pattern(60, 80)[::-1]]] * 3)
    resized = image_tools.resize_with_pad(stack, 32, 48)
    assert resized.shape == (3, 2, 32, 48, 3)
    np.testing.assert_array_equal(resized[2, 1], image_tools.resize_with_pad(stack[2, 1], 32, 48))


def test_grey_images_keep_their_one_channel() -> None:
    image = _pattern(60, 80)
    resized = image_tools.resize_with_pad(image[..., :1], 32, 32)
    np.testing.assert_array_equal(resized, image_tools.resize_with_pad(image, 32, 32)[..., :1])


def test_an_image_of_the_right_size_is_returned_untouched_without_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    image = np.zeros((224, 224, 3), np.float32)
    assert image_tools.resize_with_pad(image, 224, 224) is image


def test_a_missing_pillow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"vlad-client\[images\]"):
        image_tools.resize_with_pad(_pattern(60, 80), 32, 32)


@pytest.mark.parametrize(
    "image", [np.zeros((60, 80)), np.zeros((60, 80, 3), np.float32), np.zeros((3, 60, 80), np.uint8)]
)
def test_other_dtypes_and_layouts_are_refused(image: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"must have shape|can only resize uint8"):
        image_tools.resize_with_pad(image, 32, 32)


def test_floats_become_uint8_by_cutting_off_and_integers_stay() -> None:
    image = np.array([0.0, 0.5, 0.999, 1.0], np.float32)
    assert image_tools.convert_to_uint8(image).tolist() == [0, 127, 254, 255]
    integers = np.array([3, 300])
    assert image_tools.convert_to_uint8(integers) is integers
