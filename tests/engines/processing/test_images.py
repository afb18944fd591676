from __future__ import annotations

import numpy as np
import pytest

from vlad_engines.processing.images import (
    channels_last,
    resize_with_pad,
    resize_with_pad_bilinear,
    to_uint8,
    to_unit_float,
)


def test_only_a_first_axis_of_three_counts_as_channels() -> None:
    assert channels_last(np.zeros((3, 5, 7)), "hwc_or_chw").shape == (5, 7, 3)
    assert channels_last(np.zeros((5, 7, 3)), "hwc_or_chw").shape == (5, 7, 3)
    assert channels_last(np.zeros((3, 5, 7)), "chw").shape == (5, 7, 3)


@pytest.mark.parametrize("convert", [to_uint8, to_unit_float])
@pytest.mark.parametrize("value", [255.0, 1.01, -0.01, np.nan, np.inf])
def test_floats_outside_zero_to_one_are_refused(convert: object, value: float) -> None:
    image = np.full((4, 4, 3), 0.5, np.float32)
    image[1, 2, 0] = value
    with pytest.raises(ValueError, match="float values from"):
        convert(image)  # type: ignore[operator]


def test_the_overshoot_of_a_float_resize_is_accepted() -> None:
    image = np.array([[[-1e-6, 0.5, 1.000001]]], np.float32)
    assert to_uint8(image).tolist() == [[[0, 127, 255]]]
    assert to_unit_float(image).tolist() == [[[0.0, 0.5, 1.0]]]


def test_an_image_of_the_right_size_is_passed_through() -> None:
    image = np.zeros((224, 224, 3), np.uint8)
    assert resize_with_pad(image, 224, 224) is image


@pytest.mark.parametrize("shape", [(2000, 1, 3), (1, 2000, 3)])
def test_extreme_aspect_ratios_keep_at_least_one_pixel(shape: tuple[int, int, int]) -> None:
    image = np.full(shape, 200, np.uint8)
    resized = resize_with_pad(image, 224, 224)
    assert resized.shape == (224, 224, 3)
    assert 0 < (resized > 0).any(axis=-1).sum() <= 224
    assert resize_with_pad_bilinear(to_unit_float(image), 224, 224).max() > 0.7


def test_borders_are_black_and_the_odd_pixel_goes_to_the_end() -> None:
    resized = resize_with_pad(np.full((10, 9, 3), 255, np.uint8), 10, 10)
    assert (resized[:, 9] == 0).all()
    assert (resized[:, :9] == 255).all()


def test_read_only_images_are_resized_and_left_alone() -> None:
    image = np.random.default_rng(0).integers(256, size=(3, 20, 30), dtype=np.uint8)
    image.flags.writeable = False
    before = image.copy()
    resize_with_pad(to_uint8(channels_last(image, "chw")), 224, 224)
    np.testing.assert_array_equal(image, before)
