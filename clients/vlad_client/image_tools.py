"""Camera images as the policy wants them: small, square, uint8. Results are openpi's, bit for bit.

Resizing before sending keeps the request small: 150 kB an image instead of megabytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def convert_to_uint8(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Convert an image of floats in 0..1 to uint8 in 0..255, cutting off fractions; pass others on."""
    if np.issubdtype(image.dtype, np.floating):
        return (255 * image).astype(np.uint8)
    return image


def resize_with_pad(images: np.ndarray[Any, Any], height: int, width: int) -> np.ndarray[Any, Any]:
    """Resize without distortion, bilinear and antialiased, and pad with black on both sides.

    Args:
        images: uint8 of shape [..., H, W, C] with 1, 3 or 4 channels.

    Returns:
        uint8 of shape [..., height, width, C]; `images` itself where it has that size already.

    Raises:
        ValueError: for other dtypes and shapes.
        ImportError: if a resize is needed and Pillow is not installed.
    """
    if images.ndim < 3:
        raise ValueError(f"images must have shape [..., H, W, C], not {images.shape}")
    if images.shape[-3:-1] == (height, width):
        return images
    if images.dtype != np.uint8 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"can only resize uint8 images with 1, 3 or 4 channels last, "
            f"not {images.dtype} of shape {images.shape}; see convert_to_uint8"
        )
    flat = images.reshape(-1, *images.shape[-3:])
    resized = np.zeros((len(flat), height, width, images.shape[-1]), np.uint8)
    for canvas, image in zip(resized, flat):  # noqa: B905 - zip(strict=) needs Python 3.10
        _resize_onto(canvas, image)
    return resized.reshape(*images.shape[:-3], *resized.shape[1:])


def _resize_onto(canvas: np.ndarray[Any, Any], image: np.ndarray[Any, Any]) -> None:
    """Resize `image` to the largest size that fits the black `canvas`, and paste it in the middle."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            "resizing images needs Pillow: pip install 'vlad-client[images]'; "
            "images that have the right size already do not need it"
        ) from None

    ratio = max(image.shape[1] / canvas.shape[1], image.shape[0] / canvas.shape[0])
    # At least one pixel, where an extreme aspect ratio would leave none.
    height, width = max(1, int(image.shape[0] / ratio)), max(1, int(image.shape[1] / ratio))
    top, left = int((canvas.shape[0] - height) / 2), int((canvas.shape[1] - width) / 2)
    single = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if single else image)
    pixels = np.asarray(picture.resize((width, height), resample=Image.Resampling.BILINEAR))
    canvas[top : top + height, left : left + width] = pixels[..., None] if single else pixels
