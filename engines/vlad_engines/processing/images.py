"""Robot images to model images: number format, layout, and resizing with the aspect ratio kept."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image


def channels_last(image: npt.NDArray[Any], layout: Literal["hwc_or_chw", "chw"]) -> npt.NDArray[Any]:
    """View an image as `[H, W, 3]`.

    `hwc_or_chw` takes a first axis of 3 for channels, as openpi's LIBERO and DROID policies do.
    """
    if layout == "chw" or image.shape[0] == 3:
        return np.moveaxis(image, 0, -1)
    return image


def check_float_range(image: npt.NDArray[Any]) -> None:
    """Refuse float images that would not fit into uint8, such as 0..255 floats or NaN.

    Raises:
        ValueError: says which values came.
    """
    low, high = float(image.min()), float(image.max())
    # Slight overshoot of a float resize is harmless: 255 * x is truncated towards zero.
    if not (low * 255 > -1 and high * 255 < 256):
        raise ValueError(f"float values from {low:g} to {high:g}")


def to_uint8(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Bring an image to uint8; floats in 0..1 become `255 * x`, truncated, as in openpi.

    Raises:
        ValueError: for floats that do not fit.
    """
    if image.dtype.kind != "f":
        return image.astype(np.uint8, copy=False)
    check_float_range(image)
    return (255 * image).astype(np.uint8)


def to_unit_float(image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Bring an image to float32 in 0..1.

    Raises:
        ValueError: for floats that do not lie there.
    """
    if image.dtype.kind == "f":
        check_float_range(image)
        unit: npt.NDArray[np.float32] = np.clip(image, 0, 1).astype(np.float32)
    else:
        unit = np.divide(image, np.float32(255), dtype=np.float32)
    return unit


def resize_with_pad(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize `[H, W, 3]` uint8 as the openpi client and server do: Pillow's bilinear, black borders.

    Pillow widens the filter when it shrinks an image, so this antialiases.
    """
    if image.shape[:2] == (height, width):
        return image
    new_height, new_width = _fitting_size(image, height, width)
    resized = Image.fromarray(image).resize((new_width, new_height), resample=Image.Resampling.BILINEAR)
    canvas = np.zeros((height, width, 3), np.uint8)
    _paste(canvas, np.asarray(resized))
    return canvas


def resize_with_pad_bilinear(
    image: npt.NDArray[np.float32], height: int, width: int
) -> npt.NDArray[np.float32]:
    """Resize `[H, W, 3]` float32 in 0..1 as LeRobot does: bilinear without antialiasing, zero borders.

    Sampling points are those of `torch.nn.functional.interpolate(align_corners=False)`.
    """
    if image.shape[:2] == (height, width):
        return image
    new_height, new_width = _fitting_size(image, height, width)
    resized = _sample(_sample(image, new_height, axis=0), new_width, axis=1)
    canvas = np.zeros((height, width, 3), np.float32)
    _paste(canvas, np.clip(resized, 0, 1))
    return canvas


def _fitting_size(image: npt.NDArray[Any], height: int, width: int) -> tuple[int, int]:
    ratio = max(image.shape[1] / width, image.shape[0] / height)
    # At least one pixel, where an extreme aspect ratio would leave none.
    return max(1, int(image.shape[0] / ratio)), max(1, int(image.shape[1] / ratio))


def _paste(canvas: npt.NDArray[Any], image: npt.NDArray[Any]) -> None:
    """Centre `image`; an odd spare pixel goes to the bottom or right."""
    top, left = ((full - part) // 2 for full, part in zip(canvas.shape[:2], image.shape[:2], strict=True))
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image


def _sample(image: npt.NDArray[np.float32], size: int, axis: int) -> npt.NDArray[np.float32]:
    old_size = image.shape[axis]
    scale = np.float32(old_size) / np.float32(size)
    position = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    position = np.maximum(position, np.float32(0))
    low = np.minimum(position.astype(np.int64), old_size - 1)
    high = np.minimum(low + 1, old_size - 1)
    weight = np.expand_dims(position - low.astype(np.float32), axis=tuple({0, 1, 2} - {axis}))
    blended: npt.NDArray[np.float32] = image.take(low, axis) * (1 - weight) + image.take(high, axis) * weight
    return blended
