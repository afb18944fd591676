"""Images to the rows of the patch embedding's matrix product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _extract_patches(
    image_ptr,
    patch_ptr,
    SIZE: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK: tl.constexpr,
    FROM_BYTES: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    grid: tl.constexpr = SIZE // PATCH
    length: tl.constexpr = 3 * PATCH * PATCH
    image = token // (grid * grid)
    patch_row = (token // grid) % grid
    patch_column = token % grid
    entry = tl.arange(0, BLOCK)
    inside = entry < length
    channel = entry // (PATCH * PATCH)
    y = patch_row * PATCH + (entry // PATCH) % PATCH
    x = patch_column * PATCH + entry % PATCH
    pixel = tl.load(image_ptr + ((image * SIZE + y) * SIZE + x) * 3 + channel, mask=inside, other=0)
    value = pixel.to(tl.float32)
    if FROM_BYTES:
        value = value / 255.0 * 2.0 - 1.0
    tl.store(patch_ptr + token * length + entry, value, mask=inside)


def extract_patches(images: torch.Tensor, patches: torch.Tensor, patch_size: int) -> None:
    """Cut images into patches, channel by channel as the embedding's weights want them.

    Args:
        images: `[C, size, size, 3]`, uint8 in 0..255 (mapped to -1..1 here) or float32 in -1..1.
        patches: `[C * (size / patch_size)^2, 3 * patch_size^2]` float32.
    """
    rows, length = patches.shape
    _extract_patches[(rows,)](
        images,
        patches,
        SIZE=images.shape[1],
        PATCH=patch_size,
        BLOCK=triton.next_power_of_2(length),
        FROM_BYTES=images.dtype == torch.uint8,
        num_warps=4,
    )
