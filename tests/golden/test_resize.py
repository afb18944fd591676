"""Resizing against Pillow and against openpi's in-model routine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from tests.support.golden import Array, load_arrays, require_file
from vlad_engines.processing.images import resize_with_pad, resize_with_pad_bilinear, to_uint8, to_unit_float


@pytest.fixture(scope="module")
def arrays() -> Mapping[str, Array]:
    require_file("resize.npz")
    return load_arrays("resize.npz")


def test_every_image_resizes_to_the_very_bytes_of_the_client(arrays: Mapping[str, Array]) -> None:
    cases = [name.removeprefix("in_") for name in arrays if name.startswith("in_")]
    assert cases
    for case in cases:
        height, width = arrays[f"size_{case}"]
        resized = resize_with_pad(arrays[f"in_{case}"], int(height), int(width))
        np.testing.assert_array_equal(resized, arrays[f"pil_{case}"], err_msg=case)


def test_a_camera_frame_resizes_to_the_very_bytes_of_the_client(arrays: Mapping[str, Array]) -> None:
    height, width = arrays["big_pil"].shape[:2]
    np.testing.assert_array_equal(resize_with_pad(arrays["big_in"], height, width), arrays["big_pil"])
    for image, expected in zip(arrays["batch_in"], arrays["batch_pil"], strict=True):
        np.testing.assert_array_equal(resize_with_pad(image, *expected.shape[:2]), expected)


def test_bilinear_resize_equals_the_torch_routine(arrays: Mapping[str, Array]) -> None:
    for name in [name for name in arrays if name.startswith("torch_f32_")]:
        case = name.removeprefix("torch_f32_")
        height, width = arrays[f"size_{case}"]
        unit = resize_with_pad_bilinear(to_unit_float(arrays[f"in_{case}"]), int(height), int(width))
        np.testing.assert_allclose(unit * 2 - 1, arrays[name], rtol=0, atol=2e-6, err_msg=case)


def test_float_images_are_truncated_to_uint8(arrays: Mapping[str, Array]) -> None:
    np.testing.assert_array_equal(to_uint8(arrays["float_in"]), arrays["float_u8"])
